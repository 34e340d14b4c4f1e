"""Evidence by a TPM 2.0: quotes of its registers, under an attestation key.

The attestation key (AK) is a restricted signing key under the TPM's endorsement key,
kept in the TPM at a persistent handle. A quote is over a nonce that the caller gives;
`sealgate.protocol.tpm2` verifies it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from models.errors import BundleError
from models.files import read_regular, write_atomic
from sealgate.attestation import AttestationPolicy
from sealgate.errors import AttestationError, StatementError
from sealgate.protocol import tpm2
from sealgate.protocol.dsse import key_hint, parse_public, public_pem
from security.attestation.tools import Tpm, opened
from security.errors import TpmError
from security.settings.attestation import AttestationSettings

__all__ = [
    "TpmAttester",
    "client_policy",
    "create_attestation_key",
    "load_attestation_key",
    "measure",
    "read_registers",
    "unmeasured",
]

_MAX_PEM_BYTES = 4 << 10
# The registers may be extended between the two commands; not twice in a row.
_TRIES = 2
# The second where a processor measures at a late launch: PCR 17 to 22.
_AFTER_RESTART = (bytes(tpm2.PCR_BYTES), b"\xff" * tpm2.PCR_BYTES)


@dataclass(frozen=True)
class TpmAttester:
    """An `Attester` that has a TPM quote some registers.

    Attributes:
        key: the attestation key's public half.
        handle: where the TPM keeps it.
        pcrs: registers of the SHA-256 bank to quote, ascending.
    """

    key: ec.EllipticCurvePublicKey = field(repr=False)
    handle: str
    pcrs: tuple[int, ...]

    @classmethod
    def from_settings(cls, settings: AttestationSettings) -> TpmAttester:
        """As the settings say; the TPM is not asked yet.

        Raises:
            TpmError: the attestation key's public half cannot be read.
        """
        key = load_attestation_key(settings.public_key)
        return cls(key, settings.key, settings.registers)

    def attest(self, nonce: bytes) -> Mapping[str, Any]:
        """A quote over the nonce, as `tpm2.Evidence.to_object` has it.

        Raises:
            TpmError: the TPM cannot be asked, or signs with another key.
        """
        with opened() as tpm:
            for _ in range(_TRIES):
                evidence = self._quote(tpm, nonce)
                if self._holds(evidence, nonce):
                    return evidence.to_object()
        raise TpmError(f"TPM: its quote under {self.handle} does not verify")

    def _quote(self, tpm: Tpm, nonce: bytes) -> tpm2.Evidence:
        tpm.run(
            *("quote", "-Q", "-c", self.handle, "-l", _selection(self.pcrs)),
            *("-q", nonce.hex(), "-g", "sha256", "-f", "tss"),
            *("-m", "quoted", "-s", "signature", "-o", "values", "-F", "values"),
        )
        values = (tpm.folder / "values").read_bytes()
        return tpm2.Evidence(
            key=key_hint(self.key),
            quoted=(tpm.folder / "quoted").read_bytes(),
            signature=(tpm.folder / "signature").read_bytes(),
            pcrs=_registers(values, self.pcrs),
        )

    def _holds(self, evidence: tpm2.Evidence, nonce: bytes) -> bool:
        """What clients would refuse is not served."""
        try:
            tpm2.verify_evidence(evidence, {key_hint(self.key): self.key}, nonce=nonce)
        except AttestationError:
            return False
        return True


def create_attestation_key(handle: str, public: Path) -> ec.EllipticCurvePublicKey:
    """Make an attestation key, ECDSA P-256, and keep it in the TPM.

    Args:
        handle: persistent, 0x81000000 to 0x817fffff, and free.
        public: file for its public half; must not exist.

    Raises:
        TpmError: the TPM refuses, the handle is taken, or the file exists or cannot be
            written; the TPM keeps nothing then.
    """
    if public.exists():
        raise TpmError(f"{public}: exists already; keys are never overwritten")
    with opened() as tpm:
        tpm.run("createek", "-Q", "-c", "ek", "-G", "ecc")
        tpm.run(
            *("createak", "-Q", "-C", "ek", "-c", "ak", "-G", "ecc", "-g", "sha256"),
            *("-s", "ecdsa", "-u", "ak.pem", "-f", "pem"),
        )
        # First the file, which can be taken back: a key that the TPM keeps, and whose
        # public half nobody has, would only be in the way.
        _write(public, (tpm.folder / "ak.pem").read_bytes())
        try:
            tpm.run("evictcontrol", "-Q", "-C", "o", "-c", "ak", handle)
        except TpmError:
            public.unlink()
            raise
    return load_attestation_key(public)


def _write(public: Path, pem: bytes) -> None:
    try:
        public.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(public, pem)
    except OSError as error:
        raise TpmError(f"{public}: {error.strerror}") from None


def load_attestation_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read an attestation key's public half.

    Raises:
        TpmError: not a PEM public key, ECDSA P-256.
    """
    try:
        key = parse_public(read_regular(path, max_bytes=_MAX_PEM_BYTES).decode("ascii"))
    except (BundleError, StatementError, ValueError) as error:
        raise TpmError(f"{path}: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TpmError(f"{path}: an attestation key is ECDSA P-256")
    return key


def read_registers(pcrs: Sequence[int]) -> Mapping[int, bytes]:
    """What registers of the SHA-256 bank hold now.

    Raises:
        TpmError: the TPM cannot be asked.
    """
    ordered = tuple(sorted(pcrs))
    with opened() as tpm:
        tpm.run("pcrread", "-Q", _selection(ordered), "-o", "values")
        return _registers((tpm.folder / "values").read_bytes(), ordered)


def measure(pcr: int, paths: Sequence[Path]) -> list[str]:
    """Extend a register by the SHA-256 of each file; returns those digests in hex.

    All files are read before the first one counts: only a restart takes it back.

    Raises:
        TpmError: a file cannot be read, or the TPM refuses.
    """
    digests = [_digest_of(path) for path in paths]
    with opened() as tpm:
        for digest in digests:
            tpm.run("pcrextend", f"{pcr}:sha256={digest}")
    return digests


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TpmError(f"{path}: {error.strerror}") from None


def client_policy(settings: AttestationSettings, *, window_s: int) -> dict[str, Any]:
    """What a client can demand of this machine, as its profile's ``attestation``.

    Args:
        settings: which registers, and by which key.
        window_s: for how long the keys are vouched for, `sealing.key_overlap_s`: where
            clients would refuse that, it is named.

    Raises:
        TpmError: the TPM cannot be asked, or its attestation key not be read.
    """
    key = load_attestation_key(settings.public_key)
    found = read_registers(settings.registers)
    pcrs = {str(index): value.hex() for index, value in found.items()}
    types = {tpm2.TPM2: {"keys": [public_pem(key)], "pcrs": pcrs}}
    policy = {"mode": "required", "types": types}
    longer = window_s > AttestationPolicy.max_window_s
    return policy | ({"max_window_s": window_s} if longer else {})


def unmeasured(registers: Mapping[int, bytes]) -> list[int]:
    r"""Which registers hold what a restart leaves in them: nothing was measured there.

    >>> unmeasured({7: bytes(31) + b"1", 15: bytes(32), 17: b"\xff" * 32})
    [15, 17]
    """
    return [i for i, value in registers.items() if value in _AFTER_RESTART]


def _selection(pcrs: Sequence[int]) -> str:
    return "sha256:" + ",".join(map(str, pcrs))


def _registers(values: bytes, pcrs: Sequence[int]) -> dict[int, bytes]:
    size = tpm2.PCR_BYTES
    if len(values) != size * len(pcrs):
        raise TpmError("TPM: it has no SHA-256 bank of these registers")
    return {
        index: values[size * place : size * (place + 1)]
        for place, index in enumerate(pcrs)
    }
