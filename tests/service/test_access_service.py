"""Access through the real server: issuers, bound tokens, grants, revocation, discovery.

One deployment with three issuers, two workers, and a table of grants.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from sealgate import AsyncClient, AuthenticationError, Client, NotFoundError, Profile
from sealgate.options import Options
from sealgate.proofs import ProofKey
from sealgate.protocol import dpop
from security.commands import main
from tests.conftest import toy_settings
from tests.support.issuers import P256_KEY, RSA_KEY, Host, https_host, jwk, token
from tests.support.rooms import INPUT
from tests.support.servers import Server, environment, free_port, serve

MODEL = "/v2/models/toy"
INFER = MODEL + "/infer"
BODY: dict[str, Any] = {"inputs": [INPUT]}
KEYCLOAK = "https://sso.example.org/realms/research"
TABLE = """
scopes = "sufficient"

[[grants]]
name = "readers of research"
issuers = ["https://sso.example.org/realms/research"]
groups = ["reader"]
models = ["toy"]
versions = ["1.*"]
actions = ["infer", "metrics"]

[[grants]]
name = "lookers"
groups = ["looker"]
models = ["t*"]
actions = ["metadata"]

[[grants]]
name = "of a version that is not served"
groups = ["ahead"]
models = ["toy"]
versions = ["2.*"]
actions = ["infer"]
"""


@dataclass(frozen=True)
class Place:
    """A running server, its settings, and the host of an issuer's keys."""

    server: Server
    settings: dict[str, str]
    host: Host

    @property
    def home(self) -> Path:
        return self.server.home

    @property
    def url(self) -> str:
        return self.server.url

    def command(self, *arguments: str) -> str:
        code, said = self.refused(*arguments)
        assert code == 0, said
        return said

    def refused(self, *arguments: str) -> tuple[int, str]:
        """Run `python -m security …`, in this process: it starts in no time."""
        output = io.StringIO()
        with (
            mock.patch.dict(os.environ, environment(self.home, self.settings)),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            code = main(arguments)
        return code, output.getvalue()


@contextlib.contextmanager
def running(home: Path, host: Host, **more: str) -> Iterator[Place]:
    port = free_port()
    issuers = (
        f'[{{issuer = "{KEYCLOAK}", audience = "sealgate", jwks = "{host.url}", '
        f'jwks_ca = "{host.authority}", jwks_refresh_s = 1, jwks_retry_s = 1, '
        'algorithms = ["RS256", "ES256"], token_types = ["JWT"], '
        'client_claim = "azp", required_claims = ["typ=Bearer"], '
        'group_claims = ["/realm_access/roles"]}]'
    )
    settings = toy_settings(home) | {
        "SEALGATE_SEALING_REQUIRE_SEALED": "false",
        "SEALGATE_ACCESS_RESOURCE": f"http://127.0.0.1:{port}",
        "SEALGATE_ACCESS_PERMISSIONS": str(home / "access.toml"),
        "SEALGATE_ACCESS_ISSUERS": issuers,
        "SEALGATE_ACCESS_DPOP": "optional",
        "BENTOML_CONFIG_OPTIONS": "services.sealgate.workers=2",
        **more,
    }
    with serve("", home, extra=settings, port=port, alone=True) as server:
        yield Place(server, settings, host)


@pytest.fixture(scope="module")
def place(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("access")
    home = Path(shutil.copytree(pristine, folder / "home"))
    (home / "access.toml").write_text(TABLE)
    entry = jwk(RSA_KEY, "one", use="sig", alg="RS256")
    with https_host(folder / "host", entry) as host, running(home, host) as found:
        yield found


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def keycloak(*roles: str, **claims: Any) -> str:
    now = int(time.time())
    body = {
        "iss": KEYCLOAK,
        "aud": ["sealgate", "account"],
        "sub": "alice",
        "azp": "notebook",
        "typ": "Bearer",
        "jti": f"j-{time.time_ns()}",
        "iat": now,
        "exp": now + 300,
        "realm_access": {"roles": list(roles)},
        **claims,
    }
    return token(RSA_KEY, body, alg="RS256", kid="one", typ="JWT")


def infer(place: Place, headers: dict[str, str], path: str = INFER) -> httpx.Response:
    return httpx.post(place.url + path, json=BODY, headers=headers, timeout=30)


def until(place: Place, text: str, status: int, within_s: float = 30) -> float:
    """Ask until every one of several answers has the status; how long that took.

    Each request is a connection of its own, so that both workers are met.
    """
    began = time.monotonic()
    while True:
        elapsed = time.monotonic() - began
        answers = {infer(place, bearer(text)).status_code for _ in range(8)}
        if answers == {status}:
            return elapsed
        assert elapsed < within_s, answers


# Issuers and grants.


def test_a_token_of_another_issuer(place: Place) -> None:
    assert infer(place, bearer(keycloak("reader"))).status_code == 200
    # The same subject of the development issuer has no such grant.
    assert infer(place, bearer(mint_here(place, "x"))).status_code == 404
    assert infer(place, bearer(mint_here(place, "infer:toy"))).status_code == 200


def mint_here(place: Place, *scopes: str) -> str:
    flags = [part for scope in scopes for part in ("--scope", scope)]
    return place.command("token", *flags, "--subject", "alice").strip()


def test_a_model_one_may_not_use_is_none(place: Place) -> None:
    """Status, body and headers, whatever is asked, and at both workers."""

    def seen(model: str, text: str, method: str, rest: str) -> tuple[Any, ...]:
        url = f"{place.url}/v2/models/{model}{rest}"
        answer = httpx.request(method, url, headers=bearer(text), content=b"{}")
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name not in ("date", "x-request-id")
        }
        return answer.status_code, answer.content, kept

    for text in (keycloak(), keycloak("other"), keycloak("ahead")):
        for method in ("GET", "POST", "PUT"):
            for rest in ("", "/infer", "/ready", "/attestations", "/versions/1.0.0"):
                there = seen("toy", text, method, rest)
                assert there == seen("ghost", text, method, rest)
                assert there[0] == 404


def test_who_may_look_may_not_infer(place: Place) -> None:
    text = keycloak("looker")
    answer = httpx.get(place.url + MODEL, headers=bearer(text))
    assert answer.status_code == 200
    answer = infer(place, bearer(text))
    assert answer.status_code == 403
    assert 'scope="infer:toy"' in answer.headers["www-authenticate"]


def test_metrics_by_grant(place: Place) -> None:
    url = place.url + "/metrics"
    assert httpx.get(url, headers=bearer(keycloak("reader"))).status_code == 200
    assert httpx.get(url, headers=bearer(keycloak("looker"))).status_code == 403


def test_explain_says_why(place: Place, tmp_path: Path) -> None:
    def explained(text: str, *more: str) -> tuple[int, str]:
        path = tmp_path / "token"
        path.write_text(text)
        return place.refused("access", "explain", "--token", f"@{path}", *more)

    code, text = explained(keycloak("reader"), "--model", "toy")
    assert (code, text.splitlines()[-1]) == (0, "allowed")
    assert "grant 'readers of research': fits" in text
    assert "grant 'lookers': not this caller (groups)" in text
    code, text = explained(keycloak("looker"), "--model", "toy")
    assert (code, text.splitlines()[-1]) == (1, "refused")
    assert "not granted; would need infer:toy" in text
    code, text = explained(keycloak(), "--model", "toy")
    assert "answered like a model that is not there" in text
    code, text = explained(
        keycloak("ahead"), "--model", "toy", "--model-version", "1.0.0"
    )
    assert (code, "another model or version" in text) == (1, True)
    code, text = explained(keycloak("reader"), "--action", "metrics")
    assert code == 0
    code, text = explained(keycloak("reader", aud="other"), "--model", "toy")
    assert (code, "token: aud does not contain" in text) == (1, True)
    code, text = explained(keycloak("reader"))
    assert (code, text.strip()) == (2, "error: --action infer is about a --model")


def test_keys_rotate_without_a_restart(place: Place) -> None:
    now = int(time.time())
    claims = {
        "iss": KEYCLOAK,
        "aud": "sealgate",
        "sub": "alice",
        "azp": "notebook",
        "typ": "Bearer",
        "jti": "rotated",
        "iat": now,
        "exp": now + 300,
        "realm_access": {"roles": ["reader"]},
    }
    text = token(P256_KEY, claims, alg="ES256", kid="two", typ="JWT")
    assert infer(place, bearer(text)).status_code == 401
    one = jwk(RSA_KEY, "one", use="sig", alg="RS256")
    place.host.serve(one, jwk(P256_KEY, "two"))
    until(place, text, 200)
    place.host.serve(one)
    until(place, text, 401)
    # The issuer's host is down: its keys stay.
    place.host.answer = lambda: (503, {}, b"")
    time.sleep(1.5)
    assert infer(place, bearer(keycloak("reader"))).status_code == 200
    place.host.serve(one)


# Revocation.


def test_a_token_is_revoked_between_two_requests_of_one_connection(
    place: Place,
) -> None:
    text = keycloak("reader")
    with httpx.Client(base_url=place.url, headers=bearer(text)) as client:
        assert client.post(INFER, json=BODY).status_code == 200
        place.command("access", "revoke", "--token", text)
        deadline = time.monotonic() + 30
        while client.post(INFER, json=BODY).status_code == 200:
            assert time.monotonic() < deadline
        answer = client.post(INFER, json=BODY)
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    # Nobody else is meant.
    assert infer(place, bearer(keycloak("reader"))).status_code == 200
    code, said = place.refused("access", "revoke", "--token", text + "x")
    assert (code, said.startswith("error: ")) == (2, True)


@pytest.mark.parametrize(
    ("flag", "value"), [("--subject", "mallory"), ("--client", "notebook-2")]
)
def test_a_subject_or_a_client_is_revoked_and_restored(
    place: Place, flag: str, value: str
) -> None:
    claims = {"sub" if flag == "--subject" else "azp": value}
    text = keycloak("reader", **claims)
    until(place, text, 200)
    said = place.command("access", "revoke", flag, value, "--issuer", KEYCLOAK)
    assert value in said
    until(place, text, 401)
    listed = place.command("access", "revoked")
    # Who it is does not stand in the list, only whether it is the one who is asked for.
    assert (value in listed) == (flag == "--client")
    assert ("pseudonym" in listed) == (flag == "--subject")
    code, said = place.refused("access", "explain", "--token", text, "--model", "toy")
    assert (code, "is revoked" in said) == (1, True)
    # New tokens are refused too, other issuers' are not.
    assert infer(place, bearer(keycloak("reader", **claims))).status_code == 401
    place.command("access", "restore", flag, value, "--issuer", KEYCLOAK)
    until(place, text, 200)
    code, said = place.refused("access", "restore", flag, value, "--issuer", KEYCLOAK)
    assert (code, "was not revoked" in said) == (1, True)


def test_only_what_was_issued_until_now(place: Place) -> None:
    now = int(time.time())
    old = keycloak("reader", sub="carol", iat=now - 100)
    place.command("access", "revoke", "--subject", "carol", "--issued-until-now")
    until(place, old, 401)
    new = keycloak("reader", sub="carol", iat=int(time.time()) + 2)
    assert infer(place, bearer(new)).status_code == 200
    place.command("access", "restore", "--subject", "carol")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--token-id", "x", "--issued-until-now"), "a subject or a client"),
        (
            ("--subject", "x", "--issuer", "https://none"),
            "is no issuer of the set",
        ),
        (("--token", "@/none"), "No such file"),
        (("--token", "nonsense"), "not a compact JWS"),
    ],
)
def test_what_cannot_be_revoked_is_one_line(
    place: Place, arguments: tuple[str, ...], message: str
) -> None:
    before = place.command("access", "revoked")
    code, said = place.refused("access", "revoke", *arguments)
    assert (code, len(said.splitlines()), message in said) == (2, 1, True), said
    assert place.command("access", "revoked") == before


