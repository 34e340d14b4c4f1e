"""The bundle: a folder that is read once, whole, within bounds, and hashed as read.

::

    model.onnx   manifest.json                  what the root digest covers
    model.onnx.sealed                           in place of model.onnx: encrypted
    evidence/<kind>.json                        reports about exactly that
    attestations/<kind>.sigstore.json           who vouches for each report
    attestations/verdict.sigstore.json          that a policy was met
    attestations/sealed.sigstore.json           which ciphertext is which model
    attestations/<any>.mldsa.sigstore.json      the same, signed with ML-DSA-65 too
    model.sig                                   an OpenSSF signature of the same files
    MODEL_CARD.md   bom.cdx.json                for people and inventories

The root digest is the OpenSSF model-signing one (ossf/model-signing-spec): SHA-256 over
the SHA-256 digests of the covered files, in the order of their names. Evidence and
attestations come after the model, so they are not covered; they bind themselves to it.

A sealed bundle is about the same model: its subject is computed with the digest that
the sealed file claims to open to. A false claim makes all evidence about other bytes,
and shows for certain when the file is opened.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from models.errors import BundleError
from models.files import read_regular
from models.manifest import MAX_MANIFEST_BYTES, Manifest
from models.report import KINDS, MAX_REPORT_BYTES, Report, Subject
from sealgate.errors import SealedFileError
from sealgate.protocol import dsse, sealedfile
from sealgate.protocol.kem import KEM_NAMES

__all__ = [
    "BOM_FILE",
    "MANIFEST_FILE",
    "MODEL_CARD_FILE",
    "MODEL_FILE",
    "MODEL_SIGNATURE_FILE",
    "SEALED_ATTESTATION_FILE",
    "SEALED_FILE",
    "SIGNED_SUFFIX",
    "VERDICT_FILE",
    "Bundle",
    "BundleLimits",
    "attestation_file",
    "is_mldsa_file",
    "max_file_bytes",
    "mldsa_file",
    "read_bundle",
    "report_file",
    "root_digest",
]

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
SEALED_FILE = "model.onnx.sealed"
SEALED_ATTESTATION_FILE = "attestations/sealed.sigstore.json"
MODEL_SIGNATURE_FILE = "model.sig"
VERDICT_FILE = "attestations/verdict.sigstore.json"
MODEL_CARD_FILE = "MODEL_CARD.md"
BOM_FILE = "bom.cdx.json"

_KIND = "|".join(KINDS)
_DOCUMENTS = re.compile(
    rf"evidence/(?:{_KIND})\.json"
    rf"|attestations/(?:(?:{_KIND}|verdict)(?:\.[2-9])?|waiver-(?:{_KIND})|sealed)"
    r"(?:\.mldsa)?\.sigstore\.json"
    r"|MODEL_CARD\.md|model\.sig|bom\.cdx\.json"
)
_FOLDERS = ("evidence", "attestations")
SIGNED_SUFFIX, _MLDSA_SUFFIX = ".sigstore.json", ".mldsa.sigstore.json"


@dataclass(frozen=True)
class BundleLimits:
    """Bounds on what is read before anything is trusted.

    Attributes:
        max_model_bytes: of the model in the clear.
        max_document_bytes: of any other file but the manifest; signed ones are no
            longer than `dsse.MAX_BUNDLE_BYTES` either.
        max_entries: of one folder: attestations/ has 200 places.
    """

    max_model_bytes: int = 2 << 30
    max_document_bytes: int = MAX_REPORT_BYTES
    max_entries: int = 256


@dataclass(frozen=True)
class Bundle:
    """A bundle's bytes and their digests. Nothing in it has been verified yet.

    Attributes:
        manifest: parsed manifest.json.
        files: every file by its path inside the bundle.
        subject: name, version and digests that reports and statements must carry.
    """

    manifest: Manifest
    files: Mapping[str, bytes] = field(repr=False)
    subject: Subject

    @property
    def model(self) -> bytes:
        """The bytes of model.onnx: the ones that were hashed, to be the ones loaded.

        Raises:
            BundleError: the bundle is sealed, or its model was given back.
        """
        if self.sealed:
            raise BundleError(f"{SEALED_FILE} must be opened first")
        if MODEL_FILE not in self.files:
            raise BundleError(f"{MODEL_FILE} is loaded, and its bytes were given back")
        return self.files[MODEL_FILE]

    @property
    def sealed(self) -> bool:
        """Whether the model is encrypted."""
        return SEALED_FILE in self.files

    @property
    def sealed_kind(self) -> str:
        """The kind of those keys, "X-Wing" or "X25519"; empty of a plain model.

        Raises:
            BundleError: the sealed file is none.
        """
        if not self.sealed:
            return ""
        return KEM_NAMES[_sealed_header(self.files).format_.suite.kem_id]

    @property
    def sealed_to(self) -> tuple[str, ...]:
        """Hints of the keys that the model is sealed to; none of a plain model.

        Raises:
            BundleError: the sealed file is none.
        """
        return _sealed_header(self.files).recipient_hints if self.sealed else ()

    def opened(self, model: bytes) -> Bundle:
        """This sealed bundle with its model in the clear, for memory only.

        Raises:
            BundleError: the model is not the one that the sealed file claimed.
        """
        if hashlib.sha256(model).hexdigest() != self.subject.onnx_sha256:
            raise BundleError(f"{SEALED_FILE} opens to another model than it claims")
        files = {**self.files, MODEL_FILE: model}
        del files[SEALED_FILE]
        return replace(self, files=files)

    def without_model(self) -> Bundle:
        """This bundle without its model's bytes, once they are loaded."""
        models = (MODEL_FILE, SEALED_FILE)
        kept = {name: data for name, data in self.files.items() if name not in models}
        return replace(self, files=kept)

    def report(self, kind: str) -> Report:
        """Parse the report of a kind.

        Raises:
            BundleError: there is none, or it is malformed.
        """
        data = self.files.get(report_file(kind))
        if data is None:
            raise BundleError(f"{kind} report is missing")
        return Report.from_json(data)


