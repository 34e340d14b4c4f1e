"""The model key's part of `keys`: which there are, a fresh one, its public half."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sealgate.protocol.kem import KEM_NAMES
from sealgate.protocol.sealedfile import key_hint
from security.errors import KeyFileError
from security.key_files import PASSPHRASE_VARIABLE, passphrase_file, read_passphrase
from security.settings.loading import load_settings

if TYPE_CHECKING:
    from security.admission.model_keys import ModelKey

__all__ = ["MODEL", "list_lines", "public_half", "rotate"]

MODEL = "model"


def list_lines() -> Iterator[str]:
    """The model key and those that it took the place of, a line each."""
    from security.admission.model_keys import (  # noqa: PLC0415
        former_key_files,
        load_model_key,
    )

    path = load_settings().admission.model_key
    if not isinstance(path, Path):
        scheme = path.partition(":")[0]
        yield f"{'-':<64}  {MODEL:<15}  from {scheme}:, asked when a model was admitted"
        return
    if not path.exists():
        return
    yield _line(load_model_key(path), "current")
    for former in former_key_files(path):
        yield _line(load_model_key(former), "replaced, opens what is sealed to it")


def rotate(args: argparse.Namespace) -> int:
    """A fresh X-Wing key; the old one still opens what is sealed to it."""
    from security.admission.model_keys import (  # noqa: PLC0415
        load_model_key,
        rotate_model_key,
    )
    from security.audit.journal import record_operation  # noqa: PLC0415

    if args.passphrase_file:
        raise KeyFileError(
            f"model key: name the passphrase's file in {PASSPHRASE_VARIABLE}, where "
            "the server finds it too"
        )
    settings = load_settings()
    path, source = _file(settings.admission.model_key), passphrase_file()
    aside = rotate_model_key(
        path, passphrase=read_passphrase(source) if source else None
    )
    operation = {"action": "key-rotation", "reason": f"{MODEL}-rotated"}
    record_operation(settings.audit, [operation])
    print(f"rotated   {path}  {key_hint(load_model_key(path).public_bytes)}")
    print(f"old key   {aside}  opens what is sealed to it; delete it when nothing is")
    return 0


def public_half() -> str:
    """In PEM, to be handed to whoever seals.

    Raises:
        KeyFileError: the key cannot be read, or is no file.
    """
    from security.admission.model_keys import (  # noqa: PLC0415
        load_model_key,
        model_public_pem,
    )

    return model_public_pem(load_model_key(_file(load_settings().admission.model_key)))


def _line(key: ModelKey, state: str) -> str:
    kind, hint = KEM_NAMES[key.kem_id], key_hint(key.public_bytes)
    return f"{hint}  {MODEL:<15}  {kind}, {state}"


def _file(source: Path | str) -> Path:
    if isinstance(source, Path):
        return source
    scheme = source.partition(":")[0]
    raise KeyFileError(
        f"admission.model_key is {scheme}:, which is asked for an admitted model only: "
        "make and rotate the key where it is kept"
    )