# Bound tokens.


@pytest.fixture(scope="module")
def key() -> ProofKey:
    return ProofKey.generate()


@pytest.fixture(scope="module")
def bound(place: Place, key: ProofKey) -> str:
    path = place.home / "proof.pem"
    path.touch(0o600)
    path.write_text(key.to_pem())
    arguments = ("token", "--scope", "infer:toy", "--proof-key", str(path))
    return place.command(*arguments).strip()


def nonce_of(place: Place, key: ProofKey, bound: str) -> str:
    proof = key.prove(
        "POST", place.url + INFER, token=bound, now=time.time(), nonce=None
    )
    answer = infer(place, {"authorization": f"DPoP {bound}", "dpop": proof})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("DPoP ")
    assert 'error="use_dpop_nonce"' in answer.headers["www-authenticate"]
    return answer.headers["dpop-nonce"]


def test_the_sdk_proves(place: Place, key: ProofKey, bound: str) -> None:
    options = Options(proof_key=key)
    with Client(place.url, token=bound, options=options) as client:
        for _ in range(3):
            assert list(client.infer("toy", {"features": [[1, 2, 3]]})["label"]) == [1]
    # Sealed, and without the key: the token alone is worth nothing.
    for other in (None, ProofKey.generate()):
        options = Options(proof_key=other)
        with (
            Client(place.url, token=bound, options=options) as client,
            pytest.raises(AuthenticationError),
        ):
            client.metadata("toy")


