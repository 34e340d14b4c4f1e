"""The training configuration: one TOML file, every value public.

What stands here is published with the evidence, so nothing in it may depend on the
rows: a clipping norm or a batch size tuned on them would spend budget nobody counts.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from models.architectures import ARCHITECTURES
from models.datasets import NAMES
from security.errors import TrainingError

__all__ = [
    "DataConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrivacyConfig",
    "TrainingConfig",
    "UseConfig",
    "load_config",
    "parse_config",
]

MAX_CONFIG_BYTES = 1 << 20
# Beyond this, the bound on what anyone learns about a row (e^epsilon) is no bound.
MAX_EPSILON = 50.0
MAX_STEPS = 1_000_000
MAX_USE_CHARACTERS = 4000

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}")

_Section = TypeVar("_Section")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Attributes:
        name, version: of the bundle, as in its manifest.
        architecture: "linear" or "mlp".
        hidden: widths of the hidden layers; empty for "linear".
        seed: of the initial weights, which are public.
    """

    name: str
    version: str
    architecture: str = "linear"
    hidden: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class DataConfig:
    """What it is trained on.

    Attributes:
        name: of the data set (`models.datasets`).
        split_key: of the keyed hash that decides which rows are held out.
        holdout: expected share of held-out rows.
    """

    name: str
    split_key: str
    holdout: float = 0.25


@dataclass(frozen=True)
class PrivacyConfig:
    """What the guarantee is to be; changing any of these changes it.

    Attributes:
        epsilon: target; the noise is chosen so that PRV's upper bound stays below.
        sampling_rate: chance of each row to be in a step's batch; 1 takes all.
        steps: how many noisy steps.
        max_grad_norm: L2 norm that each row's gradient is clipped to.
        expected_batch: divisor of a step's summed gradient, a public constant; the
            number of private rows stays out of it (opacus#819).
        delta: below 1/n; if absent, 1/n^1.1 rounded down to two digits.
    """

    epsilon: float
    sampling_rate: float
    steps: int
    max_grad_norm: float
    expected_batch: int
    delta: float | None = None


@dataclass(frozen=True)
class OptimizerConfig:
    """Plain stochastic gradient descent on the noisy gradient.

    Attributes:
        learning_rate: constant.
        momentum: 0 to below 1; post-processing, so it costs no privacy.
    """

    learning_rate: float
    momentum: float = 0.0


@dataclass(frozen=True)
class UseConfig:
    """What the model is for, in the trainer's words; the model card quotes it.

    Attributes:
        intended: who may use it for what.
        out_of_scope: what it must not be used for.
        limitations: known, beside those that the evidence shows.
        license: of the model, an SPDX identifier if it has one.
    """

    intended: str = ""
    out_of_scope: str = ""
    limitations: str = ""
    license: str = ""


@dataclass(frozen=True)
class TrainingConfig:
    """A parsed, validated configuration."""

    model: ModelConfig
    data: DataConfig
    privacy: PrivacyConfig
    optimizer: OptimizerConfig
    use: UseConfig = UseConfig()

    def to_object(self) -> dict[str, Any]:
        """The configuration as JSON values, for the evidence."""
        value = asdict(self)
        value["model"]["hidden"] = list(self.model.hidden)
        if self.privacy.delta is None:
            del value["privacy"]["delta"]
        value["use"] = {name: text for name, text in value["use"].items() if text}
        if not value["use"]:
            del value["use"]
        return value


def load_config(path: Path) -> TrainingConfig:
    """Read and validate a configuration file.

    Raises:
        TrainingError: unreadable, too large, or as `parse_config`.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}") from None
    return parse_config(data, where=path.name)


def parse_config(data: bytes, *, where: str = "configuration") -> TrainingConfig:
    """Parse and validate a configuration.

    Args:
        data: TOML.
        where: what error messages call it.

    Raises:
        TrainingError: not TOML, an unknown or missing key, a wrong type, or a value out
            of range. The message names the key, and the one probably meant.

    >>> parse_config(b"[modle]")
    Traceback (most recent call last):
        ...
    security.errors.TrainingError: configuration: unknown key 'modle'; did you mean \
