"""The training configuration: one TOML file, every value public.

What stands here is published with the evidence, so nothing in it may depend on the
rows: a clipping norm or a batch size tuned on them would spend budget nobody counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from models.architectures import ARCHITECTURES
from models.datasets import NAMES
from models.features import FEATURES
from security.errors import TrainingError
from security.training.config_reader import (
    MAX_CONFIG_BYTES,
    Mistake,
    hint,
    read_object,
    read_sections,
)

__all__ = [
    "AdversarialConfig",
    "ColumnConfig",
    "ComputeConfig",
    "DataConfig",
    "ImageConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrivacyConfig",
    "TrainingConfig",
    "UseConfig",
    "load_config",
    "parse_config",
    "parse_object",
]

# Beyond this, the bound on what anyone learns about a row (e^epsilon) is no bound.
MAX_EPSILON = 50.0
MAX_STEPS = 1_000_000
MAX_USE_CHARACTERS = 4000
MAX_GROUP = 64

CLIPPING = ("flat", "automatic")
ATTACKS = ("pgd", "trades")
UNIT_BOUNDS = ("clip", "group")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "cosine", "linear")
MODULE = "module"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}")

Rules = Iterable[tuple[bool, str, str]]


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Attributes:
        name, version: of the bundle, as in its manifest.
        architecture: one of `models.architectures.ARCHITECTURES`, or "module".
        hidden: widths of the hidden layers; empty for "linear".
        blocks: residual blocks of "resnet".
        module: for "module", ``package.module:function``, which returns an `nn.Module`.
        missing_flags: whether the network sees which values were missing.
        centre: of tables, the share of each public range that the network sees as 0.
        features: of images, a fixed map of `models.features.FEATURES` before the
            network; empty for none.
        seed: of the initial weights, which are public.
    """

    name: str
    version: str
    architecture: str = "linear"
    hidden: tuple[int, ...] = ()
    blocks: int = 0
    module: str = ""
    missing_flags: bool = False
    centre: float = 0.5
    features: str = ""
    seed: int = 0


@dataclass(frozen=True)
class ColumnConfig:
    """A feature with what is publicly known of it: a range, or its categories.

    Attributes:
        name: of the column in the data.
        low, high: of a number's public range.
        categories: of a category's public values, in the order of their codes.
    """

    name: str
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageConfig:
    """Images with what is publicly known of them.

    Attributes:
        shape: of one image: height, width; or channels, height, width.
        low, high: of a pixel.
        mean, std: of pixels scaled to [0, 1], from public data, for all channels.
    """

    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 255.0
    mean: float = 0.5
    std: float = 0.5


@dataclass(frozen=True)
class DataConfig:
    """What it is trained on.

    Attributes:
        name: of the data set: one of `models.datasets`, or, with a source, the name
            under which the ledger adds up what was spent on it.
        split_key: of the keyed hash that decides which units are held out.
        holdout: expected share of held-out units.
        source: a .csv, .parquet or .npz file beside this one (.gz too), or
            ``python:package.module:function``; empty for a data set by name.
        holdout_source: held-out rows from a file of their own, in place of a share.
        label: the column of the classes.
        classes: their public names, in the order of the model's outputs.
        aliases: other spellings of a class.
        columns: the features.
        image: for images, in place of columns.
        identifier: a column that names each row, once; dropped.
        unit: a column that names whose row it is, where one may own several.
        max_rows_per_unit: further rows of a unit are left out; 0 for no bound.
        sensitive: columns kept for measuring fairness; features only if listed there.
        drop: columns that are not used.
        missing: cells that mean a missing value.
        header: the columns' names, for a CSV file without a first line of them.
        delimiter, encoding, comment: of a CSV file.
        personal: whether a row is about a person.
    """

    name: str
    split_key: str
    holdout: float = 0.25
    source: str = ""
    holdout_source: str = ""
    label: str = "label"
    classes: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[ColumnConfig, ...] = ()
    image: ImageConfig | None = None
    identifier: str = ""
    unit: str = ""
    max_rows_per_unit: int = 0
    sensitive: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    delimiter: str = ","
    encoding: str = "utf-8"
    comment: str = ""
    personal: bool = True


