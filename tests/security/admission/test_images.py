"""security.admission.outside.image: the Bento that an image runs, and no decoy."""

from __future__ import annotations

import copy
import functools
import gzip
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.files import write_atomic
from security.errors import AdmissionRefused
from tests.support import images
from tests.support.images import Layer, tar

with warnings.catch_warnings():
    # What BentoML imports warns about how BentoML uses it.
    warnings.simplefilter("ignore")
    # It makes its home at import: not in the developer's.
    os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp())
    from security.admission.outside.image import check_config, open_image

PLACE = "home/bentoml/bento"
CONFIG: dict[str, Any] = {
    "config": {
        "Env": [
            "PATH=/app/.venv/bin:/usr/local/bin:/usr/bin:/bin",
            "LANG=C.UTF-8",
            "PYTHON_VERSION=3.11.9",
            f"BENTO_PATH=/{PLACE}",
            "BENTOML_HOME=/home/bentoml/",
            "BENTOML_CONTAINERIZED=true",
            "VIRTUAL_ENV=/app/.venv",
        ],
        "Entrypoint": [f"/{PLACE}/env/docker/entrypoint.sh"],
        "WorkingDir": f"/{PLACE}",
        "User": "bentoml",
    }
}
BENTO = {f"{PLACE}/bento.yaml": b"service: x", f"{PLACE}/src/a.py": b"a"}

Files = dict[str, bytes | None]


def unpacked(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        write_atomic(folder / name, data or b"")
    return folder


def refused(folder: Path, message: str, config: Path | None = None) -> None:
    with (
        pytest.raises(AdmissionRefused, match=message) as caught,
        open_image(folder, config),
    ):
        raise AssertionError("was opened")
    assert caught.value.check == 26


# An unpacked file system.


def test_where_images_have_it(tmp_path: Path) -> None:
    with open_image(unpacked(tmp_path, BENTO), None) as (bento, in_image):
        assert (bento, in_image) == (tmp_path / PLACE, True)
    with open_image(tmp_path / PLACE, None) as (bento, in_image):
        assert (bento, in_image) == (tmp_path / PLACE, False)


@pytest.mark.parametrize(
    "decoy", ["bento.yaml", "opt/app/bento.yaml", f"{PLACE}/src/bento.yaml"]
)
def test_two_bentos_in_one_image(tmp_path: Path, decoy: str) -> None:
    """A clean copy at the root hid the one that the container runs."""
    unpacked(tmp_path, BENTO | {decoy: b"service: x"})
    refused(tmp_path, "2 Bentos in one image: /")


def test_a_second_bento_that_is_a_link(tmp_path: Path) -> None:
    unpacked(tmp_path, BENTO)
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "bento.yaml").symlink_to(f"/{PLACE}/bento.yaml")
    refused(tmp_path, "2 Bentos in one image")


def test_a_bento_at_a_place_of_its_own(tmp_path: Path) -> None:
    unpacked(tmp_path / "rootfs", {"opt/app/bento.yaml": b"x"})
    refused(tmp_path / "rootfs", "the Bento is in opt/app: does the image run that")
    config = copy.deepcopy(CONFIG)
    text = json.dumps(config).replace(PLACE, "opt/app")
    write_atomic(tmp_path / "config.json", f"[{text}]".encode())
    with open_image(tmp_path / "rootfs", tmp_path / "config.json") as (bento, _):
        assert bento == tmp_path / "rootfs" / "opt/app"
    write_atomic(tmp_path / "config.json", json.dumps(CONFIG).encode())
    refused(
        tmp_path / "rootfs",
        f"the image runs /{PLACE}, and its Bento is in /opt/app",
        tmp_path / "config.json",
    )


def test_a_place_that_is_a_link(tmp_path: Path) -> None:
    unpacked(tmp_path / "elsewhere", BENTO)
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "rootfs" / "home").symlink_to(tmp_path / "elsewhere" / "home")
    refused(tmp_path / "rootfs", "holds no Bento")


