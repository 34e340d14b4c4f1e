"""What a training configuration holds: one frozen dataclass for each section.

Types and defaults stand here, and what a value means; which values are allowed stands
in `config_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from models.data.identity import CURRENT

__all__ = [
    "ABSENT",
    "REGRESSION",
    "AdversarialConfig",
    "BoostingConfig",
    "ColumnConfig",
    "ComputeConfig",
    "DataConfig",
    "ImageConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrivacyConfig",
    "SearchConfig",
    "TargetConfig",
    "TrainingConfig",
    "UseConfig",
]


REGRESSION = "regression"
# Stands for a number that was not given: one that nobody gives by mistake.
ABSENT = -(1 << 31)
# Of `PrivacyConfig`, what describes a gradient step.
_OF_STEPS = (
    *("steps", "sampling_rate", "expected_batch", "max_grad_norm", "clipping"),
    *("loss_share", "clamped_share"),
)


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Attributes:
        name, version: of the bundle, as in its manifest.
        architecture: one of `models.networks.ARCHITECTURES`, "module", or "ebm" for a
            sum of one learnt curve per column.
        hidden: widths of the hidden layers; empty for "linear".
        blocks: residual blocks of "resnet".
        module: for "module", ``package.module:function``, which returns an `nn.Module`.
        missing_flags: whether the network sees which values were missing.
        centre: of tables, the share of each public range that the network sees as 0.
        features: of images, a fixed map of `models.networks.FEATURES` before the
            network; empty for none.
        seed: of the initial weights, which are public.
        initial_weights: "public" where `module` returns weights, or other tensors, that
            are declared public; empty where the first weights are drawn, whatever it
            returns.
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
    initial_weights: str = ""


@dataclass(frozen=True)
class ColumnConfig:
    """A feature with what is publicly known of it: a range, or its categories.

    Attributes:
        name: of the column in the data.
        low, high: of a number's public range.
        categories: of a category's public values, in the order of their codes.
        scale: of a number, how the network sees its range: "linear", or "log", where
            equal steps are equal factors, for what cannot be negative.
    """

    name: str
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()
    scale: str = "linear"


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
class TargetConfig:
    """The number to predict, with what is publicly known of it.

    Attributes:
        low, high: of its range; targets beyond are clamped, and counted with noise
            (`PrivacyConfig.clamped_share`).
        scale: how the network learns it: "linear", "sqrt" or "log".
    """

    low: float
    high: float
    scale: str = "linear"


@dataclass(frozen=True)
class DataConfig:
    """What it is trained on.

    Attributes:
        name: of the data set: one of `models.data.datasets`, or, with a source, the
            name under which the ledger adds up what was spent on it.
        split_key: of the keyed hash that decides which units are held out.
        holdout: expected share of held-out units.
        source: a .csv or .parquet (also .gz) or .npz file beside this one, or
            ``python:package.module:function``; empty for a data set by name.
        holdout_source: held-out rows from a file of their own, in place of a share.
        task: "classification", or "regression" where a number is predicted.
        label: the column of the classes, or of the number.
        classes: their public names, in the order of the model's outputs.
        target: of a regression, in place of classes.
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
        row_identity: the version of what makes two rows, or owners, one; of
            `models.data.identity`.
    """

    name: str
    split_key: str
    holdout: float = 0.25
    source: str = ""
    holdout_source: str = ""
    task: str = "classification"
    label: str = "label"
    classes: tuple[str, ...] = ()
    target: TargetConfig | None = None
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
    row_identity: int = CURRENT


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
        mechanism: "dp_sgd"; "dp_ebm" for architecture "ebm", where steps, sampling and
            clipping follow from it; "none" for public data only, without any guarantee.
        clipping: "flat" cuts longer gradients; "automatic" scales every one to it.
        unit_bound: where a unit owns several rows: "clip" samples and clips units;
            "group" samples and clips rows, and accounts for groups of them.
        loss_share: share of the clipping norm that a step spends on telling the loss,
            with the same noise; 0 tells none.
        clamped_share: of a regression, the same for telling how many targets lay
            beyond their range; 0 tells nothing.
        secure: randomness from the operating system.
        benchmark: marks the evidence, so that no policy admits it; needed for
            ``secure = false``, a faster generator that can be predicted.
    """

    steps: int = ABSENT
    sampling_rate: float = ABSENT
    expected_batch: int = ABSENT
    epsilon: float = 0.0
    max_grad_norm: float = 0.0
    delta: float | None = None
    mechanism: str = "dp_sgd"
    clipping: str = "flat"
    unit_bound: str = "clip"
    loss_share: float = 0.1
    clamped_share: float = 0.1
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

    learning_rate: float = ABSENT
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
        certified: whether interval bounds are trained, too, so that certificates hold
            for more rows.
        certified_weight: what they weigh beside the attack in the end: 1 is bounds
            alone.
        certified_ramp: share of the steps over which radius and weight grow from 0.
    """

    method: str
    radius: float
    steps: int = 7
    beta: float = 6.0
    certified: bool = False
    certified_weight: float = 0.5
    certified_ramp: float = 0.5


@dataclass(frozen=True)
class BoostingConfig:
    """How an "ebm" is boosted; every round asks the rows once about each column.

    Attributes:
        rounds: over all columns.
        learning_rate: of each round.
        bins: that a number's range is cut into, at most.
        leaves: into which a round splits a column, at random.
    """

    rounds: int = 50
    learning_rate: float = 0.2
    bins: int = 32
    leaves: int = 3


@dataclass(frozen=True)
class ComputeConfig:
    """What alters only speed.

    Attributes:
        gradients: how per-unit gradients are made; "auto", or one of
            `security.training.gradient_methods.METHODS`.
        physical_batch: examples in memory at once; 0 for all of a batch, "auto" for as
            many as fit into memory.
        device: "cpu", "cuda", or "auto" for cuda where there is one.
        precision: of the network's products: "float32", or "bfloat16" with
            bookkeeping. Clipping and sums are float32, noise is float64 before it is
            added.
        threads: of torch, on the CPU.
        checkpoint_steps: steps between checkpoints; 0 for as seldom as costs little.
    """

    gradients: str = "auto"
    physical_batch: int | str = 0
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    checkpoint_steps: int = 0


@dataclass(frozen=True)
class SearchConfig:
    """Settings to choose from: every combination of the lists is a candidate.

    A random number of tries is made, each with a candidate drawn by lot, and the best
    one is released; `PrivacyConfig.epsilon` is then for all of it.

    Attributes:
        tries: expected number of tries; the number itself is drawn.
        distribution: of it: "geometric", "logarithmic" or "poisson".
        score_noise: deviation of the noise on how many units a try is right about; of a
            number, by how much of its range it is not off.
        learning_rate, momentum, ema, schedule: as of `OptimizerConfig`.
        max_grad_norm, clipping, expected_batch: as of `PrivacyConfig`.
        hidden, centre: as of `ModelConfig`.
    """

    tries: float
    distribution: str = "geometric"
    score_noise: float = 10.0
    learning_rate: tuple[float, ...] = ()
    momentum: tuple[float, ...] = ()
    ema: tuple[float, ...] = ()
    schedule: tuple[str, ...] = ()
    max_grad_norm: tuple[float, ...] = ()
    clipping: tuple[str, ...] = ()
    expected_batch: tuple[int, ...] = ()
    hidden: tuple[tuple[int, ...], ...] = ()
    centre: tuple[float, ...] = ()


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
    optimizer: OptimizerConfig = OptimizerConfig()
    compute: ComputeConfig = ComputeConfig()
    use: UseConfig = UseConfig()
    boosting: BoostingConfig | None = None
    adversarial: AdversarialConfig | None = None
    search: SearchConfig | None = None
    _base: Path = Path()

    @property
    def base(self) -> Path:
        """The folder that relative paths start from."""
        return self._base

    @property
    def private(self) -> bool:
        """Whether training gives a guarantee."""
        return self.privacy.mechanism != "none"

    @property
    def additive(self) -> bool:
        """Whether an "ebm" is trained, under "dp_ebm"."""
        return self.privacy.mechanism == "dp_ebm"

    @property
    def boosted(self) -> BoostingConfig:
        """How an "ebm" is boosted; the defaults where nothing was said."""
        return self.boosting or BoostingConfig()

    @property
    def predicts_number(self) -> bool:
        """Whether it is a regression."""
        return self.data.task == REGRESSION

    @property
    def clamped_share(self) -> float:
        """What of the clipping norm counts clamped targets; 0 for classes."""
        return self.privacy.clamped_share if self.predicts_number else 0.0

    def to_object(self) -> dict[str, Any]:
        """What was chosen, as JSON values, for the evidence."""
        chosen = {name: value for name, value in _chosen(self).items() if value}
        if not self.data.source or self.data.row_identity == 1:
            # As it was written before there was a second version, or needs none.
            del chosen["data"]["row_identity"]
        if self.additive:
            # What only DP-SGD has; none of it was given.
            chosen["boosting"] = _chosen(self.boosted)
            del chosen["optimizer"]
            for name in _OF_STEPS:
                del chosen["privacy"][name]
        if not self.clamped_share:  # as it was written before it was counted
            chosen["privacy"].pop("clamped_share", None)
        if not self.predicts_number:  # likewise
            del chosen["data"]["task"]
        if self.adversarial is not None and not self.adversarial.certified:
            # As it was written before there was the choice.
            for name in ("certified", "certified_weight", "certified_ramp"):
                del chosen["adversarial"][name]
        return chosen


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