'model'?
    """
    document = _document(data, where)
    sections: dict[str, type[Any]] = {
        "model": ModelConfig,
        "data": DataConfig,
        "privacy": PrivacyConfig,
        "optimizer": OptimizerConfig,
        "use": UseConfig,
    }
    _refuse_unknown(document, sections, where)
    config = TrainingConfig(
        **{
            name: _section(kind, document.get(name, {}), f"{where}: {name}")
            for name, kind in sections.items()
        }
    )
    for passed, message in _rules(config):
        if not passed:
            raise TrainingError(f"{where}: {message}")
    return config


def _document(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > MAX_CONFIG_BYTES:
        raise TrainingError(f"{where}: more than {MAX_CONFIG_BYTES} bytes")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(f"{where}: not TOML: {reason}") from None


def _section(kind: type[_Section], value: Any, where: str) -> _Section:
    if not isinstance(value, dict):
        raise TrainingError(f"{where}: expected a table")
    known = {item.name: str(item.type) for item in fields(kind)}  # type: ignore[arg-type]  # a dataclass, by the table above
    _refuse_unknown(value, known, where)
    given = {
        name: _convert(item, known[name], f"{where}.{name}")
        for name, item in value.items()
    }
    try:
        return kind(**given)
    except TypeError:
        missing = [n for n in known if n not in given and not hasattr(kind, n)]
        raise TrainingError(f"{where}: missing {', '.join(missing)}") from None


def _convert(value: Any, kind: str, where: str) -> Any:
    converters: Mapping[str, Callable[[Any], Any]] = {
        "str": lambda v: v if isinstance(v, str) else None,
        "int": lambda v: v if type(v) is int else None,
        "float": _float,
        "float | None": _float,
        "tuple[int, ...]": _integers,
    }
    converted = converters[kind](value)
    if converted is None:
        expected = {
            "str": "a string",
            "int": "an integer",
            "tuple[int, ...]": "a list of integers",
        }.get(kind, "a finite number")
        raise TrainingError(f"{where}: expected {expected}")
    return converted


def _float(value: Any) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _integers(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or any(type(item) is not int for item in value):
        return None
    return tuple(value)


def _rules(config: TrainingConfig) -> Iterable[tuple[bool, str]]:
    """Every rule on values, as whether it holds and what to say if not."""
    yield from _model_rules(config.model)
    data, optimizer = config.data, config.optimizer
    close = _hint(data.name, NAMES)
    yield data.name in NAMES, f"data.name: unknown data set {data.name!r}{close}"
    yield bool(data.split_key), "data.split_key: must not be empty"
    yield 0 < data.holdout < 1, "data.holdout: must be between 0 and 1"
    yield from _privacy_rules(config.privacy)
    yield optimizer.learning_rate > 0, "optimizer.learning_rate: must be positive"
    yield 0 <= optimizer.momentum < 1, "optimizer.momentum: must be in [0, 1)"
    for name, text in vars(config.use).items():
        short = len(text) <= MAX_USE_CHARACTERS
        yield short, f"use.{name}: more than {MAX_USE_CHARACTERS} characters"


def _model_rules(model: ModelConfig) -> Iterable[tuple[bool, str]]:
    name = bool(_NAME.fullmatch(model.name))
    yield name, "model.name: lower-case letters, digits and hyphens, at most 63"
    version = bool(_VERSION.fullmatch(model.version))
    yield version, "model.version: dotted numbers like 1.0.0"
    known = model.architecture in ARCHITECTURES
    yield known, f"model.architecture: one of {', '.join(ARCHITECTURES)}"
    mlp = model.architecture == "mlp"
    yield bool(model.hidden) == mlp, "model.hidden: widths for mlp, none for linear"
    sizes = len(model.hidden) <= 8 and all(1 <= n <= 4096 for n in model.hidden)
    yield sizes, "model.hidden: at most 8 layers of 1 to 4096"
    yield 0 <= model.seed < 1 << 63, "model.seed: must be in [0, 2^63)"


def _privacy_rules(privacy: PrivacyConfig) -> Iterable[tuple[bool, str]]:
    epsilon = 0 < privacy.epsilon <= MAX_EPSILON
    yield epsilon, f"privacy.epsilon: must be above 0, at most {MAX_EPSILON:g}"
    rate = 0 < privacy.sampling_rate <= 1
    yield rate, "privacy.sampling_rate: must be above 0, at most 1"
    steps = 1 <= privacy.steps <= MAX_STEPS
    yield steps, f"privacy.steps: must be 1 to {MAX_STEPS}"
    yield privacy.max_grad_norm > 0, "privacy.max_grad_norm: must be positive"
    yield privacy.expected_batch > 0, "privacy.expected_batch: must be positive"
    delta = privacy.delta is None or 0 < privacy.delta < 1
    yield delta, "privacy.delta: must be between 0 and 1"


def _refuse_unknown(
    given: Mapping[str, Any], known: Mapping[str, Any], where: str
) -> None:
    for name in given:
        if name not in known:
            raise TrainingError(f"{where}: unknown key {name!r}{_hint(name, known)}")


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
