"""Where the keys come from that requests are sealed to, as steps without I/O."""

from __future__ import annotations

from collections.abc import Callable

from sealgate.attestation import Attested
from sealgate.errors import AttestationError, TransportError
from sealgate.exchange import GATEWAY_PATH, Answer
from sealgate.keys import (
    KeyChoice,
    choose_config,
    fingerprint,
    is_classical,
    load_identity_keys,
    max_age_s,
    verify_signed,
)
from sealgate.offers import OfferedLog
from sealgate.options import Options
from sealgate.protocol import keyconfig, signedkeys
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.offers import key_leaf
from sealgate.protocol.signedkeys import SignedKeys
from sealgate.steps import Fetch, Steps

__all__ = ["KeySource"]

_MAX_KEYS_BYTES = 1 << 20
# Servers of release 0.1 ask for a token wherever they know nothing.
_NO_SUCH_PATH = (401, 404)
_SECOND = (
    "signed keys of the second version, which an ML-DSA identity key or an attestation "
    "policy needs"
)


class KeySource:
    """The keys of one server: pinned, signed by identity keys, or as it offers them.

    Attributes:
        pinned: the caller gave them; no others are taken.
        attested: what was found of the machine behind the keys that were fetched last,
            by the caller's policy; None without one, or without evidence.
        offered: the log that they must be in, if that is required.
    """

    def __init__(self, url: str, options: Options, *, now: Callable[[], float]) -> None:
        """Nothing is asked yet.

        Args:
            url: of the server.
            options: what the caller pinned.
            now: Unix seconds, by our clock: whoever holds a key that was replaced could
                put back one that servers set, and so use the key for ever.

        Raises:
            ProfileError: an identity key cannot be used.
            TransportError: the pinned key configurations are malformed.
        """
        self._url = url
        self._now = now
        self._identities = load_identity_keys(options.identity_keys)
        self._policy = options.attestation
        self.attested: Attested | None = None
        self.pinned = options.key_configs is not None
        self.offered = OfferedLog(url, options)
        self._choice: KeyChoice | None = None
        if options.key_configs is not None:
            self._choice = KeyChoice(choose_config(options.key_configs))

    def forget(self) -> None:
        """Ask for keys again, the next time."""
        self._choice = None

    def choose(self) -> Steps[KeyConfig]:
        """The key to seal to now.

        Raises:
            TransportError: the server offers none that can be used.
            NotOfferedError: it is not in the public log, where it must be.
        """
        if self._choice is None or self._now() >= self._choice.good_until:
            document, good_until = yield from self.fetch()
            self._choice = KeyChoice(choose_config(document), good_until)
        config = self._choice.config
        if self.offered.required:
            yield from self.offered.check(
                key_leaf(config.encode()), fingerprint(config)
            )
        return config

    def fetch(self) -> Steps[tuple[bytes, float]]:
        """The document, and until when it may be used.

        Raises:
            TransportError: there is none, it does not verify, or the machine behind
                it is not what the policy asks for.
        """
        if self._identities:
            return (yield from self._fetch_signed())
        url = self._url + GATEWAY_PATH
        answer = yield from self._fetch(url, keyconfig.KEYS_MEDIA_TYPE)
        return answer.body, self._now() + _age(answer)

    def _fetch_signed(self) -> Steps[tuple[bytes, float]]:
        """The first version, unless what is trusted is in the second alone.

        Servers that only know the first are asked for no more; whoever trusts an
        ML-DSA key, or demands evidence, takes no less than the second.
        """
        version = 1 if self._policy is None and is_classical(self._identities) else 2
        first = version == 1
        path = signedkeys.SIGNED_KEYS_PATH if first else signedkeys.SIGNED_KEYS_V2_PATH
        media_type = signedkeys.SIGNED_KEYS_MEDIA_TYPE
        what = "keys" if first else _SECOND
        answer = yield from self._fetch(self._url + path, media_type, what)
        now = self._now()
        signed = verify_signed(answer.body, self._identities, now=now, version=version)
        self._check(signed)
        return signed.document, min(now + _age(answer), signed.not_after)

    def _check(self, signed: SignedKeys) -> None:
        if self._policy is None:
            return
        try:
            self.attested = self._policy.check(signed)
        except AttestationError as error:
            raise TransportError(f"the server's attestation: {error}") from None

    def _fetch(self, url: str, media_type: str, what: str = "keys") -> Steps[Answer]:
        answer: Answer = yield Fetch("GET", url, _MAX_KEYS_BYTES)
        if answer.status != 200 or answer.media_type != media_type:
            named = what if answer.status in _NO_SUCH_PATH else "keys"
            raise TransportError(f"the server offers no {named} ({answer.status})")
        return answer


def _age(answer: Answer) -> float:
    return max_age_s(answer.headers.get("cache-control", ""))