@pytest.mark.parametrize("data", [b"", b"[]", b"[1,2]", b"{", b'{"a":1,"a":2}'])
def test_a_configuration_that_is_none(tmp_path: Path, data: bytes) -> None:
    unpacked(tmp_path / "rootfs", BENTO)
    write_atomic(tmp_path / "config.json", data)
    refused(tmp_path / "rootfs", "configuration", tmp_path / "config.json")


# What a configuration may say.


def change(**values: Any) -> dict[str, Any]:
    return {"config": CONFIG["config"] | values}


def variables(*more: str, without: str = "-") -> dict[str, Any]:
    kept = [item for item in CONFIG["config"]["Env"] if not item.startswith(without)]
    return change(Env=[*kept, *more])


HOSTILE = [
    ({}, "configuration is missing"),
    (change(Entrypoint=["sh", "-c", "evil"]), "does not start the entrypoint"),
    (change(Entrypoint=[f"/{PLACE}/env/docker/entrypoint.sh", "x"]), "the entrypoint"),
    (change(Entrypoint=["/opt/evil/env/docker/entrypoint.sh"]), "the entrypoint"),
    (change(Entrypoint=None), "does not start the entrypoint"),
    (change(Cmd=["python", "-c", "evil"]), "something else than `serve`"),
    (change(Cmd=["serve", "/opt/evil"]), "something else than `serve`"),
    (change(WorkingDir="/opt/evil"), "works elsewhere"),
    (change(WorkingDir=None), "works elsewhere"),
    (change(Healthcheck={"Test": ["CMD", "evil"]}), "a health check of its own"),
    (change(Env=None), "BENTO_PATH is no path|PATH does not begin"),
    (variables("BENTO_PATH=/opt/evil"), "a variable twice"),
    (variables("BENTO_PATH=/opt/evil", without="BENTO_PATH"), "works elsewhere"),
    (variables("BENTO_PATH=/opt/../evil", without="BENTO_PATH"), "is no path"),
    (variables("BENTO_PATH=/", without="BENTO_PATH"), "is no path"),
    (
        variables("PATH=/evil:/app/.venv/bin:/bin", without="PATH"),
        "PATH does not begin",
    ),
    (variables("BENTOML_HOME=/evil", without="BENTOML_HOME"), "sets BENTOML_HOME"),
    (variables("PYTHONPATH=/evil"), "the image sets PYTHONPATH"),
    (variables("LD_PRELOAD=/evil.so"), "the image sets LD_PRELOAD"),
    (variables("SEALGATE_SEALING_REQUIRE_SEALED=false"), "the image sets SEALGATE_SE"),
    (variables("SEALGATE_ADMISSION_TRUST=/evil"), "the image sets SEALGATE_ADMISSION"),
    (variables("BENTOML_SERVE_COMPONENT=x"), "the image sets BENTOML_SERVE"),
    (variables("PORT=1"), "the image sets PORT"),
    (variables("BASH_ENV=/evil"), "the image sets BASH_ENV"),
]


@pytest.mark.parametrize(("document", "message"), HOSTILE)
def test_an_image_that_runs_something_else(
    document: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdmissionRefused, match=message) as caught:
        check_config(document)
    assert "/evil" not in str(caught.value)  # a value may be a secret


@pytest.mark.parametrize("start", [None, [], ["serve"]])
def test_an_image_as_bentoml_makes_it(start: Any) -> None:
    assert check_config(change(Cmd=start)) == PLACE
    assert check_config({"Config": change()["config"]}) == PLACE


# As deploy/container/Dockerfile has it.

