"""deploy/service.toml, and a SEALGATE_… variable for every key in it.

``[access] issuer`` is also ``SEALGATE_ACCESS_ISSUER``; the variable wins. Misspelt keys
and variables are errors: a security setting that silently does not apply is a hole.

Two variables stand outside the file: ``SEALGATE_HOME``, the folder of keys and state
that other relative paths start from, and ``SEALGATE_CONFIG``, another service.toml.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from models.manifest import NAME
from security.errors import SettingsError
from security.key_files import PASSPHRASE_VARIABLE
from security.settings.access import AccessSettings, check_access
from security.settings.admission import AdmissionSettings
from security.settings.audit import (
    AuditSettings,
    WitnessAddress,
    WitnessSettings,
    check_audit,
)
from security.settings.checks import refuse_unknown
from security.settings.deployment import DeploymentSettings, check_deployment
from security.settings.documents import read_toml
from security.settings.issuers import IssuerSettings, KeyLocation
from security.settings.monitoring import MonitoringSettings, check_monitoring
from security.settings.observability import ObservabilitySettings, check_observability
from security.settings.profiles import PROFILES
from security.settings.quotas import QuotaSettings, check_quotas
from security.settings.redis import RedisSettings, check_redis
from security.settings.runtime import RuntimeSettings, check_runtime
from security.settings.sealing import SealingSettings, check_sealing
from security.settings.service import ServiceSettings, check_service
from security.settings.tls import TlsSettings, check_tls

__all__ = ["Settings", "load_settings"]

_PREFIX = "SEALGATE_"
# Read elsewhere: the two above, the client's profile, and where passphrases are.
_OTHER_VARIABLES = frozenset(
    {"SEALGATE_HOME", "SEALGATE_CONFIG", "SEALGATE_PROFILE", PASSPHRASE_VARIABLE}
)


@dataclass(frozen=True)
class Settings:
    """The effective settings, all paths absolute."""

    home: Path
    service: ServiceSettings = field(default_factory=ServiceSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    sealing: SealingSettings = field(default_factory=SealingSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    quotas: QuotaSettings = field(default_factory=QuotaSettings)
    redis: RedisSettings = field(default_factory=RedisSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    deployment: DeploymentSettings = field(default_factory=DeploymentSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    monitoring: MonitoringSettings = field(default_factory=MonitoringSettings)
    observability: ObservabilitySettings = field(default_factory=ObservabilitySettings)


# A table of its own, which the sections that name a store have, too.
_REDIS = "RedisSettings"
# The kind of what differs for one model, by its name: [runtime.models.NAME].
_MODELS = "Mapping[str, Mapping[str, Any]]"
_SECTIONS: Mapping[str, type[Any]] = {
    "service": ServiceSettings,
    "access": AccessSettings,
    "sealing": SealingSettings,
    "admission": AdmissionSettings,
    "quotas": QuotaSettings,
    "redis": RedisSettings,
    "audit": AuditSettings,
    "runtime": RuntimeSettings,
    "deployment": DeploymentSettings,
    "tls": TlsSettings,
    "monitoring": MonitoringSettings,
    "observability": ObservabilitySettings,
}


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read service.toml and the environment.

    Args:
        environ: variables; the process's own if absent.

    Raises:
        SettingsError: unreadable, an unknown key or variable, a wrong type, or a value
            out of range. The message names the key.
    """
    environ = os.environ if environ is None else environ
    project = Path(__file__).resolve().parents[2]
    path = Path(environ.get("SEALGATE_CONFIG") or project / "deploy" / "service.toml")
    home = Path(environ.get("SEALGATE_HOME") or ".sealgate").resolve()
    document = read_toml(path)
    refuse_unknown(document.keys(), _SECTIONS.keys(), str(path))
    overrides = _variables(environ)
    bases = {"home": home, "config": path.resolve().parent}
    sections = {
        name: _section(
            kind,
            _table(document, name, path) | overrides.get(name, {}),
            where=f"{path}: [{name}]",
            bases=bases,
        )
        for name, kind in _SECTIONS.items()
    }
    for name, section in sections.items():
        if _REDIS in {item.type for item in fields(section)}:
            sections[name] = replace(section, redis=sections["redis"])
    return _checked(Settings(home=home, **sections))


def _checked(settings: Settings) -> Settings:
    check_service(settings.service)
    check_access(settings.access)
    check_sealing(settings.sealing)
    check_runtime(settings.runtime)
    check_deployment(settings.deployment)
    check_quotas(settings.quotas)
    check_redis(settings.redis)
    check_audit(settings.audit)
    check_tls(settings.tls)
    if settings.tls.client_certificates == "off" and any(
        issuer.certificate_bound for issuer in settings.access.all_issuers
    ):
        raise SettingsError("access: certificate_bound needs tls.client_certificates")
    check_monitoring(settings.monitoring)
    check_observability(settings.observability)
    return settings


