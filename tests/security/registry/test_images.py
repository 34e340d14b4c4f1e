"""security.registry.images: the same bytes each time; and layers that do harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.bundle import read_bundle
from models.errors import BundleError
from security.registry.documents import MAX_DOCUMENT_BYTES
from security.registry.images import image_of, layer
from security.registry.transfer import pull, push
from tests.support.registries import Memory

FILES = {
    "model.onnx": b"\x08\x07" * 700,
    "manifest.json": b"{}",
    "evidence/quality.json": b'{"a":1}',
    "attestations/verdict.sigstore.json": b"",
}
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
# Of `layer(FILES)`: whoever changes it changes the digest of every bundle.
DIGEST = "426d92ab13d4b63a044fc5279bc7a3b5796d13a9b14bd5e254286d021d8108ef"


def archive(
    *entries: tuple[str, Any], size: int | None = None, form: int = tarfile.USTAR_FORMAT
) -> bytes:
    """Bytes are a file, None a folder, other bytes a type of entry."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as writer:
        for name, what in entries:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                writer.addfile(info, io.BytesIO(what))
                continue
            info.type = tarfile.DIRTYPE if what is None else what.encode()
            info.linkname = "manifest.json" if what in ("1", "2") else ""
            writer.addfile(info)
    return stream.getvalue()


def image(data: bytes, **changes: Any) -> Memory:
    """An image of one layer; changes of its descriptor, and of the rest."""
    store = Memory()
    tar = changes.pop("tar", data)
    diff_ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}"]
    config = {"rootfs": {"type": "layers", "diff_ids": changes.pop("ids", diff_ids)}}
    described = store.add(data, LAYER, **changes.pop("layer", {}))
    manifest = {
        "schemaVersion": 2,
        "config": store.add(json.dumps(config).encode(), CONFIG),
        "layers": [described] * changes.pop("times", 1),
    }
    store.data = json.dumps(manifest | changes).encode()
    return store


def refused(store: Memory, to: Path, message: str) -> None:
    """And nothing is written beside the folder."""
    to.mkdir()
    with pytest.raises(BundleError, match=message):
        pull(store, to)
    assert list(to.parent.iterdir()) == [to]


def test_the_digest_of_equal_files_is_the_same_everywhere() -> None:
    data = b"".join(layer(FILES))
    assert hashlib.sha256(data).hexdigest() == DIGEST
    with tarfile.open(fileobj=io.BytesIO(data)) as reader:
        members = reader.getmembers()
        assert [member.name for member in members] == [
            "models",
            "models/attestations",
            "models/attestations/verdict.sigstore.json",
            "models/evidence",
            "models/evidence/quality.json",
            "models/manifest.json",
            "models/model.onnx",
        ]
        assert {(m.uid, m.gid, m.mtime, m.uname, m.gname) for m in members} == {
            (0, 0, 0, "", "")
        }
        assert {m.mode for m in members} == {0o755, 0o644}
        found = reader.extractfile("models/model.onnx")
        assert found is not None
        assert found.read() == FILES["model.onnx"]


def test_there_and_back(bundle_folder: Path, tmp_path: Path) -> None:
    bundle = read_bundle(bundle_folder)
    store, to = Memory(), tmp_path / "to"
    digest = push(bundle, store, form="image", tag="1")
    assert digest == push(bundle, Memory(), form="image", tag="2")
    to.mkdir()
    assert pull(store, to) == digest
    assert read_bundle(to) == bundle


def test_a_layer_that_was_compressed_on_its_way(
    bundle_folder: Path, tmp_path: Path
) -> None:
    """Registries' clients do that, and keep the configuration."""
    bundle = read_bundle(bundle_folder)
    tar = b"".join(layer(bundle.files))
    for number, kind in enumerate(
        (f"{LAYER}+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip")
    ):
        store = image(gzip.compress(tar), tar=tar, layer={"mediaType": kind})
        to = tmp_path / str(number)
        to.mkdir()
        pull(store, to)
        assert read_bundle(to) == bundle


