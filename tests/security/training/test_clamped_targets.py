"""How many targets lie beyond their range: told by the mechanism, held by the gate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.bundle import Bundle, read_bundle
from models.data.targets import Target
from models.report import Metric, Report
from security.admission.clamped import Counting
from security.admission.consistency import contradiction_steps
from security.admission.rules import Requirement
from security.admission.trained import training_contradictions
from security.documents.model_card import model_card
from security.errors import TrainingError
from security.training.accounting import Mechanism
from security.training.checkpoint import (
    Checkpoint,
    read_checkpoints,
    write_checkpoint,
)
from security.training.config import load_config, parse_config, parse_object
from security.training.data import load_split
from security.training.examples import Examples
from security.training.gradient_methods import METHODS
from security.training.gradients import binary_cross_entropy
from security.training.guarantee import make_plan
from security.training.ledger import Ledger
from security.training.loop import Monitor, Recipe, State
from security.training.network import build_classifier, examples_of
from security.training.noise import SeededRandomness
from security.training.run import train_bundle
from security.training.session import begun_with
from security.training.trainer import train_private
from tests.support.in_process import security_code
from tests.support.small_regression import CONFIG, write_prices

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = Recipe(1.0, 10, 0.1, loss_share=0.2, clamped_share=0.3)
STEPS = Mechanism(1.0, 2.0, 4)


class Silent:
    """Everyone is taken, and there is no noise: the radius of 0 is 0."""

    name = "silent"

    def uniform(self, count: int) -> np.ndarray[Any, Any]:
        return np.zeros(count)


class Keeping(Monitor):
    """Keeps where it stands after each step."""

    def __init__(self) -> None:
        self.states: list[State] = []

    def after(self, report: object, state: Any) -> None:
        self.states.append(state())


def owned() -> Examples:
    """Eight owners of two rows; two owners have one target beyond, one has both."""
    shares = torch.tensor([0, 0.5, 1, 0, 0, 0.5, 0, 0], dtype=torch.float64)
    rows, places = torch.rand(16, 3), torch.arange(16) // 2
    return Examples(rows, torch.rand(16), places, shares)


def trained(examples: Examples, **given: Any) -> Any:
    body = torch.nn.Sequential(torch.nn.Linear(3, 1))
    more = {"mechanism": STEPS, "recipe": RECIPE, "randomness": Silent(), **given}
    return train_private(body, examples, objective=binary_cross_entropy, **more)


def beyond(folder: Path, *changes: tuple[str, str], count: int = 30) -> Path:
    """A configuration, and rows of which the first so many have a price of 9999."""
    write_prices(folder / "rows.csv")
    lines = (folder / "rows.csv").read_text().splitlines()
    far = [line.rpartition(",")[0] + ",9999" for line in lines[1 : count + 1]]
    rows = [lines[0], *far, *lines[count + 1 :]]
    (folder / "rows.csv").write_text("\n".join(rows) + "\n")
    text = CONFIG
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (folder / "c.toml").write_text(text)
    return folder / "c.toml"


# The mechanism


def test_every_step_tells_how_many_units_were_clamped() -> None:
    """Without noise exactly; an owner counts for 1 at most."""
    assert trained(owned()).clamped == pytest.approx(2.0 * STEPS.steps)
    whole = replace(owned(), clamped=torch.full((8,), 7.0))
    assert trained(whole).clamped == pytest.approx(8.0 * STEPS.steps)


def test_it_has_the_noise_of_every_other_coordinate() -> None:
    long, kept = Mechanism(1.0, 2.0, 400), Keeping()
    outcome = trained(
        owned(), mechanism=long, randomness=SeededRandomness(3), monitor=kept
    )
    each = np.diff([0.0, *(state.clamped for state in kept.states)]) - 2.0
    assert np.std(each) == pytest.approx(2.0 / 0.3, rel=0.12)
    assert 0 < abs(np.mean(each)) < 4 * 2.0 / 0.3 / math.sqrt(400)
    # Each step draws a number for each weight, one for the loss, and one for this.
    assert outcome.record.draws == 400 * (4 + 1 + 1)


@pytest.mark.parametrize("clipping", ["flat", "automatic"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("physical", [0, 1])
def test_what_one_unit_adds_keeps_the_norm(
    clipping: str, method: str, physical: int
) -> None:
    """Of a step that was taken: the weights' way, the loss and the count."""
    body = torch.nn.Sequential(torch.nn.Linear(3, 1))
    before = torch.nn.utils.parameters_to_vector(body.parameters()).detach().clone()
    # Two rows of one owner, both wrong by far, both beyond the range.
    rows = torch.full((2, 3), 1e4)
    truth = (body(rows).detach()[:, 0] < 0).float()
    one = Examples(
        rows, truth, torch.zeros(2, dtype=torch.int64), torch.ones(1).double()
    )
    recipe = replace(
        RECIPE,
        max_grad_norm=0.7,
        expected_batch=1,
        learning_rate=1.0,
        clipping=clipping,
        physical_batch=physical,
    )
    told: list[float] = []

    class Listening(Monitor):
        def after(self, report: Any, state: Any) -> None:
            told.append(state().loss)

    outcome = train_private(
        body,
        one,
        mechanism=Mechanism(1.0, 2.0, 1),
        recipe=recipe,
        randomness=Silent(),
        method=method,
        objective=binary_cross_entropy,
        monitor=Listening(),
    )
    after = torch.nn.utils.parameters_to_vector(body.parameters()).detach()
    parts = [float((after - before).norm()), 0.7 * 0.2 * told[0]]
    assert told == pytest.approx([1.0])
    assert outcome.clamped == pytest.approx(1.0)
    parts.append(0.7 * 0.3 * outcome.clamped)
    assert math.hypot(*parts) == pytest.approx(0.7, rel=1e-3)


