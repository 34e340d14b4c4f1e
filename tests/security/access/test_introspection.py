"""security.access.introspection: opaque tokens, asked about at a real https host."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from security.access import introspection as module
from security.access.explain import Question, Step, explain
from security.access.introspection import Introspector
from security.access.revocation import Revocations
from security.access.revocation_stores import Revocation
from security.access.tokens import Principal, Verifier
from security.errors import (
    IntrospectionError,
    KeyFileError,
    SettingsError,
    TokenError,
)
from security.key_files import write_secret
from security.settings.access import AccessSettings, check_access
from security.settings.issuers import IssuerSettings
from service.callers import Callers
from tests.support.issuers import ED_KEY, Host, b64, https_host, jwk, token
from tests.support.patience import in_time, once
from tests.support.rooms import request

ISSUER = "https://opaque.example"
OTHER = "https://jwt.example"
# What is to be seen nowhere.
SECRET = "client/secret+with=signs"
TOKEN = "opaque-0123456789.abcdef~+/=="


def answer(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {
        "active": True,
        "token_type": "Bearer",
        "iss": ISSUER,
        "aud": "us",
        "sub": "alice",
        "client_id": "app",
        "scope": "infer:toy",
        "jti": "j-1",
        "iat": now,
        "exp": now + 300,
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with https_host(tmp_path / "host", jwk(ED_KEY, "ed")) as running:
        running.tokens[TOKEN] = answer()
        yield running


def issuer(host: Host, folder: Path, **changes: Any) -> IssuerSettings:
    path = folder / "introspection.secret"
    if not path.exists():
        write_secret(path, SECRET.encode())
    given: dict[str, Any] = {
        "issuer": ISSUER,
        "audience": "us",
        "introspection": host.url,
        "introspection_client": "us&co",
        "introspection_secret": path,
        "jwks_ca": host.authority,
    }
    return IssuerSettings(**given | changes)


def settings(host: Host, folder: Path, **changes: Any) -> AccessSettings:
    """An issuer of opaque tokens beside one of JWTs."""
    signs = IssuerSettings(
        issuer=OTHER, audience="us", jwks=host.url, jwks_ca=host.authority
    )
    return AccessSettings(issuers=(issuer(host, folder, **changes), signs))


@pytest.fixture
def verifier(host: Host, tmp_path: Path) -> Verifier:
    return Verifier(settings(host, tmp_path))


def verify(verifier: Verifier, text: str = TOKEN) -> Principal:
    return verifier.verify_waiting(text, now=time.time())


def refused(verifier: Verifier, text: str, match: str) -> None:
    with pytest.raises(TokenError, match=match):
        verify(verifier, text)


def test_an_active_token(host: Host, verifier: Verifier) -> None:
    who = verify(verifier)
    assert (who.subject, who.client_id, who.issuer) == ("alice", "app", ISSUER)
    assert who.scopes == {"infer:toy"}
    assert who.token_id == "j-1"
    # RFC 6749, section 2.3.1: both are encoded before they are joined.
    assert [text for text, _ in host.questions] == [TOKEN]
    basic = base64.b64decode(host.questions[0][1].removeprefix("Basic ")).decode()
    assert basic == "us%26co:client%2Fsecret%2Bwith%3Dsigns"
    for _ in range(5):
        assert verify(verifier) is who
    assert host.asked_about(TOKEN) == 1


def test_one_question_for_all_who_ask_at_once(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = settings(host, tmp_path)
    callers = Callers(Verifier(access), access)
    slow(host, 0.3)

    async def together() -> list[Principal]:
        calls = [callers.authenticate(request(bearer=TOKEN)) for _ in range(12)]
        return await asyncio.gather(*calls)

    assert {who.subject for who in asyncio.run(together())} == {"alice"}
    assert host.asked_about(TOKEN) == 1


def slow(host: Host, seconds: float) -> None:
    say = host.introspect

    def late(text: str) -> Any:
        time.sleep(seconds)
        return say(text)

    host.introspect = late  # type: ignore[method-assign]


class Later(int):
    """Seconds from when the test runs, which may be long after it was collected."""


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"active": False}, "not active"),
        ({"aud": "somebody else"}, "aud does not contain"),
        ({"aud": None}, "aud does not contain"),
        ({"iss": OTHER}, "iss is not"),
        ({"iss": None, "sub": None}, "sub is missing"),
        ({"client_id": None}, "client_id is missing"),
        ({"jti": None}, "jti is missing"),
        ({"exp": None}, "exp is missing"),
        ({"iat": None}, "iat is missing"),
        ({"exp": Later(-60)}, "has expired"),
        ({"iat": Later(600), "exp": Later(900)}, "future"),
        ({"nbf": Later(600)}, "nbf is in the future"),
        ({"exp": Later(7200)}, "lifetime is too long"),
        ({"scope": ["infer:*"]}, "scope is malformed"),
        ({"cnf": {"unknown": "x"}}, "cnf is not understood"),
        # A refresh token is active, too, and says no type.
        ({"token_type": None}, "token_type is not"),
        ({"token_type": "refresh_token"}, "token_type is not"),
        ({"token_type": ["Bearer"]}, "token_type is not"),
    ],
    ids=[str(number) for number in range(18)],
)
def test_the_rules_of_claims_are_those_of_jwts(
    host: Host, verifier: Verifier, changes: dict[str, Any], match: str
) -> None:
    now = int(time.time())
    given = {k: now + v if isinstance(v, Later) else v for k, v in changes.items()}
    host.tokens[TOKEN] = answer(**given)
    refused(verifier, TOKEN, match)
    refused(verifier, TOKEN, match)
    assert host.asked_about(TOKEN) == 1


def test_an_answer_without_an_issuer_is_about_its_own(
    host: Host, verifier: Verifier
) -> None:
    host.tokens[TOKEN] = answer(iss=None)
    assert verify(verifier).issuer == ISSUER


def test_what_the_settings_relax(host: Host, tmp_path: Path) -> None:
    """As a provider answers that knows neither jti nor sub for its own clients."""
    access = settings(
        host,
        tmp_path,
        subject_claim="client_id",
        relax=("jti-absent",),
        required_claims=("tenant=a",),
        group_claims=("/roles",),
    )
    verifier = Verifier(access)
    host.tokens[TOKEN] = answer(sub=None, jti=None, tenant="a", roles=["reader"])
    who = verify(verifier)
    assert (who.subject, who.groups) == ("app", {"reader"})
    assert who.token_id == f"sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
    host.tokens["another"] = answer(sub=None, jti=None, tenant="b")
    refused(verifier, "another", "tenant is not a")


def test_bindings_come_with_the_answer(host: Host, verifier: Verifier) -> None:
    host.tokens[TOKEN] = answer(cnf={"x5t#S256": "thumb"}, token_type="bearer")
    assert verify(verifier).certificate == "thumb"
    host.tokens["d"] = answer(cnf={"jkt": "key"}, token_type="DPoP")
    assert verify(verifier, "d").confirmation == "key"


# Two kinds of token at one server.


def signed(**changes: Any) -> str:
    claims = answer(**{"iss": OTHER, **changes})
    del claims["active"], claims["token_type"]
    return token(ED_KEY, claims, alg="EdDSA", kid="ed")


def test_a_jwt_of_another_issuer_is_never_shown(host: Host, verifier: Verifier) -> None:
    assert verify(verifier, signed()).issuer == OTHER
    refused(verifier, signed(aud="them"), "aud does not contain")
    refused(verifier, signed(iss="https://nobody.example"), "iss is not a configured")
    assert not host.questions


def test_what_may_be_a_jwt_to_somebody_else(host: Host, verifier: Verifier) -> None:
    """Malformed here, it may be good elsewhere: nobody else is to see it."""
    good = signed()
    header, payload, signature = good.split(".")
    spaced = b64(b' {"alg":"EdDSA", "kid":"ed", "typ":"at+jwt"} ')
    encrypted = b64(b'{"alg":"dir","enc":"A128GCM"}')
    critical = b64(b'{"alg":"EdDSA","crit":["x"]}')
    twice = b64(b'{"iss":"a","iss":"b"}')
    for text in (
        good + "=",
        good + ".",
        f"{header}.{payload}",
        f"{header}==.{payload}.{signature}",
        f"{spaced}.{payload}.{signature}.",
        f"{encrypted}..iv.text.tag",
        f"{critical}.{payload}.{signature}",
        f"{header}.{twice}.{signature}",
    ):
        with pytest.raises(TokenError):
            verify(verifier, text)
    assert not host.questions


def test_a_jwt_that_names_the_issuer_of_opaque_ones_is_asked_about(
    host: Host, verifier: Verifier
) -> None:
    """Its signature is not looked at: what counts is what the issuer says."""
    text = signed(iss=ISSUER)
    refused(verifier, text, "not active")
    assert host.asked_about(text) == 1
    allowed = signed(iss=ISSUER, jti="3")
    host.tokens[allowed] = answer(sub="bob")
    assert verify(verifier, allowed).subject == "bob"
    # oidc-provider answers 400 to what it can see to be a JWT: no reason for 503.
    host.introspect = lambda text: (400, {}, b"{}")  # type: ignore[method-assign]
    refused(verifier, signed(iss=ISSUER, jti="2"), "answered 400")


def test_an_opaque_token_where_all_are_jwts(host: Host) -> None:
    signs = IssuerSettings(
        issuer=OTHER, audience="us", jwks=host.url, jwks_ca=host.authority
    )
    verifier = Verifier(AccessSettings(issuers=(signs,)))
    refused(verifier, TOKEN, "not a compact JWS")
    refused(verifier, "a.b.c", "not ")
    assert not host.questions


@pytest.mark.parametrize("text", ["", "a b", 'quo"te', "ü", "a\r\nb", "=", "a=b"])
def test_what_is_no_token_is_not_asked_about(
    host: Host, verifier: Verifier, text: str
) -> None:
    refused(verifier, text, "neither a compact JWS nor")
    refused(verifier, "x" * 8193, "too long")
    assert not host.questions


# The issuer cannot be asked.


def say(status: int = 200, body: bytes = b"", **headers: str) -> Callable[[str], Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda text: (status, named, body)


ANSWERS = {
    "empty": say(),
    "no JSON": say(body=b"<html>" + TOKEN.encode()),
    "an array": say(body=b"[]"),
    "nothing said": say(body=b"{}"),
    "in words": say(body=b'{"active": "true"}'),
    "a number": say(body=b'{"active": 1}'),
    "said twice": say(body=b'{"active": false, "active": true}'),
    "deep": say(body=b'{"active": true, "a": ' + b"[" * 99 + b"]" * 99 + b"}"),
    "huge": say(body=b'{"active": false, "a": "' + b"a" * (1 << 17) + b'"}'),
    "elsewhere": say(302, location="https://127.0.0.1:1/"),
    "here": say(307, location="/introspect"),
    "who are you": say(401),
    "busy": say(429),
    "broken": say(500),
    "away": say(503),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_are_none(
    host: Host, verifier: Verifier, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody gets in, and nobody is told that the token is bad: it may not be."""
    honest, host.introspect = host.introspect, ANSWERS[name]  # type: ignore[method-assign]
    with pytest.raises(IntrospectionError) as caught:
        verify(verifier)
    # Not asked again straight away, and said once.
    with pytest.raises(IntrospectionError):
        verify(verifier)
    assert host.asked_about(TOKEN) == 1
    assert len(caplog.records) == 1
    assert "cannot be asked about tokens" in caplog.text
    assert TOKEN not in caplog.text + str(caught.value)
    assert "secret" not in caplog.text
    host.introspect = honest  # type: ignore[method-assign]
    time.sleep(module.FAILED_S)
    assert verify(verifier).subject == "alice"


