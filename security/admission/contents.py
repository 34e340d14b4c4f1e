"""What a Bento of this service holds: its name, its sources, its lock.

For the two that look: `hooks`, when one is built, and `outside`, long after, where
BentoML need not be installed.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.errors import BundleError
from models.files import read_regular
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from sealgate.protocol.versions import unread
from security.admission.gate import Admission
from security.errors import AdmissionRefused

__all__ = [
    "ALLOWED_SOURCES",
    "BASE_IMAGE",
    "LOCK_CHECK",
    "LOCK_FILE",
    "MAX_SOURCE_BYTES",
    "OUTSIDE_CHECK",
    "SERVICE_NAME",
    "SERVICE_OPTIONS",
    "check_sources",
    "is_source",
    "list_files",
    "lock_document",
    "lock_entry",
    "lock_sha256",
    "read_lock",
    "refused",
]

# What bento.yaml says of the service, and where it is checked from outside.
SERVICE_NAME = "sealgate"
BASE_IMAGE = "python:3.11-slim"
# The guard answers before these; they would only cost time and memory.
SERVICE_OPTIONS: Mapping[str, Any] = {
    "tracing": {"excluded_urls": ".*"},
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
}

LOCK_FILE = "admission.lock.json"
LOCK_SCHEMA = "https://sealgate.dev/lock/v1"
LOCK_CHECK, OUTSIDE_CHECK = 16, 26

MAX_SOURCE_BYTES = 4 << 20
MAX_FILES = 10_000
_MAX_LOCK_BYTES = 64 << 10

# Everything a Bento's source may hold. The toolkit's code and data are not on it.
ALLOWED_SOURCES = (
    "bentofile.yaml",
    "deploy/access.toml",
    "deploy/policy.toml",
    "deploy/quotas.toml",
    "deploy/service.toml",
    "models/__init__.py",
    "models/bundle.py",
    "models/conformal.py",
    "models/conforming.py",
    "models/errors.py",
    "models/explanations.py",
    "models/files.py",
    "models/graph.py",
    "models/manifest.py",
    "models/names.py",
    "models/output_policy.py",
    "models/release.py",
    "models/report.py",
    "models/sessions.py",
    "models/shapley.py",
    "models/trees.py",
    "sealgate/*.py",
    "sealgate/protocol/*.py",
    "sealgate/protocol/drafts/*.py",
    "sealgate/py.typed",
    "security/__init__.py",
    "security/deferring.py",
    "security/errors.py",
    "security/bounded_fetch.py",
    "security/hpke_keys.py",
    "security/key_files.py",
    "security/access/*.py",
    "security/admission/*.py",
    "security/attestation/*.py",
    "security/audit/*.py",
    "security/monitoring/*.py",
    "security/sealing/*.py",
    "security/settings/*.py",
    "security/stores/*.py",
    "service/*.py",
    "service/http/*.py",
    "service/inference/*.py",
    "service/telemetry/*.py",
    "service/openapi.yaml",
)


def refused(message: str) -> AdmissionRefused:
    """A refusal of what is looked at from outside."""
    return AdmissionRefused(OUTSIDE_CHECK, message)


def check_sources(source: Path, *, beside: tuple[str, ...] = ()) -> None:
    """Refuse links and files that are not on the allow-list.

    Args:
        source: the Bento's src folder.
        beside: names that may be there too.

    Raises:
        AdmissionRefused: names the first such file.
    """
    for folder, folders, files in os.walk(source):
        for name in sorted(folders + files):
            path = Path(folder) / name
            relative = path.relative_to(source).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise refused(f"{relative} is not a regular file")
            if path.is_file() and relative not in beside and not is_source(relative):
                raise refused(f"{relative} may not be packaged")


def list_files(folder: Path) -> list[str]:
    """Relative paths of all files; what is no regular file or folder is refused.

    Raises:
        AdmissionRefused: a link, a special file, or too many files.
    """
    names: list[str] = []
    for parent, folders, files in os.walk(folder):
        for name in sorted(folders + files):
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise refused(f"{relative} is not a regular file")
            if path.is_file():
                names.append(relative)
        if len(names) > MAX_FILES:
            raise refused(f"more than {MAX_FILES} files")
    return names


def read_lock(source: Path) -> Mapping[str, Any]:
    """The models that a Bento's lock names, with their digests, by tag.

    Args:
        source: the Bento's src folder.

    Raises:
        AdmissionRefused: missing or malformed.
    """
    try:
        data = read_regular(source / LOCK_FILE, max_bytes=_MAX_LOCK_BYTES)
        lock = strict_json.loads_object(data, max_bytes=_MAX_LOCK_BYTES)
    except (BundleError, JsonError) as error:
        raise AdmissionRefused(LOCK_CHECK, f"the Bento's lock file: {error}") from None
    models, schema = lock.get("models"), lock.get("schema")
    if schema != LOCK_SCHEMA:
        raise AdmissionRefused(
            LOCK_CHECK, f"the Bento's lock file: {unread(schema, LOCK_SCHEMA)}"
        )
    if not isinstance(models, dict):
        raise AdmissionRefused(LOCK_CHECK, "the Bento's lock file is malformed")
    return models


def lock_sha256(source: Path | None = None) -> str | None:
    """The hex SHA-256 of a Bento's lock file; None in a source tree.

    Args:
        source: the folder of the sources; by default of those that run.

    Raises:
        BundleError: a Bento's lock cannot be read.
    """
    source = source or Path(__file__).resolve().parents[2]
    if not (source.parent / "bento.yaml").exists():
        return None
    data = read_regular(source / LOCK_FILE, max_bytes=_MAX_LOCK_BYTES)
    return hashlib.sha256(data).hexdigest()


def lock_document(admissions: Mapping[str, Admission]) -> bytes:
    """The lock file of a Bento with these models, by tag."""
    models = {tag: lock_entry(admission) for tag, admission in admissions.items()}
    return strict_json.dumps({"schema": LOCK_SCHEMA, "models": models})


def lock_entry(admission: Admission) -> dict[str, str]:
    """What a lock says of a model."""
    return {
        "root_sha256": admission.bundle.subject.root_sha256,
        "verdict_sha256": admission.verdict_sha256,
    }


def is_source(relative: str) -> bool:
    """Whether a path in the source tree is of a file that a Bento holds."""
    parts = relative.split("/")
    return any(_matches(parts, pattern.split("/")) for pattern in ALLOWED_SOURCES)


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Folder by folder: a star does not reach into another one."""
    return len(parts) == len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern))
