"""A secret that a TPM gives back while some registers hold what they held.

The secret is sealed under the TPM's storage primary key, which the TPM makes anew from
its seed each time, with a policy over register values (TPM2_PolicyPCR) as the only way
to it. So another TPM does not give it, nor does this one after it measured anything
else into one of the registers. It leaves the TPM encrypted, in a session whose key is
exchanged with that primary key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from security.attestation.tools import Tpm, opened

__all__ = ["MAX_SECRET_BYTES", "SealedSecret", "seal_secret", "unseal_secret"]

# TPM2B_SENSITIVE_DATA: what every TPM takes.
MAX_SECRET_BYTES = 128
_ATTRIBUTES = "fixedtpm|fixedparent"  # no userwithauth: the policy, and nothing else


@dataclass(frozen=True)
class SealedSecret:
    """What its TPM makes the secret of again; worthless to any other.

    Attributes:
        pcrs: registers of the SHA-256 bank that the policy is over, ascending.
        public: TPM2B_PUBLIC.
        private: TPM2B_PRIVATE, encrypted by the TPM.
    """

    pcrs: tuple[int, ...]
    public: bytes = field(repr=False)
    private: bytes = field(repr=False)


def seal_secret(secret: bytes, pcrs: Sequence[int]) -> SealedSecret:
    """Seal a secret to what registers hold now.

    Args:
        secret: at most `MAX_SECRET_BYTES`.
        pcrs: registers of the SHA-256 bank.

    Raises:
        TpmError: the TPM cannot be asked, or refuses.
    """
    ordered = tuple(sorted(pcrs))
    with opened() as tpm:
        _primary(tpm)
        tpm.run("startauthsession", "-Q", "-S", "trial")
        tpm.run("policypcr", "-Q", "-S", "trial", "-l", _bank(ordered), "-L", "policy")
        tpm.run("flushcontext", "trial")
        tpm.run(
            *("create", "-Q", "-C", "primary", "-g", "sha256", "-L", "policy"),
            *("-a", _ATTRIBUTES, "-i", "-", "-u", "public", "-r", "private"),
            given=secret,
        )
        return SealedSecret(
            ordered,
            (tpm.folder / "public").read_bytes(),
            (tpm.folder / "private").read_bytes(),
        )


def unseal_secret(sealed: SealedSecret) -> bytes:
    """The secret, if this is its TPM and the registers hold what they held.

    Raises:
        TpmError: it is not, they do not, or the TPM cannot be asked.
    """
    with opened() as tpm:
        (tpm.folder / "public").write_bytes(sealed.public)
        (tpm.folder / "private").write_bytes(sealed.private)
        _primary(tpm)
        tpm.run(
            *("load", "-Q", "-C", "primary", "-c", "sealed"),
            *("-u", "public", "-r", "private"),
        )
        session = ("startauthsession", "-Q", "--policy-session", "-S", "session")
        tpm.run(*session, "--tpmkey-context", "primary")
        try:
            tpm.run("sessionconfig", "-Q", "--enable-encrypt", "session")
            tpm.run("policypcr", "-Q", "-S", "session", "-l", _bank(sealed.pcrs))
            return tpm.run("unseal", "-Q", "-c", "sealed", "-p", "session:session")
        finally:
            tpm.run("flushcontext", "session")


def _primary(tpm: Tpm) -> None:
    tpm.run(
        "createprimary", "-Q", "-C", "o", "-G", "ecc", "-g", "sha256", "-c", "primary"
    )


def _bank(pcrs: Sequence[int]) -> str:
    return "sha256:" + ",".join(map(str, pcrs))
