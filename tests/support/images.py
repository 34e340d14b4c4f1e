"""Saved images: an OCI layout, and what `docker save` writes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models.files import write_atomic

Layer = list[tuple[str, Any]]


def tar(layer: Layer) -> bytes:
    """Entries: bytes are a file, None a folder, a text what a link points at."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, what in layer:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes):
                info.size = len(what)
                archive.addfile(info, io.BytesIO(what))
            else:
                info.type = tarfile.DIRTYPE if what is None else tarfile.SYMTYPE
                info.linkname = what or ""
                archive.addfile(info)
    return stream.getvalue()


def header(
    name: bytes,
    size: int = 0,
    *,
    kind: bytes = b"0",
    at: Mapping[int, bytes] = MappingProxyType({}),
) -> bytes:
    """One header of an archive, with these bytes at these places, and its sum."""
    block = bytearray(512)
    fields = {
        0: name,
        100: b"0000644",
        108: b"0000000",
        116: b"0000000",
        124: b"%011o" % size,
        136: b"00000000000",
        156: kind,
        257: b"ustar\x0000",
    }
    for start, data in {**fields, **at, 148: b" " * 8}.items():
        block[start : start + len(data)] = data
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry(name: bytes, data: bytes, **options: Any) -> bytes:
    """A file, or an extension, of an archive; `header` says how."""
    return header(name, len(data), **options) + data + bytes(-len(data) % 512)


def records(**values: str) -> bytes:
    """What a pax extension holds; two low lines in a name are a dot."""
    lines = b""
    for name, value in values.items():
        rest = f" {name.replace('__', '.')}={value}\n".encode()
        size = len(rest) + 1
        while len(str(size)) + len(rest) != size:
            size = len(str(size)) + len(rest)
        lines += str(size).encode() + rest
    return lines


def save(
    folder: Path,
    *layers: Layer | bytes,
    config: Mapping[str, Any] = MappingProxyType({}),
    packed: bool = True,
    docker: bool = True,
    oci: bool = True,
) -> Path:
    """An image's folder, as both formats in one, as docker writes it since 25."""

    def blob(data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        write_atomic(folder / "blobs" / "sha256" / digest, data)
        return digest

    tars = [layer if isinstance(layer, bytes) else tar(layer) for layer in layers]
    digests = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in tars]
    whole = {**config} | {"rootfs": {"type": "layers", "diff_ids": digests}}
    config_digest = blob(json.dumps(whole).encode())
    stored = [blob(gzip.compress(data) if packed else data) for data in tars]
    if oci:
        manifest = {
            "config": {"digest": f"sha256:{config_digest}"},
            "layers": [{"digest": f"sha256:{digest}"} for digest in stored],
        }
        entry = {"digest": f"sha256:{blob(json.dumps(manifest).encode())}"}
        note = {
            "digest": "x",
            "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
            "platform": {"architecture": "unknown", "os": "unknown"},
        }
        index = {"manifests": [entry, note]}
        write_atomic(folder / "index.json", json.dumps(index).encode())
        write_atomic(folder / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    if docker:
        image = {
            "Config": f"blobs/sha256/{config_digest}",
            "Layers": [f"blobs/sha256/{digest}" for digest in stored],
        }
        write_atomic(folder / "manifest.json", json.dumps([image]).encode())
    return folder
