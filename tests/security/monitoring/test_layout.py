"""What falls where: ends, missing and out-of-range values, classes, wide inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.manifest import Column, Manifest, Tensor
from sealgate.protocol.datatypes import narrow
from sealgate.protocol.tensors import TensorSpec
from security.errors import MonitoringError
from security.monitoring.layout import MAX_BINS, described, layout_of

PEOPLE = Tensor(
    TensorSpec("x", "FP32", (-1, 3)),
    (
        Column("age", 17, 90),
        Column("rate", 0.1, 0.7),
        Column("job", 0, 2, ("none", "state", "own")),
    ),
)
SCORES = Tensor(TensorSpec("p", "FP32", (-1, 2)), labels=("no", "yes"))
LABEL = Tensor(TensorSpec("label", "INT64", (-1,)))


def manifest(
    *inputs: Tensor, outputs: tuple[Tensor, ...] = (SCORES, LABEL)
) -> Manifest:
    return Manifest("toy", "1.0.0", inputs, outputs, 64)


def codes(rows: list[list[float]], scores: list[list[float]]) -> list[list[int]]:
    given = {"x": np.array(rows, dtype=np.float32)}
    answered = {"p": np.array(scores, dtype=np.float32), "label": np.zeros(len(rows))}
    layout = layout_of(manifest(PEOPLE))
    return layout.codes(given, answered, slice(0, len(rows))).tolist()


def test_a_model_has_the_histograms_that_its_manifest_declares() -> None:
    layout = layout_of(manifest(PEOPLE))
    assert [item["name"] for item in layout.describe()] == [
        "input/age", "input/rate", "input/job", "answer/class", "answer/score",
    ]  # fmt: skip
    assert layout.describe()[2]["labels"] == ["none", "state", "own"]
    assert layout.sensitivity == math.sqrt(5)


def test_a_description_is_read_back() -> None:
    layout = layout_of(manifest(PEOPLE))
    assert described(layout.describe()) == layout.histograms
    for value in (None, [1], [{"name": "a"}], [{"kind": "number", "more": 2}]):
        with pytest.raises(MonitoringError):
            described(value)


def test_both_ends_belong_to_the_range_however_they_are_rounded() -> None:
    assert codes([[17, 0.1, 0], [90, 0.7, 2]], [[0, 1], [1, 0]]) == [
        [2, 2, 2, 3, 11],
        [11, 11, 4, 2, 11],
    ]


def test_what_is_missing_or_outside_has_codes_of_its_own() -> None:
    nan, inf = math.nan, math.inf
    assert codes(
        [[nan, -0.1, -1], [16, 0.8, 3], [inf, -inf, nan]],
        [[0.5, 0.5], [nan, nan], [2.0, -1.0]],
    ) == [[0, 1, 1, 2, 2], [1, 12, 5, 0, 0], [12, 1, 0, 2, 12]]


def test_an_output_that_was_not_asked_for_is_missing() -> None:
    layout = layout_of(manifest(PEOPLE))
    found = layout.codes({"x": np.zeros((1, 3), np.float32)}, {}, slice(0, 1))
    assert found[0, 3:].tolist() == [0, 0]


def test_rows_are_chosen_and_counted() -> None:
    layout = layout_of(manifest(PEOPLE))
    given = {"x": np.array([[17, 0.1, 0], [20, 0.2, 1], [90, 0.7, 2]], np.float32)}
    answered = {"p": np.array([[1, 0], [0, 1], [0.4, 0.6]], np.float32)}
    every = layout.codes(given, answered, slice(0, 3))
    assert every[1:2].tolist() == layout.codes(given, answered, slice(1, 2)).tolist()
    counts = layout.counts(every)
    assert counts["answer/class"].tolist() == [0, 0, 1, 2, 0]
    assert all(item.sum() == 3 for item in counts.values())


def test_wide_and_bounded_inputs_are_counted_by_their_mean() -> None:
    wide = Tensor(
        TensorSpec("pixels", "FP32", (-1, 100)),
        tuple(Column(f"p{n}", 0, 16) for n in range(100)),
    )
    image = Tensor(TensorSpec("image", "UINT8", (-1, 3, 4, 4)), bounds=(0.0, 255.0))
    layout = layout_of(manifest(wide, image))
    names = [item.name for item in layout.histograms]
    assert names[:2] == ["input/pixels", "input/image"]
    given = {
        "pixels": np.full((2, 100), 8.1, np.float32),
        "image": np.full((2, 3, 4, 4), 255, np.uint8),
    }
    assert layout.codes(given, {}, slice(0, 2))[:, :2].tolist() == [[7, 11]] * 2


def test_undeclared_inputs_and_texts_are_not_counted() -> None:
    texts = Tensor(TensorSpec("words", "BYTES", (-1, 1)), (Column("w", 0, 1),))
    plain = Tensor(TensorSpec("plain", "FP32", (-1, 4)))
    layout = layout_of(manifest(texts, plain))
    given = {"words": np.array([[b"a"]], dtype=object), "plain": np.zeros((1, 4))}
    assert layout.codes(given, {}, slice(0, 1)).tolist() == [[0, 0, 0]]


def test_a_model_of_one_row_is_one_event() -> None:
    one = Tensor(TensorSpec("x", "FP64", (2,)), (Column("a", 0, 1), Column("b", 0, 1)))
    layout = layout_of(manifest(one, outputs=(LABEL,)))
    assert layout.codes({"x": np.array([0.0, 1.0])}, {}, slice(0, 1)).tolist() == [
        [2, 11]
    ]


def test_many_categories_share_bins() -> None:
    names = tuple(f"c{n}" for n in range(1000))
    tensor = Tensor(TensorSpec("x", "INT64", (-1, 1)), (Column("c", 0, 999, names),))
    layout = layout_of(manifest(tensor, outputs=(LABEL,)))
    given = {"x": np.array([[0], [999], [1000], [-1]])}
    found = layout.codes(given, {}, slice(0, 4))[:, 0].tolist()
    assert found == [2, MAX_BINS + 1, MAX_BINS + 2, 1]


def test_bf16_has_a_place_too() -> None:
    tensor = Tensor(TensorSpec("x", "BF16", (-1, 1)), (Column("a", 0, 1),))
    layout = layout_of(manifest(tensor, outputs=(LABEL,)))
    given = {"x": narrow(np.array([[0.0], [1.0]]))}
    assert layout.codes(given, {}, slice(0, 2))[:, 0].tolist() == [2, 11]


def test_a_tensor_of_fewer_rows_is_missing_in_the_others() -> None:
    columns = (Column("a", 0, 1),)
    two = [Tensor(TensorSpec(n, "FP32", (-1, 1)), columns) for n in ("x", "y")]
    layout = layout_of(manifest(*two, outputs=(LABEL,)))
    given = {"x": np.zeros((1, 1)), "y": np.zeros((5, 1))}
    assert layout.codes(given, {}, slice(3, 4)).tolist() == [[0, 2]]


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int32", "bool"])
def test_every_kind_of_number_has_a_place(kind: str) -> None:
    tensor = Tensor(TensorSpec("x", "FP32", (-1, 1)), (Column("a", 0, 1),))
    layout = layout_of(manifest(tensor, outputs=(LABEL,)))
    given = {"x": np.array([[0], [1]]).astype(kind)}
    assert layout.codes(given, {}, slice(0, 2))[:, 0].tolist() == [2, 11]
