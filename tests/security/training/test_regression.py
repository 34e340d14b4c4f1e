"""Learning a number privately: the classifier's trainer, another loss, one output."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.architectures import NetworkSpec, TabularRegressor, build_network
from models.bundle import MODEL_FILE, read_bundle
from models.data.targets import SCALES, Target
from models.export import predict_onnx
from models.manifest import Column
from security.admission.consistency import _contradictions
from security.assessment.checks.privacy.canaries import judge_kind
from security.commands import main
from security.commands.admit import _numbers
from security.commands.scan_training import load_mechanism
from security.errors import TrainingError
from security.monitoring.layout import layout_of
from security.training.config import load_config, parse_config, parse_object
from security.training.data import load_split
from security.training.gradient_methods import make_method
from security.training.gradients import Clipping, binary_cross_entropy, single_rows
from security.training.ledger import Ledger
from security.training.network import build_classifier, labels_of
from security.training.noise import SeededRandomness
from security.training.retrain import retrain
from security.training.run import train_bundle
from security.training.session import against
from tests.support.in_process import security_code
from tests.support.small_regression import CONFIG, write_prices

pytestmark = pytest.mark.usefixtures("one_thread")


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


def written(folder: Path, *changes: tuple[str, str]) -> Path:
    """The configuration with texts replaced, and its rows."""
    text = CONFIG
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    if not (folder / "rows.csv").exists():
        write_prices(folder / "rows.csv")
    path = folder / "c.toml"
    path.write_text(text)
    return path


def trained(folder: Path, path: Path, **more: object) -> Path:
    return train_bundle(
        load_config(path),
        folder / "out",
        quiet,
        ledger=Ledger(folder / "ledger"),
        randomness=SeededRandomness(1),
        **more,
    )


# What a target is.

RANGE = st.sampled_from([(0.5, 8.0), (100.0, 1000.0), (1.0, 1e6), (0.01, 0.02)])


@given(scale=st.sampled_from(SCALES), ends=RANGE, share=st.floats(0, 1))
def test_the_way_back_is_the_way_back(
    scale: str, ends: tuple[float, float], share: float
) -> None:
    target = Target(*ends, scale)
    value = target.values(np.array([share]))
    assert ends[0] <= value[0] <= ends[1]
    np.testing.assert_allclose(target.shares(value), [share], atol=1e-9)
    beyond = target.shares(np.array([ends[0] - 1, ends[1] * 2]))
    assert beyond.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("scale", SCALES)
def test_the_network_answers_in_the_numbers_own_unit(scale: str) -> None:
    target = Target(10.0, 500.0, scale)
    body = build_network("mlp", NetworkSpec((1,), 1, (4,)))
    with torch.no_grad():
        body[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    module = TabularRegressor((Column("x", 0.0, 1.0),), body, target=target)
    rows = torch.linspace(-1, 2, 50)[:, None]
    with torch.no_grad():
        shares = torch.sigmoid(body(module.network_input(rows)))[:, 0]
        got = module(rows).numpy()
    np.testing.assert_allclose(got, target.values(shares.double().numpy()), rtol=1e-5)
    assert np.ptp(got) > 1


# The trainer.


@pytest.mark.parametrize("method", ["hooks", "functorch", "ghost"])
def test_every_gradient_method_clips_alike(method: str) -> None:
    random = torch.Generator().manual_seed(0)
    inputs = 2 * torch.rand(20, 5, generator=random) - 1
    batch = single_rows(inputs, torch.rand(20, generator=random))
    sums = []
    for name in ("bookkeeping", method):
        torch.manual_seed(0)
        body = torch.nn.Sequential(
            torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 1)
        )
        maker = make_method(body, name, binary_cross_entropy)
        sums.append(maker.clipped_sums(batch, Clipping(0.3)).sums)
        maker.close()
    for one, other in zip(*sums, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_input_bounds_a_gradient_whatever_the_number() -> None:
    body = torch.nn.Linear(3, 1)
    rows, labels = torch.rand(50, 3), torch.rand(50).round()
    losses = binary_cross_entropy(lambda x: 50 * body(x), rows, labels)
    logits = 50 * body(rows)
    (by_logit,) = torch.autograd.grad(
        binary_cross_entropy(lambda _: logits, rows, labels).sum(), logits
    )
    assert float(by_logit.abs().max()) <= 1
    assert torch.isfinite(losses).all()


def test_targets_beyond_the_range_are_clamped(tmp_path: Path) -> None:
    path = written(tmp_path)
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    far = [line.rpartition(",")[0] + ",9999" for line in lines[1:8]]
    (tmp_path / "rows.csv").write_text("\n".join([lines[0], *far, *lines[8:]]) + "\n")
    train, holdout = load_split(load_config(path))
    assert max(train.labels.max(), holdout.labels.max()) == 9999
    learnt = labels_of(train)
    assert (float(learnt.min()), float(learnt.max())) >= (0.0, 1.0)
    assert float(learnt.max()) == 1.0
    out = trained(tmp_path, path)
    model = (out / MODEL_FILE).read_bytes()
    assert predict_onnx(model, holdout.features).max() <= 1000


def test_an_interrupted_training_goes_on(tmp_path: Path) -> None:
    path, stop = written(tmp_path), threading.Event()

    def until(stage: str, share: float, *_: object) -> None:
        if stage == "training" and share >= 0.4:
            stop.set()

    with pytest.raises(TrainingError, match="interrupted"):
        train_bundle(
            load_config(path),
            tmp_path / "out",
            until,
            ledger=Ledger(tmp_path / "ledger"),
            stop=stop,
        )
    out = trained(tmp_path, path, going_on=True)
    (account,) = Ledger(tmp_path / "ledger").accounts()
    (entry,) = account.entries
    assert (entry.state, entry.spent) == ("finished", 40)
    assert read_bundle(out).report("privacy").conditions["steps_in_weights"] <= 40


SEARCH = """
[search]
tries = 2
distribution = "logarithmic"
learning_rate = [0.001, 4.0]
"""


def test_a_search_scores_how_near_it_comes(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text() + SEARCH)
    bundle = read_bundle(trained(tmp_path, path))
    privacy = bundle.report("privacy")
    assert privacy.conditions["search_score"] == "share_of_range_right_in_training_rows"
    reports = {kind: bundle.report(kind) for kind in ("provenance", "parity")}
    assert list(_contradictions(bundle, reports, {})) == []
    assert _numbers(privacy)  # the gate computes its epsilon again


def test_an_attack_makes_the_loss_of_every_row_larger(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text() + '[adversarial]\nmethod = "pgd"\nradius = 0.1\n')
    config = load_config(path)
    train, _ = load_split(config)
    module = build_classifier(config, train)
    with torch.no_grad():
        module.body[-1].weight.fill_(1.0)
    given = against(config, module)
    inputs = module.network_input(torch.from_numpy(train.features).float())
    batch = single_rows(inputs, labels_of(train))
    moved = given["prepare"](module.body, batch)
    before, after = (
        given["objective"](module.body, item.inputs, item.labels)
        for item in (batch, moved)
    )
    assert bool((after >= before - 1e-6).all())
    assert float((after - before).detach().mean()) > 0.01
    # Categories are not attacked.
    assert torch.equal(moved.inputs[:, 2:], batch.inputs[:, 2:])
    assert read_bundle(trained(tmp_path, path)).manifest.number is not None


def test_canaries_hold_it_to_its_epsilon(tmp_path: Path) -> None:
    audited = load_mechanism(written(tmp_path), None)
    assert audited is not None
    watched = audited.trainings.several("gradient", 400, 3)
    found = judge_kind(audited, "gradient", watched.scores, watched.planted)
    assert found.reasons == ()
    assert 0.3 < found.epsilon_gaussian <= audited.epsilon
    # A mechanism with a tenth of its noise is found out.
    plan = audited.trainings.mechanism
    quiet_one = replace(plan, noise_multiplier=plan.noise_multiplier / 10)
    broken = replace(audited.trainings, mechanism=quiet_one)
    seen = broken.several("gradient", 400, 3)
    assert judge_kind(audited, "gradient", seen.scores, seen.planted).reasons


def test_the_next_version_is_compared_by_signs(tmp_path: Path) -> None:
    path = written(tmp_path, ("steps = 40", "steps = 4"))
    ledger = Ledger(tmp_path / "ledger")
    current = train_bundle(load_config(path), tmp_path / "one", quiet, ledger=ledger)
    write_prices(tmp_path / "new.csv", rows=300, seed=1)
    given = {"ledger": ledger, "base": tmp_path}
    found = retrain(current, "new.csv", tmp_path / "two", quiet, **given)
    provenance = read_bundle(tmp_path / "two").report("provenance")
    assert provenance.conditions["comparison_test"] == "sign_exact_two_sided"
    assert provenance.metrics["mae_after"].value == found.after
    assert found.only_before + found.only_after <= found.rows
    assert "mean absolute error" in found.line()


def test_monitoring_counts_the_number_by_its_range(tmp_path: Path) -> None:
    bundle = read_bundle(trained(tmp_path, written(tmp_path)))
    names = {item.name: item for item in layout_of(bundle.manifest).histograms}
    assert (names["answer/value"].low, names["answer/value"].high) == (100, 1000)
    home = tmp_path / "home"
    made = ("reference", tmp_path / "out", "--config", tmp_path / "c.toml")
    assert security_code(home, *map(str, made), "--epsilon", "0.5") == 0
    assert read_bundle(tmp_path / "out").report("reference").conditions["ledger"]


# What is written down, and what is refused.


def test_the_task_of_a_classifier_is_written_as_before() -> None:
    config = parse_config(CONFIG.encode())
    assert parse_object(config.to_object(), where="it").to_object() == (
        config.to_object()
    )
    assert config.to_object()["data"]["task"] == "regression"
    text = CONFIG.replace('task = "regression"\n', "").replace(
        'target = { low = 100, high = 1000, scale = "log" }', 'classes = ["a", "b"]'
    )
    assert "task" not in parse_config(text.encode()).to_object()["data"]


TARGET = 'target = { low = 100, high = 1000, scale = "log" }'
REFUSED = {
    "low above high": ((TARGET, "target = { low = 5, high = 5 }"), "below high"),
    "log of 0": ((TARGET, TARGET.replace("100,", "0,")), "a low above 0"),
    "root of less": (
        (TARGET, 'target = { low = -1, high = 9, scale = "sqrt" }'),
        "a low that is not negative",
    ),
    "misspelt scale": (
        (TARGET, TARGET.replace('"log"', '"lgo"')),
        "did you mean 'log'",
    ),
    "a hair's breadth": (
        (TARGET, "target = { low = 1e6, high = 1000000.5 }"),
        "single precision",
    ),
    "too wide": ((TARGET, TARGET.replace("1000,", "1e30,")), "times low"),
    "no target": ((TARGET, ""), "needs its public low and high"),
    "no end": ((TARGET, "target = { low = 1 }"), "data.target: missing high"),
    "classes": ((TARGET, TARGET + '\nclasses = ["a", "b"]'), "has none"),
    "aliases": ((TARGET, TARGET + '\naliases = { a = "b" }'), "regression has none"),
    "target of classes": (
        ('task = "regression"', 'task = "classification"\nclasses = ["a", "b"]'),
        "is for task = 'regression'",
    ),
    "misspelt task": (('"regression"', '"regresion"'), "did you mean 'regression'"),
    "trades": (
        ("[optimizer]", '[adversarial]\nmethod = "trades"\nradius = 0.1\n[optimizer]'),
        "a number takes pgd",
    ),
    "epsilon": (("epsilon = 3.0", "epsilon = 1e-9"), "no noise reaches"),
}
BAD_ROWS = {
    "text": (",450", ",dear", "is not a number"),
    "nan": (",450", ",nan", "is not a number"),
    "empty": (",450", ",", "is not a number"),
    "infinite": (",450", ",inf", "is infinite"),
}


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the one line of `train` says; nothing is written."""
    before = {path.name for path in folder.iterdir()}
    code = security_code(
        folder / "home", "train", str(folder / "c.toml"), "--out", str(folder / "out")
    )
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert {path.name for path in folder.iterdir()} - before <= {"home"}
    return str(line)


