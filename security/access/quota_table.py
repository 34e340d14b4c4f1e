"""How much each subject may ask of each model: deploy/quotas.toml.

::

    [default]
    requests_per_minute = 600

    [[rule]]
    clients = ["nightly-*"]
    models = ["breast-cancer"]
    rows_per_day = "unlimited"

The first rule that fits decides; what it leaves out is the default's. Misspelt keys are
errors: a limit that silently does not apply is none.

Operators' batch jobs have a table of their own, of the same form, under ``batch``; what
its default leaves out bounds nothing. A table without it lets no job run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from security.access.tokens import Principal
from security.errors import SettingsError
from security.settings.checks import fits, refuse_unknown
from security.settings.documents import parse_toml, read_toml

__all__ = ["Limits", "QuotaTable", "load_quotas", "parse_quotas"]

MAX_LIMIT = 10**12
UNLIMITED = "unlimited"


@dataclass(frozen=True)
class Limits:
    """How much one subject may ask of one model; None bounds nothing.

    Attributes:
        requests_per_minute, requests_per_day: answers, refusals for bad input included.
        rows_per_minute, rows_per_day: rows of the inputs that were run.
        concurrent_requests: in work at the same time.
        answers_per_30_days: the extraction budget: rows of the inputs that were run.
        answer_bits_per_30_days: and what was told of them, in bits, as
            `models.output_policy.Release.bits` counts it.
    """

    requests_per_minute: int | None = 600
    requests_per_day: int | None = 50_000
    rows_per_minute: int | None = 10_000
    rows_per_day: int | None = 200_000
    concurrent_requests: int | None = 32
    answers_per_30_days: int | None = None
    answer_bits_per_30_days: int | None = None


@dataclass(frozen=True)
class _Rule:
    patterns: Mapping[str, tuple[str, ...]]
    limits: Limits

    def fits(self, principal: Principal, model: str) -> bool:
        named: Mapping[str, Collection[str]] = {
            "models": (model,),
            "subjects": (principal.subject,),
            "clients": (principal.client_id,),
            "issuers": (principal.issuer,),
            "groups": principal.groups,
            "tenants": () if principal.tenant is None else (principal.tenant,),
        }
        return all(
            any(fits(name, patterns) for name in named[key])
            for key, patterns in self.patterns.items()
        )


class QuotaTable:
    """Which limits hold for whom.

    Attributes:
        batch: those of batch jobs; None where none may run.
    """

    def __init__(
        self,
        default: Limits = Limits(),
        rules: Iterable[_Rule] = (),
        batch: QuotaTable | None = None,
    ) -> None:
        self._default = default
        self._rules = tuple(rules)
        self.batch = batch

    def limits(self, principal: Principal, model: str) -> Limits:
        """The limits of a caller for a model."""
        for rule in self._rules:
            if rule.fits(principal, model):
                return rule.limits
        return self._default


_LIMITS = frozenset(item.name for item in fields(Limits))
_PATTERNS = frozenset({"models", "subjects", "clients", "issuers", "groups", "tenants"})
# A job holds no slot; it is told apart by its name alone.
_SLOTS = frozenset({"concurrent_requests"})


@dataclass(frozen=True)
class _Kind:
    """Which keys a table has, and what it begins with."""

    limits: frozenset[str]
    patterns: frozenset[str]
    default: Limits


_OF_CALLERS = _Kind(_LIMITS, _PATTERNS, Limits())
_OF_JOBS = _Kind(
    _LIMITS - _SLOTS,
    frozenset({"models", "subjects"}),
    Limits(**dict.fromkeys(_LIMITS)),
)


def load_quotas(path: Path) -> QuotaTable:
    """Read a table.

    Raises:
        SettingsError: missing, too large, or as `parse_quotas`.
    """
    return _quotas(read_toml(path), str(path))


def parse_quotas(data: bytes, *, where: str) -> QuotaTable:
    """Read a table's text.

    Raises:
        SettingsError: not TOML, an unknown key, a limit that is none, or a rule that
            fits nobody. The message names the place.
    """
    return _quotas(parse_toml(data, where), where)


def _quotas(document: Mapping[str, Any], where: str) -> QuotaTable:
    served = {name: value for name, value in document.items() if name != "batch"}
    jobs = document.get("batch")
    if jobs is not None and not isinstance(jobs, dict):
        raise SettingsError(f"{where}: expected [batch.default] and [[batch.rule]]")
    batch = None if jobs is None else _table(jobs, f"{where}: batch", _OF_JOBS)
    return _table(served, where, _OF_CALLERS, batch)


def _table(
    document: Mapping[str, Any],
    where: str,
    kind: _Kind,
    batch: QuotaTable | None = None,
) -> QuotaTable:
    refuse_unknown(document, {"default", "rule"}, where)
    table, rules = document.get("default", {}), document.get("rule", [])
    if not isinstance(table, dict) or not isinstance(rules, list):
        raise SettingsError(f"{where}: expected [default] and [[rule]]")
    refuse_unknown(table, kind.limits, f"{where}: [default]")
    default = _limits(table, kind.default, f"{where}: [default]")
    return QuotaTable(
        default,
        [
            _rule(item, default, kind, f"{where}: rule {number}")
            for number, item in enumerate(rules, start=1)
        ],
        batch,
    )


def _rule(item: Any, default: Limits, kind: _Kind, where: str) -> _Rule:
    if not isinstance(item, dict):
        raise SettingsError(f"{where}: expected a table")
    refuse_unknown(item, kind.limits | kind.patterns, where)
    patterns = {
        name: _names(item[name], f"{where} {name}")
        for name in sorted(kind.patterns & item.keys())
    }
    own = {name: value for name, value in item.items() if name in kind.limits}
    return _Rule(patterns, _limits(own, default, where))


def _limits(table: Mapping[str, Any], default: Limits, where: str) -> Limits:
    return replace(
        default,
        **{name: _limit(value, f"{where} {name}") for name, value in table.items()},
    )


def _limit(value: Any, where: str) -> int | None:
    if value == UNLIMITED:
        return None
    if type(value) is not int or not 0 <= value <= MAX_LIMIT:
        raise SettingsError(f'{where}: a number of 0 or more, or "{UNLIMITED}"')
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    names = value if isinstance(value, list) else []
    if not names or not all(isinstance(item, str) and item for item in names):
        raise SettingsError(f"{where}: a list of names, at least one")
    return tuple(names)