def test_a_training_that_counts_must_know_whose() -> None:
    with pytest.raises(TrainingError, match="whose targets were clamped"):
        trained(replace(owned(), clamped=None))
    assert trained(owned(), recipe=replace(RECIPE, clamped_share=0.0)).clamped is None


def test_a_resumed_training_goes_on_counting(tmp_path: Path) -> None:
    kept = Keeping()
    trained(owned(), mechanism=replace(STEPS, steps=3), monitor=kept)
    write_checkpoint(tmp_path, Checkpoint("it", "c", "d", kept.states[-1]))
    (found,) = read_checkpoints(tmp_path).values()
    assert found.state.clamped == pytest.approx(6.0)
    again = trained(owned(), mechanism=replace(STEPS, steps=1), start=found.state)
    assert again.clamped == pytest.approx(2.0 * 4)


@pytest.mark.parametrize("bound", ["clip", "group"])
def test_of_owners_and_of_rows(tmp_path: Path, bound: str) -> None:
    lines = ["person,rooms,area,town,price"]
    for person in range(60):
        first = 9999 if person % 3 == 0 else 300 + person
        lines += [f"p{person},3,{50 + person},Ulm,{first}"]
        lines += [f"p{person},4,{60 + person},Bonn,{310 + person}"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    own = 'label = "price"\nunit = "person"\nmax_rows_per_unit = 2'
    text = CONFIG.replace('label = "price"', own)
    text = text.replace("steps = 40", f'steps = 40\nunit_bound = "{bound}"')
    config = replace(parse_config(text.encode()), _base=tmp_path)
    train, _ = load_split(config)
    examples = examples_of(config, build_classifier(config, train), train)
    assert examples.clamped is not None
    high = int((np.asarray(train.labels) > 1000).sum())
    assert len(examples.clamped) == examples.count
    assert (examples.count == len(train)) is (bound == "group")
    whole = 1.0 if bound == "group" else 0.5
    assert set(examples.clamped.tolist()) == {0.0, whole}
    assert float(examples.clamped.sum()) == pytest.approx(high * whole)


def test_which_numbers_lie_beyond() -> None:
    found = Target(1.0, 9.0).beyond(np.array([0.99, 1.0, 5.0, 9.0, 9.01]))
    assert found.tolist() == [True, False, False, False, True]


# The figure


@pytest.mark.parametrize("rate", [1.0, 0.2])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.6])
def test_the_interval_holds_the_truth_as_often_as_it_says(
    rate: float, share: float
) -> None:
    """With noise and batches drawn anew, 4,000 times."""
    units, steps, noise, norm = 500, 40, 1.2, 0.4
    made = Counting(norm, noise, rate, steps, units)
    random = np.random.default_rng(0)
    count = round(units * share)
    seen = random.binomial(count, rate, (4000, steps)).sum(1)
    told = seen + random.normal(0, noise / norm * math.sqrt(steps), 4000)
    found = [made.metric(float(value)) for value in told]
    inside = [item.low <= count / units <= item.high for item in found]  # type: ignore[operator]
    assert np.mean(inside) > 0.94
    if share:
        assert np.mean(inside) < 0.965
        assert np.mean([item.value for item in found]) == pytest.approx(share, rel=0.03)


# The evidence


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("clamped")
    said: list[str] = []
    made = train_bundle(
        load_config(beyond(folder)),
        folder / "out",
        lambda *words: said.append(" ".join(map(str, words))),
        ledger=Ledger(folder / "ledger"),
        randomness=SeededRandomness(1),
    )
    (line,) = [text for text in said if text.startswith("targets ")]
    assert "beyond their range and clamped" in line
    return read_bundle(made)


