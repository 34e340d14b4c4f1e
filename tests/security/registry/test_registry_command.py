"""`python -m security push`, `pull` and `verify` of what was pushed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.bundle import VERDICT_FILE, read_bundle
from security.registry.transfer import open_store, push
from tests.conftest import TAG, contents, run_security, toy_settings
from tests.support.bundles import Keys, write_bundle
from tests.support.in_process import security_result
from tests.support.registries import registry


@pytest.fixture
def home(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "home"))


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def run(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_security(home, *map(str, arguments), **toy_settings(home))


def done(home: Path, *arguments: object) -> str:
    result = run(home, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def failed(result: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    assert result.returncode == code, result.stdout + result.stderr
    lines = [x for x in result.stderr.splitlines() if " s so far" not in x]
    assert len(lines) == 1, result.stderr
    assert message in lines[0]


def test_there_and_back(home: Path, umask: int, spool: Path) -> None:
    """The digest is of what is in the bundle, not of how it lies here."""
    layout, bundle, out = home / "layout", home / "bundle", home / "out" / "toy"
    written = done(home, "push", bundle, f"oci:{layout}").splitlines()
    assert written[0] == f"pushed {TAG} to oci:{layout}:1.0.0"
    for path in bundle.rglob("*"):
        os.utime(path, (umask, umask))
    again = done(home, "push", bundle, f"oci:{home}/other").splitlines()
    assert again[1].rpartition("@")[2] == written[1].rpartition("@")[2]
    pulled = done(home, "pull", written[1], "--out", out)
    assert pulled.startswith(f"verified {TAG}  root sha256:")
    assert pulled.splitlines()[-1] == f"{written[1]} pulled in {out}"
    assert read_bundle(out) == read_bundle(bundle)
    assert os.stat(out).st_mode & 0o777 == 0o777 & ~umask
    assert list(out.parent.iterdir()) == [out]
    before = contents(out)
    assert "is in" in done(home, "pull", f"oci:{layout}", "--out", out)
    assert contents(out) == before
    assert not list(spool.iterdir())


def test_verify_leaves_nothing(home: Path, spool: Path) -> None:
    layout = f"oci:{home}/layout:mp"
    pushed = done(home, "push", home / "bundle", layout, "--artifact", "modelpack")
    before = contents(home)
    for source in (layout, pushed.splitlines()[1]):
        result = security_result(home, "verify", source, extra=toy_settings(home))
        assert result.returncode == 0, result.stderr
        last = result.stdout.splitlines()[-1]
        assert last == f"read from {pushed.splitlines()[1]}"
    assert contents(home) == before
    assert not list(spool.iterdir())


def test_what_the_gate_refuses_is_neither_pushed_nor_pulled(home: Path) -> None:
    layout, out = home / "layout", home / "out"
    other = write_bundle(home / "strangers", Keys.generate())
    failed(run(home, "push", other, f"oci:{layout}"), 1, "refused: ")
    (home / "bundle" / VERDICT_FILE).unlink()
    failed(run(home, "push", home / "bundle", f"oci:{layout}"), 1, "verdict")
    assert not layout.exists()
    # Somebody else pushes them all the same.
    for name, bundle in (("a", other), ("b", home / "bundle")):
        with open_store(f"oci:{layout}", environ={}) as store:
            push(read_bundle(bundle), store, form="image", tag=name)
        source = f"oci:{layout}:{name}"
        failed(run(home, "pull", source, "--out", out), 1, "refused: ")
        assert {p.name for p in home.iterdir()} & {"out", ".out"} == set()
        assert not list(home.glob(".out*"))
        result = security_result(home, "verify", source, extra=toy_settings(home))
        failed(result, 1, "refused: ")


def test_nothing_is_overwritten(home: Path, tmp_path: Path) -> None:
    layout, out = f"oci:{home}/layout", tmp_path / "out"
    done(home, "push", home / "bundle", layout)
    out.mkdir()
    (out / "mine").write_text("x")
    failed(run(home, "pull", layout, "--out", out), 1, "and is not this bundle")
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_an_image_that_lost_its_attestations(home: Path, tmp_path: Path) -> None:
    """Copies of an artifact leave referrers behind: seen, not verified without them."""
    layout = home / "layout"
    done(home, "push", home / "bundle", f"oci:{layout}", "--artifact", "modelpack")
    verdict = (home / "bundle" / VERDICT_FILE).read_bytes()
    for blob in (layout / "blobs" / "sha256").iterdir():
        if blob.read_bytes() == verdict:
            blob.unlink()
    failed(
        run(home, "pull", f"oci:{layout}", "--out", tmp_path / "out"), 2, "No such file"
    )


def test_wrong_usage_is_one_line(home: Path) -> None:
    bundle, out = home / "bundle", home / "out"
    with registry(auth="basic") as server:
        name = f"{server.host}/toy"
        for arguments, code, message in (
            (("push", bundle, "toy:1.0.0"), 2, "expected oci:FOLDER"),
            (("push", bundle, "ghcr.io/a/b"), 2, "name a tag or a digest"),
            (("push", bundle, "oci:x@sha256:" + "0" * 64), 2, "a digest is what comes"),
            (("push", home, f"oci:{home}/layout"), 1, "refused: "),
            (("push", bundle, "oci:x", "--plain-http"), 2, "is for a registry"),
            (("push", bundle, "ghcr.io/a/b:1", "--plain-http"), 2, "this machine"),
            (("push", bundle, f"{name}:1", "--plain-http"), 2, "asks for a login"),
            (("push", bundle, f"{name}:1", "--ca", "x"), 2, "no file of certificates"),
            (("pull", f"oci:{home}/none", "--out", out), 2, "no OCI layout is there"),
            (("pull", f"{name}:1", "--out", out), 2, "Error"),
        ):
            failed(run(home, *arguments), code, message)
    assert not out.exists()
