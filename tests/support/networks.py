"""Classifiers of tables, as trainings build them."""

from __future__ import annotations

from collections.abc import Sequence

from models.architectures import (
    NetworkSpec,
    TabularClassifier,
    build_network,
    tabular_width,
)
from models.manifest import Column


def tabular_classifier(
    columns: Sequence[Column], classes: int, *, hidden: Sequence[int] = ()
) -> TabularClassifier:
    """A linear classifier, or a perceptron where there are hidden layers."""
    spec = NetworkSpec((tabular_width(columns),), classes, tuple(hidden))
    name = "mlp" if hidden else "linear"
    return TabularClassifier(columns, build_network(name, spec))