def test_the_report_tells_it_within_its_interval(
    bundle: Bundle, tmp_path: Path
) -> None:
    privacy = bundle.report("privacy")
    found, noise = (
        privacy.metrics[name] for name in ("clamped_targets", "clamped_targets_noise")
    )
    train, _ = load_split(load_config(beyond(tmp_path)))
    truth = float((np.asarray(train.labels) > 1000).mean())
    assert 0.1 < truth < 0.15
    assert found.low is not None
    assert found.high is not None
    assert found.low < truth < found.high
    assert found.high - found.value == pytest.approx(1.96 * noise.value, rel=1e-4)
    assert privacy.conditions["clamped_targets"] == "noisy_in_mechanism"
    assert list(training_contradictions(privacy)) == []


def test_it_costs_no_epsilon_beside_the_mechanism(
    bundle: Bundle, tmp_path: Path
) -> None:
    privacy = bundle.report("privacy")
    text = CONFIG.replace("[optimizer]", "clamped_share = 0.0\n[optimizer]")
    config = parse_config(text.encode())
    plan = make_plan(config, int(privacy.conditions["units"]))
    assert plan.mechanism.noise_multiplier == privacy.conditions["noise_multiplier"]


def test_the_card_says_it(bundle: Bundle) -> None:
    card = model_card(bundle).decode()
    (line,) = [line for line in card.splitlines() if "The range is public" in line]
    assert "of the training targets" in line
    assert "`clamped_targets`" in card


def changed(report: Report, table: str, name: str, value: object) -> Report:
    """With one entry of a table replaced; None takes it out."""
    entries = {**getattr(report, table)}
    del entries[name]
    if value is not None:
        entries[name] = value
    return replace(report, **{table: entries})


def lies(report: Report) -> Iterator[tuple[str, Report]]:
    """What whoever holds the trainer's key might state instead."""
    told, noise = (
        report.metrics[name] for name in ("clamped_targets", "clamped_targets_noise")
    )
    values: list[Metric | None] = [
        None,
        replace(told, value=0.0),
        replace(told, value=told.value * 0.99),
        replace(told, low=0.01),
        replace(told, high=told.high + 0.01),  # type: ignore[operator]
        replace(told, low=None, high=None, confidence=None),
        replace(told, n=None),
        replace(told, confidence=0.5),
    ]
    for place, value in enumerate(values):
        yield f"told {place}", changed(report, "metrics", "clamped_targets", value)
    for other in (None, Metric(noise.value / 2), Metric(0.0)):
        name = "clamped_targets_noise"
        yield f"noise {other}", changed(report, "metrics", name, other)
    for how in (None, "not_told", "all_public_rows"):
        yield f"how {how}", changed(report, "conditions", "clamped_targets", how)
    for total in (None, 0.0, "many", math.inf, True):
        name = "clamped_targets_noisy_sum"
        yield f"sum {total}", changed(report, "details", name, total)
    for name in ("steps_in_weights", "units", "noise_multiplier", "sample_rate"):
        for other in (None, 0, 0.5, -1, "few", 10**400, 1e308, 1e200, 1e-320):
            yield f"{name} {other}", changed(report, "conditions", name, other)
    for share in (None, 0.0, 0.2, 3.0, "much", -0.1, 1e-320, 10**400):
        config: Any = json.loads(json.dumps(report.details["config"]))
        config["privacy"]["clamped_share"] = share
        if share is None:
            del config["privacy"]["clamped_share"]
        yield f"share {share}", changed(report, "details", "config", config)


def test_the_gate_refuses_every_other_figure(bundle: Bundle) -> None:
    tried = 0
    for name, lie in lies(bundle.report("privacy")):
        found = [item for item in training_contradictions(lie) if "clamped" in item]
        assert found, name
        tried += 1
    assert tried == 63


def test_reports_of_earlier_releases_have_none(bundle: Bundle) -> None:
    """Their configurations do not ask for it; and a figure nobody asked for is none."""
    report = bundle.report("privacy")
    for table, name in (
        ("conditions", "clamped_targets"),
        ("metrics", "clamped_targets"),
        ("metrics", "clamped_targets_noise"),
        ("details", "clamped_targets_noisy_sum"),
    ):
        report = changed(report, table, name, None)
    config: Any = json.loads(json.dumps(report.details["config"]))
    del config["privacy"]["clamped_share"]
    earlier = changed(report, "details", "config", config)
    assert list(training_contradictions(earlier)) == []
    assert parse_object(config, where="it").clamped_share == 0
    assert parse_object(config, where="it").to_object() == config


