"""Opaque tokens: what their issuer says of them, when it is asked (RFC 7662).

The issuer's answer is read by the same rules as the claims of a JWT. It came over TLS
from the one host that may say so, so it needs no signature; an answer without ``iss``
is about a token of that issuer. ``token_type`` has to be there, as ``typ`` in a JWT:
refresh tokens can be active, too.

Answers are remembered by the token's hash for ``introspection_cache_s``, refusals for
ten seconds, failures for one; ``exp`` is looked at with every request. Nothing that is
older is ever used: where the issuer cannot be asked, nobody with such a token gets in.

Anybody can send tokens that nobody has seen, and each makes us ask. So tokens that were
not active when last asked about share a number of questions per second, and half of the
places; they are also remembered apart. Who has an active token is asked about whatever
strangers do. Each token is asked about once at a time, by a thread of its own.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from urllib.parse import quote_plus, urlencode

from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.access.claims import ClaimReader, Principal
from security.access.jws import MAX_DEPTH
from security.bounded_fetch import StatusError, fetch, trusting
from security.errors import IntrospectionError, KeyFileError, TokenError
from security.key_files import read_secret
from security.settings.issuers import IssuerSettings

__all__ = ["Introspector", "PendingError", "check_introspection"]

FETCH_TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 64 << 10
# Of active tokens, and as many of others.
MAX_REMEMBERED = 4096
REFUSED_S = 10.0
FAILED_S = 1.0
MAX_ASKED_AT_ONCE = 32
# RFC 6750, section 2.1.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_TYPES = ("bearer", "dpop")

_log = logging.getLogger(__name__)


class PendingError(IntrospectionError):
    """The issuer is being asked; verify again when it has answered.

    Attributes:
        fetch: ends when it has, or could not be asked.
        known: the token was active when it was last asked about.
    """

    def __init__(self, fetch: Future[None], *, known: bool) -> None:
        self.fetch = fetch
        self.known = known
        super().__init__("the issuer has not answered yet")


@dataclass(frozen=True)
class _Answer:
    """What is known of a token: whose it is, or why nobody's."""

    until: float
    principal: Principal | None = field(default=None, repr=False)
    refused: str = ""


def check_introspection(issuer: IssuerSettings) -> None:
    """Refuse what can be seen to be unusable without asking anybody.

    Raises:
        KeyFileError: the client's secret, or the file of authorities.
    """
    _authorization(issuer)
    trusting(issuer.jwks_ca)