@pytest.mark.parametrize("fault", REFUSED)
def test_configurations_that_make_no_sense(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = REFUSED[fault]
    written(tmp_path, change)
    assert message in refused(tmp_path, capsys)


@pytest.mark.parametrize("fault", BAD_ROWS)
def test_targets_that_are_none(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, cell, message = BAD_ROWS[fault]
    written(tmp_path)
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    lines[5] = lines[5].rpartition(",")[0] + cell
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    said = refused(tmp_path, capsys)
    assert message in said
    assert "'price', line 6" in said


@pytest.mark.parametrize("cost", ["500", "{row}5000"])
def test_a_target_that_never_varies(
    cost: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the same number everywhere, nor numbers that all clamp to one end."""
    written(tmp_path)
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    flat = [
        f"{line.rpartition(',')[0]},{cost.format(row=row + 1)}"
        for row, line in enumerate(lines[1:])
    ]
    (tmp_path / "rows.csv").write_text("\n".join([lines[0], *flat]) + "\n")
    said = refused(tmp_path, capsys)
    assert "every row has the same target, in its public range" in said


def test_check_finds_every_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, (TARGET, 'target = { low = 9, high = 1, scale = "lgo" }'))
    assert main(["check", str(path)]) == 2
    said = capsys.readouterr()
    assert "must be below high" in said.out + said.err
    assert "one of linear, sqrt, log" in said.out + said.err