def test_more_of_the_norm_than_there_is_makes_no_figure_narrow(bundle: Bundle) -> None:
    """Everything stated alike: a share of 3 would divide the noise by thirty."""
    report = bundle.report("privacy")
    total = report.details["clamped_targets_noisy_sum"]
    config: Any = json.loads(json.dumps(report.details["config"]))
    config["privacy"]["clamped_share"] = 3.0
    names = ("noise_multiplier", "sample_rate", "steps_in_weights", "units")
    noise, rate, steps, units = (report.conditions[name] for name in names)
    made = Counting(3.0, noise, rate, steps, units)  # type: ignore[arg-type]
    lie = replace(
        changed(report, "details", "config", config),
        metrics={
            **report.metrics,
            "clamped_targets": made.metric(total),
            "clamped_targets_noise": Metric(made.noise),
        },
    )
    (found,) = training_contradictions(lie)
    assert "a share of the norm that no training has" in found


@pytest.mark.parametrize("mechanism", ["dp_ebm_gaussian", "none", "poisson_gaussian"])
def test_what_no_configuration_asks_for_is_not_told(
    bundle: Bundle, mechanism: str
) -> None:
    """Not by whoever leaves the configuration out, nor of another mechanism."""
    report = changed(bundle.report("privacy"), "conditions", "mechanism", mechanism)
    config: Any = json.loads(json.dumps(report.details["config"]))
    del config["data"]["target"]
    without = changed(report, "details", "config", config)
    found = [item for item in training_contradictions(without) if "asked for" in item]
    assert len(found) == 3
    bare = {"privacy": changed(report, "details", "config", None)}
    asked = Requirement("privacy", ("trainer",), timedelta(days=1), {}, ())
    required = {"privacy": asked}
    refused = [str(error) for error in contradiction_steps(bundle, bare, required)]
    assert sum("clamped_targets" in text and "asked" in text for text in refused) == 3


@pytest.mark.parametrize("data", ["all", None, 7, [], {"target": 7}])
def test_a_configuration_that_is_none_is_refused(data: Any) -> None:
    with pytest.raises(TrainingError):
        parse_object({"data": data, "privacy": {}}, where="it")


# What is asked for


def test_it_is_on_unless_it_is_turned_off(tmp_path: Path) -> None:
    config = parse_config(CONFIG.encode())
    assert config.clamped_share == config.to_object()["privacy"]["clamped_share"] == 0.1
    off = CONFIG.replace("[optimizer]", "clamped_share = 0.0\n[optimizer]")
    assert "clamped_share" not in parse_config(off.encode()).to_object()["privacy"]
    # Nothing was begun: what is asked for now holds.
    assert begun_with(config, tmp_path / "out") is config


@pytest.mark.parametrize(
    ("task", "share", "message"),
    [
        ("regression", "0.6", "must be 0 to 0.5"),
        ("regression", "-0.1", "must be 0 to 0.5"),
        ("classification", "0.2", "is for task = 'regression'"),
    ],
)
def test_shares_that_make_no_sense(task: str, share: str, message: str) -> None:
    text = CONFIG.replace("[optimizer]", f"clamped_share = {share}\n[optimizer]")
    if task == "classification":
        text = text.replace('task = "regression"', 'classes = ["a", "b"]')
        text = "\n".join(x for x in text.splitlines() if not x.startswith("target"))
    with pytest.raises(TrainingError, match=message):
        parse_config(text.encode())


def test_public_rows_are_counted_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beyond(
        tmp_path,
        ('label = "price"', 'label = "price"\npersonal = false'),
        ("epsilon = 3.0\ndelta = 1e-3", 'mechanism = "none"'),
        ("steps = 40", "steps = 3"),
    )
    out = tmp_path / "out"
    given = ("train", str(tmp_path / "c.toml"), "--out", str(out))
    assert security_code(tmp_path / "home", *given) == 0
    assert "beyond their range" in capsys.readouterr().out
    privacy = read_bundle(out).report("privacy")
    train, _ = load_split(load_config(tmp_path / "c.toml"))
    found = privacy.metrics["clamped_targets"]
    assert found == Metric(float((train.labels > 1000).mean()), n=len(train))
    assert list(training_contradictions(privacy)) == []
    for lie in (replace(found, value=0.1234), replace(found, n=9), None):
        other = changed(privacy, "metrics", "clamped_targets", lie)
        assert list(training_contradictions(other))


SEARCH = """
[search]
tries = 2
distribution = "logarithmic"
learning_rate = [2.0, 4.0]
"""


def test_a_search_tells_it_of_the_try_that_it_releases(tmp_path: Path) -> None:
    path = beyond(tmp_path, ("steps = 40", "steps = 4"))
    path.write_text(path.read_text() + SEARCH)
    said: list[object] = []
    out = train_bundle(
        load_config(path),
        tmp_path / "out",
        lambda stage, *_: said.append(stage),
        ledger=Ledger(tmp_path / "ledger"),
        randomness=SeededRandomness(1),
    )
    privacy = read_bundle(out).report("privacy")
    assert said.count("targets") == 1
    assert list(training_contradictions(privacy)) == []
    assert privacy.metrics["clamped_targets"].n == privacy.conditions["units"]
