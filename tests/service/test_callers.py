"""service.callers: the first token after an issuer's keys have changed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from security.access.tokens import Principal, Verifier
from security.errors import TokenError
from security.settings.access import AccessSettings
from service import callers as module
from service.callers import Callers
from tests.support.issuers import ED_KEY, P256_KEY, Host, https_host, jwk, token
from tests.support.patience import in_time, once
from tests.support.rooms import request

ONE, TWO = jwk(ED_KEY, "one"), jwk(P256_KEY, "two")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with https_host(tmp_path, ONE) as running:
        yield running


@contextmanager
def calling(host: Host) -> Iterator[Callers]:
    access = AccessSettings(
        issuer="https://issuer",
        audience="us",
        jwks=host.url,
        jwks_ca=host.authority,
        jwks_retry_s=1,
    )
    verifier = Verifier(access)
    source: Any = verifier._issuers["https://issuer"].source
    with closing(source):
        source._last_attempt = float("-inf")  # the interval since the start is over
        yield Callers(verifier, access)


def signed(key: Any, kid: str, alg: str) -> str:
    now = int(time.time())
    claims = {
        "iss": "https://issuer",
        "aud": "us",
        "sub": "alice",
        "client_id": "app",
        "jti": "1",
        "iat": now,
        "exp": now + 300,
    }
    return token(key, claims, alg=alg, kid=kid)


async def ask(callers: Callers, text: str) -> Principal:
    return await callers.authenticate(request(bearer=text))


def test_the_first_token_after_a_rotation_passes(host: Host) -> None:
    with calling(host) as callers:
        host.serve(TWO)
        text = signed(P256_KEY, "two", "ES256")

        async def together() -> list[Principal]:
            return await asyncio.gather(*(ask(callers, text) for _ in range(5)))

        assert {who.subject for who in asyncio.run(together())} == {"alice"}
        assert len(host.asked) == 2
        # A key that is not there after that fetch is refused, without another one.
        with pytest.raises(TokenError, match="kid is not known"):
            asyncio.run(ask(callers, signed(P256_KEY, "three", "ES256")))
        assert len(host.asked) == 2


def test_a_host_that_does_not_answer_is_waited_for_by_few_and_not_long(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers can name unknown keys too: they must not fill the server."""
    monkeypatch.setattr(module, "MAX_WAIT_S", 0.3)
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    answer, release = host.answer, threading.Event()

    def slow() -> Any:
        release.wait(20)
        return answer()

    def scene() -> None:
        release.clear()
        host.answer = answer
        with calling(host) as callers:
            host.answer = slow
            refused_after: list[float] = []

            async def stranger() -> None:
                began = time.monotonic()
                with pytest.raises(TokenError, match="kid is not known"):
                    await ask(callers, signed(P256_KEY, "guess", "ES256"))
                refused_after.append(time.monotonic() - began)

            async def together() -> None:
                await asyncio.gather(*(stranger() for _ in range(20)))

            asyncio.run(together())
            release.set()
            assert len(refused_after) == 20
            *at_once, first, second, third = sorted(refused_after)
            assert min(first, second, third) >= 0.25
            in_time(0.0, 0.25, now=max(at_once))
            in_time(0.0, 5.0, now=third)

    once(scene)
