"""The JavaScript client: its own tests in Node, with a real server, and its package.

Needs node and npm with a package registry; skipped without.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.js_cases import all_cases
from tests.support.js_client import PACKAGE, build, context, node, serving
from tests.support.nginx import relay
from tests.support.servers import ROOT, Server

pytestmark = pytest.mark.slow

MAX_BUNDLE_BYTES = 60 << 10
PAGES = (ROOT / "docs" / "javascript.md", PACKAGE / "README.md")
EXAMPLE = re.compile(r"```js\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
EXAMPLES = [item for page in PAGES for item in EXAMPLE.findall(page.read_text())]
# What the pages say that a reader has.
GIVEN = """
const { token, identity, identityMlDsa, trusted: release } = JSON.parse(
  process.env.SERVER,
);
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("js"))


@pytest.fixture(scope="module")
def server(
    pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with serving(pristine, tmp_path_factory.mktemp("js-server")) as started:
        yield started


def test_vectors_and_bad_input(package: Path, tmp_path: Path) -> None:
    vectors = tmp_path / "vectors.json"
    vectors.write_text(json.dumps(all_cases(tmp_path)))
    shared = str(ROOT.parent / "shared" / "data")
    files = tuple(f"test/{name}.test.js" for name in ("vectors", "unit", "hostile"))
    out = node(package, "--test", *files, VECTORS=str(vectors), SHARED=shared)
    assert "# fail 0" in out
    assert int(re.findall(r"# pass (\d+)", out)[0]) >= 70


def test_against_the_server_and_through_a_relay(
    package: Path, server: Server, tmp_path: Path
) -> None:
    with relay(tmp_path, server.url) as url:
        variables = context(server, relay=url)
        out = node(package, "--test", "test/server.test.js", **variables)
    assert "# fail 0" in out
    assert "# skipped 0" in out


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == sum(page.read_text().count("```js\n") for page in PAGES)
    assert len(EXAMPLES) >= 6


@pytest.fixture(scope="module")
def variables(server: Server) -> Mapping[str, str]:
    return context(server)


@pytest.mark.parametrize(("source", "printed"), EXAMPLES)
def test_an_example_says_what_its_page_says(
    package: Path,
    server: Server,
    variables: Mapping[str, str],
    source: str,
    printed: str,
) -> None:
    asked = source.replace("https://models.example", server.url)
    # Inside the package its name is what others call it by.
    (package / "example.mjs").write_text(GIVEN + asked)
    assert node(package, "example.mjs", **variables) == printed


def test_the_bundle_is_small(package: Path) -> None:
    bundle = (package / "dist" / "sealgate.min.js").read_bytes()
    assert len(gzip.compress(bundle, 9)) <= MAX_BUNDLE_BYTES


def test_what_is_packed(package: Path) -> None:
    described = json.loads((package / "package.json").read_text())
    for entry in described["exports"].values():
        for path in entry.values():
            assert (package / path).is_file()
    assert described["type"] == "module"


def test_npm_pack_builds_and_takes_nothing_else(package: Path, tmp_path: Path) -> None:
    """From a checkout in which nothing was built, or something old was."""
    checkout = tmp_path / "clients" / "js"
    shutil.copytree(package, checkout, symlinks=True)
    (checkout / "dist" / "old.js").write_text("")
    (checkout / "notes.txt").write_text("")
    shutil.copy(ROOT / "LICENSE", tmp_path)
    subprocess.run(
        ["npm", "pack", "--silent", "--offline"],
        check=True,
        cwd=checkout,
        capture_output=True,
        timeout=120,
    )
    with tarfile.open(next(checkout.glob("*.tgz"))) as packed:
        names = {name.removeprefix("package/") for name in packed.getnames()}
    modules = {path.stem for path in (PACKAGE / "src").glob("*.ts")}
    assert names == {
        *("LICENSE", "README.md", "package.json", "dist/sealgate.min.js"),
        *(f"dist/{name}{kind}" for name in modules for kind in (".js", ".d.ts")),
    }


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((PACKAGE / "package-lock.json").read_text())
    packages = {path: item for path, item in lock["packages"].items() if path}
    assert packages
    for path, item in packages.items():
        assert "resolved" not in item, path
        assert item["integrity"].startswith("sha512-"), path
