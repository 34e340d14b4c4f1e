"""Data sets: public ranges, splits by keyed hash, digests."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import datasets
from models.data.datasets import (
    TabularDataset,
    common_rows,
    digest,
    load,
    split,
)
from models.errors import DatasetError
from models.manifest import Column


def small(features: np.ndarray) -> TabularDataset:
    return TabularDataset(
        name="small",
        features=features,
        labels=np.arange(len(features), dtype=np.int64) % 2,
        columns=tuple(
            Column(f"c{index}", 0.0, 1.0) for index in range(features.shape[1])
        ),
        classes=("no", "yes"),
        personal=False,
    )


def test_breast_cancer():
    dataset = load("breast-cancer")
    assert dataset.features.shape == (569, 30)
    assert dataset.features.dtype == np.float64
    assert dataset.labels.dtype == np.int64
    assert dataset.classes == ("malignant", "benign")
    assert len(dataset.columns) == 30
    assert dataset.personal


def test_every_name_loads():
    assert all(len(load(name)) for name in datasets.NAMES)


def test_unknown_name():
    with pytest.raises(DatasetError, match="no data set 'breast'; there are: breast"):
        load("breast")


def test_ranges_are_constants_and_generous():
    # Not computed from the rows: round numbers, and neither tight nor wasteful.
    dataset = load("breast-cancer")
    high = np.array([column.high for column in dataset.columns])
    assert [column.low for column in dataset.columns] == [0.0] * 30
    assert all(float(f"{value:.2g}") == value for value in high)
    assert not np.isin(dataset.features.max(axis=0), high).any()
    assert (dataset.features > high).mean() < 0.01
    assert "max(" not in inspect.getsource(datasets._nucleus_column)


def test_split_is_stable_and_disjoint():
    dataset = load("breast-cancer")
    train, holdout = split(dataset, key="k", holdout=0.25)
    again, _ = split(dataset, key="k", holdout=0.25)
    assert digest(train.features, train.labels) == digest(again.features, again.labels)
    assert len(train) + len(holdout) == len(dataset)
    assert 0.2 < len(holdout) / len(dataset) < 0.3
    assert common_rows(train, holdout) == 0


def test_split_depends_on_the_key():
    dataset = load("breast-cancer")
    one, _ = split(dataset, key="one", holdout=0.25)
    two, _ = split(dataset, key="two", holdout=0.25)
    assert digest(one.features, one.labels) != digest(two.features, two.labels)


@given(seed=st.integers(0, 1000), share=st.floats(0.2, 0.8))
@settings(max_examples=20, deadline=None)
def test_split_keeps_duplicates_together(seed, share):
    generator = np.random.default_rng(seed)
    once = generator.random((400, 3))  # so many that no side is empty
    dataset = small(np.concatenate([once, once[:250], -0.0 * once[:1], 0.0 * once[:1]]))
    train, holdout = split(dataset, key="k", holdout=share)
    assert common_rows(train, holdout) == 0


def test_split_does_not_move_rows_when_others_come():
    dataset = load("breast-cancer")
    train, _ = split(dataset, key="k", holdout=0.25)
    fewer, _ = split(dataset.take(np.arange(300)), key="k", holdout=0.25)
    assert common_rows(train, fewer) == len(fewer)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_split_refuses_shares(share):
    with pytest.raises(DatasetError, match="holdout share"):
        split(load("breast-cancer"), key="k", holdout=share)


def test_split_refuses_an_empty_side():
    with pytest.raises(DatasetError, match="one side of the split empty"):
        split(small(np.zeros((3, 2))), key="k", holdout=0.5)


def test_digest_sees_values_order_and_shape():
    features, labels = np.arange(6.0).reshape(3, 2), np.array([0, 1, 0])
    known = digest(features, labels)
    assert digest(features[::-1], labels) != known
    assert digest(features.reshape(2, 3), labels) != known
    assert digest(features, labels[::-1] + 1) != known
    assert digest(features.copy(order="F"), labels) == known


def test_common_rows_counts():
    dataset = load("breast-cancer")
    first, second = dataset.take(np.arange(10)), dataset.take(np.arange(7, 20))
    assert common_rows(first, second) == 3