def test_the_asynchronous_sdk_proves(place: Place, key: ProofKey, bound: str) -> None:
    async def run() -> None:
        options = Options(proof_key=key)
        async with AsyncClient(place.url, token=bound, options=options) as client:
            calls = [client.metadata("toy") for _ in range(4)]
            names = [metadata["name"] for metadata in await asyncio.gather(*calls)]
        assert names == ["toy"] * 4

    asyncio.run(run())


def test_a_stream_is_proved_too(place: Place, key: ProofKey, bound: str) -> None:
    """Its content can be sent once, so the nonce is asked for before."""
    content = json.dumps(BODY).encode()

    async def portions() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 20):
            yield content[start : start + 20]

    async def run() -> None:
        options = Options(proof_key=key)
        headers = ((b"content-type", b"application/json"),)
        async with (
            AsyncClient(place.url, token=bound, options=options) as client,
            client.stream("POST", INFER, headers=headers, body=portions()) as answer,
        ):
            assert answer.status == 200

    asyncio.run(run())


def test_a_profile_that_proves(place: Place, tmp_path: Path) -> None:
    path, pem = tmp_path / "profile.json", tmp_path / "key.pem"
    arguments = ("--model", "toy", "--url", place.url, "--out", str(path))
    place.command("profile", *arguments, "--proof-key", str(pem))
    assert pem.stat().st_mode & 0o777 == path.stat().st_mode & 0o777 == 0o600
    profile = Profile.load(path)
    assert profile.proof_key is not None
    assert profile.proof_key not in repr(profile)
    with Client.from_profile(path) as client:
        assert client.ready("toy")
    plain = replace(profile, proof_key=None)
    with Client.from_profile(plain) as client, pytest.raises(AuthenticationError):
        client.ready("toy")


