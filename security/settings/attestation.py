"""[attestation]: evidence about the machine, beside the signed key configurations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sealgate.protocol.tpm2 import MAX_PCR, RESETTABLE_PCRS, TPM2
from security.errors import SettingsError

__all__ = ["AttestationSettings", "check_attestation", "parse_registers"]

_HANDLE = re.compile(r"0x81[0-7][0-9a-f]{5}")


@dataclass(frozen=True)
class AttestationSettings:
    """Evidence about the machine, beside the signed key configurations.

    Attributes:
        type: "tpm2", one that an installed package brings, or empty for no evidence.
        key: persistent handle of the TPM's attestation key.
        public_key: file of that key's public half, PEM.
        pcrs: registers of the SHA-256 bank to quote, "15" or "7,15".
    """

    type: str = ""
    key: str = "0x81010002"
    public_key: Path = Path("keys/attestation.pem")
    pcrs: str = "15"

    @property
    def registers(self) -> tuple[int, ...]:
        """`pcrs` as numbers, ascending."""
        return parse_registers(self.pcrs)


def parse_registers(text: str) -> tuple[int, ...]:
    """Numbers of registers, ascending, from "7,15".

    Raises:
        SettingsError: not that, one twice, or one that any program can reset.

    >>> parse_registers("15,7")
    (7, 15)
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 3 for part in parts):
        raise SettingsError(f"registers are numbers from 0 to {MAX_PCR}: 7,15")
    numbers = sorted(map(int, parts))
    if numbers[-1] > MAX_PCR or len(set(numbers)) != len(numbers):
        raise SettingsError(f"registers are numbers from 0 to {MAX_PCR}, each once")
    if RESETTABLE_PCRS.intersection(numbers):
        raise SettingsError("registers 16 and 23 can be reset by any program")
    return tuple(numbers)


def check_attestation(attestation: AttestationSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    if attestation.type != TPM2:
        return
    if not _HANDLE.fullmatch(attestation.key):
        raise SettingsError("attestation.key: a persistent handle, like 0x81010002")
    try:
        parse_registers(attestation.pcrs)
    except SettingsError as error:
        raise SettingsError(f"attestation.pcrs: {error}") from None