@dataclass(frozen=True)
class PrivacyConfig:
    """What the guarantee is to be; changing any of these changes it.

    Attributes:
        steps: how many noisy steps.
        sampling_rate: chance of each unit to be in a step's batch; 1 takes all.
        expected_batch: divisor of a step's summed gradient, a public constant; the
            number of private rows stays out of it (opacus#819).
        epsilon: target; the noise is chosen so that PRV's upper bound stays below.
        max_grad_norm: L2 norm that each unit's gradient is clipped to.
        delta: below 1/n; if absent, 1/n^1.1 rounded down to two digits.
        mechanism: "dp_sgd"; "none" for public data only, without any guarantee.
        clipping: "flat" cuts longer gradients; "automatic" scales every one to it.
        unit_bound: where a unit owns several rows: "clip" samples and clips units;
            "group" samples and clips rows, and accounts for groups of them.
        loss_share: share of the clipping norm that a step spends on telling the loss,
            with the same noise; 0 tells none.
        secure: randomness from the operating system.
        benchmark: marks the evidence, so that no policy admits it; needed for
            ``secure = false``, a faster generator that can be predicted.
    """

    steps: int
    sampling_rate: float
    expected_batch: int
    epsilon: float = 0.0
    max_grad_norm: float = 0.0
    delta: float | None = None
    mechanism: str = "dp_sgd"
    clipping: str = "flat"
    unit_bound: str = "clip"
    loss_share: float = 0.1
    secure: bool = True
    benchmark: bool = False


@dataclass(frozen=True)
class OptimizerConfig:
    """What is done with the noisy gradient: post-processing, so it costs no privacy.

    Attributes:
        learning_rate: at its highest.
        momentum: 0 to below 1; of "sgd".
        kind: "sgd" or "adam".
        schedule: "constant", or "cosine" or "linear" down to 0.
        warmup: share of the steps over which the learning rate rises from 0.
        ema: decay of the averaged weights that are exported; 0 exports the last ones.
    """

    learning_rate: float
    momentum: float = 0.0
    kind: str = "sgd"
    schedule: str = "constant"
    warmup: float = 0.0
    ema: float = 0.0


@dataclass(frozen=True)
class AdversarialConfig:
    """Training against an attack on every example; it spends no privacy.

    Attributes:
        method: "pgd" or "trades".
        radius: in the maximum norm, as a share of each column's or pixel's range.
        steps: of the attack.
        beta: of "trades": what robustness weighs beside accuracy.
    """

    method: str
    radius: float
    steps: int = 7
    beta: float = 6.0


@dataclass(frozen=True)
class ComputeConfig:
    """What alters only speed.

    Attributes:
        gradients: how per-unit gradients are made; "auto", or one of
            `security.training.gradient_methods.METHODS`.
        physical_batch: examples in memory at once; 0 for all of a batch.
        device: "cpu" or "cuda".
        threads: of torch, on the CPU.
        checkpoint_steps: steps between checkpoints; 0 for as seldom as costs little.
    """

    gradients: str = "auto"
    physical_batch: int = 0
    device: str = "cpu"
    threads: int = 1
    checkpoint_steps: int = 0


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
    """A parsed, validated configuration.

    Attributes:
        _base: the folder that relative paths start from; not published.
    """

    model: ModelConfig
    data: DataConfig
    privacy: PrivacyConfig
    optimizer: OptimizerConfig
    compute: ComputeConfig = ComputeConfig()
    use: UseConfig = UseConfig()
    adversarial: AdversarialConfig | None = None
    _base: Path = Path()

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return self._base

    @property
    def private(self) -> bool:
        """Whether training gives a guarantee."""
        return self.privacy.mechanism != "none"

    def to_object(self) -> dict[str, Any]:
        """What was chosen, as JSON values, for the evidence."""
        return {name: value for name, value in _chosen(self).items() if value}


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
    config = parse_config(data, where=path.name)
    return replace(config, _base=path.resolve().parent)


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
    return read_sections(data, TrainingConfig, _check, where)


def parse_object(value: Mapping[str, Any], *, where: str) -> TrainingConfig:
    """Validate what `TrainingConfig.to_object` gave.

    Raises:
        TrainingError: as `parse_config`, without a line.
    """
    return read_object(value, TrainingConfig, _check, where)


def _chosen(section: Any) -> dict[str, Any]:
    """A section's values as JSON; what is empty is left out."""
    values = {
        item.name: getattr(section, item.name)
        for item in fields(section)
        if not item.name.startswith("_")
    }
    return {name: _json(v) for name, v in values.items() if v not in (None, "", (), {})}


def _json(value: Any) -> Any:
    if is_dataclass(value):
        return _chosen(value)
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _check(config: TrainingConfig) -> None:
    for passed, key, message in _rules(config):
        if not passed:
            raise Mistake(tuple(key.split(".")), f"{key}: {message}")


