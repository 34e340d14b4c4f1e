"""The client's profile: where the server is, and what to trust it by."""

from __future__ import annotations

import base64
import json
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sealgate.errors import JsonError, ProfileError
from sealgate.protocol import strict_json

__all__ = ["Profile"]

MAX_PROFILE_BYTES = 1 << 20
_OTHERS = stat.S_IRGRP | stat.S_IROTH
_LOG = logging.getLogger("sealgate")


@dataclass(frozen=True)
class Profile:
    """What a client needs to know about a server.

    Attributes:
        url: base URL of the server.
        token: access token; kept out of ``repr``.
        model: the model to use where none is named, or None.
        key_configs: ``application/ohttp-keys`` bytes to seal to. They are pinned: the
            client does not ask the server, or anyone between, for others. None fetches.
        trusted_keys: PEM public keys whose verdicts about models are believed.
        identity_keys: PEM public keys of the deployment, ECDSA P-256 or ML-DSA-65. If
            there is one, only key configurations that it signed are sealed to; they may
            change, it does not. Of each algorithm that is named here, one must sign.
        attestation: what evidence about the server's machine must come with the keys,
            as `sealgate.attestation.AttestationPolicy.from_object` reads it.
        require_passport: use no model whose passport does not verify.
        log_keys: vkeys of the deployment's audit log: each must have signed what a
            receipt rests on.
        witness_keys: vkeys of those who watch that log.
        required_witnesses: how many of them must have cosigned.
        require_offered: refuse keys and passports that are not in the public log.
        relay_url: where to send sealed requests instead of to ``url``.
        proof_key: PEM private key that the token is bound to (RFC 9449); kept out of
            ``repr``.
        client_certificate: PEM file of the client's certificate (RFC 8705), relative to
            the profile's folder.
        client_key: PEM file of its key; None if that is in the same file.
    """

    url: str
    token: str = field(repr=False)
    model: str | None = None
    key_configs: bytes | None = field(default=None, repr=False)
    trusted_keys: tuple[str, ...] = field(default=(), repr=False)
    identity_keys: tuple[str, ...] = field(default=(), repr=False)
    attestation: Mapping[str, Any] | None = field(default=None, repr=False)
    require_passport: bool = False
    log_keys: tuple[str, ...] = field(default=(), repr=False)
    witness_keys: tuple[str, ...] = field(default=(), repr=False)
    required_witnesses: int = field(default=0, repr=False)
    require_offered: bool = field(default=False, repr=False)
    relay_url: str | None = None
    proof_key: str | None = field(default=None, repr=False)
    client_certificate: str | None = None
    client_key: str | None = None

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """Read a profile file; a warning is logged if others can read it too.

        Raises:
            ProfileError: unreadable or malformed; the message names the field.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_PROFILE_BYTES + 1)
                mode = os.fstat(file.fileno()).st_mode
            value = strict_json.loads_object(data, max_bytes=MAX_PROFILE_BYTES)
        except OSError as error:
            raise ProfileError(f"profile {path}: {error.strerror}") from None
        except JsonError as error:
            raise ProfileError(f"profile {path}: {error}") from None
        known = {item.name for item in fields(cls)}
        for name in sorted(value.keys() - known):
            raise ProfileError(f"profile {path}: unknown field {name!r}")
        if os.name == "posix" and mode & _OTHERS:
            _LOG.warning("profile %s holds a token, and others can read it", path)
        return cls(
            url=_text(value.get("url"), "url"),
            token=_text(value.get("token"), "token"),
            model=_optional(value.get("model"), "model"),
            key_configs=_base64(value.get("key_configs")),
            trusted_keys=_texts(value.get("trusted_keys", []), "trusted_keys"),
            identity_keys=_texts(value.get("identity_keys", []), "identity_keys"),
            attestation=_table(value.get("attestation"), "attestation"),
            require_passport=_flag(value, "require_passport"),
            log_keys=_texts(value.get("log_keys", []), "log_keys"),
            witness_keys=_texts(value.get("witness_keys", []), "witness_keys"),
            required_witnesses=_count(value.get("required_witnesses", 0)),
            require_offered=_flag(value, "require_offered"),
            relay_url=_optional(value.get("relay_url"), "relay_url"),
            proof_key=_optional(value.get("proof_key"), "proof_key"),
            client_certificate=_beside(path, value, "client_certificate"),
            client_key=_beside(path, value, "client_key"),
        )

    def to_json(self) -> bytes:
        """The file's contents. They hold the token: write them readable by one user."""
        configs = self.key_configs
        document: dict[str, Any] = {
            "url": self.url,
            "token": self.token,
            "model": self.model,
            "key_configs": configs and base64.b64encode(configs).decode(),
            "trusted_keys": list(self.trusted_keys),
        }
        if self.identity_keys:
            document["identity_keys"] = list(self.identity_keys)
        if self.attestation is not None:
            document["attestation"] = self.attestation
        for name in ("require_passport", "require_offered"):
            if getattr(self, name):
                document[name] = True
        for name in ("log_keys", "witness_keys"):
            if keys := getattr(self, name):
                document[name] = list(keys)
        if self.required_witnesses:
            document["required_witnesses"] = self.required_witnesses
        if self.relay_url is not None:
            document["relay_url"] = self.relay_url
        for name in ("proof_key", "client_certificate", "client_key"):
            if (text := getattr(self, name)) is not None:
                document[name] = text
        return json.dumps(document, indent=2).encode() + b"\n"


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise ProfileError(f"profile: {name} is missing or not text")
    return value


def _optional(value: Any, name: str) -> str | None:
    return None if value is None else _text(value, name)


def _table(value: Any, name: str) -> Mapping[str, Any] | None:
    if value is None or isinstance(value, dict):
        return value
    raise ProfileError(f"profile: {name} is not an object")


def _beside(profile: Path, value: dict[str, Any], name: str) -> str | None:
    text = _optional(value.get(name), name)
    return None if text is None else str(profile.absolute().parent / text)


def _flag(document: dict[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if not isinstance(value, bool):
        raise ProfileError(f"profile: {name} is not true or false")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ProfileError("profile: required_witnesses is not a number")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ProfileError(f"profile: {name} is not an array")
    return tuple(_text(item, name) for item in value)


def _base64(value: Any) -> bytes | None:
    if value is None:
        return None
    try:
        return base64.b64decode(_text(value, "key_configs"), validate=True)
    except ValueError:  # binascii.Error is one; text beyond ASCII raises another
        raise ProfileError("profile: key_configs is not base64") from None
