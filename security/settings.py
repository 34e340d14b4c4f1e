"""deploy/service.toml, and a SEALGATE_… variable for every key in it.

``[access] issuer`` is also ``SEALGATE_ACCESS_ISSUER``; the variable wins. Misspelt keys
and variables are errors: a security setting that silently does not apply is a hole.

Two variables stand outside the file: ``SEALGATE_HOME``, the folder of keys and state
that other relative paths start from, and ``SEALGATE_CONFIG``, another service.toml.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from security.bookkeeping import AuditSettings, QuotaSettings, check_bookkeeping
from security.errors import SettingsError
from security.issuers import IssuerSettings, KeyLocation, check_issuers, check_resource
from security.key_files import PASSPHRASE_VARIABLE
from security.serving import ObservabilitySettings, TlsSettings, check_serving
from security.workload import (
    DeploymentSettings,
    ModelLimits,
    RuntimeSettings,
    check_runtime,
)

__all__ = [
    "AccessSettings",
    "AdmissionSettings",
    "SealingSettings",
    "ServiceSettings",
    "Settings",
    "load_settings",
]

ENVIRONMENTS = ("development", "production")
_PREFIX = "SEALGATE_"
# Read elsewhere: the two above, the client's profile, and where passphrases are.
_OTHER_VARIABLES = frozenset(
    {"SEALGATE_HOME", "SEALGATE_CONFIG", "SEALGATE_PROFILE", PASSPHRASE_VARIABLE}
)


@dataclass(frozen=True)
class ServiceSettings:
    """What is served, and the bounds of a request.

    Attributes:
        environment: "development" or "production"; the latter refuses the development
            issuer.
        models: full BentoML tags, ``name:version``; "latest" is refused. Of several
            versions of a model the first one answers requests that name none.
        max_head_bytes: of a request's line and headers, counted while reading.
        head_timeout_s: to read them.
        max_body_bytes: of a request, counted while reading.
        body_timeout_s: to read one request's body.
        inference_timeout_s: until a running inference is stopped.
        max_concurrency: requests in work per worker; more are answered 503.
        max_readers: requests per worker whose bodies are being read; for more, the
            slowest of them is given up.
        max_body_memory_bytes: bodies per worker that are read or worked on; likewise.
        max_connections: per worker; for more, an idle one is closed, or the new one.
        idle_timeout_s: between two requests of a connection.
        send_timeout_s: a client takes nothing of its answer for so long.
        shutdown_timeout_s: to finish what is in work when the server is stopped.
    """

    environment: str = "development"
    models: tuple[str, ...] = ()
    max_head_bytes: int = 32 << 10
    head_timeout_s: float = 10.0
    max_body_bytes: int = 16 << 20
    body_timeout_s: float = 30.0
    inference_timeout_s: float = 10.0
    max_concurrency: int = 256
    max_readers: int = 512
    max_body_memory_bytes: int = 256 << 20
    max_connections: int = 1024
    idle_timeout_s: float = 10.0
    send_timeout_s: float = 20.0
    shutdown_timeout_s: float = 30.0


@dataclass(frozen=True)
class AccessSettings(IssuerSettings):
    """Whose tokens are accepted, and for what.

    What an issuer is said by stands here for the first issuer; `IssuerSettings` lists
    it. One that is not named here is none.

    Attributes:
        issuers: further ones.
        resource: this server's own URL, ``https://host[:port]``: what clients find it
            by (RFC 9728), and what proofs of possession are made for (RFC 9449).
        permissions: the table of grants, relative to the folder of service.toml.
        leeway_s: tolerated clock difference.
        max_token_bytes: refuse longer tokens before decoding.
        token_cache_entries: verified tokens that are remembered; 0 remembers none.
        revocation_store: "local", shared by the workers of this machine, or the
            ``redis://`` or ``rediss://`` URL of a store shared by all machines.
        revocation_directory: folder of the local store.
        dpop_key: file with the key that nonces are made with.
        dpop_nonce: proofs must hold a nonce of this server (RFC 9449, section 9).
        dpop_window_s: how far a proof's time may be from our clock, either way.
    """

    issuers: tuple[IssuerSettings, ...] = ()
    resource: str = ""
    permissions: Path = field(default=Path("access.toml"), metadata={"base": "config"})
    leeway_s: int = 5
    max_token_bytes: int = 8 << 10
    token_cache_entries: int = 4096
    revocation_store: str = "local"
    revocation_directory: Path = Path("revocations")
    dpop_key: Path = Path("keys/dpop.key")
    dpop_nonce: bool = True
    dpop_window_s: int = 60

    @property
    def all_issuers(self) -> tuple[IssuerSettings, ...]:
        """The first issuer, if one is named, and the further ones."""
        own = {item.name: getattr(self, item.name) for item in fields(IssuerSettings)}
        return (*([IssuerSettings(**own)] if self.issuer else []), *self.issuers)


@dataclass(frozen=True)
class SealingSettings:
    """Sealed transport (RFC 9458).

    Attributes:
        require_sealed: refuse inference in plaintext.
        keys: folder of HPKE private keys.
        identity: the key that signs the key configurations; without the file they are
            only offered unsigned.
        key_lifetime_s: age at which a key is replaced.
        key_overlap_s: for how long the key before it still opens requests.
        key_cache_s: how long clients may keep the configurations; within the overlap.
        require_date: refuse sealed requests without a ``Date``. Without this they are
            remembered until their key is retired.
        date_window_s: how far a ``Date`` may be from the server's clock, either way.
        replay_store: "local", shared by the workers of this machine, or the
            ``redis://`` or ``rediss://`` URL of a store shared by all machines.
        replay_directory: folder of the local store.
        max_replay_entries: requests remembered at most; more are answered 503.
    """

    require_sealed: bool = True
    keys: Path = Path("keys/hpke")
    identity: Path = Path("keys/identity.pem")
    key_lifetime_s: int = 24 * 3600
    key_overlap_s: int = 2 * 3600
    key_cache_s: int = 3600
    require_date: bool = True
    date_window_s: int = 120
    replay_store: str = "local"
    replay_directory: Path = Path("replay")
    max_replay_entries: int = 1 << 20


@dataclass(frozen=True)
class AdmissionSettings:
    """Which models may run.

    Attributes:
        trust: public keys by role; must come from the deployer, never from the Bento.
        policy: relative to the folder of service.toml.
        model_key: X25519 key that sealed models are opened with; needed only for those.
    """

    trust: Path = Path("trust.json")
    policy: Path = field(default=Path("policy.toml"), metadata={"base": "config"})
    model_key: Path = Path("keys/model.pem")


@dataclass(frozen=True)
class Settings:
    """The effective settings, all paths absolute."""

    home: Path
    service: ServiceSettings = field(default_factory=ServiceSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    sealing: SealingSettings = field(default_factory=SealingSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    quotas: QuotaSettings = field(default_factory=QuotaSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    deployment: DeploymentSettings = field(default_factory=DeploymentSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    observability: ObservabilitySettings = field(default_factory=ObservabilitySettings)


# The kind of runtime.models, a table of tables.
_MODELS = "Mapping[str, Mapping[str, Any]]"
# A name and a version as manifests have them: nothing that a store could complete.
_TAG = re.compile(r"[a-z0-9-]{1,63}:[0-9][0-9.]{0,39}")
# Bounds that at zero would bound nothing or let nothing through.
_POSITIVE: Mapping[str, tuple[str, ...]] = {
    "service": (
        "max_head_bytes",
        "head_timeout_s",
        "max_body_bytes",
        "body_timeout_s",
        "inference_timeout_s",
        "max_concurrency",
        "max_readers",
        "max_body_memory_bytes",
        "max_connections",
        "idle_timeout_s",
        "send_timeout_s",
        "shutdown_timeout_s",
    ),
    "access": ("max_lifetime_s", "max_token_bytes", "dpop_window_s"),
    "sealing": (
        "key_lifetime_s",
        "key_overlap_s",
        "key_cache_s",
        "date_window_s",
        "max_replay_entries",
    ),
    "deployment": ("poll_s",),
    "quotas": ("max_entries",),
    "audit": (
        "max_held_records",
        "max_file_bytes",
        "checkpoint_interval_s",
        "refusal_interval_s",
        "refusal_records",
    ),
}
_SECTIONS: Mapping[str, type[Any]] = {
    "service": ServiceSettings,
    "access": AccessSettings,
    "sealing": SealingSettings,
    "admission": AdmissionSettings,
    "quotas": QuotaSettings,
    "audit": AuditSettings,
    "runtime": RuntimeSettings,
    "deployment": DeploymentSettings,
    "tls": TlsSettings,
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
    project = Path(__file__).resolve().parent.parent
    path = Path(environ.get("SEALGATE_CONFIG") or project / "deploy" / "service.toml")
    home = Path(environ.get("SEALGATE_HOME") or ".sealgate").resolve()
    document = _read(path)
    _refuse_unknown(document.keys(), _SECTIONS.keys(), str(path))
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
    return _checked(Settings(home=home, **sections))


def _checked(settings: Settings) -> Settings:
    service = settings.service
    if service.environment not in ENVIRONMENTS:
        raise SettingsError(f"service.environment: one of {', '.join(ENVIRONMENTS)}")
    for tag in service.models:
        if not _TAG.fullmatch(tag):
            raise SettingsError(
                f"service.models: {tag!r} is not a full tag like name:1.0.0"
            )
        if service.models.count(tag) > 1:
            raise SettingsError(f"service.models: {tag!r} is named twice")
    if service.max_body_memory_bytes < service.max_body_bytes:
        raise SettingsError(
            "service.max_body_memory_bytes: less than service.max_body_bytes"
        )
    for section, bounds in _POSITIVE.items():
        for name in bounds:
            # NaN, which TOML can spell, fails this comparison too.
            if not 0 < getattr(getattr(settings, section), name) < math.inf:
                raise SettingsError(f"{section}.{name}: must be positive and finite")
    _check_access(settings.access)
    _check_sealing(settings.sealing)
    check_runtime(settings.runtime)
    check_bookkeeping(settings.quotas, settings.audit)
    check_serving(settings.tls, settings.observability)
    return settings


def _check_access(access: AccessSettings) -> None:
    for name in ("leeway_s", "token_cache_entries"):
        if getattr(access, name) < 0:
            raise SettingsError(f"access.{name}: may not be negative")
    _check_store(access.revocation_store, "access.revocation_store")
    issuers = access.all_issuers
    check_issuers(issuers)
    if access.resource:
        check_resource(access.resource)
    elif any(issuer.dpop != "off" for issuer in issuers):
        raise SettingsError("access.resource: must be set where DPoP is not off")


def _check_sealing(sealing: SealingSettings) -> None:
    if sealing.key_cache_s > sealing.key_overlap_s:
        raise SettingsError("sealing.key_cache_s: may not exceed sealing.key_overlap_s")
    _check_store(sealing.replay_store, "sealing.replay_store")


def _check_store(store: str, where: str) -> None:
    if store != "local" and not store.startswith(("redis://", "rediss://")):
        # Not the value: a URL that was mistyped may hold a password.
        raise SettingsError(f"{where}: local, or a redis:// URL")


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise SettingsError(f"{path}: nested too deeply") from None
    except ValueError as error:  # TOML, UTF-8, an integer of thousands of digits
        raise SettingsError(f"{path}: {error}") from None


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
        for item in fields(kind)
        if item.type != _MODELS
    }
    given = {
        name: text
        for name, text in environ.items()
        if name.startswith(_PREFIX) and name not in _OTHER_VARIABLES
    }
    _refuse_unknown(given.keys(), known.keys(), "environment")
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
    known = {item.name: str(item.type) for item in fields(kind)}
    _refuse_unknown(values.keys(), known.keys(), where)
    # Defaults of paths go through the same conversion, so that they become absolute.
    given = {
        item.name: _convert(
            values.get(item.name, {} if item.type == _MODELS else item.default),
            known[item.name],
            where=f"{where} {item.name}",
            base=bases[item.metadata.get("base", "home")],
        )
        for item in fields(kind)
    }
    return kind(**given)


def _convert(value: Any, kind: str, *, where: str, base: Path) -> Any:
    match kind:
        case "Path" | "Path | None" | "KeyLocation" if isinstance(value, str | Path):
            return _location(value, kind, base)
        case "Path | None" if value is None:
            return None
        case _ if kind == _MODELS and isinstance(value, dict):
            return _models(value, where, base)
        case "tuple[IssuerSettings, ...]" if isinstance(value, list | tuple):
            return tuple(_issuer(item, where, base) for item in value)
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


def _models(tables: Mapping[str, Any], where: str, base: Path) -> dict[str, Any]:
    """What the tables set, of the right types; the rest is [runtime]'s own."""
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise SettingsError(f"{where}: expected tables, [runtime.models.NAME]")
        if not re.fullmatch("[a-z0-9-]{1,63}", name):
            raise SettingsError(f"{where}: {name!r} is no model's name")
    bases = {"home": base}
    limits = {
        name: _section(ModelLimits, table, where=f"{where}.{name}", bases=bases)
        for name, table in tables.items()
    }
    return {
        name: {key: getattr(limits[name], key) for key in table}
        for name, table in tables.items()
    }


def _refuse_unknown(given: Any, known: Any, where: str) -> None:
    for name in sorted(set(given) - set(known)):
        close = difflib.get_close_matches(name, list(known), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise SettingsError(f"{where}: unknown key {name!r}{hint}")