def test_a_proof_passes_once_at_all_workers(
    place: Place, key: ProofKey, bound: str
) -> None:
    nonce = nonce_of(place, key, bound)
    for _ in range(3):
        proof = key.prove(
            "POST", place.url + INFER, token=bound, now=time.time(), nonce=nonce
        )
        headers = {"authorization": f"DPoP {bound}", "dpop": proof}
        codes = [infer(place, headers).status_code for _ in range(6)]
        assert codes == [200, *[401] * 5]


def test_a_proof_for_something_else(place: Place, key: ProofKey, bound: str) -> None:
    nonce = nonce_of(place, key, bound)
    good: dict[str, Any] = {
        "method": "POST",
        "url": place.url + INFER,
        "token": bound,
        "now": time.time(),
        "nonce": nonce,
    }

    def status(**change: Any) -> tuple[int, str]:
        given = good | change
        maker = given.pop("key", key)
        proof = maker.prove(given.pop("method"), given.pop("url"), **given)
        headers = {"authorization": f"DPoP {bound}", "dpop": proof}
        answer = infer(place, headers)
        return answer.status_code, answer.headers.get("www-authenticate", "")

    assert status()[0] == 200
    for change in (
        {"method": "GET"},
        {"url": place.url + MODEL},
        {"url": place.url + "/v2/models/other/infer"},
        {"url": "http://127.0.0.1:1" + INFER},
        {"url": "https://models.example" + INFER},
        {"token": mint_here(place, "infer:toy")},
        {"now": time.time() - 100},
        {"now": time.time() + 100},
        {"key": ProofKey.generate()},
    ):
        code, challenge = status(**change)
        assert (code, 'error="invalid_dpop_proof"' in challenge) == (401, True), change
    code, challenge = status(nonce="AAAA", now=time.time())
    assert (code, 'error="use_dpop_nonce"' in challenge) == (401, True)


def test_the_host_that_a_request_names_is_not_asked(
    place: Place, key: ProofKey, bound: str
) -> None:
    """A proof made for another server does not pass because Host says so."""
    nonce = nonce_of(place, key, bound)
    proof = key.prove(
        "POST", "http://evil.example" + INFER, token=bound, now=time.time(), nonce=nonce
    )
    headers = {
        "authorization": f"DPoP {bound}",
        "dpop": proof,
        "host": "evil.example",
        "x-forwarded-host": "evil.example",
        "forwarded": "host=evil.example",
    }
    assert infer(place, headers).status_code == 401


