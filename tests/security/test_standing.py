"""Where a bundle stands with a policy: bound, end, margin, baseline, remedy."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from models.files import write_atomic
from models.report import Check, Metric, Report, Subject
from security.admission.rules import Requirement, Threshold
from security.commands.standing import said_of, standing

REPORT = Report(
    "quality", datetime.now(UTC), Subject("toy", "1.0.0", "0" * 64, "0" * 64), {}
)
POLICY = """
version = 1
[verdict]
signers = ["release"]
max_age_days = 30
[require.quality]
signers = ["assessor"]
max_age_days = 30
[require.quality.metrics]
accuracy = { min = 0.8, min_n = 50, bound = "interval" }
[require.membership]
signers = ["assessor"]
max_age_days = 30
"""


def lines(metric, **threshold):
    """What is said of one figure of quality."""
    counts = {"rows_by_class": {"a": 30, "b": 70}}
    stated = replace(REPORT, metrics={"accuracy": metric}, details=counts)
    bound = Threshold("accuracy", **threshold)
    asked = Requirement("quality", ("assessor",), timedelta(1), {}, (bound,))
    return list(said_of(asked, stated))


def test_the_end_that_counts_its_margin_and_the_baseline():
    metric = Metric(0.9, 100, 0.82, 0.95, 0.95)
    ((passed, text),) = lines(metric, low=0.8, min_n=50, bound="interval")
    assert passed
    assert text == (
        "accuracy: 0.82, the lower end of [0.82, 0.95] around 0.9, where at least 0.8 "
        "is needed (0.02 to spare), on 100 of at least 50 rows; always saying the most "
        "frequent class gives 0.7"
    )


def test_more_rows_where_only_the_interval_is_too_wide():
    metric = Metric(0.9, 100, 0.82, 0.95, 0.95)
    ((passed, text),) = lines(metric, low=0.86, bound="interval")
    assert not passed
    assert "(0.04 short)" in text
    assert text.endswith("about 400 held-out rows would do, if it stays so")


@pytest.mark.parametrize(
    ("metric", "threshold", "message"),
    [
        (
            Metric(0.7, 100),
            {"low": 0.8},
            "where at least 0.8 is needed (0.1 short)",
        ),
        (Metric(0.7, 100), {"high": 0.6}, "at most 0.6 is needed (0.1 short)"),
        (Metric(0.9, 10), {"low": 0.8, "min_n": 50}, "give more held-out rows"),
        (Metric(0.9, 10), {"low": 0.8, "bound": "interval"}, "it has no interval"),
    ],
)
def test_what_is_missed(metric, threshold, message):
    ((passed, text),) = lines(metric, **threshold)
    assert not passed
    assert message in text


def test_failed_checks_and_conditions():
    failed = Check("sane", passed=False, message="it is not")
    stated = replace(REPORT, conditions={"split": "as_given"}, checks=(failed,))
    wanted = {"split": "holdout", "other": True}
    asked = Requirement("quality", ("assessor",), timedelta(1), wanted, ())
    assert list(said_of(asked, stated)) == [
        (False, "check sane: it is not"),
        (
            False,
            "other: the report does not state it; other tools or settings state it",
        ),
        (False, "split: it is 'as_given', 'holdout' is needed"),
    ]


def test_of_a_bundle(bundle_folder, tmp_path):
    policy = tmp_path / "p.toml"
    policy.write_text(POLICY)
    (bundle_folder / "evidence/membership.json").unlink(missing_ok=True)
    told = list(standing(bundle_folder, (), policy))
    assert told[0] == "policy      p.toml, for toy; `admit` applies it"
    assert told[1].startswith("quality     meets accuracy: ")
    assert told[2].startswith("membership  MISSES the report: there is none; give the")
    assert len(told) == 3
    write_atomic(policy, b"version = 2")
    (line,) = standing(bundle_folder, (), policy)
    assert line.startswith("policy      not compared: policy p.toml:1")
