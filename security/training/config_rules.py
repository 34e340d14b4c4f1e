"""Which values a training configuration may hold, rule by rule.

What types can refuse is refused by `security.config_reader`; here stands what is left:
ranges, names, and what goes with what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from models.data.datasets import NAMES
from models.data.identity import VERSIONS
from models.data.targets import SCALES as TARGET_SCALES
from models.names import NAME, VERSION
from models.networks import ARCHITECTURES, FEATURES
from security.admission.clamped import MOST
from security.config_reader import Found, hint
from security.training.additive_rules import EBM, MECHANISM, additive_rules
from security.training.candidates import MAX_CANDIDATES, candidates, listed
from security.training.config_sections import (
    ABSENT,
    REGRESSION,
    AdversarialConfig,
    ColumnConfig,
    ComputeConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PrivacyConfig,
    SearchConfig,
    TargetConfig,
    TrainingConfig,
)
from security.training.selection import DISTRIBUTIONS, MAX_TRIES

__all__ = ["MODULE", "PARTS", "PUBLIC", "broken"]

# Beyond this, the bound on what anyone learns about a row (e^epsilon) is no bound.
MAX_EPSILON = 50.0
MAX_STEPS = 1_000_000
MAX_USE_CHARACTERS = 4000

CLIPPING = ("flat", "automatic")
ATTACKS = ("pgd", "trades")
UNIT_BOUNDS = ("clip", "group")
OPTIMIZERS = ("sgd", "adam")
SCALES = ("linear", "log")
TASKS = ("classification", REGRESSION)
MAX_LOG_SPAN = 1e12  # of a range by factors, in float32
MAX_TARGET = 1e30
MIN_TARGET_SPAN = 1e-3  # of the larger end: below, float32 leaves few digits
SCHEDULES = ("constant", "cosine", "linear")
MODULE = "module"
# Of the architectures: what interval bounds cannot pass, and what they can.
NORMALISED = ("resnet", "cnn")
BOUNDED = ("linear", "mlp", "plain-cnn", MODULE)
PUBLIC = "public"
AUTO = "auto"
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16")

_BY_NAME = ("name", "split_key", "holdout")

Rules = Iterable[tuple[bool, str, str]]


def broken(config: TrainingConfig) -> Iterator[Found]:
    """The rules that values break."""
    yield from _broken(_rules(config))


def _broken(rules: Rules) -> Iterator[Found]:
    """Of rules, those that do not hold: the path of the value, and what to say."""
    for passed, key, message in rules:
        if not passed:
            parts = key.split(".")
            named = ".".join(part for part in parts if not part.isdigit())
            path = tuple(int(part) if part.isdigit() else part for part in parts)
            yield path, f"{named}: {message}"


def _rules(config: TrainingConfig) -> Rules:
    """Every rule on values: whether it holds, of which key, and what to say if not."""
    yield from _model_rules(config.model)
    yield from _data_rules(config.data)
    yield from additive_rules(config)
    if config.model.architecture == EBM and not config.additive:
        return  # what else is asked of it hangs on that
    yield from _privacy_rules(config.privacy)
    if config.private:
        yield from _guarantee_rules(config.privacy)
    else:
        public = not config.data.personal
        yield public, "privacy.mechanism", "'none' is for data.personal = false"
    if not config.additive:
        yield from _optimizer_rules(config.optimizer)
        default = config.privacy.clamped_share == PrivacyConfig.clamped_share
        counted = config.predicts_number or default
        yield counted, "privacy.clamped_share", "is for task = 'regression'"
    yield from _compute_rules(config.compute)
    if config.adversarial is not None:
        yield from _adversarial_rules(config.adversarial)
        plain = not config.model.features
        yield plain, "adversarial", "not with model.features: it would attack those"
        number = config.predicts_number
        paired = config.adversarial.method == "trades" and number
        yield (
            not paired,
            "adversarial.method",
            "trades pairs classes; a number takes pgd",
        )
        bounded = config.adversarial.certified and number
        yield not bounded, "adversarial.certified", "bounds margins of classes"
        yield from _certified_rules(config.adversarial, config.model.architecture)
    if config.search is not None:
        yield from _search_rules(config, config.search)
    for name, text in vars(config.use).items():
        short = len(text) <= MAX_USE_CHARACTERS
        yield short, f"use.{name}", f"more than {MAX_USE_CHARACTERS} characters"


def _model_rules(model: ModelConfig) -> Rules:
    name = bool(NAME.fullmatch(model.name))
    yield (
        name,
        "model.name",
        "letters, digits, -, _ and ., at most 63",
    )
    version = bool(VERSION.fullmatch(model.version))
    yield version, "model.version", "dotted numbers like 1.0.0"
    kinds = (*ARCHITECTURES, MODULE, EBM)
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
    given = model.initial_weights
    known = given == "" or (given == PUBLIC and model.architecture == MODULE)
    yield known, "model.initial_weights", "'public' for architecture 'module', or none"
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
    name = bool(NAME.fullmatch(data.name))
    yield (
        name,
        "data.name",
        "letters, digits, -, _ and ., at most 63",
    )
    yield bool(data.split_key), "data.split_key", "must not be empty"
    yield 0 < data.holdout < 1, "data.holdout", "must be between 0 and 1"
    if data.source:
        yield from _source_rules(data)


def _source_rules(data: DataConfig) -> Rules:
    known = data.task in TASKS
    close = hint(data.task, TASKS)
    yield known, "data.task", f"one of {', '.join(TASKS)}{close}"
    if known:
        yield from (_number_rules if data.task == REGRESSION else _class_rules)(data)
    one = bool(data.columns) != (data.image is not None)
    yield one, "data.columns", "either [[data.columns]] or [data.image]"
    known = data.row_identity in VERSIONS
    yield known, "data.row_identity", f"one of {', '.join(map(str, VERSIONS))}"
    yield len(data.delimiter) == 1, "data.delimiter", "one character"
    yield len(data.comment) <= 1, "data.comment", "one character"
    yield data.max_rows_per_unit >= 0, "data.max_rows_per_unit", "must not be negative"
    yield from _role_rules(data)
    for index, column in enumerate(data.columns):
        for passed, message in _column_rules(column):
            key = f"data.columns.{index}"
            yield passed, key, f"{index + 1}, {column.name!r}: {message}"
    if data.image is not None:
        sizes = len(data.image.shape) in (2, 3) and all(
            1 <= size <= 4096 for size in data.image.shape
        )
        yield sizes, "data.image.shape", "height, width; or channels, height, width"
        yield data.image.low < data.image.high, "data.image.low", "must be below high"
        yield data.image.std > 0, "data.image.std", "must be positive"


def _class_rules(data: DataConfig) -> Rules:
    yield data.target is None, "data.target", "is for task = 'regression'"
    yield len(data.classes) >= 2, "data.classes", "names of two classes or more"
    yield len(set(data.classes)) == len(data.classes), "data.classes", "a name twice"
    for alias, name in data.aliases.items():
        yield name in data.classes, f"data.aliases.{alias}", f"{name!r} is no class"


def _number_rules(data: DataConfig) -> Rules:
    yield not data.classes, "data.classes", "task = 'regression' has none"
    yield not data.aliases, "data.aliases", "of classes, which a regression has none of"
    yield data.image is None, "data.image", "a number is predicted from tables"
    stated = data.target is not None
    yield stated, "data.target", "task = 'regression' needs its public low and high"
    if data.target is not None:
        yield from _target_rules(data.target)


def _target_rules(target: TargetConfig) -> Rules:
    low, high, scale = target.low, target.high, target.scale
    yield low < high, "data.target.low", "must be below high"
    largest = max(abs(low), abs(high))
    held = largest <= MAX_TARGET and high - low >= MIN_TARGET_SPAN * largest
    yield held, "data.target", "a range that single precision cannot tell apart"
    known = scale in TARGET_SCALES
    close = hint(scale, TARGET_SCALES)
    yield known, "data.target.scale", f"one of {', '.join(TARGET_SCALES)}{close}"
    least = {"sqrt": low >= 0, "log": low > 0}.get(scale, True)
    above = "a low above 0" if scale == "log" else "a low that is not negative"
    yield least, "data.target.low", f"scale {scale!r} needs {above}"
    span = scale != "log" or low <= 0 or high / low <= MAX_LOG_SPAN
    yield span, "data.target.high", f"at most {MAX_LOG_SPAN:g} times low, for 'log'"


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
    yield column.scale in SCALES, f"scale: one of {', '.join(SCALES)}"
    if column.categories:
        yield column.scale == "linear", "scale is for numbers"
        bare = column.low is None and column.high is None
        yield bare, "either low and high or categories"
        yield len(column.categories) >= 2, "two categories or more"
        yield len(set(column.categories)) == len(column.categories), "a category twice"
        return
    given = column.low is not None and column.high is not None
    yield given, "needs its public range, low and high, or its categories"
    if column.low is not None and column.high is not None:
        yield column.low < column.high, "low must be below high"
        if column.scale == "log":
            yield column.low >= 0, "scale 'log' needs a low that is not negative"
            span = not column.low or column.high / column.low <= MAX_LOG_SPAN
            yield span, f"scale 'log' takes a high up to {MAX_LOG_SPAN:g} times low"


def _privacy_rules(privacy: PrivacyConfig) -> Rules:
    known = privacy.mechanism in ("dp_sgd", MECHANISM, "none")
    yield known, "privacy.mechanism", f"one of dp_sgd, {MECHANISM}, none"
    if privacy.mechanism == MECHANISM:
        return
    given = ("steps", "sampling_rate", "expected_batch")
    missing = [name for name in given if getattr(privacy, name) == ABSENT]
    if missing:
        yield False, "privacy", f"missing {', '.join(missing)}"
        return
    rate = 0 < privacy.sampling_rate <= 1
    yield rate, "privacy.sampling_rate", "must be above 0, at most 1"
    steps = 1 <= privacy.steps <= MAX_STEPS
    yield steps, "privacy.steps", f"must be 1 to {MAX_STEPS}"
    yield privacy.expected_batch > 0, "privacy.expected_batch", "must be positive"


def _guarantee_rules(privacy: PrivacyConfig) -> Rules:
    epsilon = 0 < privacy.epsilon <= MAX_EPSILON
    yield epsilon, "privacy.epsilon", f"must be above 0, at most {MAX_EPSILON:g}"
    clipped = privacy.max_grad_norm > 0 or privacy.mechanism == MECHANISM
    yield clipped, "privacy.max_grad_norm", "must be positive"
    delta = privacy.delta is None or 0 < privacy.delta < 1
    yield delta, "privacy.delta", "must be between 0 and 1"
    clipping = privacy.clipping in CLIPPING
    yield clipping, "privacy.clipping", f"one of {', '.join(CLIPPING)}"
    bound = privacy.unit_bound in UNIT_BOUNDS
    yield bound, "privacy.unit_bound", f"one of {', '.join(UNIT_BOUNDS)}"
    share = 0 <= privacy.loss_share <= 0.5
    yield share, "privacy.loss_share", "must be 0 to 0.5"
    share = 0 <= privacy.clamped_share <= MOST
    yield share, "privacy.clamped_share", f"must be 0 to {MOST}"
    safe = privacy.secure or privacy.benchmark
    yield (
        safe,
        "privacy.secure",
        "false is for benchmark = true, which no policy admits",
    )


def _optimizer_rules(optimizer: OptimizerConfig) -> Rules:
    given = optimizer.learning_rate != ABSENT
    yield given, "optimizer", "missing learning_rate"
    positive = optimizer.learning_rate > 0 or not given
    yield positive, "optimizer.learning_rate", "must be positive"
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
    weight = 0 < adversarial.certified_weight <= 1
    key = "adversarial.certified_weight"
    yield weight, key, "must be above 0, at most 1"
    ramp = 0 <= adversarial.certified_ramp <= 1
    yield ramp, "adversarial.certified_ramp", "must be 0 to 1"


def _certified_rules(adversarial: AdversarialConfig, architecture: str) -> Rules:
    bounded = not adversarial.certified or architecture not in NORMALISED
    yield (
        bounded,
        "adversarial.certified",
        f"{architecture!r} normalises its layers' outputs (GroupNorm), for which "
        f"there are no bounds; take {', '.join(BOUNDED)}",
    )
    for name in ("certified_weight", "certified_ramp"):
        given = getattr(adversarial, name) != getattr(AdversarialConfig, name)
        key = f"adversarial.{name}"
        yield adversarial.certified or not given, key, "is for certified = true"


def _search_rules(config: TrainingConfig, search: SearchConfig) -> Rules:
    yield config.private, "search", "is for private training: otherwise just try"
    clip = config.privacy.unit_bound == "clip"
    yield clip, "search", "not with privacy.unit_bound = 'group'"
    tries = 1 < search.tries <= MAX_TRIES
    yield tries, "search.tries", f"must be above 1, at most {MAX_TRIES:g}"
    known = search.distribution in DISTRIBUTIONS
    close = hint(search.distribution, DISTRIBUTIONS)
    kinds = ", ".join(DISTRIBUTIONS)
    yield known, "search.distribution", f"one of {kinds}{close}"
    yield search.score_noise > 0, "search.score_noise", "must be positive"
    lists = listed(search)
    yield bool(lists), "search", "needs a list of values to choose from"
    for name, values in lists.items():
        yield len(set(values)) == len(values), f"search.{name}", "a value twice"
    count = math.prod(len(values) for values in lists.values())
    few = count <= MAX_CANDIDATES
    yield few, "search", f"{count} candidates, at most {MAX_CANDIDATES}"
    for candidate in candidates(config) if few else ():
        for passed, key, message in _candidate_rules(candidate):
            yield passed, "search", f"a candidate's {key}: {message}"


def _candidate_rules(candidate: TrainingConfig) -> Rules:
    yield from _model_rules(candidate.model)
    yield from _privacy_rules(candidate.privacy)
    yield from _guarantee_rules(candidate.privacy)
    yield from _optimizer_rules(candidate.optimizer)


def _compute_rules(compute: ComputeConfig) -> Rules:
    size = compute.physical_batch
    whole = size == AUTO if isinstance(size, str) else size >= 0
    yield whole, "compute.physical_batch", "a number of examples from 0, or 'auto'"
    device = compute.device in DEVICES
    yield device, "compute.device", f"one of {', '.join(DEVICES)}"
    precision = compute.precision in PRECISIONS
    yield precision, "compute.precision", f"one of {', '.join(PRECISIONS)}"
    mixed = compute.precision != PRECISIONS[0]
    booked = compute.gradients in (AUTO, "bookkeeping")
    yield (
        booked or not mixed,
        "compute.precision",
        "bfloat16 is for gradients = 'bookkeeping', which clips what it sums",
    )
    yield 1 <= compute.threads <= 256, "compute.threads", "must be 1 to 256"
    steps = compute.checkpoint_steps >= 0
    yield steps, "compute.checkpoint_steps", "must not be negative"


def _part(rules: Callable[[Any], Rules]) -> Callable[[Any], Iterator[Found]]:
    return lambda section: _broken(rules(section))


# The rules of each section by itself, for files of which another cannot be read.
PARTS: Mapping[str, Callable[[Any], Iterator[Found]]] = {
    "model": _part(_model_rules),
    "data": _part(_data_rules),
    "privacy": _part(_privacy_rules),
    "optimizer": _part(_optimizer_rules),
    "compute": _part(_compute_rules),
    "adversarial": _part(lambda item: _adversarial_rules(item) if item else ()),
}