OWN: dict[str, Any] = {
    "User": "10001:10001",
    "Env": [
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "LANG=C.UTF-8",
        "PYTHON_VERSION=3.11.9",
        "BENTOML_DO_NOT_TRACK=True",
        "BENTOML_HOME=/tmp/bentoml",
        "HOME=/tmp",
        "PYTHONDONTWRITEBYTECODE=1",
        "SEALGATE_HOME=/state",
    ],
    "Entrypoint": ["/app/bin/python", "-m", "bentoml"],
    "Cmd": ["serve", "--timeout-graceful-shutdown", "30"],
    "WorkingDir": "/bento",
}


def test_an_image_of_our_own(tmp_path: Path) -> None:
    assert check_config({"config": OWN}) == "bento"
    rootfs = unpacked(tmp_path / "rootfs", {"bento/bento.yaml": b"service: x"})
    write_atomic(tmp_path / "config.json", json.dumps({"config": OWN}).encode())
    for config in (None, tmp_path / "config.json"):
        with open_image(rootfs, config) as (bento, in_image):
            assert (bento, in_image) == (rootfs / "bento", True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"User": "0:0"}, "User is not that of the Dockerfile"),
        ({"User": None}, "User is not"),
        ({"Entrypoint": ["/app/bin/python", "-m", "evil"]}, "Entrypoint is not"),
        ({"Cmd": ["serve", "/opt/evil"]}, "Cmd is not"),
        ({"Cmd": None}, "Cmd is not"),
        ({"Healthcheck": {"Test": ["CMD", "evil"]}}, "a health check of its own"),
        ({"Env": [*OWN["Env"], "PYTHONPATH=/evil"]}, "sets PYTHONPATH"),
        ({"Env": [*OWN["Env"], "BENTO_PATH=/evil"]}, "sets BENTO_PATH"),
        ({"Env": [*OWN["Env"], "HOME=/evil"]}, "a variable twice"),
        ({"Env": OWN["Env"][:-1]}, "does not set SEALGATE_HOME"),
        ({"Env": [*OWN["Env"][:-1], "SEALGATE_HOME=/evil"]}, "sets SEALGATE_HOME"),
        ({"WorkingDir": "/evil"}, "sets BENTOML_DO_NOT_TRACK|BENTO_PATH"),
    ],
)
def test_an_image_of_our_own_that_was_changed(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdmissionRefused, match=message) as caught:
        check_config({"config": OWN | values})
    assert "/evil" not in str(caught.value)


# Saved images: an OCI layout, and what `docker save` writes.

save = functools.partial(images.save, config=CONFIG)
LAYER: Layer = [("home", None), *BENTO.items()]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("docker", "oci"), [(True, True), (True, False), (False, True)]
)
def test_a_saved_image(
    tmp_path: Path, *, packed: bool, docker: bool, oci: bool
) -> None:
    save(tmp_path, LAYER, packed=packed, docker=docker, oci=oci)
    with open_image(tmp_path, None) as (bento, in_image):
        assert in_image
        found = {p.relative_to(bento): p for p in bento.rglob("*") if p.is_file()}
        assert {str(name): path.read_bytes() for name, path in found.items()} == {
            name.removeprefix(f"{PLACE}/"): data for name, data in BENTO.items()
        }


def test_layers_over_layers(tmp_path: Path) -> None:
    """What is replaced, whited out and put back is as the container sees it."""
    save(
        tmp_path,
        [*LAYER, (f"{PLACE}/src/b.py", b"b"), (f"{PLACE}/old/x", b"x")],
        [(f"{PLACE}/src/.wh.b.py", b""), (f"{PLACE}/.wh.old", b"")],
        [(f"./{PLACE}/src/a.py", b"other"), (f"{PLACE}/env/e", b"e")],
        [(f"{PLACE}/env/.wh..wh..opq", b""), (f"{PLACE}/env/new", b"n")],
    )
    with open_image(tmp_path, None) as (bento, _):
        found = {p.relative_to(bento).as_posix() for p in bento.rglob("*.*")}
        assert found == {"bento.yaml", "src/a.py"}
        assert (bento / "src" / "a.py").read_bytes() == b"other"
        assert os.listdir(bento / "env") == ["new"]
        assert not (bento / "old").exists()