def _rules(config: TrainingConfig) -> Rules:
    """Every rule on values: whether it holds, of which key, and what to say if not."""
    yield from _model_rules(config.model)
    yield from _data_rules(config.data)
    if config.data.source:
        yield from _source_rules(config.data)
    yield from _privacy_rules(config.privacy)
    if config.private:
        yield from _guarantee_rules(config.privacy)
    else:
        public = not config.data.personal
        yield public, "privacy.mechanism", "'none' is for data.personal = false"
    yield from _optimizer_rules(config.optimizer)
    yield from _compute_rules(config.compute)
    if config.adversarial is not None:
        yield from _adversarial_rules(config.adversarial)
        plain = not config.model.features
        yield plain, "adversarial", "not with model.features: it would attack those"
    for name, text in vars(config.use).items():
        short = len(text) <= MAX_USE_CHARACTERS
        yield short, f"use.{name}", f"more than {MAX_USE_CHARACTERS} characters"


def _model_rules(model: ModelConfig) -> Rules:
    name = bool(_NAME.fullmatch(model.name))
    yield name, "model.name", "lower-case letters, digits and hyphens, at most 63"
    version = bool(_VERSION.fullmatch(model.version))
    yield version, "model.version", "dotted numbers like 1.0.0"
    kinds = (*ARCHITECTURES, MODULE)
    known = model.architecture in kinds
    close = hint(model.architecture, kinds)
    yield known, "model.architecture", f"one of {', '.join(kinds)}{close}"
    linear = model.architecture == "linear"
    yield (
        not (linear and model.hidden),
        "model.hidden",
        "widths for mlp, none for linear",
    )
    wide = model.architecture != "mlp" or bool(model.hidden)
    yield wide, "model.hidden", "widths for mlp, none for linear"
    sizes = len(model.hidden) <= 8 and all(1 <= n <= 4096 for n in model.hidden)
    yield sizes, "model.hidden", "at most 8 layers of 1 to 4096"
    yield 0 <= model.centre <= 1, "model.centre", "must be 0 to 1"
    fixed = not model.features or model.features in FEATURES
    yield fixed, "model.features", f"one of {', '.join(FEATURES)}"
    yield 0 <= model.blocks <= 32, "model.blocks", "must be 0 to 32"
    module = bool(model.module) == (model.architecture == MODULE)
    yield module, "model.module", "package.module:function, for architecture 'module'"
    yield 0 <= model.seed < 1 << 63, "model.seed", "must be in [0, 2^63)"


def _data_rules(data: DataConfig) -> Rules:
    if not data.source:
        close = hint(data.name, NAMES)
        known = data.name in NAMES
        yield known, "data.name", f"unknown data set {data.name!r}{close}"
        for item in fields(data):
            free = item.name in _BY_NAME or getattr(data, item.name) in (
                (),
                "",
                0,
                {},
                None,
            )
            changed = not free and getattr(data, item.name) != item.default
            yield not changed, f"data.{item.name}", "is for data with a source"
    name = bool(_NAME.fullmatch(data.name))
    yield name, "data.name", "lower-case letters, digits and hyphens, at most 63"
    yield bool(data.split_key), "data.split_key", "must not be empty"
    yield 0 < data.holdout < 1, "data.holdout", "must be between 0 and 1"


def _source_rules(data: DataConfig) -> Rules:
    yield len(data.classes) >= 2, "data.classes", "names of two classes or more"
    yield len(set(data.classes)) == len(data.classes), "data.classes", "a name twice"
    for alias, name in data.aliases.items():
        yield name in data.classes, f"data.aliases.{alias}", f"{name!r} is no class"
    one = bool(data.columns) != (data.image is not None)
    yield one, "data.columns", "either [[data.columns]] or [data.image]"
    yield len(data.delimiter) == 1, "data.delimiter", "one character"
    yield len(data.comment) <= 1, "data.comment", "one character"
    yield data.max_rows_per_unit >= 0, "data.max_rows_per_unit", "must not be negative"
    yield from _role_rules(data)
    for index, column in enumerate(data.columns):
        for passed, message in _column_rules(column):
            yield passed, "data.columns", f"{index + 1}, {column.name!r}: {message}"
    if data.image is not None:
        sizes = len(data.image.shape) in (2, 3) and all(
            1 <= size <= 4096 for size in data.image.shape
        )
        yield sizes, "data.image.shape", "height, width; or channels, height, width"
        yield data.image.low < data.image.high, "data.image.low", "must be below high"
        yield data.image.std > 0, "data.image.std", "must be positive"


