"""A Bento holds every module that its server imports, or it would never start."""

from __future__ import annotations

from pathlib import PurePosixPath

import grimp
import pytest
import yaml

from security.admission import contents
from tests.support.servers import ROOT

# Imported where an image that is mounted is read, which a Bento does not do.
NOT_IN_BENTOS = {
    "security/admission/outside/headers.py",
    "security/admission/outside/layers.py",
}
INCLUDED = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]


def lacking(root: str, patterns: list[str]) -> set[str]:
    """The files of what a module imports, even indirectly, that no pattern names."""
    graph = grimp.build_graph("sealgate", "service", "security", "models")
    found = graph.find_upstream_modules(root) | {root}
    paths = {PurePosixPath(*name.split(".")) for name in found}
    files = {
        path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")
        for path in paths
    }
    return {
        str(file)
        for file in files
        if not any(
            file.match(pattern) and len(file.parts) == pattern.count("/") + 1
            for pattern in patterns
        )
    }


@pytest.mark.parametrize(
    "patterns", [INCLUDED, list(contents.ALLOWED_SOURCES)], ids=["included", "allowed"]
)
def test_a_bento_holds_what_its_server_imports(patterns: list[str]) -> None:
    assert lacking("service.app", patterns) == NOT_IN_BENTOS


def test_one_that_is_left_out_is_found() -> None:
    fewer = [name for name in INCLUDED if name != "security/hpke_keys.py"]
    assert lacking("service.app", fewer) == NOT_IN_BENTOS | {"security/hpke_keys.py"}