def report_file(kind: str) -> str:
    """Where a bundle keeps the report of a kind."""
    return f"evidence/{kind}.json"


def attestation_file(kind: str) -> str:
    """Where a bundle keeps the statement that binds the report of a kind."""
    return f"attestations/{kind}.sigstore.json"


def mldsa_file(name: str) -> str:
    """Where the ML-DSA-65 signature of a statement is, beside the P-256 one.

    >>> mldsa_file("attestations/quality.2.sigstore.json")
    'attestations/quality.2.mldsa.sigstore.json'
    """
    return name.removesuffix(SIGNED_SUFFIX) + _MLDSA_SUFFIX


def is_mldsa_file(name: str) -> bool:
    """Whether a signed file is, by its name, the one with the ML-DSA-65 signature.

    >>> is_mldsa_file("attestations/quality.sigstore.json")
    False
    """
    return name.endswith(_MLDSA_SUFFIX)


def max_file_bytes(name: str, limits: BundleLimits = BundleLimits()) -> int:
    """How large a bundle's file of this path may be.

    Raises:
        BundleError: no bundle has a file there.

    >>> max_file_bytes("manifest.json")
    4194304
    """
    if name == MODEL_FILE:
        return limits.max_model_bytes
    if name == SEALED_FILE:
        most = limits.max_model_bytes
        return most + sealedfile.overhead_bytes(most)
    if name == MANIFEST_FILE:
        return MAX_MANIFEST_BYTES
    if not _DOCUMENTS.fullmatch(name):
        raise BundleError(f"{name!r} does not belong in a bundle")
    if name.endswith((SIGNED_SUFFIX, ".sig")):
        return min(limits.max_document_bytes, dsse.MAX_BUNDLE_BYTES)
    return limits.max_document_bytes