def _table(document: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: {name} must be a table, [{name}]")
    return table


def _variables(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Settings from SEALGATE_… variables, by section; TOML values, or plain strings."""
    known = {
        f"{_PREFIX}{section}_{item.name}".upper(): (section, item)
        for section, kind in _SECTIONS.items()
        for item in _keys(kind)
        if item.type != _MODELS
    }
    given = {
        name: text
        for name, text in environ.items()
        if name.startswith(_PREFIX) and name not in _OTHER_VARIABLES
    }
    refuse_unknown(given.keys(), known.keys(), "environment")
    result: dict[str, dict[str, Any]] = {}
    for name, text in given.items():
        section, item = known[name]
        result.setdefault(section, {})[item.name] = _from_text(text, str(item.type))
    return result


def _from_text(text: str, kind: str) -> Any:
    if kind == "tuple[str, ...]":
        return [item.strip() for item in text.split(",") if item.strip()]
    if kind in ("str", "Path", "Path | None", "KeyLocation"):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # the wrong type for this key; `_convert` says so


def _section(
    kind: type[Any], values: Mapping[str, Any], *, where: str, bases: Mapping[str, Path]
) -> Any:
    known = {item.name: str(item.type) for item in _keys(kind)}
    if "profile" in known:
        values = _profiled(values, where)
    refuse_unknown(values.keys(), known.keys(), where)
    # Defaults of paths go through the same conversion, so that they become absolute.
    given = {
        item.name: _convert(
            values.get(item.name, {} if item.type == _MODELS else item.default),
            known[item.name],
            where=f"{where} {item.name}",
            base=bases[item.metadata.get("base", "home")],
            tables=item.metadata.get("tables"),
        )
        for item in _keys(kind)
    }
    return kind(**given)


def _keys(kind: type[Any]) -> list[Field[Any]]:
    """What a table may set."""
    return [item for item in fields(kind) if item.type != _REDIS]


def _profiled(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """An issuer's keys with its profile's for those that it leaves out."""
    name = values.get("profile", IssuerSettings.profile)
    if not isinstance(name, str) or name not in PROFILES:
        raise SettingsError(f"{where} profile: one of {', '.join(PROFILES)}")
    return {**PROFILES[name], **values}


def _convert(
    value: Any, kind: str, *, where: str, base: Path, tables: type[Any] | None = None
) -> Any:
    match kind:
        case "Path" | "Path | None" | "KeyLocation" if isinstance(value, str | Path):
            return _location(value, kind, base)
        case "Path | None" if value is None:
            return None
        case _ if tables is not None and isinstance(value, dict):
            return _models(value, tables, where, base)
        case "tuple[IssuerSettings, ...]" if isinstance(value, list | tuple):
            return tuple(_issuer(item, where, base) for item in value)
        case "WitnessSettings" | "tuple[WitnessAddress, ...]":
            return _witnesses(value, kind, where, base)
        case "str" if isinstance(value, str):
            return value
        case "bool" if isinstance(value, bool):
            return value
        case "int" if type(value) is int:
            return value
        case "float" if type(value) is float:
            return value
        case "float" if type(value) is int and abs(value) <= sys.float_info.max:
            return float(value)
        case "tuple[str, ...]" if isinstance(value, list | tuple) and all(
            isinstance(item, str) for item in value
        ):
            return tuple(value)
    expected = {"KeyLocation": "a file or an https URL"}.get(kind, kind)
    raise SettingsError(f"{where}: expected {expected}, got {type(value).__name__}")


def _location(value: str | Path, kind: str, base: Path) -> KeyLocation | None:
    if kind == "KeyLocation" and isinstance(value, str) and "://" in value:
        return value
    if kind == "Path | None" and not str(value):
        return None
    return (base / value).absolute()


def _issuer(values: Any, where: str, base: Path) -> IssuerSettings:
    if not isinstance(values, dict):
        raise SettingsError(f"{where}: expected tables, [[access.issuers]]")
    bases = {"home": base}
    issuer: IssuerSettings = _section(IssuerSettings, values, where=where, bases=bases)
    return issuer


def _witnesses(value: Any, kind: str, where: str, base: Path) -> Any:
    bases = {"home": base}
    if kind == "WitnessSettings":
        if isinstance(value, WitnessSettings):
            return value  # nothing of it is set
        if isinstance(value, dict):
            return _section(WitnessSettings, value, where=where, bases=bases)
    elif isinstance(value, list | tuple) and all(isinstance(i, dict) for i in value):
        found = (_section(WitnessAddress, i, where=where, bases=bases) for i in value)
        return tuple(found)
    raise SettingsError(
        f"{where}: expected tables, [audit.witnesses] and [[audit.witnesses.witness]]"
    )


def _models(
    tables: Mapping[str, Any], kind: type[Any], where: str, base: Path
) -> dict[str, Any]:
    """What the tables set, of the right types; the rest is the section's own."""
    for name, table in tables.items():
        if not isinstance(table, dict):
            section = where.rpartition("[")[2].partition("]")[0]
            raise SettingsError(f"{where}: expected tables, [{section}.models.NAME]")
        if not NAME.fullmatch(name):
            raise SettingsError(f"{where}: {name!r} is no model's name")
    bases = {"home": base}
    limits = {
        name: _section(kind, table, where=f"{where}.{name}", bases=bases)
        for name, table in tables.items()
    }
    return {
        name: {key: getattr(limits[name], key) for key in table}
        for name, table in tables.items()
    }
