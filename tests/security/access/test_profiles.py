"""Tokens in the shapes that providers issue, with keys made here.

The shapes are those of the providers' documentation; names and values are made up.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils

from security.access.claims import Principal
from security.access.explain import Question, explain
from security.access.revocation import Revocations
from security.access.revocation_stores import Revocation
from security.access.tokens import Verifier
from security.errors import RevocationStoreError, TokenError
from security.settings.access import AccessSettings
from security.settings.issuers import IssuerSettings
from security.settings.loading import load_settings
from security.settings.profiles import PROFILES, RELAXATIONS
from tests.support.issuers import NOW, P256_KEY, RSA_KEY, b64, jwk
from tests.support.servers import ROOT

Claims = dict[str, Any]
DROP = object()


@dataclasses.dataclass(frozen=True)
class Provider:
    """What an issuer publishes and issues.

    Attributes:
        settings: beside the profile's, as an operator writes them.
        key: what it publishes of its RSA key, beside the key itself.
        header: of a token, beside ``alg`` and ``kid``.
        claims: of a token.
        expected: what is read from it.
        others: changes of claims, each of which must be refused.
    """

    settings: Mapping[str, Any]
    key: Mapping[str, Any]
    header: Mapping[str, Any]
    claims: Claims
    expected: Mapping[str, Any]
    others: tuple[Claims, ...] = ()


TIMES = {"iat": NOW - 10, "exp": NOW + 290}
SIG = {"use": "sig", "alg": "RS256"}
CERTIFICATE = {"x5c": ["MIIC"], "x5t": "dGh1bWI"}
PROVIDERS = {
    "rfc9068": Provider(
        {"issuer": "https://as.example", "audience": "sealgate"},
        SIG,
        {"typ": "at+jwt"},
        {
            "iss": "https://as.example",
            "aud": "sealgate",
            "sub": "alice",
            "client_id": "app",
            "jti": "1",
            "scope": "infer:toy",
            **TIMES,
        },
        {"subject": "alice", "client_id": "app", "scopes": {"infer:toy"}},
        ({"jti": DROP}, {"iat": DROP}, {"scope": ["infer:toy"]}),
    ),
    "keycloak": Provider(
        {"issuer": "https://sso.example/realms/lab", "audience": "sealgate"},
        SIG | CERTIFICATE,
        {"typ": "JWT"},
        {
            "exp": NOW + 290,
            "iat": NOW - 10,
            "auth_time": NOW - 20,
            "jti": "onrtac:5b2b8c2e",
            "iss": "https://sso.example/realms/lab",
            "aud": ["sealgate", "account"],
            "sub": "f3b0c442",
            "typ": "Bearer",
            "azp": "notebook",
            "sid": "c0ffee",
            "acr": "1",
            "allowed-origins": ["https://notebook.example"],
            "realm_access": {"roles": ["offline_access", "radiology"]},
            "resource_access": {"account": {"roles": ["view-profile"]}},
            "scope": "openid profile email",
            "email_verified": True,
            "preferred_username": "alice",
        },
        {
            "subject": "f3b0c442",
            "client_id": "notebook",
            "scopes": {"openid", "profile", "email"},
            "groups": {"offline_access", "radiology"},
        },
        ({"typ": "ID", "aud": "sealgate"}, {"typ": "Refresh"}, {"typ": DROP}),
    ),
    "entra": Provider(
        {
            "issuer": "https://login.microsoftonline.com/tenant-id/v2.0",
            "audience": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
        },
        {"use": "sig", "issuer": "https://login.microsoftonline.com/tenant-id/v2.0"}
        | CERTIFICATE,
        {"typ": "JWT", "x5t": "dGh1bWI"},
        {
            "aud": "6e74172b-be56-4843-9ff4-e66a39bb12e3",
            "iss": "https://login.microsoftonline.com/tenant-id/v2.0",
            "iat": NOW - 10,
            "nbf": NOW - 10,
            "exp": NOW + 5300,
            "aio": "AXQAi/8IAAAA",
            "azp": "client-guid",
            "azpacr": "0",
            "name": "Alice",
            "oid": "690222be-ff1a-4d56-abd1-7e4f7d38e474",
            "preferred_username": "alice@example.com",
            "rh": "0.AAAA",
            "scp": "Models.Infer Models.Read",
            "roles": ["Radiology"],
            "sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ",
            "tid": "tenant-id",
            "uti": "fqiBqXLPj0eQa82S-IYFAA",
            "ver": "2.0",
        },
        {
            "subject": "690222be-ff1a-4d56-abd1-7e4f7d38e474",
            "client_id": "client-guid",
            "token_id": "fqiBqXLPj0eQa82S-IYFAA",
            "tenant": "tenant-id",
            "scopes": {"Models.Infer", "Models.Read"},
            "groups": {"Radiology"},
        },
        # An ID token of the same application has no azp.
        ({"azp": DROP, "scp": DROP}, {"ver": "1.0"}, {"exp": NOW + 6000}),
    ),
    "auth0": Provider(
        {"issuer": "https://lab.auth0.com/", "audience": "https://models.example"},
        SIG | CERTIFICATE,
        {"typ": "JWT"},
        {
            "iss": "https://lab.auth0.com/",
            "sub": "auth0|123456",
            "aud": ["https://models.example", "https://lab.auth0.com/userinfo"],
            "iat": NOW - 10,
            "exp": NOW + 86_390,
            "azp": "my_client_id",
            "scope": "openid profile infer:toy",
            "permissions": ["metadata:toy"],
        },
        {
            "subject": "auth0|123456",
            "client_id": "my_client_id",
            "scopes": {"openid", "profile", "infer:toy", "metadata:toy"},
        },
        # An ID token is for the client.
        ({"aud": "my_client_id"}, {"exp": NOW + 87_000}),
    ),
    "okta": Provider(
        {
            "issuer": "https://lab.okta.com/oauth2/default",
            "audience": "api://default",
        },
        SIG,
        {},
        {
            "ver": 1,
            "jti": "AT.0mP4JKAZX1iACIT4vbEDF7LpvDVjxypPMf0D7uX39RE",
            "iss": "https://lab.okta.com/oauth2/default",
            "aud": "api://default",
            "cid": "0oabskvc6442nkvQO0h7",
            "uid": "00u5t60iloOHN9pBi0h7",
            "scp": ["openid", "infer:toy"],
            "auth_time": NOW - 20,
            "sub": "alice@example.com",
            "groups": ["Radiology"],
            **TIMES,
        },
        {
            "subject": "alice@example.com",
            "client_id": "0oabskvc6442nkvQO0h7",
            "scopes": {"openid", "infer:toy"},
            "groups": {"Radiology"},
        },
        # An ID token has no cid. A scope with a blank in it would be two.
        ({"cid": DROP, "jti": "ID.1"}, {"scp": ["infer:toy metrics"]}),
    ),
    "cognito": Provider(
        {
            "issuer": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_abc",
            "clients": ("xxxxxxxxxxxxexample",),
        },
        SIG,
        {},
        {
            "sub": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
            "cognito:groups": ["radiology"],
            "iss": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_abc",
            "version": 2,
            "client_id": "xxxxxxxxxxxxexample",
            "origin_jti": "origin",
            "event_id": "event",
            "token_use": "access",
            "scope": "models/infer",
            "auth_time": NOW - 10,
            "jti": "jti-1",
            "username": "alice",
            **TIMES,
        },
        {
            "subject": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
            "client_id": "xxxxxxxxxxxxexample",
            "scopes": {"models/infer"},
            "groups": {"radiology"},
        },
        (
            {"token_use": "id", "aud": "xxxxxxxxxxxxexample"},
            {"client_id": "another"},
            {"aud": "another"},  # who says whom it is for must mean us
        ),
    ),
    "google": Provider(
        {
            "issuer": "https://accounts.google.com",
            "audience": "https://models.example",
            "clients": ("112010400000000710080",),
        },
        SIG,
        {"typ": "JWT"},
        {
            "aud": "https://models.example",
            "azp": "112010400000000710080",
            "email": "batch@project.iam.gserviceaccount.com",
            "email_verified": True,
            "exp": NOW + 3590,
            "iat": NOW - 10,
            "iss": "https://accounts.google.com",
            "sub": "112010400000000710080",
        },
        {"subject": "112010400000000710080", "client_id": "112010400000000710080"},
        ({"azp": "any-other-account"}, {"aud": "https://other.example"}),
    ),
    "kubernetes": Provider(
        {
            "issuer": "https://kubernetes.default.svc.cluster.local",
            "audience": "models",
        },
        SIG,
        {},
        {
            "aud": ["models"],
            "exp": NOW + 3597,
            "iat": NOW - 10,
            "iss": "https://kubernetes.default.svc.cluster.local",
            "jti": "aed34954-b33a-4142-b1ec-389d6bbb4936",
            "kubernetes.io": {
                "namespace": "lab",
                "node": {"name": "n1", "uid": "1"},
                "pod": {"name": "batch-0", "uid": "2"},
                "serviceaccount": {"name": "batch", "uid": "3"},
            },
            "nbf": NOW - 10,
            "sub": "system:serviceaccount:lab:batch",
        },
        {"subject": "system:serviceaccount:lab:batch", "client_id": "lab"},
        ({"sub": "system:node:n1"}, {"kubernetes.io": {"namespace": "lab"}}),
    ),
    "spiffe": Provider(
        {
            "issuer": "spiffe://lab.example",
            "audience": "spiffe://lab.example/models",
            "subject_prefix": "spiffe://lab.example/",
        },
        {"use": "jwt-svid"},
        {"typ": "JWT"},
        {
            "aud": ["spiffe://lab.example/models"],
            "exp": NOW + 290,
            "sub": "spiffe://lab.example/ns/lab/sa/batch",
        },
        {
            "subject": "spiffe://lab.example/ns/lab/sa/batch",
            "client_id": "spiffe://lab.example/ns/lab/sa/batch",
            "issuer": "spiffe://lab.example",
        },
        (
            {"sub": "spiffe://lab.example.evil/x"},
            {"sub": "spiffe://other.example/x"},
            {"aud": ["spiffe://lab.example/other"]},
            {"exp": NOW + 3700},
            {"iss": "https://another.example"},
        ),
    ),
    "github-actions": Provider(
        {
            "issuer": "https://token.actions.githubusercontent.com",
            "audience": "https://models.example",
            "required_claims": ("repository_owner_id=65",),
        },
        SIG | CERTIFICATE,
        {"typ": "JWT", "x5t": "dGh1bWI"},
        {
            "jti": "example-id",
            "sub": "repo:octo-org/octo-repo:environment:prod",
            "environment": "prod",
            "aud": "https://models.example",
            "ref": "refs/heads/main",
            "sha": "example-sha",
            "repository": "octo-org/octo-repo",
            "repository_owner": "octo-org",
            "actor_id": "12",
            "repository_id": "74",
            "repository_owner_id": "65",
            "run_id": "example-run-id",
            "runner_environment": "github-hosted",
            "event_name": "workflow_dispatch",
            "job_workflow_ref": "octo-org/o/.github/workflows/w.yml@refs/heads/main",
            "iss": "https://token.actions.githubusercontent.com",
            "nbf": NOW - 610,
            "exp": NOW + 290,
            "iat": NOW - 10,
        },
        {
            "subject": "repo:octo-org/octo-repo:environment:prod",
            "client_id": "octo-org/octo-repo",
            "tenant": "octo-org",
        },
        # Anybody's repository gets tokens for any audience.
        ({"repository_owner_id": "66"}, {"repository_owner_id": DROP}),
    ),
}


def toml(values: Mapping[str, Any]) -> str:
    """Settings as an operator writes them."""
    lines = ["[[access.issuers]]"]
    for name, value in values.items():
        shown = list(value) if isinstance(value, tuple) else value
        lines.append(f"{name} = {json.dumps(shown)}")
    return "\n".join(lines)


def settings_of(folder: Path, values: Mapping[str, Any]) -> IssuerSettings:
    path = folder / "service.toml"
    path.write_text(toml(values))
    access = load_settings({"SEALGATE_CONFIG": str(path), "SEALGATE_HOME": str(folder)})
    (issuer,) = access.access.all_issuers
    return issuer


def verifier_of(folder: Path, name: str, **more: Any) -> Verifier:
    provider = PROVIDERS[name]
    entry = jwk(RSA_KEY, "k", **provider.key)
    # What SPIFFE's and others' sets hold beside it.
    beside = [{"kty": "RSA", "use": "x509-svid", "x5c": ["MIIC"]}]
    (folder / "jwks.json").write_text(json.dumps({"keys": [*beside, entry]}))
    given = {"profile": name, **provider.settings, **more}
    if name == "spiffe":
        given["algorithms"] = ("RS256",)
    return Verifier(AccessSettings(issuers=(settings_of(folder, given),)))


def issue(
    provider: Provider, changes: Mapping[str, Any] = {}, header: Claims | None = None
) -> str:
    claims = {**provider.claims, **changes}
    claims = {name: value for name, value in claims.items() if value is not DROP}
    head = {
        "alg": "RS256",
        "kid": "k",
        **(provider.header if header is None else header),
    }
    return signed(head, claims)


def signed(head: Claims, claims: Claims) -> str:

    text = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}"
    signature = RSA_KEY.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{text}.{b64(signature)}"


def read(verifier: Verifier, text: str) -> Principal:
    return verifier.verify(text, now=NOW)


def test_every_profile_has_a_provider_here() -> None:
    assert set(PROVIDERS) == set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_a_provider_s_own_token_passes(tmp_path: Path, name: str) -> None:
    provider = PROVIDERS[name]
    principal = read(verifier_of(tmp_path, name), issue(provider))
    found = {key: getattr(principal, key) for key in provider.expected}
    if "typ-absent" in PROFILES[name].get("relax", ()):
        read(verifier_of(tmp_path, name), issue(provider, header={}))
    assert found == {
        key: frozenset(value) if isinstance(value, set) else value
        for key, value in provider.expected.items()
    }


@pytest.mark.parametrize("name", PROFILES)
def test_what_only_looks_like_it_is_refused(tmp_path: Path, name: str) -> None:
    provider = PROVIDERS[name]
    verifier = verifier_of(tmp_path, name)
    for changes in provider.others:
        with pytest.raises(TokenError):
            read(verifier, issue(provider, changes))
    for typ in ("dpop+jwt", "logout+jwt", "secevent+jwt", ["JWT"], None):
        with pytest.raises(TokenError, match="typ is not the issuer's"):
            read(verifier, issue(provider, header={"typ": typ}))
    with pytest.raises(TokenError, match="expired"):
        read(verifier, issue(provider, {"exp": NOW - 100, "iat": NOW - 200}))
    with pytest.raises(TokenError):
        read(verifier, issue(provider, {"exp": DROP}))


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_can_be_written_out_by_hand(tmp_path: Path, name: str) -> None:
    own = PROVIDERS[name].settings
    by_name = settings_of(tmp_path, {"profile": name, **own})
    by_hand = settings_of(tmp_path, {**PROFILES[name], **own})
    assert dataclasses.replace(by_name, profile="rfc9068") == by_hand


@pytest.mark.parametrize("name", PROFILES)
def test_explain_and_the_page_say_what_is_relaxed(tmp_path: Path, name: str) -> None:
    provider = PROVIDERS[name]
    verifier_of(tmp_path, name)
    given = {"profile": name, **provider.settings}
    if name == "spiffe":
        given["algorithms"] = ("RS256",)
    (tmp_path / "access.toml").write_text("")
    issuer = settings_of(tmp_path, given)
    access = AccessSettings(issuers=(issuer,), permissions=tmp_path / "access.toml")
    steps = explain(
        access,
        issue(provider),
        Question("toy", None, "infer"),
        revoked=Revocations(key=b"k"),
        certificates=False,
        now=NOW,
    )
    said = [step.text for step in steps if step.text.startswith("relaxed: ")]
    for relaxed in issuer.relax:
        assert f"relaxed: {relaxed}: {RELAXATIONS[relaxed]}" in said
    assert any("relaxed: typ " in line for line in said) == (name != "rfc9068")
    assert bool(said) == (name != "rfc9068")
    page = (ROOT / "docs" / "access.md").read_text()
    assert f"`{name}`" in page
    for relaxed, consequence in RELAXATIONS.items():
        assert f"| `{relaxed}` | {consequence} |" in page
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    assert all(f"`{relaxed}`" in row for relaxed in issuer.relax)


def test_explain_says_that_there_is_no_list(tmp_path: Path) -> None:
    verifier_of(tmp_path, "rfc9068")
    issuer = settings_of(tmp_path, PROVIDERS["rfc9068"].settings)
    (tmp_path / "access.toml").write_text("")
    access = AccessSettings(issuers=(issuer,), permissions=tmp_path / "access.toml")
    steps = explain(
        access,
        issue(PROVIDERS["rfc9068"]),
        Question("toy", None, "infer"),
        revoked=RevocationStoreError("there is no list"),
        certificates=False,
        now=NOW,
    )
    (failed,) = (step for step in steps if not step.passed)
    assert failed.text == "revocation: there is no list"


# Relaxations that no profile needs, by hand.


def strict(folder: Path, **changes: Any) -> Callable[..., Principal]:
    verifier = verifier_of(folder, "rfc9068", **changes)
    return lambda **claims: read(verifier, issue(PROVIDERS["rfc9068"], claims))


@pytest.mark.parametrize(
    ("scope", "found"),
    [
        (["infer:toy", "metrics"], {"infer:toy", "metrics"}),
        (["infer:toy metrics"], {"infer:toy", "metrics"}),
        (" infer:toy  metrics ", {"infer:toy", "metrics"}),
        ([], set()),
        (["", " "], set()),
    ],
)
def test_scopes_however_they_are_written(
    tmp_path: Path, scope: object, found: set[str]
) -> None:
    loose = strict(tmp_path, relax=("scope-array",))
    assert loose(scope=scope).scopes == found
    for bad in ([1], {"a": 1}, 5, ['infer:"toy"'], "infer:toy\n", [["infer:toy"]]):
        with pytest.raises(TokenError, match="scope is malformed"):
            loose(scope=bad)


def test_times_with_a_fraction(tmp_path: Path) -> None:
    loose = strict(tmp_path, relax=("fractional-times",))
    found = loose(exp=NOW + 290.75, iat=NOW - 10.5, nbf=NOW - 10.25)
    assert (found.expires_at, found.issued_at) == (NOW + 290, NOW - 11)
    for bad in ("1", -1.5, 2e12, True):
        with pytest.raises(TokenError, match="exp is missing or not an integer"):
            loose(exp=bad)
    with pytest.raises(TokenError, match="exp is missing or not an integer"):
        strict(tmp_path)(exp=NOW + 290.0)


def test_without_an_identifier_one_token_is_revoked_and_no_other(
    tmp_path: Path,
) -> None:
    """Two tokens of one person; a signature spelt otherwise is the same token."""
    issuer = settings_of(
        tmp_path,
        {
            **PROVIDERS["rfc9068"].settings,
            "relax": ("jti-absent",),
            "jwks": "jwks.json",
        },
    )
    document = {"keys": [jwk(P256_KEY, "k", alg="ES256")]}
    (tmp_path / "jwks.json").write_text(json.dumps(document))
    verifier = Verifier(AccessSettings(issuers=(issuer,)))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

    def signatures(claims: Claims) -> tuple[str, str]:
        """The token with its signature, and with the other one that verifies."""

        head = {"typ": "at+jwt", "alg": "ES256", "kid": "k"}
        text = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(claims).encode())}"
        der = P256_KEY.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = utils.decode_dss_signature(der)
        both = (r.to_bytes(32, "big") + v.to_bytes(32, "big") for v in (s, order - s))
        one, other = (f"{text}.{b64(signature)}" for signature in both)
        return one, other

    claims = {k: v for k, v in PROVIDERS["rfc9068"].claims.items() if k != "jti"}
    first, respelt = (read(verifier, text) for text in signatures(claims))
    later = read(verifier, signatures(claims | {"iat": NOW - 9})[0])
    digest = hashlib.sha256(signatures(claims)[0].rpartition(".")[0].encode())
    assert first.token_id == respelt.token_id == f"sha256:{digest.hexdigest()}"
    revoked = Revocations([Revocation("token", first.token_id)], key=b"k")
    for same in (first, respelt):
        with pytest.raises(TokenError):
            revoked.check(same)
    revoked.check(later)


def test_without_a_date_of_issue_all_of_a_subject_s_tokens_are_old(
    tmp_path: Path,
) -> None:
    found = read(verifier_of(tmp_path, "spiffe"), issue(PROVIDERS["spiffe"]))
    entry = Revocation("subject", found.subject, issued_until=1)
    with pytest.raises(TokenError):
        Revocations([entry], key=b"k").check(found)
