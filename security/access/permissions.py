"""What a principal may do: by scopes, and by the table of grants. Deny by default.

Scopes: ``infer:<model>`` or ``infer:*``, likewise ``explain``, ``feedback`` and
``metadata``, and ``metrics``. Who may infer, or have answers explained, may also read
the metadata and the attestations that it takes to do so; neither of the two grants the
other. Who may send labels of answers may do nothing else. What monitoring found,
``monitoring``, is granted by nothing else, and grants nothing else.

Grants (`deploy/access.toml`) name callers and what they may. Every kind of caller that
a grant names must fit, and of each kind any one.

How the two meet is the table's ``scopes``: "sufficient", a scope or a grant allows;
"necessary", it takes both; "ignored", only grants count.

Who may do nothing at all with a model gets the answer of a model that does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from security.access.claims import Principal
from security.errors import HiddenError, ScopeError, SettingsError
from security.settings.checks import fits, refuse_unknown
from security.settings.documents import read_toml

__all__ = [
    "ACTIONS",
    "MODEL_ACTIONS",
    "SERVER_ACTIONS",
    "Grant",
    "Permissions",
    "load_permissions",
    "model_scope",
]

MAX_GRANTS = 4096
MODEL_ACTIONS = ("infer", "explain", "feedback", "metadata", "monitoring")
SERVER_ACTIONS = ("metrics",)
ACTIONS = (*MODEL_ACTIONS, *SERVER_ACTIONS)
# What each action of a model is granted by, itself first.
_GRANTED_BY: Mapping[str, tuple[str, ...]] = {
    "infer": ("infer",),
    "explain": ("explain",),
    "feedback": ("feedback",),
    "metadata": ("metadata", "infer", "explain"),
    "monitoring": ("monitoring",),
}
_SCOPES = ("sufficient", "necessary", "ignored")
_CALLERS = ("subjects", "clients", "groups", "tenants", "issuers", "scopes")
# A name, or its beginning and a star.
_MODEL_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,63}|[A-Za-z0-9._-]{0,62}\*")
_VERSION_PATTERN = re.compile(r"[0-9.]{1,40}|[0-9.]{0,39}\*")


@dataclass(frozen=True)
class Grant:
    """Callers, and what they may. What a grant leaves empty it does not ask for.

    Attributes:
        name: for people.
        subjects: subjects, any of which fits.
        clients: likewise clients.
        groups: likewise groups and roles; one of the caller's must be there.
        tenants: likewise tenants.
        issuers: likewise issuers. A subject is only unique within one.
        scopes: likewise scopes, where an issuer's own do not name our models.
        everyone: whoever has a valid token; instead of all of these.
        models: names, or beginnings of names and a star.
        versions: likewise versions.
        actions: of `ACTIONS`.
    """

    name: str
    subjects: frozenset[str] = frozenset()
    clients: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    issuers: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    everyone: bool = False
    models: frozenset[str] = frozenset()
    versions: frozenset[str] = frozenset({"*"})
    actions: frozenset[str] = frozenset()

    def misfit(self, principal: Principal) -> str | None:
        """The first kind of caller that does not fit, or None."""
        has = {
            "subjects": {principal.subject},
            "clients": {principal.client_id},
            "groups": principal.groups,
            "tenants": {principal.tenant},
            "issuers": {principal.issuer},
            "scopes": principal.scopes,
        }
        for kind in _CALLERS:
            wanted: frozenset[str] = getattr(self, kind)
            if wanted and wanted.isdisjoint(has[kind]):
                return kind
        return None

    def covers(self, model: str, version: str | None) -> bool:
        """Whether the grant is about a model; a version of None stands for any."""
        return fits(model, self.models) and (
            version is None or fits(version, self.versions)
        )


@dataclass(frozen=True)
class Permissions:
    """The table of grants.

    Attributes:
        scopes: how scopes count: "sufficient", "necessary" or "ignored".
        grants: in the table's order.
    """

    scopes: str = "sufficient"
    grants: tuple[Grant, ...] = ()
    _by_action: Mapping[str, tuple[Grant, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Sort the grants by what they are about."""
        by_action = {
            action: tuple(grant for grant in self.grants if action in grant.actions)
            for action in ACTIONS
        }
        object.__setattr__(self, "_by_action", by_action)

    def allows(
        self, principal: Principal, model: str, version: str | None, action: str
    ) -> bool:
        """Whether an action of a model is granted.

        Args:
            principal: who asks.
            model: any name.
            version: the one that would be used; None where there is no such model.
            action: of the model's.
        """
        wanted = _GRANTED_BY[action]
        by_scope = self.scopes != "ignored" and _has_scope(principal, wanted, model)
        if by_scope and self.scopes == "sufficient":
            return True
        if self.scopes == "necessary" and not by_scope:
            return False
        return any(
            grant.misfit(principal) is None and grant.covers(model, version)
            for name in wanted
            for grant in self._by_action[name]
        )

    def authorize(
        self, principal: Principal, model: str, version: str | None, action: str
    ) -> None:
        """Allow an action of a model, or raise.

        Raises:
            ScopeError: the principal may read about the model, but not do this.
            HiddenError: it may not even know whether there is one.
        """
        if self.allows(principal, model, version, action):
            return
        if action != "metadata" and self.allows(principal, model, version, "metadata"):
            raise ScopeError(f"{action}:{model}")
        raise HiddenError(f"{action} of {model} is not granted")

    def authorize_server(self, principal: Principal, action: str) -> None:
        """Allow an action of the server, or raise.

        Raises:
            ScopeError: it is not granted.
        """
        by_scope = self.scopes != "ignored" and action in principal.scopes
        by_grant = any(
            grant.misfit(principal) is None for grant in self._by_action[action]
        )
        either = by_scope or by_grant
        both = by_scope and by_grant
        if not (both if self.scopes == "necessary" else either):
            raise ScopeError(action)