OK = ("models/manifest.json", b"{}")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        pytest.param([("models/manifest.json", "2")], "files and folders", id="link"),
        pytest.param([OK, ("models/model.sig", "1")], "files and folders", id="hard"),
        pytest.param([("models/model.sig", "3")], "files and folders", id="character"),
        pytest.param([("models/model.sig", "4")], "files and folders", id="block"),
        pytest.param([("models/model.sig", "6")], "files and folders", id="pipe"),
        pytest.param([("models/model.sig", "S")], "files and folders", id="sparse"),
        pytest.param([("models/model.sig", "7")], "files and folders", id="contiguous"),
        pytest.param([("/models/manifest.json", b"")], "outside of", id="absolute"),
        pytest.param([("../models/manifest.json", b"")], "outside of", id="up"),
        pytest.param([("models/../x", b"")], "does not belong", id="through"),
        pytest.param([("models/./manifest.json", b"")], "does not belong", id="dot"),
        pytest.param([("models//manifest.json", b"")], "does not belong", id="slashes"),
        pytest.param([("etc/passwd", b"")], "outside of", id="another"),
        pytest.param([("models", b"")], "does not belong", id="place"),
        pytest.param([OK, ("models/x", b"")], "'x' does not belong", id="unknown"),
        pytest.param([("models/x", None)], "not a bundle's folder", id="folder"),
        pytest.param([("modelsx", None)], "outside of", id="prefix"),
        pytest.param([OK, OK], "manifest.json: twice", id="twice"),
        pytest.param([("models/evidence", b"")], "does not belong", id="file-folder"),
        pytest.param([("models", None)] * 300, "256 entries", id="entries"),
    ],
)
def test_entries_that_do_harm(
    tmp_path: Path, entries: list[tuple[str, Any]], message: str
) -> None:
    refused(image(archive(*entries)), tmp_path / "to", message)


def _pax(name: str, headers: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as writer:
        info = tarfile.TarInfo(name)
        info.pax_headers = headers
        info.size = 2
        writer.addfile(info, io.BytesIO(b"{}"))
    return stream.getvalue()


def _global_pax() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.PAX_FORMAT,
        pax_headers={"path": "models/model.sig"},
    ) as writer:  # fmt: skip
        writer.addfile(tarfile.TarInfo("models/manifest.json"))
    return stream.getvalue()


def _header(**fields: Any) -> bytes:
    """One header without what it promises."""
    info = tarfile.TarInfo("models/manifest.json")
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(
            _pax("models/x", {"path": "../../escaped"}), "files and folders", id="path"
        ),
        pytest.param(
            _pax("models/manifest.json", {"size": "9" * 12}), "files and", id="size"
        ),
        pytest.param(_global_pax(), "files and folders", id="global"),
        pytest.param(
            archive(("models/" + "a" * 200, b""), form=tarfile.GNU_FORMAT),
            "files and folders", id="gnu-name",
        ),
        pytest.param(_header(size=5 << 20), "5242880 bytes, at most", id="large"),
        pytest.param(_header(size=-512), "-512 bytes, at most", id="negative"),
        pytest.param(_header(size=1 << 40), "bytes, at most", id="base-256"),
        pytest.param(_header(size=1000) + b"x", "breaks off", id="broken"),
        pytest.param(_header(size=3) + b"abc", "breaks off", id="unfilled"),
        pytest.param(archive(OK)[:1024], "breaks off", id="endless"),
        pytest.param(b"x" * 512, "no archive", id="no-archive"),
        pytest.param(archive(OK) + archive(OK), "something follows", id="second"),
        pytest.param(archive(OK) + bytes(1 << 17), "something follows", id="padding"),
        pytest.param(b"", "breaks off", id="empty"),
    ],
)  # fmt: skip
def test_archives_that_do_harm(tmp_path: Path, data: bytes, message: str) -> None:
    refused(image(data), tmp_path / "to", message)


