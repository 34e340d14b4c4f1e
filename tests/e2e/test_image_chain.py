"""A tiny model of images through the whole chain: train, assess, sign, admit, card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundle import read_bundle
from models.data.datasets import ImageDataset
from security.assessment.engine.assess import AssessRequest, assess_bundle
from security.assessment.plan.options import PROFILES
from security.errors import AssessmentError
from security.training.config import load_config
from security.training.data import load_split
from tests.support.chains import Chain, policy

CONFIG = """
[model]
name = "halves"
version = "1.0.0"
architecture = "cnn"
hidden = [4]
[data]
name = "halves"
source = "images.npz"
split_key = "k"
holdout = 0.3
classes = ["left", "right"]
[data.image]
shape = [6, 6]
low = 0
high = 255
[privacy]
epsilon = 8.0
sampling_rate = 1.0
steps = 20
max_grad_norm = 1.0
expected_batch = 200
[optimizer]
learning_rate = 2.0
"""
POLICY = policy(
    privacy=("metrics.epsilon = { max = 8.0 }",),
    structure=(),
    quality=(),
    robustness=("metrics.robust_accuracy = { min = 0.5, min_n = 60 }",),
    membership=(),
)
KINDS = {"structure", "quality", "robustness", "membership"}


def write_images(path: Path) -> None:
    """Noise, with one half brighter."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 300)
    images = generator.integers(0, 120, (300, 6, 6))
    for image, label in zip(images, labels):
        image[:, 3 * label : 3 * label + 3] += 130
    names = np.array(["left", "right"])[labels]
    np.savez(path, images=images.astype(np.uint8), label=names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration, the images, and what was trained on them."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "images.npz")
    (folder / "c.toml").write_text(CONFIG)
    (folder / "policy.toml").write_text(POLICY)
    chain = Chain(folder / "home", folder / "policy.toml")
    assert chain.command("train", folder / "c.toml", "--out", folder / "out") == 0
    return folder


@pytest.mark.slow
def test_images_through_the_chain(folder: Path) -> None:
    chain, out = Chain(folder / "home", folder / "policy.toml"), folder / "out"
    # 1 where a check in a report failed, which the policy then decides about.
    assert chain.command("assess", out, "--config", folder / "c.toml") in (0, 1)
    bundle = read_bundle(folder / "out")
    reports = {kind: bundle.report(kind) for kind in KINDS}
    assert all(report.subject == bundle.subject for report in reports.values())
    assert reports["quality"].metrics["accuracy"].value > 0.9
    assert reports["membership"].metrics["auc"].value < 0.7
    robust = reports["robustness"].metrics
    assert robust["robust_accuracy"].value <= robust["clean_accuracy"].value
    passed = {check.id: check.passed for check in reports["robustness"].checks}
    assert passed["linf-proposals-finite"]
    assert reports["robustness"].conditions["ranges"] == "manifest"
    chain.admit(out, "trainer", "assessor")
    assert chain.command("documents", out) == 0
    assert "halves" in (folder / "out" / "MODEL_CARD.md").read_text()


HARDENED = """
[adversarial]
method = "pgd"
radius = 0.02
steps = 2
certified = true
"""


@pytest.mark.slow
def test_a_convolution_trained_for_certificates_is_admitted_with_them(
    folder: Path, tmp_path: Path
) -> None:
    """The setting stands in the evidence, and most rows can be proved."""
    write_images(tmp_path / "images.npz")
    text = CONFIG.replace('"cnn"', '"plain-cnn"') + HARDENED
    (tmp_path / "c.toml").write_text(text)
    chain, out = Chain(tmp_path / "home", folder / "policy.toml"), tmp_path / "out"
    assert chain.command("train", tmp_path / "c.toml", "--out", out) == 0
    assert chain.command("assess", out, "--config", tmp_path / "c.toml") in (0, 1)
    bundle = read_bundle(out)
    stated = bundle.report("provenance").details["config"]["adversarial"]
    assert (stated["certified"], stated["certified_weight"]) == (True, 0.5)
    robust = bundle.report("robustness").metrics
    proved, attacked = (
        robust[f"{kind}_accuracy_linf"].value for kind in ("verified", "robust")
    )
    assert 0.7 < proved <= attacked
    chain.admit(out, "trainer", "assessor")


def test_a_network_without_bounds_spends_nothing(folder: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images.npz")
    (tmp_path / "c.toml").write_text(CONFIG + HARDENED)
    chain, out = Chain(tmp_path / "home", folder / "policy.toml"), tmp_path / "out"
    assert chain.command("train", tmp_path / "c.toml", "--out", out) == 2
    assert not out.exists()


def test_images_of_another_shape_are_refused(folder: Path) -> None:
    train, holdout = load_split(load_config(folder / "c.toml"))
    assert isinstance(holdout, ImageDataset)
    other = ImageDataset(**{**vars(holdout), "bounds": (0.0, 254.0)})
    with pytest.raises(AssessmentError, match="image shape and pixel range"):
        assess_bundle(AssessRequest(folder / "out", other, train))


def test_some_images_are_attacked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, holdout = load_split(load_config(folder / "c.toml"))
    few = replace(PROFILES["assess"], attacked_images=40, iterations=5)
    monkeypatch.setitem(PROFILES, "assess", few)
    made = assess_bundle(AssessRequest(folder / "out", holdout, train))
    found = {report.kind: report for report in made.reports}
    assert found["robustness"].metrics["robust_accuracy"].n == 40
    assert found["quality"].metrics["accuracy"].n == len(holdout) > 40