def test_a_slow_host_is_given_up(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FETCH_TIMEOUT_S", 0.3)
    slow(host, 2.0)

    def scene() -> None:
        verifier = Verifier(settings(host, tmp_path))  # which has asked nobody
        began = time.monotonic()
        with pytest.raises(IntrospectionError):
            verify(verifier)
        in_time(began, 1.5)

    once(scene)


def test_an_issuer_that_is_away_is_no_stale_answer(host: Host, tmp_path: Path) -> None:
    """What was active is believed for its time, and then not any more."""
    verifier = Verifier(settings(host, tmp_path, introspection_cache_s=1))
    verify(verifier)
    host.introspect = say(503)  # type: ignore[method-assign]
    assert verify(verifier).subject == "alice"
    time.sleep(1.1)
    with pytest.raises(IntrospectionError):
        verify(verifier)


def test_a_host_of_another_authority(host: Host, tmp_path: Path) -> None:
    with https_host(tmp_path / "other") as other:
        verifier = Verifier(settings(host, tmp_path, jwks_ca=other.authority))
        with pytest.raises(IntrospectionError):
            verify(verifier)
    assert not host.questions


# What is remembered, and for how long.


def test_the_issuer_revokes(host: Host, tmp_path: Path) -> None:
    verifier = Verifier(settings(host, tmp_path, introspection_cache_s=1))
    verify(verifier)
    host.tokens[TOKEN] = {"active": False}
    time.sleep(1.1)
    refused(verifier, TOKEN, "not active")
    # And a refusal is no word for ever.
    assert module.REFUSED_S <= 10


def test_never_beyond_its_time(host: Host, tmp_path: Path) -> None:
    verifier = Verifier(settings(host, tmp_path, introspection_cache_s=3600))
    who = verify(verifier)
    assert verifier.verify(TOKEN, now=who.expires_at + 4.9) is who
    with pytest.raises(TokenError, match="has expired"):
        verifier.verify(TOKEN, now=who.expires_at + 5)
    assert host.asked_about(TOKEN) == 1


@pytest.mark.parametrize("kind", ["jti", "digest", "subject"])
def test_our_own_revocations_hold(host: Host, tmp_path: Path, kind: str) -> None:
    access = settings(host, tmp_path, relax=("jti-absent",))
    host.tokens[TOKEN] = answer(jti="j-1" if kind == "jti" else None)
    digest = f"sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"
    line = {
        "jti": Revocation("token", "j-1", ISSUER),
        "digest": Revocation("token", digest, ISSUER),
        "subject": Revocation("subject", "alice"),
    }[kind]
    revoked = Verifier(access, revocations=Revocations([line], key=b"k" * 32))
    refused(revoked, TOKEN, "is revoked")
    host.tokens["another"] = answer(jti="j-2", sub="bob")
    assert verify(revoked, "another").subject == "bob"


def test_a_flood_of_random_tokens(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks little of the issuer, and takes nothing from who was let in before."""
    monkeypatch.setattr(module, "MAX_REMEMBERED", 8)
    verifier = Verifier(
        settings(host, tmp_path, introspection_cache_s=1, introspection_per_s=10)
    )
    who = verify(verifier)
    asked, unsure = 0, 0
    began = time.monotonic()
    while time.monotonic() - began < 2.5 or unsure <= 50:
        assert time.monotonic() - began < 60
        try:
            verify(verifier, f"random-{asked}")
        except TokenError:
            asked += 1
        except IntrospectionError:
            unsure += 1
            time.sleep(0.002)
        # Twice in this time the answer about the honest one grows too old.
        assert verify(verifier) == who
    took_s = time.monotonic() - began
    strangers = len(host.questions) - host.asked_about(TOKEN)
    assert unsure > 50
    assert strangers == asked <= 10 + 10 * (took_s + 0.1)
    assert 2 <= host.asked_about(TOKEN) <= 2 + took_s
    inside: Any = verifier._introspector
    assert len(inside._others) <= 8
    assert len(inside._active) == 1


def test_strangers_leave_half_of_the_places(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ASKED_AT_ONCE", 4)
    verifier = Verifier(
        settings(host, tmp_path, introspection_cache_s=1, introspection_per_s=999)
    )
    verify(verifier)
    honest, release = host.introspect, threading.Event()

    def hold(text: str) -> Any:
        if text != TOKEN:
            release.wait(60)
        return honest(text)

    host.introspect = hold  # type: ignore[method-assign]
    time.sleep(1.1)
    for number in range(6):
        with pytest.raises(IntrospectionError):
            verifier.verify(f"stranger-{number}", now=time.time())
    deadline = time.monotonic() + 60
    while len(host.questions) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert verify(verifier).subject == "alice"
    release.set()
    assert {text for text, _ in host.questions} == {
        TOKEN, "stranger-0", "stranger-1",
    }  # fmt: skip


def test_a_token_is_seen_nowhere(
    host: Host, verifier: Verifier, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    # Made now: what is written in this file, others may have read from it.
    secret = f"opaque-{secrets.token_hex(16)}"
    host.tokens[secret] = answer()
    who = verify(verifier, secret)
    refused(verifier, "refused-token", "not active")
    inside: Any = verifier._introspector
    shown = repr(who) + repr(inside) + repr(vars(inside)["_active"]) + caplog.text
    assert secret not in shown
    assert "refused-token" not in repr(vars(inside)["_others"]) + caplog.text
    # Nor is it kept: only its hash is.
    gc.collect()
    kept = [one for one in gc.get_objects() if type(one) is dict]
    assert not any(secret in one for one in kept if one is not host.tokens)


def test_explain_asks(host: Host, tmp_path: Path) -> None:
    (tmp_path / "access.toml").write_text('scopes = "sufficient"\n')
    access = replace(settings(host, tmp_path), permissions=tmp_path / "access.toml")

    def explained(text: str) -> list[Step]:
        return explain(
            access,
            text,
            Question("toy", None, "infer"),
            revoked=Revocations(key=b"k" * 32),
            certificates=True,
            now=time.time(),
        )

    steps = explained(TOKEN)
    assert all(step.passed for step in steps)
    said = "\n".join(step.text for step in steps)
    assert f"introspection: {host.url} was asked" in said
    assert "believed for 30 s" in said
    assert TOKEN not in said
    steps = explained("invented")
    assert [(step.passed, step.text) for step in steps] == [
        (False, "token: the issuer says that the token is not active")
    ]
    host.introspect = say(500)  # type: ignore[method-assign]
    (step,) = explained("another")
    assert "could not be asked" in step.text


# Settings.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"introspection": "http://opaque.example/"}, "only https"),
        ({"introspection": "https://u:p@opaque.example/"}, "not a URL without user"),
        ({"introspection_client": ""}, "needs introspection_client and"),
        ({"introspection_secret": None}, "needs introspection_client and"),
        ({"introspection": ""}, "introspection is not set"),
        ({"introspection_cache_s": 0}, "introspection_cache_s: must be positive"),
        ({"introspection_per_s": 0}, "introspection_per_s: must be positive"),
        ({"jwks": "https://opaque.example/keys"}, "in place of keys"),
        ({"secret": Path("x"), "algorithms": ("HS256",)}, "in place of keys"),
    ],
)
def test_settings_that_cannot_be_meant(
    host: Host, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        check_access(settings(host, tmp_path, **changes))


def test_only_one_issuer_is_shown_opaque_tokens(host: Host, tmp_path: Path) -> None:
    two = (issuer(host, tmp_path), issuer(host, tmp_path, issuer="https://two"))
    with pytest.raises(SettingsError, match="of one issuer at most"):
        check_access(AccessSettings(issuers=two))


def test_a_secret_that_others_may_read(host: Host, tmp_path: Path) -> None:
    given = issuer(host, tmp_path)
    assert given.introspection_secret is not None
    given.introspection_secret.chmod(0o644)
    with pytest.raises(KeyFileError, match="let others in"):
        Verifier(AccessSettings(issuers=(given,)))
    given.introspection_secret.chmod(0o600)
    given.introspection_secret.write_bytes(b" \n")
    with pytest.raises(KeyFileError, match="holds no secret"):
        module.check_introspection(given)


def test_the_class_says_where_it_asks(host: Host, tmp_path: Path) -> None:
    given = issuer(host, tmp_path)
    assert repr(Introspector(given, None)) == f"<Introspector {host.url}>"  # type: ignore[arg-type]
