"""What a client trusts and allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sealgate.attestation import AttestationPolicy
from sealgate.errors import ProfileError
from sealgate.profile import Profile
from sealgate.proofs import ProofKey
from sealgate.retry import RetryPolicy

__all__ = ["Options", "options_of"]

_TEXTS = {
    "identity_keys": "PEM texts",
    "trusted_keys": "PEM texts",
    "log_keys": "vkeys, as text",
    "witness_keys": "vkeys, as text",
}


@dataclass(frozen=True)
class Options:
    """What a client trusts and allows.

    Attributes:
        key_configs: pinned ``application/ohttp-keys`` bytes; fetched if None.
        identity_keys: PEM public keys of the deployment, ECDSA P-256 or ML-DSA-65: seal
            only to configurations that one of each of these algorithms signed. They
            outlast the keys that they sign.
        attestation: what evidence about the server's machine must come with the keys;
            needs identity_keys.
        trusted_keys: PEM public keys whose verdicts are believed.
        require_passport: refuse to use a model whose passport does not verify.
        log_keys: vkeys of the deployment's audit log, all of which must have signed
            what receipts rest on.
        witness_keys: vkeys of those who watch it.
        required_witnesses: how many of them must have cosigned.
        require_offered: refuse key configurations and passports that are not in the
            deployment's public log of offers.
        passport_max_age_s: verify a model's passport again after this time.
        relay_url: send sealed requests there, so that the server does not see where
            they come from (RFC 9458, section 2).
        authorities: PEM file of those that the server's and the relay's TLS
            certificates must come from; None for the usual ones.
        proxy: URL of the proxy to connect by, empty for none; None for what the
            environment names.
        proof_key: the key that the token is bound to (RFC 9449); each request proves
            that the client has it.
        client_certificate: PEM file of the certificate that the token is bound to (RFC
            8705), or that the server asks for; read when the client is made.
        client_key: PEM file of its key, without a passphrase; None if that is in the
            same file.
        max_response_bytes: refuse longer answers while reading.
        chunked_above_bytes: send larger requests in protected chunks, where the gateway
            takes them; None never.
        retry: bounds on repeating a request.
        traceparent: asked before each request for the W3C trace that it belongs to,
            or None: the caller's current span. It goes inside the seal only.
    """

    key_configs: bytes | None = None
    identity_keys: tuple[str, ...] = ()
    attestation: AttestationPolicy | None = None
    trusted_keys: tuple[str, ...] = ()
    require_passport: bool = False
    log_keys: tuple[str, ...] = ()
    witness_keys: tuple[str, ...] = ()
    required_witnesses: int = 0
    require_offered: bool = False
    passport_max_age_s: float = 3600.0
    relay_url: str | None = None
    authorities: Path | None = None
    proxy: str | None = None
    proof_key: ProofKey | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    max_response_bytes: int = 64 << 20
    chunked_above_bytes: int | None = 16 << 20
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    traceparent: Callable[[], str | None] | None = None

    def __post_init__(self) -> None:
        """Refuse what would do nothing: pins of another type, a key of nothing.

        Raises:
            ProfileError: the message names the field.
        """
        if not isinstance(self.key_configs, bytes | None):
            raise ProfileError("key_configs: the bytes of an ohttp-keys document")
        for name, what in _TEXTS.items():
            keys = getattr(self, name)
            if isinstance(keys, str | bytes) or not all(
                isinstance(key, str) for key in keys
            ):
                raise ProfileError(f"{name}: a tuple of {what}")
        if self.attestation is not None and (
            self.key_configs is not None or not self.identity_keys
        ):
            raise ProfileError(
                "attestation: comes with signed keys; needs identity_keys, and no "
                "key_configs"
            )
        if self.client_key is not None and self.client_certificate is None:
            raise ProfileError("client_key: needs client_certificate")
        if self.relay_url is not None and self.client_certificate is not None:
            # It would tell the relay who asks, and the server sees the relay's.
            raise ProfileError("client_certificate: cannot be shown through a relay")


def options_of(profile: Profile) -> Options:
    """The options that a profile asks for.

    Raises:
        ProfileError: the profile's key is none, or its attestation malformed.
    """
    pem = profile.proof_key
    certificate, key = profile.client_certificate, profile.client_key
    return Options(
        key_configs=profile.key_configs,
        identity_keys=profile.identity_keys,
        attestation=None
        if profile.attestation is None
        else AttestationPolicy.from_object(profile.attestation),
        trusted_keys=profile.trusted_keys,
        require_passport=profile.require_passport,
        log_keys=profile.log_keys,
        witness_keys=profile.witness_keys,
        required_witnesses=profile.required_witnesses,
        require_offered=profile.require_offered,
        relay_url=profile.relay_url,
        proof_key=None if pem is None else ProofKey.from_pem(pem),
        client_certificate=None if certificate is None else Path(certificate),
        client_key=None if key is None else Path(key),
    )