def test_a_compressed_layer_that_does_harm(tmp_path: Path) -> None:
    kind = {"mediaType": f"{LAYER}+gzip"}
    tar = archive(OK)
    bomb = zlib.compressobj(9, wbits=31)
    large = _header(size=4 << 20)
    bombed = bomb.compress(large)
    bombed += b"".join(bomb.compress(bytes(1 << 20)) for _ in range(200))
    bombed += bomb.flush()
    for number, (data, message) in enumerate(
        [
            (gzip.compress(tar)[:-9], "breaks off|as it says"),
            (gzip.compress(tar) + gzip.compress(tar), "something follows the compres"),
            (tar, "not compressed as it says"),
            (bombed, "something follows the layer"),
        ]
    ):
        place = tmp_path / str(number)
        place.mkdir()
        refused(image(data, tar=tar, layer=kind), place / "to", message)
    # What it would be unpacked is what the configuration names, or nothing.
    place = tmp_path / "other"
    place.mkdir()
    other = image(gzip.compress(tar), tar=tar + bytes(512), layer=kind)
    refused(other, place / "to", "names another layer")


def _zstd(store: Memory) -> None:
    _edit(store, lambda m: m["layers"][0].update(mediaType=f"{LAYER}+zstd"))


def _edit(store: Memory, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads(store.data)
    change(manifest)
    store.data = json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"times": 2}, "an image of 2 layers"),
        ({"times": 0}, "names no layers"),
        ({"times": 300}, "or more than 256"),
        ({"layer": {"mediaType": f"{LAYER}+zstd"}}, "a layer of type"),
        ({"layer": {"size": 100}}, "other bytes than its digest"),
        ({"layer": {"size": 1 << 20}}, "other bytes than its digest"),
        ({"layer": {"size": 1 << 33}}, "a layer of more than"),
        ({"layer": {"size": -1}}, "no size"),
        ({"layer": {"size": True}}, "no size"),
        ({"layer": {"size": 1 << 50}}, "no size"),
        ({"layer": {"digest": "sha512:" + "0" * 128}}, "no SHA-256 digest"),
        ({"layer": {"digest": "sha256:../../../../etc/passwd"}}, "no SHA-256 digest"),
        ({"layer": {"annotations": {"a": 1}}}, "annotations are no texts"),
        ({"ids": ["sha256:" + "0" * 64]}, "names another layer"),
        ({"ids": []}, "names another layer"),
        ({"manifests": []}, "an index of images"),
        ({"mediaType": "text/plain"}, "of no image"),
        ({"artifactType": "text/plain", "config": None}, "a descriptor is no object"),
    ],
)
def test_images_that_do_harm(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    refused(image(archive(OK), **changes), tmp_path / "to", message)


def test_other_artifacts_are_no_bundles(tmp_path: Path) -> None:
    store = image(archive(OK))
    _edit(store, lambda m: m["config"].update(mediaType="application/vnd.helm.config"))
    refused(store, tmp_path / "to", "'application/vnd.helm.config', which holds no")


def test_documents_that_do_harm(tmp_path: Path) -> None:
    store = image(archive(OK))
    _edit(store, lambda m: m["config"].update(size=MAX_DOCUMENT_BYTES + 1))
    refused(store, tmp_path / "to", "more than 1048576 bytes")
    for data in (b"[]", b"{", b'{"a":1,"a":2}', b" " * (MAX_DOCUMENT_BYTES + 1)):
        with pytest.raises(BundleError, match="the manifest: "):
            pull(Memory(data), tmp_path)


def test_bits_that_changed_are_found(bundle_folder: Path, tmp_path: Path) -> None:
    artifact = image_of(read_bundle(bundle_folder))
    store = Memory(artifact.manifest)
    for blob in artifact.blobs:
        store.put_blob(blob)
    digest = artifact.blobs[1].descriptor.digest
    data = bytearray(store.blobs[digest])
    data[data.index(b"toy")] ^= 1
    store.blobs[digest] = bytes(data)
    (tmp_path / "place").mkdir()
    refused(store, tmp_path / "place" / "to", "other bytes than its digest says")
