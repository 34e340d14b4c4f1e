"""Which values a configuration of an "ebm" may hold, and what does not go with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from security.training.config_sections import (
    BoostingConfig,
    ComputeConfig,
    ModelConfig,
    OptimizerConfig,
    PrivacyConfig,
    TrainingConfig,
)

__all__ = ["EBM", "MECHANISM", "additive_rules"]

EBM = "ebm"
MECHANISM = "dp_ebm"
# InterpretML finds its noise in double precision: beyond, not to a millionth.
MAX_EPSILON = 20.0
_STEPS = (
    *("steps", "sampling_rate", "expected_batch", "max_grad_norm", "clipping"),
    *("unit_bound", "loss_share", "clamped_share"),
)
_NETWORK = ("hidden", "blocks", "module", "features", "initial_weights")
_DEVICES = ("gradients", "physical_batch", "precision", "checkpoint_steps", "device")

Rules = Iterable[tuple[bool, str, str]]


def additive_rules(config: TrainingConfig) -> Rules:
    """What holds of every configuration, and what of one of an "ebm"."""
    model, privacy = config.model, config.privacy
    if model.architecture != EBM:
        other = privacy.mechanism != MECHANISM
        yield other, "privacy.mechanism", f"{MECHANISM!r} is for architecture {EBM!r}"
        yield config.boosting is None, "boosting", f"is for architecture {EBM!r}"
        return
    if not config.private:
        yield (
            False,
            "privacy.mechanism",
            "an ebm is trained with 'dp_ebm' alone: one of public data is made "
            "elsewhere and imported",
        )
        return
    own = privacy.mechanism == MECHANISM
    yield own, "privacy.mechanism", f"{MECHANISM!r} for architecture {EBM!r}"
    if not own:
        return
    small = privacy.epsilon <= MAX_EPSILON
    yield small, "privacy.epsilon", f"at most {MAX_EPSILON:g} for an ebm"
    yield from _data_rules(config)
    yield from _unused(config)
    yield from _boosting_rules(config.boosted)


def _data_rules(config: TrainingConfig) -> Rules:
    data = config.data
    yield data.image is None, "model.architecture", "an ebm takes columns, no images"
    two = not data.source or len(data.classes) == 2
    yield two, "data.classes", "an ebm under privacy decides between two classes"
    one = not data.unit or data.max_rows_per_unit == 1
    yield (
        one,
        "data.max_rows_per_unit",
        "an ebm protects rows: with data.unit, keep 1 row of each",
    )


def _unused(config: TrainingConfig) -> Rules:
    """Options of gradient steps and of networks, which would have no effect."""
    for name in _STEPS:
        yield (
            _is_default(config.privacy, PrivacyConfig, name),
            f"privacy.{name}",
            "is for dp_sgd: what an ebm is asked follows from [boosting]",
        )
    plain = config.optimizer == OptimizerConfig()
    yield plain, "optimizer", "is for dp_sgd: an ebm has [boosting]"
    for name in _NETWORK:
        own = _is_default(config.model, ModelConfig, name)
        yield own, f"model.{name}", "is for networks, not for an ebm"
    for name in _DEVICES:
        own = _is_default(config.compute, ComputeConfig, name)
        yield own, f"compute.{name}", "is for networks, not for an ebm"
    yield config.adversarial is None, "adversarial", "is for networks, not for an ebm"
    yield config.search is None, "search", "is for dp_sgd, not for an ebm"


def _boosting_rules(boosting: BoostingConfig) -> Rules:
    yield 1 <= boosting.rounds <= 10_000, "boosting.rounds", "must be 1 to 10000"
    rate = 0 < boosting.learning_rate <= 10
    yield rate, "boosting.learning_rate", "must be above 0, at most 10"
    yield 4 <= boosting.bins <= 1024, "boosting.bins", "must be 4 to 1024"
    yield 2 <= boosting.leaves <= 64, "boosting.leaves", "must be 2 to 64"


def _is_default(section: object, kind: type, name: str) -> bool:
    default = next(item.default for item in fields(kind) if item.name == name)
    return bool(getattr(section, name) == default)
