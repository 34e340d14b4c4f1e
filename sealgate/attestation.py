"""What a client demands to know of the machine behind a server's keys.

A server may put evidence about its machine beside the keys that it offers. What kinds
of evidence a client takes, and what must be in them, is its policy: a verifier for each
kind. The one for a TPM 2.0 is here; others, for AMD SEV-SNP or Intel TDX, are given to
`AttestationPolicy`, or are entry points of the group `ENTRY_POINTS`, named for the type
of evidence, which a profile's ``attestation`` then finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.errors import AttestationError, ProfileError
from sealgate.keys import load_identity_keys
from sealgate.protocol import tpm2
from sealgate.protocol.dsse import key_hint
from sealgate.protocol.signedkeys import SignedKeys

__all__ = [
    "ENTRY_POINTS",
    "AttestationPolicy",
    "AttestationVerifier",
    "Attested",
    "Tpm2Verifier",
]

ENTRY_POINTS = "sealgate.attestation_verifiers"
_MODES = ("required", "optional")
_MAX_MEASUREMENTS = 4096


class AttestationVerifier(Protocol):
    """Whoever can tell whether evidence of one type is what a client asks for."""

    def verify(self, evidence: Mapping[str, Any], *, nonce: bytes) -> Mapping[str, str]:
        """What the evidence vouches for, in words for people.

        Args:
            evidence: a JSON object with its ``type``; possibly hostile.
            nonce: 32 bytes that it must be over, or it is about other keys, or of
                another time.

        Raises:
            AttestationError: it does not verify, or is not what is asked for.
        """


@dataclass(frozen=True)
class Attested:
    """Evidence that a policy took.

    Attributes:
        type: which kind, ``tpm2`` for example.
        claims: what it vouches for, in words.
    """

    type: str
    claims: Mapping[str, str]


@dataclass(frozen=True)
class AttestationPolicy:
    """What a client takes as evidence of a machine.

    Attributes:
        verifiers: by type of evidence. Evidence of any other type is refused.
        required: refuse keys without evidence. Otherwise it must verify only if there
            is any, which whoever can leave it out can do without.
        max_window_s: refuse keys that are vouched for longer than this, since evidence
            is no younger than their window.
    """

    verifiers: Mapping[str, AttestationVerifier]
    required: bool = True
    max_window_s: int = 86_400

    def check(self, signed: SignedKeys) -> Attested | None:
        """What is attested of the machine that offers these keys.

        1. there is evidence, or the policy can do without;
        2. it is of a type that the policy names;
        3. the window that it is bound to is short enough;
        4. its verifier takes it, over the digest of the keys and of their window.

        Args:
            signed: verified, so within its window.

        Returns:
            What was found, or None where there is no evidence.

        Raises:
            AttestationError: any of these.
        """
        evidence = signed.attestation
        if evidence is None:
            if self.required:
                raise AttestationError("the keys come without evidence of a machine")
            return None
        kind = str(evidence.get("type"))
        verifier = self.verifiers.get(kind)
        if verifier is None:
            raise AttestationError("evidence of a type that the policy does not name")
        if signed.not_after - signed.not_before > self.max_window_s:
            raise AttestationError("the evidence is for longer than the policy allows")
        try:
            claims = verifier.verify(evidence, nonce=signed.nonce)
        except AttestationError:
            raise
        except Exception as error:  # may be someone else's code
            name = type(error).__name__
            raise AttestationError(f"the verifier of {kind} raised {name}") from error
        return Attested(kind, claims)

    @classmethod
    def from_object(cls, value: Mapping[str, Any]) -> AttestationPolicy:
        """A profile's ``attestation``: ``mode``, ``types``, perhaps ``max_window_s``.

        Raises:
            ProfileError: malformed, or of a type that nothing installed can verify.
        """
        _only(value, {"mode", "types", "max_window_s"}, "attestation")
        mode, types = value.get("mode", "required"), value.get("types")
        window = value.get("max_window_s", cls.max_window_s)
        if mode not in _MODES:
            raise ProfileError(f"attestation: mode is one of {', '.join(_MODES)}")
        if not isinstance(types, dict) or not types:
            raise ProfileError("attestation: types names no kind of evidence")
        if type(window) is not int or window < 1:
            raise ProfileError("attestation: max_window_s is not a number of seconds")
        verifiers = {kind: _verifier(kind, item) for kind, item in types.items()}
        return cls(verifiers, mode == "required", window)


@dataclass(frozen=True)
class Tpm2Verifier:
    """Takes quotes of a TPM 2.0.

    Attributes:
        keys: PEM public keys, ECDSA on P-256, of the attestation keys that are known.
            Whoever pins one has seen that its TPM made it (docs/attested-keys.md).
        pcrs: what registers must hold, 32 bytes, by number; at least one, and none of
            those that any program can reset.
    """

    keys: tuple[str, ...]
    pcrs: Mapping[int, bytes]
    _by_hint: Mapping[str, ec.EllipticCurvePublicKey] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what would take any quote, or none.

        Raises:
            ProfileError: no key or register is named, or one that cannot be.
        """
        keys = list(load_identity_keys(self.keys).values())
        classical = [key for key in keys if isinstance(key, ec.EllipticCurvePublicKey)]
        if not classical or len(classical) != len(keys):
            raise ProfileError("attestation: tpm2 needs attestation keys on P-256")
        if not self.pcrs or any(
            not 0 <= index <= tpm2.MAX_PCR or len(value) != tpm2.PCR_BYTES
            for index, value in self.pcrs.items()
        ):
            raise ProfileError("attestation: tpm2 names no register's value")
        if tpm2.RESETTABLE_PCRS & self.pcrs.keys():
            raise ProfileError("attestation: any program can reset PCR 16 and 23")
        by_hint = {key_hint(key): key for key in classical}
        object.__setattr__(self, "_by_hint", by_hint)

    @classmethod
    def from_object(cls, value: Mapping[str, Any]) -> Tpm2Verifier:
        """Of a profile: ``keys``, and registers by ``pcrs`` or by ``measured``.

        ``pcrs`` has the value a register must hold, ``measured`` the SHA-256 digests
        that were measured into one since its reset, in their order; both in hex.

        Raises:
            ProfileError: malformed.
        """
        _only(value, {"keys", "pcrs", "measured"}, "attestation: tpm2")
        keys = value.get("keys")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ProfileError("attestation: tpm2: keys are an array of PEM texts")
        values = {_index(n): _hex(v) for n, v in _object(value, "pcrs").items()}
        for name, digests in _object(value, "measured").items():
            if not isinstance(digests, list) or len(digests) > _MAX_MEASUREMENTS:
                raise ProfileError("attestation: tpm2: measured are arrays of digests")
            if _index(name) in values:
                raise ProfileError(f"attestation: tpm2: PCR {name} is named twice")
            values[_index(name)] = tpm2.extended(map(_hex, digests))
        return cls(tuple(keys), values)

    def verify(self, evidence: Mapping[str, Any], *, nonce: bytes) -> Mapping[str, str]:
        """The registers that were asked for, by name.

        Raises:
            AttestationError: not a quote over the nonce by a known key, or a register
                holds something else: the machine ran something else.
        """
        found = tpm2.verify_evidence(
            tpm2.Evidence.from_object(evidence), self._by_hint, nonce=nonce
        )
        for index, value in sorted(self.pcrs.items()):
            if index not in found:
                raise AttestationError(f"PCR {index} was not quoted")
            if found[index] != value:
                raise AttestationError(f"PCR {index} does not hold what it should")
        return {f"PCR {index}": found[index].hex() for index in sorted(self.pcrs)}


_BUILT_IN: Mapping[str, Callable[[Mapping[str, Any]], AttestationVerifier]] = {
    tpm2.TPM2: Tpm2Verifier.from_object
}


def _verifier(kind: str, value: Any) -> AttestationVerifier:
    if not isinstance(value, dict):
        raise ProfileError(f"attestation: {kind} is not an object")
    factory = _BUILT_IN.get(kind)
    if factory is None:
        found = entry_points(group=ENTRY_POINTS, name=kind)
        if len(found) != 1:
            raise ProfileError(
                f"attestation: {len(found)} packages verify evidence of type {kind!r}"
            )
        (point,) = found
        factory = point.load()
    return factory(value)


def _only(value: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in sorted(value.keys() - known):
        raise ProfileError(f"{where}: unknown field {name!r}")


def _object(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name, {})
    if not isinstance(found, dict):
        raise ProfileError(f"attestation: tpm2: {name} is not an object")
    return found


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 2):
        raise ProfileError("attestation: tpm2: registers are named 0 to 23")
    return int(text)


def _hex(text: Any) -> bytes:
    try:
        data = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        data = b""
    if len(data) != tpm2.PCR_BYTES:
        raise ProfileError("attestation: tpm2: not a SHA-256 digest in hex")
    return data
