"""The training configuration: one TOML file, every value public.

What stands here is published with the evidence, so nothing in it may depend on the
rows: a clipping norm or a batch size tuned on them would spend budget nobody counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from security.config_reader import (
    MAX_CONFIG_BYTES,
    Found,
    placed,
    read_object,
    read_sections,
    sections_of,
)
from security.errors import TrainingError
from security.training.config_rules import PARTS, broken
from security.training.config_sections import TrainingConfig

__all__ = ["check_config", "load_config", "parse_config", "parse_object"]


def load_config(path: Path) -> TrainingConfig:
    """Read and validate a configuration file.

    Raises:
        TrainingError: unreadable, too large, or as `parse_config`.
    """
    config = parse_config(_read(path), where=path.name)
    return replace(config, _base=path.resolve().parent)


def check_config(
    path: Path, more: Callable[[TrainingConfig], Iterable[Found]] = lambda _: ()
) -> list[str]:
    """Every mistake as ``file:line: key: what``; none if there is nothing to refuse.

    Args:
        path: of the configuration.
        more: what else is wrong with one that can be read.

    Raises:
        TrainingError: unreadable.
    """
    data = _read(path)
    found = sections_of(data, TrainingConfig, broken, where=path.name, parts=PARTS)
    config, mistakes = found
    if config is None or mistakes:
        return mistakes
    config = replace(config, _base=path.resolve().parent)
    return placed(more(config), data.decode(), where=path.name)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}") from None


def parse_config(data: bytes, *, where: str = "configuration") -> TrainingConfig:
    """Parse and validate a configuration.

    Args:
        data: TOML.
        where: what error messages call it.

    Raises:
        TrainingError: not TOML, an unknown or missing key, a wrong type, or a value out
            of range. The message has the line, the key, and the one probably meant.

    >>> parse_config(b"[modle]")
    Traceback (most recent call last):
        ...
    security.errors.TrainingError: configuration:1: unknown key 'modle'; did you mean \
'model'?
    """
    return read_sections(
        data, TrainingConfig, broken, where=where, error=TrainingError, parts=PARTS
    )


def parse_object(value: Mapping[str, Any], *, where: str) -> TrainingConfig:
    """Validate what `TrainingConfig.to_object` gave.

    Raises:
        TrainingError: as `parse_config`, without a line.
    """
    data = value.get("data")
    if isinstance(data, dict) and data.get("source"):
        value = {**value, "data": {"row_identity": 1, **data}}
    privacy = value.get("privacy")
    if isinstance(privacy, dict) and isinstance(data, dict) and data.get("target"):
        # One that does not say was written before anything was counted, or says 0.
        value = {**value, "privacy": {"clamped_share": 0.0, **privacy}}
    return read_object(value, TrainingConfig, broken, where=where, error=TrainingError)
