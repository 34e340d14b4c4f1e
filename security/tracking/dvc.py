"""The digest that DVC has recorded of a file, held to the file.

A record is an output of ``NAME.dvc``, beside the file or beside a folder above it, or
of a ``dvc.lock`` above it. Dependencies in a lock are those of the run before, so they
say nothing of a file that a stage is reading now. A folder's digest is that of a list
of its files, which DVC keeps in its cache.

Formats: https://dvc.org/doc/user-guide/project-structure, files of DVC 3.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import BundleError
from models.files import read_regular
from models.report import Condition
from security.errors import TrackingError, YamlError

__all__ = ["Record", "recorded", "tracked"]

MAX_RECORD_BYTES = 1 << 20
MAX_LIST_BYTES = 64 << 20
_MD5 = re.compile(r"[0-9a-f]{32}(?:\.dir)?")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Record:
    """What DVC has recorded.

    Attributes:
        where: the file that says it, from the root of the DVC project.
        output: what the digest is of: the file, or a folder above it.
        md5: hex digest of its bytes; with ``.dir``, of the list of a folder's files.
        current: the digest is of plain bytes, as DVC 3 computes it.
    """

    where: str
    output: Path
    md5: str
    current: bool


def tracked(path: Path, prefix: str, data: bytes | None = None) -> dict[str, Condition]:
    """What a provenance report says of a file under DVC's control.

    Args:
        path: of the file.
        prefix: of the conditions' names, for instance "model".
        data: the bytes that were read of it; the file is read here, where it is None.

    Returns:
        ``{prefix}_dvc_file``, ``…_dvc_md5`` and ``…_file_sha256`` of the file, and
        ``…_dvc_folder_md5`` where its folder is what DVC tracks; nothing where DVC has
        no record of the file.

    Raises:
        TrackingError: the file is not the one that was recorded, or a record cannot be
            read.
    """
    root = _project(path)
    record = recorded(path)
    if root is None or record is None:
        return {}
    md5, sha256 = _digests(_chunks(path) if data is None else [data])
    listed = record.md5
    stated: dict[str, Condition] = {}
    if record.md5.endswith(".dir"):
        stated[f"{prefix}_dvc_folder_md5"] = record.md5
        listed = _listed(root, record, path)
    if listed != md5:
        old = (
            "" if record.current else "; it is of DVC 2: dvc cache migrate --dvc-files"
        )
        raise TrackingError(
            f"{path.name}: its MD5 is {md5}, {record.where} has {listed}: run dvc "
            f"checkout for the recorded file, or dvc commit to record this one{old}"
        )
    return stated | {
        f"{prefix}_dvc_file": record.where,
        f"{prefix}_dvc_md5": md5,
        f"{prefix}_file_sha256": sha256,
    }


def recorded(path: Path) -> Record | None:
    """Find the record of a file; None where there is none, or no DVC project.

    Raises:
        TrackingError: a record that may be about the file cannot be read.
    """
    root = _project(path)
    if root is None:
        return None
    path = Path(os.path.abspath(path))  # where links lead is the cache's business
    read: dict[Path, list[Record]] = {}  # a lock is above many a folder
    for output in (path, *path.parents):
        if output == root:
            return None
        for file in (output.with_name(f"{output.name}.dvc"), *_locks(output, root)):
            if file not in read:
                read[file] = [*_outputs(file, root)]
            for record in read[file]:
                if record.output == output:
                    return record
    return None


def _project(path: Path) -> Path | None:
    """The folder of the DVC project that a file is in."""
    parents = Path(os.path.abspath(path)).parents
    return next((item for item in parents if (item / ".dvc").is_dir()), None)


def _locks(path: Path, root: Path) -> Iterator[Path]:
    for folder in path.parents:
        yield folder / "dvc.lock"
        if folder == root:
            return


def _outputs(file: Path, root: Path) -> Iterator[Record]:
    """The outputs in a record; none where there is no such file."""
    if not file.is_file():
        return
    # PyYAML comes with BentoML; a machine without DVC files needs neither.
    from security import strict_yaml  # noqa: PLC0415

    try:
        data = read_regular(file, max_bytes=MAX_RECORD_BYTES, follow_links=True)
        found = strict_yaml.load_mapping(data, max_bytes=MAX_RECORD_BYTES)
    except (BundleError, YamlError) as error:
        text = str(error).removeprefix(f"{file.name}: ")
        raise TrackingError(f"{file.name}: {text}") from None
    stages = found.get("stages") if file.name == "dvc.lock" else {"": found}
    where = file.relative_to(root).as_posix()
    for stage in stages.values() if isinstance(stages, dict) else ():
        folder = file.parent / _text(stage, "wdir")
        outs = stage.get("outs") if isinstance(stage, dict) else None
        for out in outs if isinstance(outs, list) else ():
            md5, name = _text(out, "md5"), _text(out, "path")
            if name and _MD5.fullmatch(md5):
                output = Path(os.path.abspath(folder / name))
                yield Record(where, output, md5, _text(out, "hash") == "md5")


def _text(fields: Any, name: str) -> str:
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if isinstance(value, str) and "\0" not in value else ""


def _listed(root: Path, record: Record, path: Path) -> str:
    """The digest of a file in the list of its folder, from the project's cache."""
    md5 = record.md5
    place = root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    try:
        data = read_regular(place, max_bytes=MAX_LIST_BYTES, follow_links=True)
    except BundleError as error:
        raise TrackingError(
            f"{record.where}: the list of {record.output.name} is not in the project's "
            f"cache: dvc fetch, or track {path.name} by itself ({error})"
        ) from None
    # DVC's digest of a list leaves ".dir" out.
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5[:32]:
        raise TrackingError(f"{record.where}: its list in the cache has another digest")
    name = Path(os.path.abspath(path)).relative_to(record.output).as_posix()
    try:
        found = {item["relpath"]: item["md5"] for item in json.loads(data)}
    except (ValueError, TypeError, KeyError, RecursionError):
        found = {}
    return str(found.get(name, "no such file"))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _digests(chunks: Iterable[bytes]) -> tuple[str, str]:
    """MD5, which is DVC's name of the file and proves nothing, and SHA-256."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    for chunk in chunks:
        md5.update(chunk)
        sha256.update(chunk)
    return md5.hexdigest(), sha256.hexdigest()