class Introspector:
    """Asks one issuer about tokens, and remembers what it said."""

    def __init__(
        self,
        issuer: IssuerSettings,
        reader: ClaimReader,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is asked yet.

        Raises:
            KeyFileError: as `check_introspection`.
        """
        self._issuer = issuer
        self._reader = reader
        self._clock = clock
        self._monotonic = monotonic
        self._context = trusting(issuer.jwks_ca)
        self._authorization = _authorization(issuer)
        self._lock = threading.Lock()
        self._active: OrderedDict[bytes, _Answer] = OrderedDict()
        self._others: OrderedDict[bytes, _Answer] = OrderedDict()
        self._asked: dict[bytes, Future[None]] = {}
        self._spent_until = float("-inf")
        self._said = ""

    def __repr__(self) -> str:
        return f"<Introspector {self._issuer.introspection}>"

    def principal(self, token: str, name: bytes, now: float) -> Principal:
        """Return the principal of a token, if its issuer was asked a moment ago.

        Args:
            token: may be hostile.
            name: its hash, which it is remembered by.
            now: seconds since the epoch.

        Raises:
            PendingError: the issuer is being asked.
            IntrospectionError: it cannot be, or not about so many.
            TokenError: it says that the token is not valid, or not here.
        """
        with self._lock:
            known = name in self._active
            table = self._active if known else self._others
            answer = table.get(name)
            if answer is None or answer.until <= self._monotonic():
                raise PendingError(self._ask(token, name, known=known), known=known)
            table.move_to_end(name)
        if answer.principal is not None:
            self._reader.check_time(answer.principal, int(now))
            return answer.principal
        if answer.refused:
            raise TokenError(answer.refused)
        raise IntrospectionError("the issuer could not be asked a moment ago")

    def _ask(self, token: str, name: bytes, *, known: bool) -> Future[None]:
        """Begin to ask, unless that is under way."""
        if name in self._asked:
            return self._asked[name]
        if not _TOKEN.fullmatch(token):
            raise TokenError("neither a compact JWS nor an opaque token")
        places = MAX_ASKED_AT_ONCE if known else MAX_ASKED_AT_ONCE // 2
        if len(self._asked) >= places or not (known or self._may_ask()):
            raise IntrospectionError("the issuer is asked about too many tokens")
        asked: Future[None] = Future()
        arguments = (token, name, asked)
        thread = threading.Thread(target=self._run, args=arguments, daemon=True)
        thread.start()
        self._asked[name] = asked
        return asked

    def _may_ask(self) -> bool:
        """Count a question about a token that may be anything."""
        now = self._monotonic()
        begin = max(self._spent_until, now - 1)
        if begin > now:
            return False
        self._spent_until = begin + 1 / self._issuer.introspection_per_s
        return True

    def _run(self, token: str, name: bytes, asked: Future[None]) -> None:
        answer = _Answer(self._monotonic() + FAILED_S)
        try:
            answer = self._answer(token)
            self._said = ""
        except (KeyFileError, IntrospectionError) as error:
            self._say(str(error))
        finally:
            with self._lock:
                self._remember(name, answer)
                del self._asked[name]
            asked.set_result(None)

    def _remember(self, name: bytes, answer: _Answer) -> None:
        """Of an active token a failure changes nothing but that it is no answer."""
        if answer.refused:
            self._active.pop(name, None)
        known = answer.principal is not None or name in self._active
        if known:
            self._others.pop(name, None)
        table = self._active if known else self._others
        table[name] = answer
        table.move_to_end(name)
        if len(table) > MAX_REMEMBERED:
            table.popitem(last=False)

    def _answer(self, token: str) -> _Answer:
        """Ask, and read what is said by the rules for all tokens."""
        asked_at = self._monotonic()
        try:
            claims = self._claims(token)
            if claims["active"] is not True:
                raise TokenError("the issuer says that the token is not active")
            _check_type(claims, self._issuer)
            digest = f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"
            named = {"iss": self._issuer.issuer, **claims}
            principal = self._reader.read(named, int(self._clock()), digest=digest)
        except TokenError as error:
            return _Answer(self._monotonic() + REFUSED_S, refused=str(error))
        return _Answer(asked_at + self._issuer.introspection_cache_s, principal)

    def _claims(self, token: str) -> dict[str, object]:
        """RFC 7662, sections 2.1 and 2.2."""
        form = {"token": token, "token_type_hint": "access_token"}
        try:
            data = fetch(
                self._issuer.introspection,
                context=self._context,
                max_bytes=MAX_ANSWER_BYTES,
                timeout_s=FETCH_TIMEOUT_S,
                authorization=self._authorization,
                form=urlencode(form).encode(),
            )
            claims = strict_json.loads_object(
                data, max_bytes=MAX_ANSWER_BYTES, max_depth=MAX_DEPTH
            )
        except StatusError as error:
            if error.status == 400:  # some refuse so what they can see to be no token
                raise TokenError("the issuer answered 400") from None
            raise
        except JsonError:
            raise IntrospectionError("no strict JSON object") from None
        if type(claims.get("active")) is not bool:
            raise IntrospectionError("does not say whether the token is active")
        return claims

    def _say(self, why: str) -> None:
        """Once for as long as the reason is the same."""
        if why != self._said:
            self._said = why
            url = self._issuer.introspection
            _log.warning("the issuer cannot be asked about tokens: %s: %s", url, why)


def _check_type(claims: dict[str, object], issuer: IssuerSettings) -> None:
    """Refresh tokens have none (RFC 7662, section 2.2; RFC 6749, section 5.1)."""
    kind = claims.get("token_type")
    if kind is None and "typ-absent" in issuer.relax:
        return
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise TokenError("token_type is not an access token's")


def _authorization(issuer: IssuerSettings) -> bytes:
    """``client_secret_basic`` (RFC 6749, section 2.3.1)."""
    path = issuer.introspection_secret
    if path is None:  # the settings' own check has refused it
        raise KeyFileError("introspection_secret is not set")
    try:
        secret = read_secret(path).decode("ascii").strip()
    except UnicodeDecodeError:
        secret = ""
    if not secret:
        raise KeyFileError(f"{path}: holds no secret in ASCII")
    pair = f"{quote_plus(issuer.introspection_client)}:{quote_plus(secret)}"
    return b"Basic " + b64encode(pair.encode())