def test_a_link_in_the_bento_stays_one(tmp_path: Path) -> None:
    save(tmp_path, [*LAYER, (f"{PLACE}/src/service", "/opt/evil")])
    with open_image(tmp_path, None) as (bento, _):
        assert (bento / "src" / "service").is_symlink()


def corrupted(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save(folder, LAYER)
        change(folder)

    return make


def _rewrite(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        write_atomic(folder / name, text.replace(old, new).encode())

    return change


def _two_meanings(folder: Path) -> None:
    """The one that `docker load` takes is another than the layout's."""
    save(folder, [*LAYER, (f"{PLACE}/src/evil.py", b"evil")], oci=False)
    save(folder, LAYER, docker=False)


def _other_bytes(folder: Path) -> None:
    save(folder, LAYER)
    for path in (folder / "blobs" / "sha256").iterdir():
        if path.read_bytes()[:2] == b"\x1f\x8b":
            path.write_bytes(gzip.compress(tar([*LAYER, ("x", b"x")])))


def _other_document(folder: Path) -> None:
    save(folder, LAYER)
    for path in (folder / "blobs" / "sha256").iterdir():
        if path.read_bytes()[:1] == b"{":
            path.write_bytes(path.read_bytes() + b" ")


BROKEN = {
    "two meanings": (_two_meanings, "name different images"),
    "another layer": (_other_bytes, "not the layer that the configuration names"),
    "another document": (_other_document, "other bytes than its name says"),
    "no index": (corrupted(lambda f: (f / "index.json").write_text("[")), "index.json"),
    "two images": (
        corrupted(lambda f: write_atomic(f / "manifest.json", b"[{},{}]")),
        "expected one image",
    ),
    "no images": (
        corrupted(lambda f: write_atomic(f / "index.json", b'{"manifests":[]}')),
        "0 images",
    ),
    "climbs": (
        corrupted(_rewrite("manifest.json", "blobs/", "../../blobs/")),
        "outside of it|no path",
    ),
    "cut": (
        lambda f: save(f, LAYER) and _cut(f),
        "cannot be read",
    ),
    "two bentos": (
        lambda f: save(f, [*LAYER, ("bento.yaml", b"x")]),
        "2 Bentos in one image",
    ),
    "a hidden one": (
        lambda f: save(f, LAYER, [("opt/bento.yaml", b"x")]),
        "2 Bentos in one image",
    ),
    "none": (lambda f: save(f, [("etc/x", b"x")]), "holds no Bento"),
    "runs another": (
        lambda f: save(f, [("opt/app/bento.yaml", b"x")]),
        "the image runs /home/bentoml/bento, and its Bento is in /opt/app",
    ),
    "through a link": (
        lambda f: save(f, [*LAYER, ("alias", PLACE)], [("alias/src/evil.py", b"e")]),
        "writes through the link alias",
    ),
    "out of the image": (
        lambda f: save(f, [*LAYER, ("../evil", b"e")]),
        "outside of the image",
    ),
    "environment": (
        lambda f: save(f, LAYER, config=variables("PYTHONPATH=/evil")),
        "the image sets PYTHONPATH",
    ),
}


def _cut(folder: Path) -> None:
    for path in (folder / "blobs" / "sha256").iterdir():
        if path.read_bytes()[:2] == b"\x1f\x8b":
            path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("name", BROKEN)
def test_a_saved_image_that_is_refused(tmp_path: Path, name: str) -> None:
    make, message = BROKEN[name]
    make(tmp_path)
    refused(tmp_path, message)


def test_a_saved_image_takes_no_other_configuration(tmp_path: Path) -> None:
    save(tmp_path / "image", LAYER)
    write_atomic(tmp_path / "config.json", json.dumps(CONFIG).encode())
    refused(tmp_path / "image", "of its own", tmp_path / "config.json")
