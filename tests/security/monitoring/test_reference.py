"""References: of public rows as they are, of personal ones with noise, and booked."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from models.bundle import Bundle, read_bundle
from models.output_policy import OutputPolicy
from models.report import Metric, Report
from models.restriction import restrict
from security.commands import main
from security.errors import LedgerError, MonitoringError, TrainingError
from security.monitoring.guarantee import epsilon_of
from security.monitoring.layout import layout_of
from security.monitoring.reference import reference_of, season_keys
from security.monitoring.windows import window_named
from security.training.config import load_config
from security.training.ledger import Ledger
from security.training.reference import Season, _codes, make_reference
from security.training.run import train_bundle
from tests.support import trained
from tests.support.small_training import CONFIG, write_config, write_rows

MONTHS = CONFIG.replace(
    'categories = ["baker", "nurse", "smith"]', "low = 1\nhigh = 12"
).replace('name = "job"', 'name = "month"')


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path, Ledger]:
    """A model of personal rows, trained in a second."""
    folder = tmp_path_factory.mktemp("reference")
    write_rows(folder / "rows.csv", rows=600, units=200)
    text = CONFIG.replace('label = "bought"', 'label = "bought"\nunit = "person"')
    text = text.replace('label = "bought"', 'label = "bought"\nmax_rows_per_unit = 5')
    config = write_config(folder, text)
    ledger = Ledger(folder / "ledger")
    out = train_bundle(
        load_config(config), folder / "bundle", lambda *_: None, ledger=ledger
    )
    return read_bundle(out), config, ledger


def made(small: tuple[Bundle, Path, Ledger], **changed: object) -> Report:
    given, config, ledger = small
    options: dict[str, object] = {"epsilon": 0.5, "delta": 1e-6} | changed
    return make_reference(given, load_config(config), ledger=ledger, **options)  # type: ignore[arg-type]


def test_personal_rows_have_noise_that_the_ledger_booked(
    small: tuple[Bundle, Path, Ledger],
) -> None:
    _, _, ledger = small
    before = len(ledger.accounts()[0].entries)
    report = made(small)
    (account,) = ledger.accounts()
    assert len(account.entries) == before + 1
    assert account.entries[-1].request.unit == "owner by person"
    reference = reference_of(report, small[0].manifest)
    assert reference.sigma > 10
    assert report.metrics["epsilon"].value == pytest.approx(0.5, abs=1e-6)
    # One row of each of some 160 owners, not their 480 rows.
    counted = reference.counted("answer/class", window_named("2026-W40"))
    assert counted is not None
    assert abs(counted.counts.sum() - 160) < 10 * reference.sigma * 2.3
    assert "events" not in report.metrics
    assert report.datasets == ()


def test_a_budget_that_does_not_reach_gives_no_reference(
    small: tuple[Bundle, Path, Ledger],
) -> None:
    before = len(small[2].accounts()[0].entries)
    with pytest.raises(LedgerError):
        made(small, epsilon=50.0)
    assert len(small[2].accounts()[0].entries) == before


def test_a_reference_by_month_has_twelve_parts(tmp_path: Path) -> None:
    rows = ["age,month,bought"]
    rows += [
        f"{20 + n % 60},{1 + n % 12},{'no' if n % 2 else 'yes'}" for n in range(480)
    ]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    config = write_config(tmp_path, MONTHS)
    ledger = Ledger(tmp_path / "ledger")
    out = train_bundle(
        load_config(config), tmp_path / "bundle", lambda *_: None, ledger=ledger
    )
    given = read_bundle(out)

    def by(season: Season) -> Report:
        given_config = load_config(config)
        options = {"epsilon": 0.5, "delta": 1e-6, "season": season}
        return make_reference(given, given_config, ledger=ledger, **options)  # type: ignore[arg-type]

    report = by(Season("month", "month"))
    reference = reference_of(report, given.manifest)
    assert set(reference.parts) == set(season_keys("month"))
    for name, wrong in (("month", "age"), ("weekday", "month"), ("month", "none")):
        with pytest.raises(TrainingError):
            by(Season(name, wrong))


def test_public_rows_are_counted_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The classes that a reference counts are those that the model answers."""
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path / "home"))
    write_rows(tmp_path / "rows.csv")
    text = CONFIG.replace('label = "bought"', 'label = "bought"\npersonal = false')
    config = write_config(tmp_path, text)
    ledger = Ledger(tmp_path / "home" / "ledger")
    out = train_bundle(
        load_config(config), tmp_path / "bundle", lambda *_: None, ledger=ledger
    )
    assert main(["reference", str(out), "--config", str(config)]) == 0
    assert "public rows" in capsys.readouterr().out
    given = read_bundle(out)
    report = given.report("reference")
    assert reference_of(report, given.manifest).sigma == 0.0
    events = report.metrics["events"].value
    for counts in report.details["parts"][""].values():
        assert sum(counts) == events
    answered = report.details["parts"][""]["answer/class"]
    assert sum(answered[2:-1]) == events
    assert not any(account.entries for account in ledger.accounts())


