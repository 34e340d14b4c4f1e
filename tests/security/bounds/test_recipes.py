"""Every recipe of examples, trained for a few steps: what is proved stands attacks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from models.bundle import Bundle, read_bundle
from models.data.held_out import Holdout, holdout_of
from models.export import IMAGES, exported, recorded
from models.sessions import make_session
from security.assessment.checks.evasion.certified import prover_of
from security.assessment.engine.run import ScanRequest, run_scan
from security.assessment.plan.context import prepare
from security.assessment.plan.options import Options
from security.assessment.plan.source import TargetSource
from security.assessment.results.result import CheckResult
from security.assessment.targets.dataconfig import DataConfig
from security.errors import UnboundedModel
from security.training.config import load_config
from security.training.config_sections import BoostingConfig, TrainingConfig
from security.training.data import load_split
from security.training.ledger import Ledger
from security.training.network import build_classifier
from security.training.noise import SeededRandomness
from security.training.run import train_bundle
from tests.support.servers import ROOT

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

# Where each recipe's rows are; those of scikit-learn come with it.
CLASSES = {
    "adult": "adult",
    "breast_cancer": None,
    "breast_cancer_tuned": None,
    "credit_default": "credit-default",
    "digits": None,
}
NUMBERS = {"bike_sharing": "bike-sharing", "bike_sharing_mlp": "bike-sharing"}
UNBOUNDED = {
    "adult_ebm": ("adult", "has no bound"),
    "credit_ebm": ("credit-default", "has no bound"),
}
SCATTERED = "fashion_mnist"
RADII = (0.02, 0.1)
TRAINED, HELD, STEPS, ROUNDS = 3000, 60, 10, 20
POINTS = 200


@dataclass(frozen=True)
class Recipe:
    """A bundle that a recipe made, and some of its held-out rows."""

    bundle: Bundle
    held: Holdout

    @property
    def source(self) -> TargetSource:
        return TargetSource.of(self.bundle)

    def evasion(self) -> CheckResult:
        """What a scan says of it."""
        options = Options(checks=("evasion",), norms=("linf",), radius_linf=RADII)
        report = run_scan(ScanRequest(self.source, self.held, options)).report
        (found,) = (item for item in report.results if item.name == "evasion")
        return found


def shortened(config: TrainingConfig, rows: int) -> TrainingConfig:
    """Few steps; more epsilon, since few rows drown in the noise of many."""
    privacy = replace(config.privacy, epsilon=8.0)
    if config.additive:
        boosting = config.boosting or BoostingConfig()
        boosting = replace(boosting, rounds=ROUNDS, learning_rate=1.0)
        return replace(config, privacy=privacy, boosting=boosting)
    batch = max(1, int(privacy.sampling_rate * rows))
    privacy = replace(privacy, steps=STEPS, expected_batch=batch)
    # Steps for many rows would leave weights whose answers single precision blurs.
    slow = replace(config.optimizer, learning_rate=1.0)
    return replace(config, privacy=privacy, optimizer=slow)


@pytest.fixture
def recipe(request, tmp_path, shared_data, monkeypatch) -> Recipe:
    """Trained as `train` does, on the first of its rows."""
    name, folder = request.param
    config = load_config(ROOT / "examples" / f"{name}.toml")
    if folder is not None and not (shared_data / folder).is_dir():
        pytest.skip(f"no ../shared/data/{folder}")
    monkeypatch.setenv("BIKE_SHARING", str(shared_data / "bike-sharing"))
    if folder is not None and not config.data.source.startswith("python:"):
        config = replace(config, _base=shared_data / folder)
    train, held = load_split(config)
    train = train.take(np.arange(min(len(train), TRAINED)))
    held = held.take(np.arange(HELD))
    out = train_bundle(
        shortened(config, len(train)),
        tmp_path / "bundle",
        lambda *_: None,
        ledger=Ledger(tmp_path / "ledger"),
        randomness=SeededRandomness(7),
        rows=(train, held),
    )
    return Recipe(read_bundle(out), holdout_of(held))


def inside(rng, low, high):
    """Points of a box in single precision, corners among them; NaN stays NaN."""
    share = rng.random((POINTS, *low.shape))
    share[: POINTS // 2] = np.round(share[: POINTS // 2])
    made = (low + share * (high - low)).astype(np.float32)
    up, down = (
        np.nextafter(made, np.float32(np.inf)),
        np.nextafter(made, np.float32(-np.inf)),
    )
    return np.where(made < low, up, np.where(made > high, down, made))


def answered(recipe, points, output):
    """What the file answers, in one column, a row for each point."""
    session = make_session(recipe.bundle.model)
    shaped = points.reshape(-1, *recipe.held.features.shape[1:])
    (found,) = session.run([output], {session.get_inputs()[0].name: shaped})
    return found.reshape(-1)


@pytest.mark.parametrize("recipe", CLASSES.items(), ids=CLASSES, indirect=True)
def test_what_is_proved_of_a_class_stands(recipe) -> None:
    job, _ = prepare(recipe.source, recipe.held, Options(), DataConfig())
    prover, places = prover_of(job), np.arange(HELD)
    proved = prover.proved(places, RADII)
    rng, names = np.random.default_rng(0), recipe.held.classes
    for column, radius in enumerate(RADII):
        ends = prover.ball(places, radius)
        for place in np.flatnonzero(proved[:, column]):
            low, high = (end[place].reshape(-1) for end in ends)
            found = answered(recipe, inside(rng, low, high), "label")
            assert (found == job.labels[place]).all(), (names, place, radius)
    scanned = recipe.evasion()
    checks = {item.id: item for item in scanned.checks}
    for name in ("linf-certified-unbroken", "linf-bounds-read-alike"):
        assert checks[name].passed, checks[name].message
    assert "certificate-contradicted" not in {f.rule for f in scanned.findings}
    for pair in scanned.public["certificate"]["by_radius"]:
        certified, attacked = pair["interval"]
        # Linear networks behind columns that rise: attacks reach what is not proved.
        assert attacked - 2 / HELD <= certified <= attacked
    assert scanned.metrics["verified_accuracy"].value >= 0.5


@pytest.mark.parametrize("recipe", NUMBERS.items(), ids=NUMBERS, indirect=True)
def test_no_number_moves_further_than_its_bound(recipe) -> None:
    job, _ = prepare(recipe.source, recipe.held, Options(), DataConfig())
    prover, places = prover_of(job), np.arange(HELD)
    most = prover.changes(places, RADII)
    (output,) = (item.spec.name for item in recipe.bundle.manifest.outputs)
    rng = np.random.default_rng(0)
    for bound, radius in zip(most, RADII, strict=True):
        ends = prover.ball(places, radius)
        for place in places:
            low, high = (end[place].reshape(-1) for end in ends)
            found = answered(recipe, inside(rng, low, high), output)
            moved = np.abs(found.astype(np.float64) - job.clean.numbers[place])
            assert moved.max() <= bound[place], (place, radius)
    scanned = recipe.evasion()
    checks = {item.id: item for item in scanned.checks}
    for name in ("linf-change-within-bounds", "linf-bounds-read-alike"):
        assert checks[name].passed, checks[name].message
    reached, bound = scanned.public["certificate"]["by_radius"][0]["interval"]
    assert 0 < reached <= bound <= 1.05 * reached


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [((name, folder), reason) for name, (folder, reason) in UNBOUNDED.items()],
    ids=UNBOUNDED,
    indirect=["recipe"],
)
def test_what_has_no_bound_says_so(recipe, reason) -> None:
    scanned = recipe.evasion()
    assert scanned.status == "done", scanned.reason
    (note,) = (f for f in scanned.findings if f.rule == "no-certificate")
    assert reason in note.message
    assert scanned.conditions["certificate"] == "none"
    assert not [name for name in scanned.metrics if name.startswith("verified")]


def test_a_transform_of_images_has_no_bound(shared_data, monkeypatch) -> None:
    """Its graph alone, before it learns: what has no bound stands before the weights.

    To train on it takes minutes.
    """
    if not (shared_data / "fashion-mnist").is_dir():
        pytest.skip("no ../shared/data/fashion-mnist")
    monkeypatch.setenv("FASHION_MNIST", str(shared_data / "fashion-mnist"))
    config = load_config(ROOT / "examples" / f"{SCATTERED}.toml")
    train, held = load_split(config)
    network = build_classifier(config, train.take(np.arange(50)))
    model = exported(recorded(network, train.features.shape[1:]), IMAGES)
    source = TargetSource("onnx", "fashion", model)
    config = DataConfig(low=0.0, high=255.0)
    job, _ = prepare(source, holdout_of(held.take(np.arange(HELD))), Options(), config)
    with pytest.raises(UnboundedModel, match="operator Pad has no bound"):
        prover_of(job)


def test_no_recipe_is_left_out() -> None:
    present = {path.stem for path in (ROOT / "examples").glob("*.toml")}
    assert present == {*CLASSES, *NUMBERS, *UNBOUNDED, SCATTERED}