def root_digest(files: Mapping[str, bytes]) -> str:
    """Hex root digest of the covered files, by path (ossf/model-signing-spec).

    >>> root_digest({"a": b""})
    '5df6e0e2761359d30a8275058e299fcc0381534545f55cf43e41983f5d4c9456'
    """
    return _root({name: hashlib.sha256(data).digest() for name, data in files.items()})


def read_bundle(
    path: Path,
    *,
    limits: BundleLimits = BundleLimits(),
    ignore: frozenset[str] = frozenset(),
) -> Bundle:
    """Read a bundle's folder once.

    Args:
        path: the folder; whoever wrote it may be hostile.
        limits: bounds on sizes and counts.
        ignore: names at the top level that belong to a store around the bundle.

    Raises:
        BundleError: a missing, unknown, linked, special or oversized file.
    """
    names = _list_files(path, limits, ignore)
    _check_names(names)
    files = {
        name: read_regular(path / name, max_bytes=max_file_bytes(name, limits))
        for name in names
    }
    manifest = Manifest.from_json(files[MANIFEST_FILE])
    # Each byte is hashed once: a model may be gigabytes.
    digests = {
        MANIFEST_FILE: hashlib.sha256(files[MANIFEST_FILE]).digest(),
        MODEL_FILE: _model_digest(files),
    }
    subject = Subject(
        name=manifest.name,
        version=manifest.version,
        root_sha256=_root(digests),
        onnx_sha256=digests[MODEL_FILE].hex(),
    )
    return Bundle(manifest=manifest, files=files, subject=subject)


def _check_names(names: list[str]) -> None:
    """Refuse a folder without a model or manifest, or with a model twice over."""
    if MODEL_FILE in names and SEALED_FILE in names:
        raise BundleError(f"{MODEL_FILE} and {SEALED_FILE}: a bundle has one of them")
    if MODEL_FILE in names and SEALED_ATTESTATION_FILE in names:
        raise BundleError(f"claims to be sealed, and {MODEL_FILE} is not")
    if MODEL_FILE not in names and SEALED_FILE not in names:
        raise BundleError(f"{MODEL_FILE} is missing")
    if MANIFEST_FILE not in names:
        raise BundleError(f"{MANIFEST_FILE} is missing")


def _model_digest(files: Mapping[str, bytes]) -> bytes:
    """Of model.onnx: computed, or claimed by the sealed file's header."""
    if SEALED_FILE not in files:
        return hashlib.sha256(files[MODEL_FILE]).digest()
    return bytes.fromhex(_sealed_header(files).plaintext_sha256)


def _sealed_header(files: Mapping[str, bytes]) -> sealedfile.Header:
    try:
        header, _ = sealedfile.parse_header(files[SEALED_FILE])
    except SealedFileError as error:
        raise BundleError(f"{SEALED_FILE}: claims to be sealed: {error}") from None
    return header


def _root(digests: Mapping[str, bytes]) -> str:
    joined = b"".join(digests[name] for name in sorted(digests))
    return hashlib.sha256(joined).hexdigest()


def _list_files(path: Path, limits: BundleLimits, ignore: frozenset[str]) -> list[str]:
    names: list[str] = []
    for folder in ("", *_FOLDERS):
        if folder and not _is_folder(path / folder):
            continue
        for name in _scan(path / folder, limits):
            inner = f"{folder}/{name}" if folder else name
            if inner in _FOLDERS or inner in ignore:
                continue
            max_file_bytes(inner, limits)
            names.append(inner)
    return sorted(names)


def _scan(folder: Path, limits: BundleLimits) -> list[str]:
    names: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > limits.max_entries:
                    raise BundleError(f"more than {limits.max_entries} files")
    except OSError as error:
        raise BundleError(f"{folder.name}: {error.strerror}") from None
    return names


def _is_folder(path: Path) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        raise BundleError(f"{path.name}: not a folder")
    return True
