"""What providers of tokens issue beside RFC 9068: claim rules as data.

A profile is nothing but settings of an issuer that are written for you: whoever writes
the same keys into ``[[access.issuers]]`` by hand has the same issuer, and what is given
beside ``profile`` wins over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["PROFILES", "RELAXATIONS"]

Value = str | int | tuple[str, ...]

# What an issuer's ``relax`` may hold, and what follows from each.
RELAXATIONS: Mapping[str, str] = MappingProxyType(
    {
        "typ-absent": "a token need not say that it is an access token; only the "
        "required claims or the subject's prefix tell it from others",
        "iss-absent": "a token need not name its issuer; the subject's prefix does",
        "aud-absent": "a token need not say whom it is for: one that these clients "
        "got for another server passes here, and that server can use it",
        "iat-absent": "a token need not say when it was issued; the longest lifetime "
        "counts from now, and `--issued-until-now` revokes all of the subject's",
        "jti-absent": "a token need not have an identifier; the digest of what is "
        "signed stands for it, so revoking one takes the token itself",
        "fractional-times": "times may have fractions of a second, which are cut off",
        "scope-array": "scopes may be an array, and any of its texts several scopes: "
        "a role with a blank in its name becomes two",
        "public-issuer": "whoever has an account there gets tokens for any audience: "
        "only clients, required claims or the subject's prefix keep strangers out",
    }
)

PROFILES: Mapping[str, Mapping[str, Value]] = MappingProxyType(
    {
        "rfc9068": {},
        "keycloak": {
            "algorithms": ("RS256",),
            "token_types": ("JWT",),
            "required_claims": ("typ=Bearer",),
            "client_claim": "azp",
            "group_claims": ("/realm_access/roles",),
        },
        "entra": {
            "algorithms": ("RS256",),
            "token_types": ("JWT",),
            "required_claims": ("ver=2.0",),
            "max_lifetime_s": 5400,
            "subject_claim": "oid",
            "client_claim": "azp",
            "token_id_claim": "uti",
            "tenant_claim": "tid",
            "scope_claims": ("scp",),
            "group_claims": ("roles", "groups"),
        },
        "auth0": {
            "algorithms": ("RS256",),
            "token_types": ("JWT", "at+jwt"),
            "relax": ("jti-absent",),
            "max_lifetime_s": 86_400,
            "client_claim": "azp",
            "scope_claims": ("scope", "permissions"),
        },
        "okta": {
            "algorithms": ("RS256",),
            "token_types": ("JWT",),
            "relax": ("typ-absent",),
            "required_claims": ("cid",),
            "client_claim": "cid",
            "scope_claims": ("scp",),
            "group_claims": ("groups",),
        },
        "cognito": {
            "algorithms": ("RS256",),
            "token_types": ("JWT",),
            "relax": ("typ-absent", "aud-absent"),
            "required_claims": ("token_use=access",),
            "group_claims": ("cognito:groups",),
        },
        "google": {
            "algorithms": ("RS256",),
            "token_types": ("JWT",),
            "relax": ("jti-absent", "public-issuer"),
            "client_claim": "azp",
            "scope_claims": (),
        },
        "kubernetes": {
            "algorithms": ("RS256",),
            "token_types": ("JWT",),
            "relax": ("typ-absent", "jti-absent"),
            "subject_prefix": "system:serviceaccount:",
            "required_claims": ("/kubernetes.io/serviceaccount/name",),
            "max_lifetime_s": 7200,
            "client_claim": "/kubernetes.io/namespace",
            "scope_claims": (),
        },
        "spiffe": {
            "algorithms": ("ES256", "ES384", "PS256", "RS256"),
            "key_uses": ("jwt-svid",),
            "token_types": ("JWT", "JOSE"),
            "relax": ("typ-absent", "iss-absent", "iat-absent", "jti-absent"),
            "client_claim": "sub",
            "scope_claims": (),
        },
        "github-actions": {
            "algorithms": ("RS256",),
            "token_types": ("JWT",),
            "relax": ("public-issuer",),
            "client_claim": "repository",
            "tenant_claim": "repository_owner",
            "scope_claims": (),
        },
    }
)