def _role_rules(data: DataConfig) -> Rules:
    """Each column has one role; only a sensitive one may be a feature too."""
    features = [column.name for column in data.columns]
    single = [data.label, *filter(None, (data.identifier, data.unit)), *data.drop]
    for name in (*features, *single, *data.sensitive):
        yield bool(name), "data", "a column's name is empty"
    names = [*features, *single]
    twice = sorted({name for name in names if names.count(name) > 1})
    yield not twice, "data", f"column {', '.join(twice)} has two roles"
    bad = sorted(set(data.sensitive) & set(single))
    yield not bad, "data.sensitive", f"column {', '.join(bad)} has another role"


def _column_rules(column: ColumnConfig) -> Iterable[tuple[bool, str]]:
    if column.categories:
        bare = column.low is None and column.high is None
        yield bare, "either low and high or categories"
        yield len(column.categories) >= 2, "two categories or more"
        yield len(set(column.categories)) == len(column.categories), "a category twice"
        return
    given = column.low is not None and column.high is not None
    yield given, "needs its public range, low and high, or its categories"
    if column.low is not None and column.high is not None:
        yield column.low < column.high, "low must be below high"


def _privacy_rules(privacy: PrivacyConfig) -> Rules:
    known = privacy.mechanism in ("dp_sgd", "none")
    yield known, "privacy.mechanism", "one of dp_sgd, none"
    rate = 0 < privacy.sampling_rate <= 1
    yield rate, "privacy.sampling_rate", "must be above 0, at most 1"
    steps = 1 <= privacy.steps <= MAX_STEPS
    yield steps, "privacy.steps", f"must be 1 to {MAX_STEPS}"
    yield privacy.expected_batch > 0, "privacy.expected_batch", "must be positive"


def _guarantee_rules(privacy: PrivacyConfig) -> Rules:
    epsilon = 0 < privacy.epsilon <= MAX_EPSILON
    yield epsilon, "privacy.epsilon", f"must be above 0, at most {MAX_EPSILON:g}"
    yield privacy.max_grad_norm > 0, "privacy.max_grad_norm", "must be positive"
    delta = privacy.delta is None or 0 < privacy.delta < 1
    yield delta, "privacy.delta", "must be between 0 and 1"
    clipping = privacy.clipping in CLIPPING
    yield clipping, "privacy.clipping", f"one of {', '.join(CLIPPING)}"
    bound = privacy.unit_bound in UNIT_BOUNDS
    yield bound, "privacy.unit_bound", f"one of {', '.join(UNIT_BOUNDS)}"
    share = 0 <= privacy.loss_share <= 0.5
    yield share, "privacy.loss_share", "must be 0 to 0.5"
    safe = privacy.secure or privacy.benchmark
    yield (
        safe,
        "privacy.secure",
        "false is for benchmark = true, which no policy admits",
    )


def _optimizer_rules(optimizer: OptimizerConfig) -> Rules:
    yield optimizer.learning_rate > 0, "optimizer.learning_rate", "must be positive"
    momentum = 0 <= optimizer.momentum < 1
    yield momentum, "optimizer.momentum", "must be in [0, 1)"
    known = optimizer.kind in OPTIMIZERS
    yield known, "optimizer.kind", f"one of {', '.join(OPTIMIZERS)}"
    schedule = optimizer.schedule in SCHEDULES
    yield schedule, "optimizer.schedule", f"one of {', '.join(SCHEDULES)}"
    yield 0 <= optimizer.warmup <= 0.5, "optimizer.warmup", "must be 0 to 0.5"
    yield 0 <= optimizer.ema < 1, "optimizer.ema", "must be in [0, 1)"


def _adversarial_rules(adversarial: AdversarialConfig) -> Rules:
    known = adversarial.method in ATTACKS
    yield known, "adversarial.method", f"one of {', '.join(ATTACKS)}"
    yield 0 < adversarial.radius < 1, "adversarial.radius", "must be between 0 and 1"
    steps = 1 <= adversarial.steps <= 1000
    yield steps, "adversarial.steps", "must be 1 to 1000"
    yield adversarial.beta > 0, "adversarial.beta", "must be positive"


def _compute_rules(compute: ComputeConfig) -> Rules:
    yield compute.physical_batch >= 0, "compute.physical_batch", "must not be negative"
    yield compute.device in ("cpu", "cuda"), "compute.device", "one of cpu, cuda"
    yield 1 <= compute.threads <= 256, "compute.threads", "must be 1 to 256"
    steps = compute.checkpoint_steps >= 0
    yield steps, "compute.checkpoint_steps", "must not be negative"


_BY_NAME = ("name", "split_key", "holdout")