def test_the_inner_request_is_what_a_proof_is_about(
    place: Place, key: ProofKey, bound: str
) -> None:
    """Sealed, with a proof for the gateway's own URL: that is not what is asked."""
    nonce = nonce_of(place, key, bound)

    def ask(method: str, path: str) -> int:
        proof = key.prove(
            method, place.url + path, token=bound, now=time.time(), nonce=nonce
        )
        headers = (
            (b"authorization", b"DPoP " + bound.encode()),
            (b"dpop", proof.encode()),
        )
        with Client(place.url, token="none") as client:
            return client.forward("GET", MODEL, headers=headers, own_token=False).status

    assert ask("POST", "/.well-known/ohttp-gateway") == 401
    assert ask("GET", MODEL) == 200


@pytest.mark.parametrize("count", [0, 2])
def test_no_proof_or_two(place: Place, key: ProofKey, bound: str, count: int) -> None:
    nonce = nonce_of(place, key, bound)
    proofs = [
        key.prove("POST", place.url + INFER, token=bound, now=time.time(), nonce=nonce)
        for _ in range(count)
    ]
    headers = [("authorization", f"DPoP {bound}"), *(("dpop", p) for p in proofs)]
    answer = httpx.post(place.url + INFER, json=BODY, headers=headers)
    assert answer.status_code == 401


def test_each_kind_of_token_has_its_scheme(
    place: Place, key: ProofKey, bound: str
) -> None:
    # RFC 9449, section 7.2: a bound token is no bearer token.
    answer = infer(place, bearer(bound))
    assert answer.status_code == 401
    unbound = mint_here(place, "infer:toy")
    proof = key.prove(
        "POST",
        place.url + INFER,
        token=unbound,
        now=time.time(),
        nonce=nonce_of(place, key, bound),
    )
    answer = infer(place, {"authorization": f"DPoP {unbound}", "dpop": proof})
    assert answer.status_code == 401
    # An issuer whose tokens may not be bound; its bound tokens are nobody's.
    text = keycloak("reader", cnf={"jkt": key.thumbprint})
    assert infer(place, bearer(text)).status_code == 401
    assert infer(place, {"authorization": f"DPoP {text}"}).status_code == 401


# Discovery.


def test_the_metadata_of_this_resource(place: Place) -> None:
    """RFC 9728: what a client that knows nothing finds its way by."""
    answer = httpx.post(place.url + INFER, json=BODY)
    assert answer.status_code == 401
    challenges = answer.headers.get_list("www-authenticate")
    assert [value.split(" ")[0] for value in challenges] == ["Bearer", "DPoP"]
    url = challenges[0].partition('resource_metadata="')[2].partition('"')[0]
    assert url == place.url + "/.well-known/oauth-protected-resource"
    assert "error" not in challenges[0]
    answer = httpx.get(url)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    # Section 3.3: it must be about what the client asked.
    assert document["resource"] == place.url
    assert document["authorization_servers"] == [KEYCLOAK]
    assert document["bearer_methods_supported"] == ["header"]
    assert "ES256" in document["dpop_signing_alg_values_supported"]
    assert "toy" not in answer.text
    assert httpx.post(url).status_code == 405
    assert httpx.head(url).status_code == 200


def test_the_development_issuers_keys(place: Place) -> None:
    answer = httpx.get(place.url + "/.well-known/sealgate-development-jwks.json")
    document = answer.json()
    assert document["environment"] == "development"
    assert [sorted(entry) for entry in document["keys"]] == [
        ["alg", "crv", "kid", "kty", "use", "x"]
    ]


# Restarts, and stores that are gone.


@pytest.mark.slow
def test_revocations_survive_a_restart_and_are_not_guessed(
    place: Place, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(place.home, tmp_path / "home", symlinks=True))
    text = keycloak("reader", sub="dora")
    fixed = {"SEALGATE_ACCESS_PERMISSIONS": str(home / "access.toml")}
    with running(home, place.host, **fixed) as first:
        until(first, text, 200)
        first.command("access", "revoke", "--subject", "dora")
        until(first, text, 401)
    with running(home, place.host, **fixed) as second:
        until(second, text, 401)
        other = keycloak("reader", sub="eve")
        until(second, other, 200)
        for path in (home / "revocations").iterdir():
            path.unlink()
        until(second, other, 503)
        answer = infer(second, bearer(other))
        assert answer.json()["type"].endswith("/revocation-unavailable")
        assert "retry-after" in answer.headers


def test_not_found_for_the_sdk(place: Place) -> None:
    client = Client(place.url, token=keycloak("other"))
    with client, pytest.raises(NotFoundError):
        client.metadata("toy")


def test_nothing_of_a_caller_is_printed(place: Place, bound: str) -> None:
    printed = place.server.log.read_text()
    for secret in ("alice", "mallory", *bound.split(".")):
        assert secret not in printed
    assert dpop.token_hash(bound) not in printed