def _has_scope(principal: Principal, actions: Sequence[str], model: str) -> bool:
    scopes = principal.scopes
    for action in actions:
        if f"{action}:{model}" in scopes or f"{action}:*" in scopes:
            return True
    return False


def model_scope(model: str, action: str = "infer") -> str:
    """The scope that grants an action with one model.

    >>> model_scope("breast-cancer")
    'infer:breast-cancer'
    """
    return f"{action}:{model}"


def load_permissions(path: Path) -> Permissions:
    """Read the table of grants.

    Raises:
        SettingsError: unreadable, an unknown key, a grant that would grant nothing or
            that names no caller. The message names the grant.
    """
    document = read_toml(path)
    refuse_unknown(document, {"scopes", "grants"}, str(path))
    scopes = document.get("scopes", "sufficient")
    if scopes not in _SCOPES:
        raise SettingsError(f"{path}: scopes: one of {', '.join(_SCOPES)}")
    tables = document.get("grants", [])
    if not isinstance(tables, list) or len(tables) > MAX_GRANTS:
        raise SettingsError(f"{path}: expected at most {MAX_GRANTS} [[grants]]")
    grants = tuple(
        _grant(table, f"{path}: grant {number}")
        for number, table in enumerate(tables, start=1)
    )
    names = [grant.name for grant in grants]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"{path}: grant {name!r} is there twice")
    return Permissions(scopes, grants)


def _grant(table: Any, where: str) -> Grant:
    if not isinstance(table, dict):
        raise SettingsError(f"{where}: expected tables, [[grants]]")
    refuse_unknown(table, {item.name for item in fields(Grant)}, where)
    name, everyone = table.get("name"), table.get("everyone", False)
    if not isinstance(name, str) or not name:
        raise SettingsError(f"{where}: name is missing")
    where = f"{where}, {name!r}"
    if not isinstance(everyone, bool):
        raise SettingsError(f"{where}: everyone: expected true or false")
    sets = {
        key: _texts(value, f"{where}: {key}")
        for key, value in table.items()
        if key not in ("name", "everyone")
    }
    grant = Grant(name=name, everyone=everyone, **sets)
    _check_grant(grant, where)
    return grant


def _check_grant(grant: Grant, where: str) -> None:
    named = any(getattr(grant, kind) for kind in _CALLERS)
    if named == grant.everyone:
        raise SettingsError(f"{where}: names callers, or everyone = true")
    _check_all(grant.actions, set(ACTIONS), f"{where}: actions")
    about_models = bool(grant.actions & set(MODEL_ACTIONS))
    if about_models != bool(grant.models):
        raise SettingsError(
            f"{where}: {', '.join(MODEL_ACTIONS)} need models, and nothing else does"
        )
    for patterns, shape in (
        (grant.models, _MODEL_PATTERN),
        (grant.versions, _VERSION_PATTERN),
    ):
        for pattern in patterns:
            if not shape.fullmatch(pattern):
                raise SettingsError(f"{where}: {pattern!r} is no name, or name and *")


def _check_all(given: Iterable[str], known: set[str], where: str) -> None:
    unknown = sorted(set(given) - known)
    if unknown or not given:
        raise SettingsError(f"{where}: of {', '.join(sorted(known))}")


def _texts(value: Any, where: str) -> frozenset[str]:
    """An array of texts that is not empty: an empty one could mean any, or none."""
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(item, str) and item for item in value)
    ):
        raise SettingsError(f"{where}: expected an array of texts")
    return frozenset(value)
