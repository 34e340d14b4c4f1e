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
from tests.support.images import Layer, entry, header, records, tar

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
    "Entrypoint": ["/app/bin/python", "-P", "-m", "service", "--host", "0.0.0.0"],
    "Cmd": ["serve", "--timeout-graceful-shutdown", "30"],
    "WorkingDir": "/bento",
}


def test_an_image_of_our_own(tmp_path: Path) -> None:
    assert check_config({"config": OWN}) == "bento"
    before = OWN | {"Entrypoint": ["/app/bin/python", "-m", "bentoml"]}
    assert check_config({"config": before}) == "bento"
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
        ({"Entrypoint": ["/app/bin/python", "-m", "service"]}, "Entrypoint is not"),
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


# What an engine's reader, Go's, sees otherwise than Python's.

_EVIL = f"{PLACE}/src/evil.py".encode()
_LONG = entry(b"././@LongLink", _EVIL + b"\0", kind=b"L")
_PAX = entry(b"pax", records(path="tmp/x"), kind=b"x")
_LATER = entry(b"tmp/x", b"x")
AMBIGUOUS = {
    "prefix of V7": entry(_EVIL, b"e", at={345: b"tmp", 257: bytes(8)}),
    "prefix of star": entry(_EVIL, b"e", at={345: b"tmp", 508: b"tar\0"}),
    "prefix of GNU": entry(_EVIL, b"e", at={345: b"tmp", 257: b"ustar  \0"}),
    "a size behind a zero": header(b"tmp/x", at={124: b"\x00000001000\0"}),
    "for all that follows": entry(b"g", records(path="tmp/x"), kind=b"g")
    + entry(_EVIL, b"e"),
    "a sparse file's name": entry(b"x", records(GNU__sparse__name="tmp/x"), kind=b"x")
    + entry(_EVIL, b"e"),
    "sparse": entry(b"tmp/x", b"", kind=b"S"),
    "sparse, broken": entry(
        b"x", records(GNU__sparse__major="1", GNU__sparse__minor="0"), kind=b"x"
    )
    + entry(_EVIL, b"e"),
    "two names": _PAX + _LONG + entry(b"tmp/y", b"e"),
    "two names, turned": _LONG + _PAX + entry(b"tmp/y", b"e"),
    "a name twice": _LONG + _LONG + entry(b"tmp/y", b"e"),
    "no end": _LATER + b"\1" * 512 + entry(_EVIL, b"e"),
    "an extension without end": header(b"x", 2 << 20, kind=b"x"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_archive_that_engines_read_otherwise(tmp_path: Path, name: str) -> None:
    """Clean to the one that looked, and not to the one that runs it."""
    save(tmp_path, LAYER, AMBIGUOUS[name] + bytes(1024))
    refused(tmp_path, "a layer with|a sparse file|cannot be read")


def test_long_names_are_read(tmp_path: Path) -> None:
    target = entry(b"././@LongLink", b"z" * 200 + b"\0", kind=b"K")
    link = header(b"tmp/y", kind=b"2", at={157: b"z"})
    long = entry(b"x", records(path=f"{PLACE}/env/{'y' * 200}"), kind=b"x")
    save(tmp_path, LAYER, target + _LONG + link + long + _LATER + bytes(1024))
    with open_image(tmp_path, None) as (bento, _):
        assert (bento / "src" / "evil.py").is_symlink()
        assert (bento / "env" / ("y" * 200)).read_bytes() == b"x"


OTHER_LETTERS = [
    {**CONFIG, "Config": {"Entrypoint": ["/evil"]}},
    *(
        {"config": CONFIG["config"] | {key: ["/evil"]}}
        for key in ("entrypoint", "CMD", "env", "healthCheck", "u\u017fer")
    ),
]


@pytest.mark.parametrize("document", OTHER_LETTERS)
def test_a_configuration_that_engines_read_otherwise(document: dict[str, Any]) -> None:
    """Go's reader takes a key in other letters, and the last one counts."""
    with pytest.raises(AdmissionRefused, match="can be read in two ways"):
        check_config(document)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("index.json", '{"manifests"', '{"Manifests": [], "manifests"'),
        ("index.json", '[{"digest"', '[{"Digest": "x", "digest"'),
        ("manifest.json", '[{"Config"', '[{"layers": [], "Config"'),
    ],
)
def test_an_index_that_engines_read_otherwise(
    tmp_path: Path, name: str, old: str, new: str
) -> None:
    corrupted(_rewrite(name, old, new))(tmp_path)
    refused(tmp_path, "can be read in two ways")


def test_an_image_that_is_called_an_attestation(tmp_path: Path) -> None:
    """Engines take the one of their platform, whatever is noted about it."""
    save(tmp_path, LAYER, docker=False)
    index = json.loads((tmp_path / "index.json").read_text())
    for platform in ({"architecture": "amd64", "os": "linux"}, None):
        index["manifests"][1]["platform"] = platform
        write_atomic(tmp_path / "index.json", json.dumps(index).encode())
        refused(tmp_path, "2 images, where there must be one")


def test_a_file_system_that_holds_a_saved_image(tmp_path: Path) -> None:
    """A clean one in it was looked at, instead of what the container runs."""
    save(tmp_path, LAYER)
    (tmp_path / "usr").mkdir()
    refused(tmp_path, "usr does not belong in a saved image")


@pytest.mark.parametrize("turned", [False, True])
def test_a_file_in_place_of_a_folder(tmp_path: Path, *, turned: bool) -> None:
    layer: Layer = [(f"{PLACE}/env", b"x"), (f"{PLACE}/env/y", b"y")]
    save(tmp_path, [*LAYER, *(reversed(layer) if turned else layer)])
    if turned:
        with open_image(tmp_path, None) as (bento, _):
            assert (bento / "env").read_bytes() == b"x"
    else:
        refused(tmp_path, "cannot be unpacked")


def test_a_folder_that_becomes_a_file(tmp_path: Path) -> None:
    save(tmp_path, [*LAYER, (f"{PLACE}/env", None), (f"{PLACE}/env", b"x")])
    refused(tmp_path, "cannot be unpacked")
