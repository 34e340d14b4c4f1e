"""What is told of a version: drift, accuracy, and why one of them is not told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from models.bundle import Bundle, read_bundle
from models.report import Metric, Report
from sealgate.errors import TransportError
from sealgate.monitoring import headline, lines
from sealgate.protocol import strict_json
from security.documents.monitoring import to_html
from security.monitoring.drift import Reference
from security.monitoring.estimate import BLIND
from security.monitoring.ledger import LocalLedger
from security.monitoring.overview import (
    Evidence,
    Overview,
    Spent,
    labels_of,
    overview,
)
from security.monitoring.release import Release, read_releases
from security.monitoring.windows import window_at
from tests.security.monitoring.test_outcomes import (
    Select,
    a_third,
    classified,
    only_yes,
)
from tests.support.bundles import Keys, write_bundle
from tests.support.released import (
    BUDGET,
    beyond,
    evidence,
    past,
    put,
    shifted,
    usual,
)

NOW = float(window_at("weekly", 1_796_000_000.0).start + 4000)
WEEK_S = 7 * 86_400


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    return read_bundle(write_bundle(folder / "toy", Keys.generate()))


@pytest.fixture(scope="module")
def reports(bundle: Bundle) -> dict[str, Report]:
    return evidence(bundle)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """Nine weeks: usual ones, one that was too small, two shifted, one beyond."""
    made = tmp_path_factory.mktemp("monitoring")
    draws = {3: shifted, 2: shifted, 1: beyond}
    for back in range(9, 0, -1):
        window, few = past("weekly", back, now=NOW), back == 6
        draw, subjects = draws.get(back, usual), 20 if few else 6000
        put(made, bundle.manifest, window, draw, seed=back, subjects=subjects)
    return made


def look(
    folder: Path,
    bundle: Bundle,
    reports: dict[str, Report],
    *,
    now: float = NOW,
    labels: Sequence[Release] = (),
) -> Overview:
    ledger = LocalLedger(folder)
    try:
        return overview(
            Evidence.of_bundle(bundle, reports),
            read_releases(ledger, kind="drift"),
            length="weekly",
            spent=Spent.of(ledger.entries(), BUDGET, now=now),
            now=now,
            labels=labels_of(labels, bundle.subject, "weekly"),
        )
    finally:
        ledger.close()


def until(seen: Overview, back: int, *, now: float) -> Overview:
    """What was seen so many weeks before."""
    return replace(seen, sights=seen.sights[: len(seen.sights) - back], as_of=now)


@pytest.fixture(scope="module")
def seen(folder: Path, bundle: Bundle, reports: dict[str, Report]) -> Overview:
    return look(folder, bundle, reports)


def test_drift_is_found_where_it_is(seen: Overview) -> None:
    alarms = [sight.alarms for sight in seen.sights]
    assert alarms[:3] == [(), (), ()]
    assert alarms[3] is None
    assert alarms[4:6] == [(), ()]
    assert all("input/a" in (found or ()) for found in alarms[6:])
    assert not any("input/b" in (found or ()) for found in alarms)
    assert seen.state == "drift"
    assert headline(seen.to_object()).startswith("drift in 2026-W48")


def test_a_quiet_deployment_says_so(seen: Overview) -> None:
    before = until(seen, 3, now=NOW - 3 * WEEK_S)
    assert before.state == "quiet"
    assert headline(before.to_object()) == "nothing drifted in 2026-W45"


def test_an_estimate_stands_beside_alarm_and_labels_only(seen: Overview) -> None:
    for window in seen.to_object()["windows"]:
        assert {"alarms", "labels"} <= window.keys()
        told = window["accuracy_without_labels"]
        assert told["statement"] == BLIND
        assert (told["estimate"] is None) == bool(told["withheld"])
    # Where only the mix of rows has moved, it still may be right.
    assert seen.sights[7].estimate is not None


def test_no_estimate_beyond_what_the_reference_has(seen: Overview) -> None:
    last = seen.sights[-1]
    assert last.estimate is None
    assert last.unestimated == "drift beyond what the reference has: input/a"


def test_no_estimate_without_what_it_rests_on(
    folder: Path, bundle: Bundle, reports: dict[str, Report]
) -> None:
    other = dict(reports["quality"].details["score_bins"]) | {"high": 2.0}
    for changed, why in (
        ({"quality": replace(reports["quality"], details={})}, "does not say"),
        (
            {"quality": replace(reports["quality"], details={"score_bins": other})},
            "other bins",
        ),
    ):
        seen = look(folder, bundle, reports | changed)
        assert why in seen.sights[0].unestimated
        assert seen.state == "drift"


def test_without_a_reference_nothing_can_be_told(
    folder: Path, bundle: Bundle, reports: dict[str, Report]
) -> None:
    seen = look(folder, bundle, {"quality": reports["quality"]})
    assert seen.state == "unknown"
    assert "no reference" in seen.reason
    assert seen.last is None
    assert all(sight.estimate is None for sight in seen.sights)


def test_a_reference_that_breaks_its_own_guarantee_is_none(
    folder: Path, bundle: Bundle, reports: dict[str, Report]
) -> None:
    private = replace(
        reports["reference"],
        conditions={"personal_data": True, "season": "none"},
        metrics={"sigma": Metric(0.0)},
    )
    seen = look(folder, bundle, reports | {"reference": private})
    assert seen.state == "unknown"
    assert "without noise" in seen.reason


def test_a_reference_without_that_window_is_no_quiet(seen: Overview) -> None:
    empty = replace(seen.evidence, reference=Reference("none", {"": {}}, 0.0))
    releases = [sight.release for sight in seen.sights]
    found = overview(empty, releases, length="weekly", spent=seen.spent, now=NOW)
    assert found.state == "unknown"
    assert found.reason == "the reference has nothing for that window"
    assert {sight.estimate for sight in found.sights} == {None}


def test_nothing_lately_is_no_quiet(
    folder: Path, bundle: Bundle, reports: dict[str, Report]
) -> None:
    seen = look(folder, bundle, reports, now=NOW + WEEK_S)
    assert seen.state == "unknown"
    assert seen.reason == "2026-W49 was not released"
    # What is known stays known, with its date.
    assert seen.last is not None
    assert seen.last.window.name == "2026-W48"


def test_a_window_has_an_hour_to_be_released(
    folder: Path, bundle: Bundle, reports: dict[str, Report]
) -> None:
    end = window_at("weekly", NOW).end
    assert look(folder, bundle, reports, now=end + 60.0).state == "drift"
    assert look(folder, bundle, reports, now=end + 3700.0).state == "unknown"


def test_why_a_window_was_withheld_is_said(seen: Overview) -> None:
    before = until(seen, 5, now=NOW - 5 * WEEK_S)
    assert before.state == "unknown"
    assert before.reason == "2026-W43 was not released: too few subjects"


def test_other_versions_and_lengths_are_left_out(
    tmp_path: Path, bundle: Bundle, reports: dict[str, Report]
) -> None:
    window = past("weekly", 1, now=NOW)
    put(tmp_path, replace(bundle.manifest, version="2.0.0"), window)
    put(tmp_path, bundle.manifest, past("daily", 1, now=NOW))
    assert look(tmp_path, bundle, reports).sights == ()


@pytest.mark.parametrize(("select", "is_stated"), [(a_third, True), (only_yes, False)])
def test_labels_stand_beside_what_they_are_of(
    folder: Path,
    bundle: Bundle,
    reports: dict[str, Report],
    select: Select,
    is_stated: bool,
) -> None:
    made, _ = classified(select)
    window = past("weekly", 5, now=NOW)
    labels = [replace(made, about=replace(made.about, window=window))]
    seen = look(folder, bundle, reports, labels=labels)
    (told,) = [sight for sight in seen.sights if sight.labels is not None]
    assert told.window == window
    document = seen.to_object()
    text = "\n".join(line for line, _ in lines(document))
    page = to_html([document]).decode()
    assert "Labels of 2026-W44" in page
    assert (told.labels.accuracy is not None) is is_stated  # type: ignore[union-attr]
    assert ("no accuracy by labels" in text) is not is_stated
    assert ("accuracy by group" in page) is is_stated
    assert ("No accuracy is stated" in page) is not is_stated


def test_a_page_escapes_what_it_shows(seen: Overview) -> None:
    document = seen.to_object()
    text = strict_json.dumps(document).decode().replace("input/a", "<script>alert(1)")
    value = strict_json.loads_object(text.encode(), max_bytes=1 << 20)
    page = to_html([value]).decode()
    assert "&lt;script&gt;alert" in page
    assert "<script>alert" not in page


def test_the_document_is_json_and_small(seen: Overview) -> None:
    data = strict_json.dumps(seen.to_object())
    assert len(data) < 50_000
    assert strict_json.loads_object(data, max_bytes=1 << 20) == seen.to_object()


def test_lines_for_people(seen: Overview) -> None:
    shown = list(lines(seen.to_object()))
    assert shown[0] == (f"toy:1.0.0: {headline(seen.to_object())}", "error")
    assert sum(kind == "error" for _, kind in shown) == 4
    text = "\n".join(line for line, _ in shown)
    assert "too few subjects" in text
    assert BLIND in text
    assert "of 8 is spent" in text


@pytest.mark.parametrize("document", [{}, {"model": "x", "version": 1}, {"windows": 3}])
def test_a_malformed_document_is_an_error(document: dict[str, object]) -> None:
    with pytest.raises(TransportError, match="malformed"):
        list(lines(document))
