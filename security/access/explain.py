"""Why a request would be allowed or refused, step by step, as the server takes them.

Each step is the server's own: nothing is decided here a second time.
"""

from __future__ import annotations

from dataclasses import dataclass

from security.access.permissions import (
    SERVER_ACTIONS,
    Grant,
    Permissions,
    load_permissions,
)
from security.access.revocation import Revocations
from security.access.tokens import Principal, Verifier
from security.errors import AccessError, HiddenError, RevocationStoreError
from security.settings.access import AccessSettings
from security.settings.issuers import IssuerSettings
from security.settings.profiles import RELAXATIONS

__all__ = ["Question", "Step", "explain"]


@dataclass(frozen=True)
class Question:
    """What a request would ask for.

    Attributes:
        model: a name; None for what is asked of the server.
        version: None for whatever version is served.
        action: of `security.access.permissions.ACTIONS`.
    """

    model: str | None
    version: str | None
    action: str


@dataclass(frozen=True)
class Step:
    """One step of the decision.

    Attributes:
        passed: whether the request goes on.
        text: for people; holds claims of the token, never the token.
    """

    passed: bool
    text: str


def explain(
    access: AccessSettings,
    token: str,
    question: Question,
    *,
    revoked: Revocations | RevocationStoreError,
    certificates: bool,
    now: float,
) -> list[Step]:
    """The steps up to the first that fails.

    Args:
        access: the settings.
        token: may be hostile.
        question: what would be asked.
        revoked: the list, or why it cannot be told.
        certificates: clients are asked for theirs.
        now: seconds since the epoch.

    Raises:
        SettingsError: the table of grants cannot be used.
        KeyFileError: an issuer's keys cannot.
    """
    permissions = load_permissions(access.permissions)
    try:
        verifier = Verifier(access)
        principal = verifier.verify_waiting(token, now=now)
    except AccessError as error:
        return [Step(False, f"token: {error}")]
    steps = [Step(True, f"token: {_who(principal)}")]
    steps.extend(Step(True, line) for line in _relaxed(verifier, principal))
    issuer = verifier.issuer_of(principal)
    steps.extend(_bindings(issuer, principal, asked=certificates))
    try:
        if isinstance(revoked, RevocationStoreError):
            raise revoked
        revoked.check(principal)
        steps.append(Step(True, "revocation: none"))
    except AccessError as error:
        steps.append(Step(False, f"revocation: {error}"))
    return [*steps, *_granted(permissions, principal, question)]


def _who(principal: Principal) -> str:
    parts = [
        f"issuer {principal.issuer}",
        f"subject {principal.subject!r}",
        f"client {principal.client_id!r}",
    ]
    if principal.tenant is not None:
        parts.append(f"tenant {principal.tenant!r}")
    for name, values in (("groups", principal.groups), ("scopes", principal.scopes)):
        if values:
            parts.append(f"{name} {', '.join(sorted(values))}")
    return "; ".join(parts)


def _relaxed(verifier: Verifier, principal: Principal) -> list[str]:
    """What is not as RFC 9068 has it, and what follows."""
    issuer = verifier.issuer_of(principal)
    lines = [f"relaxed: {name}: {RELAXATIONS[name]}" for name in issuer.relax]
    loose = sorted(set(issuer.token_types) - {"at+jwt"})
    if issuer.introspection:
        lines.append(
            f"introspection: {issuer.introspection} was asked, and says that it is "
            f"active; believed for {issuer.introspection_cache_s} s"
        )
    elif loose:
        marks = (*issuer.required_claims, issuer.subject_prefix)
        told = ", ".join(filter(None, marks)) or "nothing but the audience"
        lines.append(
            f"relaxed: typ {', '.join(loose)}: tokens for other uses have it too; "
            f"{told} tells them from access tokens"
        )
    if issuer.max_lifetime_s > IssuerSettings.max_lifetime_s:
        lines.append(
            f"relaxed: lifetimes up to {issuer.max_lifetime_s} s: so long a token that "
            "leaks can be used, unless it is revoked"
        )
    return lines


def _bindings(issuer: IssuerSettings, who: Principal, *, asked: bool) -> list[Step]:
    """What a caller has to prove beside having the token."""
    steps = []
    if who.certificate is not None and asked:
        text = "each connection needs the token's certificate, shown to this server"
        steps.append(Step(True, f"binding: {text}"))
    elif who.certificate is not None:
        text = "bound to a certificate, but tls.client_certificates is off"
        steps.append(Step(False, f"binding: {text}"))
    elif issuer.certificate_bound:
        text = "the issuer's tokens must be bound to a certificate"
        steps.append(Step(False, f"binding: {text}"))
    if who.confirmation is not None and issuer.dpop == "off":
        text = "bound to a key, but DPoP is off for this issuer"
        steps.append(Step(False, f"binding: {text}"))
    elif who.confirmation is not None:
        steps.append(
            Step(True, "binding: each request needs a proof of the token's key")
        )
    elif issuer.dpop == "required":
        text = "the issuer's tokens must be bound to a key"
        steps.append(Step(False, f"binding: {text}"))
    return steps or [Step(True, "binding: none, whoever has the token may use it")]


def _granted(
    permissions: Permissions, principal: Principal, question: Question
) -> list[Step]:
    steps = [Step(True, f"scopes are {permissions.scopes}")]
    steps.extend(
        Step(True, f"grant {grant.name!r}: {_fit(grant, principal, question)}")
        for grant in permissions.grants
    )
    try:
        if question.action in SERVER_ACTIONS:
            permissions.authorize_server(principal, question.action)
            text = f"{question.action}: granted"
        else:
            permissions.authorize(
                principal, question.model or "", question.version, question.action
            )
            text = f"{question.action} of {question.model}: granted"
    except HiddenError as error:
        return [
            *steps,
            Step(False, f"{error}; answered like a model that is not there"),
        ]
    except AccessError as error:
        return [*steps, Step(False, f"not granted; would need {error}")]
    return [*steps, Step(True, text)]


def _fit(grant: Grant, principal: Principal, question: Question) -> str:
    """Whether a grant is about the question, and if not, the first reason."""
    misfit = grant.misfit(principal)
    if misfit is not None:
        return f"not this caller ({misfit})"
    if question.action in SERVER_ACTIONS:
        return "fits" if question.action in grant.actions else "another action"
    if not grant.covers(question.model or "", question.version):
        return "another model or version"
    if question.action not in grant.actions:
        return f"only {', '.join(sorted(grant.actions))}"
    return "fits"
