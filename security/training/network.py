"""A network with its graph as it was before it saw a row.

Noise protects what training changes through noisy gradients, and nothing else. A
buffer, a frozen weight or a tensor that Python code keeps could carry rows out word for
word. So the graph that is released is recorded before the first step, and afterwards
the trained parameters alone are put into it: everything else in the file is what it was
before a row was seen, whatever the network did meanwhile.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from models.additive import AdditiveClassifier
from models.architectures import (
    ImageClassifier,
    NetworkSpec,
    TabularClassifier,
    TabularRegressor,
    build_network,
    tabular_width,
)
from models.data.datasets import AnyDataset, TabularDataset
from models.export import recorded
from models.features import FEATURE_MAPS, feature_shape
from security.errors import TrainingError
from security.training.additive_rules import EBM
from security.training.config_rules import MODULE, PUBLIC
from security.training.config_sections import TrainingConfig
from security.training.examples import Examples
from security.training.initial import Rule, draw, is_filled, recompute, tensors_digest
from security.training.intervals import check_boundable
from security.training.loop import trained
from security.training.modules import check_body, load_module

__all__ = [
    "Classifier",
    "Network",
    "build_classifier",
    "examples_of",
    "fresh_network",
    "labels_of",
]

# Of a network, with the preprocessing before it and what its logits mean behind it.
Classifier = TabularClassifier | TabularRegressor | ImageClassifier
_BODY = "body."
_PIECE = 256  # rows preprocessed at once


@dataclass(frozen=True, eq=False)
class Network:
    """What is trained, and what will be released of it.

    Attributes:
        module: trained in place.
        program: its graph, recorded before the first row, with the initial weights.
        rules: how those were drawn; None where they are public ones from elsewhere.
        seed: of the draw.
    """

    module: Classifier
    program: ExportedProgram
    rules: tuple[Rule, ...] | None
    seed: int

    @cached_property
    def trained(self) -> frozenset[str]:
        """Names of the parameters that noisy gradients move."""
        return frozenset(trained(self.module))

    @cached_property
    def outside(self) -> dict[str, Tensor]:
        """Every tensor of the graph that the mechanism does not move."""
        every: Mapping[str, Any] = {**self.program.state_dict, **self.program.constants}
        return {
            name: value for name, value in every.items() if name not in self.trained
        }

    @cached_property
    def outside_sha256(self) -> str:
        """Digest of `outside`."""
        return tensors_digest(self.outside)

    @property
    def brought(self) -> list[str]:
        """Names of `outside` that came with the network, not with preprocessing."""
        return sorted(name for name in self.outside if name.startswith(_BODY))

    @cached_property
    def initial_sha256(self) -> str:
        """Digest of the first weights; with what the network brought, where public."""
        if self.rules is not None:
            return recompute(self.rules, self.seed)
        every = {**self.program.state_dict, **self.outside}
        own = {name: every[name] for name in every if name.startswith(_BODY)}
        return tensors_digest(own)

    @property
    def initial_weights(self) -> str:
        """What the evidence says: "random", or "public:" and a digest."""
        if self.rules is not None:
            return "random"
        return f"public:{self.initial_sha256}"

    @cached_property
    def bound_sha256(self) -> str:
        """What an interrupted training must find again to go on."""
        both = f"{self.outside_sha256} {self.initial_sha256}"
        return hashlib.sha256(both.encode()).hexdigest()

    @property
    def draws_nothing(self) -> bool:
        """Whether every first weight is one value throughout, whoever made it."""
        return self.rules is not None and all(r.kind == "filled" for r in self.rules)

    def released(self) -> ExportedProgram:
        """The recorded graph with the trained parameters' values.

        Raises:
            TrainingError: something else in the network changed while it trained.
        """
        changed = [
            name
            for name, before in self.outside.items()
            if not _same(_found(self.module, name), before)
        ]
        if changed:
            raise TrainingError(
                f"the network changed {', '.join(sorted(changed))[:200]} while it "
                "trained, outside of the mechanism: nothing is released"
            )
        state: Mapping[str, Any] = self.program.state_dict
        with torch.no_grad():
            for name, value in trained(self.module).items():
                if name in state:  # not where the graph does without it
                    state[name].copy_(value)
        return self.program


def fresh_network(config: TrainingConfig, train: AnyDataset) -> Network:
    """Preprocessing from the public schema, and a network inside it, recorded.

    Raises:
        ExportError: it cannot be exported: said now, while nothing is spent.
        TrainingError: the architecture does not fit the data, cannot be private, or
            brings tensors that were not declared public.
    """
    module, rules = _built(config, train)
    shape = tuple(train.features.shape[1:])
    return _recorded(module, shape, rules, config.model.seed)


def build_classifier(config: TrainingConfig, train: AnyDataset) -> Classifier:
    """The same without its record, for what releases nothing.

    Raises:
        TrainingError: the architecture does not fit the data, or cannot be private.
    """
    return _built(config, train)[0]


def _built(
    config: TrainingConfig, train: AnyDataset
) -> tuple[Classifier, tuple[Rule, ...] | None]:
    if config.model.architecture == EBM:
        return _additive(config, train)
    torch.manual_seed(config.model.seed)  # of what is drawn again below
    flags = config.model.missing_flags
    shape = _input_shape(config, train)
    spec = NetworkSpec(shape, train.outputs, config.model.hidden, config.model.blocks)
    if config.model.architecture == MODULE:
        body = load_module(config.model.module, spec, config.base)
    else:
        try:
            body = build_network(config.model.architecture, spec)
        except ValueError as error:
            raise TrainingError(f"model.architecture: {error}") from None
    check_body(body, spec)
    if config.adversarial is not None and config.adversarial.certified:
        check_boundable(body)
    public = config.model.initial_weights == PUBLIC
    rules = None if public else draw(body, config.model.seed)
    if isinstance(train, TabularDataset):
        logs = [item.name for item in config.data.columns if item.scale == "log"]
        given: dict[str, Any] = {
            "missing_flags": flags,
            "centre": config.model.centre,
            "logs": logs,
        }
        if train.target is not None:
            made = TabularRegressor(train.columns, body, target=train.target, **given)
            return made, rules
        return TabularClassifier(train.columns, body, **given), rules
    features = FEATURE_MAPS[config.model.features]() if config.model.features else None
    images = ImageClassifier(
        train.bounds, mean=train.mean, std=train.std, body=body, features=features
    )
    return images, rules


def _additive(
    config: TrainingConfig, train: AnyDataset
) -> tuple[Classifier, tuple[Rule, ...]]:
    """Bins and scores of each column, all of them 0."""
    if not isinstance(train, TabularDataset):
        raise TrainingError("model.architecture: an ebm takes columns, no images")
    if len(train.classes) != 2:
        raise TrainingError("an ebm under privacy decides between two classes")
    module = AdditiveClassifier(
        train.columns,
        bins=config.boosted.bins,
        missing_flags=config.model.missing_flags,
        centre=config.model.centre,
        logs=[item.name for item in config.data.columns if item.scale == "log"],
    )
    check_body(module.body, NetworkSpec((module.width,), 2))
    return module, draw(module.body, config.model.seed)


def _input_shape(config: TrainingConfig, train: AnyDataset) -> tuple[int, ...]:
    """Of one example as the network sees it."""
    name = config.model.features
    if isinstance(train, TabularDataset):
        if name:
            raise TrainingError(f"model.features: {name} takes images")
        flags = config.model.missing_flags
        return (tabular_width(train.columns, missing_flags=flags),)
    shape = tuple(train.features.shape[1:])
    try:
        return feature_shape(name, shape) if name else shape
    except ValueError as error:
        raise TrainingError(f"model.features: {error}") from None


def _recorded(
    module: Classifier,
    shape: tuple[int, ...],
    rules: tuple[Rule, ...] | None,
    seed: int,
) -> Network:
    network = Network(module, recorded(module, shape), rules, seed)
    for name, value in network.outside.items():
        if not isinstance(value, Tensor):
            raise TrainingError(f"the network's graph holds {name}, which is no tensor")
    kept = [name for name in network.brought if not is_filled(network.outside[name])]
    if rules is not None and kept:
        raise TrainingError(
            f"the network brings {', '.join(kept)[:200]}, which training does not "
            "change: if nothing private is in it, say model.initial_weights = 'public'"
        )
    return network


def examples_of(
    config: TrainingConfig, module: Classifier, train: AnyDataset
) -> Examples:
    """The training rows as the network takes them, with whose they are."""
    # A piece at a time: fixed features pass through maps much larger than their result.
    with torch.no_grad():
        pieces = torch.split(torch.as_tensor(train.features), _PIECE)
        inputs = torch.cat([module.network_input(piece.float()) for piece in pieces])
    grouped = config.privacy.unit_bound == "group"
    units = None if grouped else _unit_numbers(train)
    clamped = _clamped(train, units) if config.clamped_share else None
    return Examples(inputs, labels_of(train), units, clamped)


def labels_of(rows: AnyDataset) -> Tensor:
    """What is learnt of each row ``(n,)``: its class, int64; or its target's share of
    the public range, float32 from 0 to 1.
    """
    if rows.target is None:
        return torch.as_tensor(rows.labels)
    return torch.as_tensor(rows.target.shares(rows.labels)).float()


def _clamped(rows: AnyDataset, units: Tensor | None) -> Tensor | None:
    """Of each unit, the share of its targets that lie beyond their range."""
    if rows.target is None:
        return None
    beyond = torch.from_numpy(rows.target.beyond(np.asarray(rows.labels))).double()
    if units is None:
        return beyond
    return torch.bincount(units, weights=beyond) / torch.bincount(units)


def _unit_numbers(dataset: AnyDataset) -> Tensor | None:
    """Whose each row is, as numbers from 0 without gaps; None without units."""
    if dataset.units is None:
        return None
    _, numbers = np.unique(dataset.units, return_inverse=True)
    return torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64))


def _found(module: nn.Module, name: str) -> Any:
    """What the module has under a name now; None for what only the graph names."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _same(now: Any, before: Tensor) -> bool:
    return now is None or (
        isinstance(now, Tensor) and torch.equal(now.detach().cpu(), before)
    )
