"""What may leave of answers: nothing wider than a policy says, whatever the values."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ManifestError
from models.manifest import Manifest, Tensor
from models.output_policy import ALL_SCORES, OutputPolicy, scores_left
from models.release import Release
from sealgate.protocol.datatypes import BFLOAT16, narrow, numbers
from sealgate.protocol.tensors import TensorSpec
from tests.support import bundles

SCORES = Tensor(TensorSpec("scores", "FP32", (-1, 3)), labels=("a", "b", "c"))
LOGITS = Tensor(TensorSpec("logits", "FP32", (-1, 3)))
LABEL = Tensor(TensorSpec("label", "INT64", (-1,)))
WORDS = Tensor(TensorSpec("words", "BYTES", (-1, 5)))
PRICE = Tensor(TensorSpec("price", "FP32", (-1, 1)))
COUNT = Tensor(TensorSpec("count", "INT32", (-1,)))
LABEL_ONLY = OutputPolicy(label_only=True)
SOME = [
    ALL_SCORES,
    OutputPolicy(explanations=False),
    OutputPolicy(decimals=3),
    OutputPolicy(decimals=1),
    OutputPolicy(top_k=2),
    OutputPolicy(top_k=1, decimals=1),
    LABEL_ONLY,
]


def parse(value: object) -> OutputPolicy:
    return OutputPolicy.from_object(value, "p")


@pytest.mark.parametrize("policy", SOME, ids=str)
def test_a_policy_is_read_as_it_was_written(policy: OutputPolicy) -> None:
    assert parse(policy.to_object()) == policy
    manifest = dataclasses.replace(bundles.manifest(), output_policy=policy)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_manifest_without_one_is_as_it_was() -> None:
    assert "output_policy" not in json.loads(bundles.manifest().to_json())


def test_texts_tell_policies_apart() -> None:
    assert len({str(policy) for policy in SOME}) == len(SOME)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "p: expected an object"),
        ({"decimal": 1}, "p: unknown field 'decimal'"),
        ({"decimals": 10}, "p.decimals: expected -9 to 9"),
        ({"decimals": True}, "p.decimals: expected -9 to 9"),
        ({"decimals": 1.0}, "p.decimals: expected -9 to 9"),
        ({"decimals": None}, "p.decimals: expected -9 to 9"),
        ({"top_k": 0}, "p.top_k: expected 1 to 1048576"),
        ({"label_only": 1}, "p.label_only: expected true or false"),
        ({"label_only": True, "top_k": 1}, "p.label_only: no scores are left for top"),
        ({"explanations": True, "decimals": 2}, "p.explanations: attributions add up"),
        ({"explanations": True, "label_only": True}, "p.explanations: attributions"),
    ],
    ids=str,
)
def test_what_is_no_policy_is_refused(value: object, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(value)
    assert str(caught.value).startswith(message)


def test_strictness_is_an_order() -> None:
    for policy in SOME:
        assert policy.wider_than(policy) == []
        assert policy.wider_than(ALL_SCORES) == []
        assert LABEL_ONLY.wider_than(policy) == []
    for a, b, c in itertools.product(SOME, repeat=3):
        if not a.wider_than(b) and not b.wider_than(c):
            assert not a.wider_than(c)
    for a, b in itertools.permutations(SOME, 2):
        assert a.wider_than(b) or b.wider_than(a)


def test_explanations_leave_only_where_scores_do_in_full() -> None:
    assert [policy.explains for policy in SOME] == [True, *[False] * 6]
    assert OutputPolicy(decimals=2).wider_than(OutputPolicy(explanations=False)) == []


def test_rounding_leaves_no_sign_of_nothing() -> None:
    values = np.array([[-0.0004, 0.0004, 0.12345]], np.float32)
    left = scores_left(OutputPolicy(decimals=2), values)
    assert left.tolist()[0] == pytest.approx([0, 0, 0.12])
    assert not np.signbit(left).any()
    assert left.dtype == values.dtype


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("decimals", [-9, 0, 9])
def test_rounding_keeps_what_is_large_and_what_is_no_number(
    dtype: type, decimals: int
) -> None:
    top = np.finfo(dtype).max
    values = np.array([[top, np.inf, -np.inf, np.nan]], dtype)
    left = scores_left(OutputPolicy(decimals=decimals), values)
    assert left.dtype == dtype
    assert np.isnan(left[0, 3])
    assert left[0, 1:3].tolist() == [np.inf, -np.inf]
    assert np.isfinite(left[0, 0]) or decimals < 0


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=3, max_size=3), st.integers(1, 2))
def test_of_the_others_nothing_is_left(row: list[float], count: int) -> None:
    values = np.array([row], np.float32)
    left = scores_left(OutputPolicy(top_k=count), values)
    kept = np.argsort(-values[0], kind="stable")[:count]
    assert left[0, kept].tolist() == values[0, kept].tolist()
    # The same, whatever the others are.
    others = np.setdiff1d(np.arange(3), kept)
    changed = values.copy()
    changed[0, others] = np.float32(values[0, kept].min()) - np.abs(changed[0, others])
    if (
        np.isfinite(changed).all()
        and (changed[0, others] < values[0, kept].min()).all()
    ):
        again = scores_left(OutputPolicy(top_k=count), changed)
        assert again.tobytes() == left.tobytes()
    # And the decision is.
    assert left[0].argmax() == values[0].argmax() or count > 1 or left[0].max() > 1e30


def test_the_label_alone_is_the_highest_score() -> None:
    values = np.array([[-5, -3, -8], [1, np.nan, 0], [np.inf, 0, 0]], np.float32)
    left = scores_left(LABEL_ONLY, values)
    assert left.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def names(policy: OutputPolicy, *outputs: Tensor) -> list[str]:
    return Release(policy, outputs).names


def test_a_second_view_of_the_scores_does_not_leave() -> None:
    every = (SCORES, LOGITS, LABEL, WORDS)
    assert names(ALL_SCORES, *every) == ["scores", "logits", "label", "words"]
    for policy in (OutputPolicy(decimals=2), OutputPolicy(top_k=1)):
        assert names(policy, *every) == ["scores", "label"]
    # Of two decisions, the model's own: its threshold tells more beside the highest.
    assert names(LABEL_ONLY, *every) == ["label"]
    assert names(LABEL_ONLY, SCORES, LOGITS) == ["scores"]


def test_what_nobody_named_is_scores_if_nothing_else_is() -> None:
    assert names(OutputPolicy(top_k=1), LOGITS, LABEL) == ["logits", "label"]
    assert names(LABEL_ONLY, LOGITS) == ["logits"]
    with pytest.raises(ManifestError, match="top_k: no output has labels"):
        names(
            OutputPolicy(top_k=1),
            LOGITS,
            dataclasses.replace(LOGITS, spec=TensorSpec("more", "FP32", (-1, 3))),
        )


@pytest.mark.parametrize(
    ("policy", "outputs", "message"),
    [
        (OutputPolicy(top_k=1), (PRICE,), "no output has labels"),
        (LABEL_ONLY, (PRICE,), "no output would be left"),
        (OutputPolicy(decimals=-1), (SCORES,), "below 0 nothing is left"),
        (
            OutputPolicy(decimals=1),
            (SCORES, dataclasses.replace(SCORES, spec=LOGITS.spec)),
            "several outputs have labels",
        ),
    ],
    ids=str,
)
def test_policies_that_are_none_for_a_model(
    policy: OutputPolicy, outputs: tuple[Tensor, ...], message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        Release(policy, outputs)


def test_what_is_withheld_cannot_be_had() -> None:
    release = Release(LABEL_ONLY, (SCORES, LABEL))
    with pytest.raises(KeyError):
        release.leave("scores", np.ones((1, 3), np.float32))


def test_predicted_numbers_are_rounded() -> None:
    tens = Release(OutputPolicy(decimals=-1), (PRICE, COUNT))
    assert tens.leave("price", np.array([[123.4]], np.float32)).tolist() == [[120.0]]
    assert tens.leave("count", np.array([18], np.int32)).tolist() == [20]
    cents = Release(OutputPolicy(decimals=2), (PRICE, COUNT))
    assert cents.leave("price", np.array([[1.236]])).tolist() == [[1.24]]
    assert cents.leave("count", np.array([18], np.int32)).tolist() == [18]


def test_bf16_is_rounded_as_numbers() -> None:
    output = Tensor(TensorSpec("y", "BF16", (-1, 2)), labels=("a", "b"))
    values = narrow(np.array([[0.34, 0.66]], np.float32))
    left = Release(OutputPolicy(decimals=1), (output,)).leave("y", values)
    assert left.dtype == BFLOAT16
    assert numbers(left).tolist()[0] == pytest.approx([0.3, 0.7], abs=2e-3)
    (label,) = Release(LABEL_ONLY, (output,)).leave("y", values)
    assert numbers(label).tolist() == [0, 1]


def test_whole_numbers_may_be_scores() -> None:
    output = Tensor(TensorSpec("y", "UINT8", (-1, 3)), labels=("a", "b", "c"))
    release = Release(OutputPolicy(top_k=1), (output,))
    assert release.leave("y", np.array([[5, 9, 7]], np.uint8)).tolist() == [[0, 9, 0]]


def bits(policy: OutputPolicy, *outputs: Tensor, **arrays: np.ndarray) -> float:
    release = Release(policy, outputs)
    return sum(release.bits(name, array) for name, array in arrays.items())


def test_bits_of_an_answer() -> None:
    rows = np.full((4, 3), 1 / 3, np.float32)
    labels = np.zeros(4, np.int64)
    full = bits(ALL_SCORES, SCORES, LABEL, scores=rows, label=labels)
    assert full == 4 * (3 * 24 + math.log2(3))
    one = OutputPolicy(decimals=1)
    assert bits(one, SCORES, scores=rows) == pytest.approx(12 * math.log2(11))
    assert bits(LABEL_ONLY, SCORES, scores=rows) == pytest.approx(4 * math.log2(3))
    assert bits(LABEL_ONLY, SCORES, LABEL, label=labels) == 4 * math.log2(3)
    top = OutputPolicy(top_k=1)
    assert bits(top, SCORES, scores=rows) == 4 * (math.log2(3) + 24)
    # Logits of one decimal tell more than probabilities; never more than they have.
    wide = np.array([[-10.0, 0.0, 10.0]], np.float32)
    assert bits(one, SCORES, scores=wide) == pytest.approx(3 * math.log2(201))
    huge = np.array([[-3e38, 0.0, np.nan]], np.float32)
    assert bits(one, SCORES, scores=huge) == 3 * 24
    assert bits(ALL_SCORES, LABEL, label=labels) == 4 * 64
    text = np.array([["ab", "é", "", "", ""]], object)
    assert bits(ALL_SCORES, WORDS, words=text) == 8 * 4
