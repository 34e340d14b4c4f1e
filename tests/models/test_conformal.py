"""Split conformal: quantiles, what a manifest takes, intervals, sets, abstention."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import conformal
from models.conformal import Conformal
from models.errors import ManifestError
from models.manifest import Manifest, Tensor
from models.output_policy import ALL_SCORES, OutputPolicy
from models.release import Release
from sealgate.protocol.tensors import TensorSpec
from tests.support import bundles

PRICE = Tensor(TensorSpec("price", "FP32", (-1, 1)), bounds=(0.0, 100.0))
SCORES = Tensor(TensorSpec("p", "FP32", (-1, 3)), labels=("a", "b", "c"))
LABEL = Tensor(TensorSpec("label", "INT64", (-1,)))
WORD = Tensor(TensorSpec("word", "BYTES", (-1,)))
FLAG = Tensor(TensorSpec("flag", "BOOL", (-1,)))
MARGIN = Tensor(TensorSpec("margin", "FP32", (-1,)))
ABSTAIN = OutputPolicy(abstain=True)
KEY = "0123456789abcdef" * 2


def member(**changes: Any) -> Conformal:
    base: dict[str, Any] = {
        "output": "price",
        "scale": "identity",
        "coverage": 0.9,
        "quantile": 5.0,
        "rows": 99,
        "rows_sha256": "0" * 64,
        "split_key": KEY,
        "split_share": 0.5,
        "waiver": "public rows",
    }
    return Conformal(**{**base, **changes})


def sets(**changes: Any) -> Conformal:
    return member(output="p", scale="probability", quantile=0.7, **changes)


def manifest(widened: Conformal | None, *outputs: Tensor, **more: Any) -> Manifest:
    made = dataclasses.replace(bundles.manifest(), conformal=widened, **more)
    return dataclasses.replace(made, outputs=outputs or (PRICE,))


@given(st.integers(1, 400), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]))
def test_the_rank_is_the_finite_sample_one(rows: int, coverage: float) -> None:
    exact = math.ceil((rows + 1) * Fraction(str(coverage)))
    if exact <= rows:
        assert conformal.rank(rows, coverage) == exact
    else:
        with pytest.raises(ManifestError, match="too few"):
            conformal.rank(rows, coverage)


def test_it_says_how_many_rows_it_takes() -> None:
    with pytest.raises(ManifestError, match=r"8 rows are too few.*it takes 9"):
        conformal.rank(8, 0.9)
    assert conformal.rank(9, 0.9) == 9


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, math.nan, 90.0])
def test_coverage_is_a_share(coverage: float) -> None:
    with pytest.raises(ManifestError, match="coverage"):
        conformal.quantile(np.ones(1000), coverage)


def test_rows_without_an_answer_are_covered_by_nothing() -> None:
    scores = np.arange(99.0)
    scores[:9] = np.nan  # the 90th of 99 is the largest number left
    assert conformal.quantile(scores, 0.9) == 98.0
    scores[:10] = np.nan
    with pytest.raises(ManifestError, match="10 of 99 rows have no usable answer"):
        conformal.quantile(scores, 0.9)


def test_ties_do_not_lose_coverage() -> None:
    scores = np.repeat([1.0, 2.0, 3.0], 33)
    assert conformal.quantile(scores, 0.5) == 2.0
    assert (scores <= 2.0).mean() >= 0.5


def test_coverage_is_exact_where_rows_are_exchangeable() -> None:
    # Of distinct scores, the chance is rank / (n + 1) exactly: 45 / 50 here.
    random, runs = np.random.default_rng(7), 20_000
    scores = random.random((runs, 50))
    ordered = np.sort(scores[:, :49], axis=1)[:, conformal.rank(49, 0.9) - 1]
    share = (scores[:, 49] <= ordered).mean()
    assert share == pytest.approx(0.9, abs=6.2 * math.sqrt(0.09 / runs))


@pytest.mark.parametrize("scale", conformal.NUMBER_SCALES)
@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1e4, width=32), min_size=60, max_size=60),
    st.lists(st.floats(-10, 1e4, width=32), min_size=60, max_size=60),
    st.sampled_from(["FP16", "FP32", "FP64"]),
)
def test_intervals_hold_what_their_quantile_says(
    scale: str, truth: list[float], given_: list[float], kind: str
) -> None:
    dtype = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}[kind]
    answers = np.array(given_).astype(dtype)
    true = np.array(truth)
    far = conformal.residuals(answers.astype(np.float64), true, scale)
    quantile = conformal.quantile(far, 0.9)
    own = member(scale=scale, quantile=quantile)
    output = Tensor(TensorSpec("price", kind, (-1,)))
    release = Release(ALL_SCORES, (output,), own)
    low, high = release.answer(["price_lower", "price_upper"], {"price": answers})
    assert low.dtype == high.dtype == dtype
    slack = 1e-9 * (1 + np.abs(true))  # of the inverse transform in double precision
    inside = (low <= true + slack) & (true - slack <= high)
    assert (inside | ~(far <= quantile)).all()
    assert inside.sum() >= conformal.rank(60, 0.9)


def test_intervals_are_wider_where_answers_are_larger() -> None:
    release = Release(ALL_SCORES, (PRICE,), member(scale="sqrt", quantile=1.0))
    answers = np.array([[4.0], [64.0], [90.25]], np.float32)
    names = ["price_upper", "price", "price_lower"]
    assert release.names == ["price", "price_lower", "price_upper"]
    high, same, low = release.answer(names, {"price": answers})
    assert np.array_equal(same, answers)
    assert low.tolist() == [[1.0], [49.0], [72.25]]
    assert high.tolist() == [[9.0], [81.0], [100.0]]  # not beyond the public range


def test_what_is_no_number_has_no_interval() -> None:
    release = Release(ALL_SCORES, (PRICE,), member())
    answers = np.array([[np.nan], [np.inf], [-np.inf]], np.float32)
    low, high = release.answer(release.names[1:], {"price": answers})
    assert np.isnan(low[0, 0])
    assert np.isnan(high[0, 0])
    assert low[1:].tolist() == [[100.0], [0.0]]


def test_intervals_of_rounded_numbers_tell_no_more_than_these() -> None:
    policy = OutputPolicy(decimals=0)
    release = Release(policy, (PRICE,), member(decimals=0))
    one, two = (
        release.answer(release.names, {"price": np.array([[value]], np.float32)})
        for value in (41.6, 42.4)
    )
    assert [item.tolist() for item in one] == [item.tolist() for item in two]
    assert one[1].tolist() == [[37.0]]
    with pytest.raises(ManifestError, match="other decimals"):
        Release(ALL_SCORES, (PRICE,), member(decimals=0))


SOME = np.array(
    [[0.6, 0.35, 0.05], [0.9, 0.06, 0.04], [0.25, 0.5, 0.25], [0.34, 0.33, 0.33]],
    np.float32,
)
ALONE = [False, True, True, False]


def test_sets_hold_every_class_above_the_threshold() -> None:
    release = Release(ALL_SCORES, (SCORES,), sets())
    assert release.names == ["p", "p_set"]
    scores, inside = release.answer(release.names, {"p": SOME})
    assert np.array_equal(scores, SOME)
    assert inside.dtype == np.bool_
    assert inside.sum(axis=1).tolist() == [2, 1, 1, 3]
    empty = release.answer(["p_set"], {"p": np.full((1, 3), 0.2, np.float32)})
    assert not empty[0].any()
    broken = release.answer(["p_set"], {"p": np.array([[0.99, np.nan, 0]], np.float32)})
    assert not broken[0].any()


def test_logits_are_made_probabilities_first() -> None:
    logits = np.log(SOME) + 5
    own = dataclasses.replace(sets(), scale="softmax")
    release = Release(ALL_SCORES, (SCORES,), own)
    assert release.answer(["p_set"], {"p": logits})[0].sum(axis=1).tolist() == [
        2,
        1,
        1,
        3,
    ]


def test_a_model_that_abstains_answers_where_one_class_is_left() -> None:
    release = Release(ABSTAIN, (LABEL, SCORES, WORD), sets())
    assert release.names == ["label", "p", "word", "p_set"]
    words = np.array(["a", "a", "b", "a"], object)
    given_ = {"p": SOME, "label": SOME.argmax(axis=1), "word": words}
    assert {*release.sources(["p"])} == {"p", "label", "word"}
    label, scores, word, inside = release.answer(release.names, given_)
    assert label.tolist() == [-1, 0, 1, -1]
    assert word.tolist() == ["", "a", "b", ""]
    assert np.array_equal(scores, np.where(np.array(ALONE)[:, None], SOME, 0))
    assert (inside.sum(axis=1) == 1).tolist() == ALONE
    # What was given is not changed: it may be shared.
    assert given_["label"].tolist() == [0, 0, 1, 0]


def test_it_abstains_where_the_decision_is_another_class() -> None:
    release = Release(ABSTAIN, (LABEL, SCORES), sets())
    given_ = {"p": SOME, "label": np.array([0, 1, 1, 0])}
    label, scores = release.answer(["label", "p"], given_)
    assert label.tolist() == [-1, -1, 1, -1]
    assert not scores[1].any()


@settings(deadline=None)
@given(
    st.lists(st.floats(0.3125, 0.375, width=32), min_size=3, max_size=3),
    st.sampled_from(
        [
            ABSTAIN,
            OutputPolicy(abstain=True, label_only=True),
            OutputPolicy(abstain=True, top_k=1),
            OutputPolicy(abstain=True, decimals=1),
        ]
    ),
)
def test_of_a_row_that_is_not_answered_only_its_set_is_told(
    row: list[float], policy: OutputPolicy
) -> None:
    # Every class is above .3: the set is whole, whatever the scores are.
    own = sets(decimals=policy.decimals)
    release = Release(policy, (LABEL, SCORES, FLAG, MARGIN), own)
    scores = np.array([row], np.float32)
    given_ = {
        "p": scores,
        "label": scores.argmax(axis=1),
        "flag": scores[:, 0] > 0.35,
        "margin": scores.max(axis=1),
    }
    told = dict(zip(release.names, release.answer(release.names, given_)))
    assert not told.keys() & {"flag", "margin"}
    rest = {name: item.tolist() for name, item in told.items()}
    nothing = {"p": [[0.0] * 3], "label": [-1], "p_set": [[True] * 3]}
    assert rest == {name: nothing[name] for name in rest}
    assert ("p_set" in rest) is not (policy.label_only or policy.top_k is not None)


def test_decisions_that_cannot_say_none_do_not_leave() -> None:
    signs = dataclasses.replace(SCORES, labels=("-1", "0", "1"))
    assert Release(ABSTAIN, (LABEL, signs), sets()).names == ["p", "p_set"]
    both = OutputPolicy(label_only=True, abstain=True)
    with pytest.raises(ManifestError, match="no output would be left"):
        Release(both, (LABEL, signs), sets())


def test_bits_count_an_interval_once_and_an_abstention_as_one() -> None:
    release = Release(ALL_SCORES, (PRICE,), member())
    one = np.ones((10, 1), np.float32)
    every = release.told([("price", one), ("price_lower", one), ("price_upper", one)])
    assert every == release.told([("price_upper", one)]) == 240.0
    sets_ = Release(ALL_SCORES, (SCORES,), sets())
    assert sets_.told([("p_set", SOME > 0)]) == 12.0
    assert sets_.told([("p", SOME), ("p_set", SOME > 0)]) == 12 * 24.0
    label = Release(OutputPolicy(label_only=True, abstain=True), (SCORES,), sets())
    assert label.told([("p", SOME)]) == pytest.approx(4 * (1 + math.log2(3)))


def test_a_policy_that_demands_abstention_is_not_met_without() -> None:
    assert ALL_SCORES.wider_than(ABSTAIN) == ["abstain", "explanations"]
    assert not ABSTAIN.wider_than(ALL_SCORES)
    assert OutputPolicy.from_object(ABSTAIN.to_object(), "p") == ABSTAIN
    assert not ABSTAIN.explains
    with pytest.raises(ManifestError, match="attributions"):
        OutputPolicy.from_object({"abstain": True, "explanations": True}, "p")


def test_a_manifest_is_read_as_it_was_written() -> None:
    for own, output, policy in (
        (member(), PRICE, ALL_SCORES),
        (member(scale="log", waiver=None, epsilon=1.0, delta=1e-6), PRICE, ALL_SCORES),
        (sets(), SCORES, ABSTAIN),
    ):
        made = manifest(own, output, output_policy=policy)
        again = Manifest.from_json(made.to_json())
        assert again == made
        assert [item.spec.name for item in again.served] == again.release.names
    served = manifest(sets(), SCORES).served
    assert served[1].labels == SCORES.labels
    assert str(served[1].spec.datatype) == "BOOL"


def test_a_manifest_without_one_is_as_it_was() -> None:
    assert "conformal" not in json.loads(bundles.manifest().to_json())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coverage": 0}, "coverage: expected a number above 0 and below 1"),
        ({"coverage": 1.0}, "coverage: expected"),
        ({"coverage": True}, "coverage: expected"),
        ({"coverage": "0.9"}, "coverage: expected"),
        ({"quantile": -0.1}, "quantile: expected"),
        ({"quantile": 10**400}, "quantile: expected"),
        ({"rows": 0}, "rows: expected"),
        ({"rows": 9.5}, "rows: expected"),
        ({"rows_sha256": "0" * 63}, "rows_sha256: expected"),
        ({"split_key": "x"}, "split_key: expected"),
        ({"split_share": 1.0}, "split_share: expected"),
        ({"scale": "cube"}, "scale: expected one of"),
        ({"scale": ["log"]}, "scale: expected one of"),
        ({"scale": "softmax"}, "conformal.scale: of 'price' it is identity or sqrt"),
        ({"output": "p"}, "no output 'p'"),
        ({"output": ""}, "output: expected"),
        ({"decimals": 2}, "other decimals"),
        ({"epsilon": 1.0}, "epsilon and delta go together"),
        ({"epsilon": 1.0, "delta": 1e-6}, "says why not"),
        ({"waiver": None}, "says why not"),
        ({"waiver": ""}, "waiver: expected"),
        ({"alpha": 0.1}, "unknown field 'alpha'"),
        ({"quantile": None}, "missing quantile"),
    ],
)
def test_a_member_that_is_none_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    value = json.loads(manifest(member()).to_json())
    own = value["conformal"] | changes
    value["conformal"] = {name: item for name, item in own.items() if item is not None}
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("own", "outputs", "message"),
    [
        (member(), (dataclasses.replace(PRICE, bounds=None), LABEL), ""),
        (member(output="label"), (LABEL,), "no output of FP16"),
        (member(output="p"), (dataclasses.replace(SCORES, labels=()),), "one number"),
        (sets(), (dataclasses.replace(SCORES, labels=()),), "scores have labels"),
        (
            sets(),
            (Tensor(TensorSpec("p", "FP32", (-1, 1)), labels=("only",)),),
            "two classes or more",
        ),
        (
            member(),
            (PRICE, Tensor(TensorSpec("price_lower", "FP32", (-1,)))),
            "already",
        ),
        (
            member(scale="log"),
            (dataclasses.replace(PRICE, bounds=(-5.0, 0.0)),),
            "no number above 0",
        ),
        (member(), (Tensor(TensorSpec("price", "BF16", (-1,))),), "no output of FP16"),
        (member(), (Tensor(TensorSpec("price", "FP32", (-1, 2))),), "one number"),
    ],
)
def test_a_member_fits_its_output(
    own: Conformal, outputs: tuple[Tensor, ...], message: str
) -> None:
    if not message:
        assert Release(ALL_SCORES, outputs, own).names[-1] == "price_upper"
        return
    with pytest.raises(ManifestError, match=message):
        Release(ALL_SCORES, outputs, own)


@pytest.mark.parametrize("own", [None, member()])
def test_nothing_abstains_without_sets(own: Conformal | None) -> None:
    with pytest.raises(ManifestError, match="security calibrate"):
        Release(ABSTAIN, (PRICE, SCORES), own)


def test_an_interval_of_what_does_not_leave_is_none() -> None:
    with pytest.raises(ManifestError, match="'price' does not leave"):
        Release(OutputPolicy(label_only=True), (PRICE, SCORES), member())


def test_a_row_is_on_one_side_whatever_file_it_comes_from() -> None:
    rows = [bytes([i, j]) for i in range(100) for j in range(100)]
    first = conformal.is_calibrating(rows, KEY, 0.3)
    again = conformal.is_calibrating(rows[::-1], KEY, 0.3)
    assert np.array_equal(first, again[::-1])
    assert first.mean() == pytest.approx(0.3, abs=0.03)
    other = conformal.is_calibrating(rows, KEY[::-1], 0.3)
    assert (first != other).mean() == pytest.approx(0.42, abs=0.04)