Change = Callable[[Report], Report]


def with_details(**changed: object) -> Change:
    return lambda report: dataclasses.replace(
        report, details={**report.details, **changed}
    )


def with_metrics(**changed: float) -> Change:
    found = {name: Metric(value) for name, value in changed.items()}
    return lambda report: dataclasses.replace(
        report, metrics={**report.metrics, **found}
    )


def raw(report: Report) -> Report:
    """An attack: the counts of personal rows without noise."""
    return with_metrics(sigma=0.0)(report)


@pytest.mark.parametrize(
    "change",
    [
        raw,
        with_metrics(sigma=1e-200),
        with_metrics(epsilon=0.1),
        with_metrics(delta=1e-3),
        with_details(histograms=[]),
        with_details(season="year"),
        with_details(season="month"),
        with_details(parts={}),
        with_details(parts={"": {}}),
        lambda report: dataclasses.replace(report, metrics={}),
        lambda report: dataclasses.replace(report, kind="quality"),
    ],
)
def test_what_is_not_as_stated_is_refused(
    small: tuple[Bundle, Path, Ledger], change: Change
) -> None:
    given = small[0]
    layout = layout_of(given.manifest)
    sigma = 5.0 * layout.sensitivity
    report = Report(
        kind="reference",
        created_at=given.report("privacy").created_at,
        subject=given.subject,
        tools={},
        conditions={"personal_data": True},
        metrics={
            "sigma": Metric(sigma),
            "epsilon": Metric(epsilon_of(1 / 50, 1e-6)),
            "delta": Metric(1e-6),
        },
        details={
            "histograms": layout.describe(),
            "season": "none",
            "parts": {"": {item.name: [0] * item.size for item in layout.histograms}},
        },
    )
    assert Report.from_json(report.to_json()) == report
    reference_of(report, given.manifest)
    with pytest.raises(MonitoringError):
        reference_of(change(report), given.manifest)


def test_answers_are_counted_as_they_leave(tmp_path):
    """The server counts what its output policy leaves: so does the reference."""
    _, rows = trained.rows()
    whole = _codes(read_bundle(trained.bundle()), rows.features)
    tenths = restrict(trained.copy(tmp_path / "b"), OutputPolicy(decimals=1))
    assert (_codes(tenths, rows.features) != whole).any()


def test_public_rows_of_a_file_for_a_model_from_anywhere(
    small: tuple[Bundle, Path, Ledger],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No configuration is needed: columns are found by their names, in any order."""
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path / "home"))
    bundle = Path(shutil.copytree(small[1].parent / "bundle", tmp_path / "bundle"))
    usual = tmp_path / "usual.csv"
    usual.write_text("job,other,age\n" + "nurse,1,30\nbaker,2,61\n" * 50)
    assert main(["reference", str(bundle), "--public-rows", str(usual)]) == 0
    assert "public rows" in capsys.readouterr().out
    given = read_bundle(bundle)
    report = given.report("reference")
    assert reference_of(report, given.manifest).sigma == 0.0
    assert report.metrics["events"].value == 100
    for counts in report.details["parts"][""].values():
        assert sum(counts) == 100
    assert max(report.details["parts"][""]["input/job"]) == 50
    usual.write_text("job,age\nnurse,\nbaker,30\n,61\n")
    assert main(["reference", str(bundle), "--public-rows", str(usual)]) == 0
    parts = read_bundle(bundle).report("reference").details["parts"][""]
    assert [parts["input/age"][0], parts["input/job"][0]] == [1, 1]
    usual.write_text("job,age\npilot,30\n")
    assert main(["reference", str(bundle), "--public-rows", str(usual)]) == 2
    assert "pilot" not in capsys.readouterr().out
