"""Fixed features, and the recipes that use what training offers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.architectures import ImageClassifier, TabularClassifier
from models.data.datasets import ImageDataset
from models.export import IMAGES, exported, recorded, run_onnx
from models.features import FEATURE_MAPS, Scattering, feature_shape
from models.manifest import Column
from security.errors import TrainingError
from security.training import exporting
from security.training.config import load_config, parse_config
from security.training.data import load_split
from security.training.network import Network, build_classifier

torch.set_num_threads(1)
EXAMPLES = Path(__file__).parents[2] / "examples"


def images(count=3, size=28):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, size, size, generator=generator)


@pytest.mark.parametrize("size", [12, 13, 28])
def test_shape(size):
    made = Scattering()(images(2, size))
    assert tuple(made.shape[1:]) == feature_shape("scattering", (1, size, size))


def test_each_image_by_itself():
    given, scattering = images(), Scattering()
    whole = scattering(given)
    for index in range(3):
        alone = scattering(given[index : index + 1])
        torch.testing.assert_close(whole[index : index + 1], alone)


def test_nothing_is_learnt():
    assert not list(Scattering().parameters())


def test_wavelets_see_no_constant_and_all_angles():
    scattering = Scattering()
    for bank in (scattering.fine, scattering.coarse):
        assert float(bank.sum((1, 2, 3)).abs().max()) < 1e-5
    # Stripes excite the wavelet that runs across them most.
    stripes = torch.sin(torch.arange(28) * 3 * np.pi / 4).expand(1, 1, 28, 28)
    coefficients = torch.nn.functional.conv2d(stripes, scattering.fine)
    real, imaginary = coefficients.chunk(2, dim=1)
    energy = (real**2 + imaginary**2).mean((0, 2, 3))
    assert int(energy.argmax()) == 0
    turned = torch.nn.functional.conv2d(stripes.transpose(2, 3), scattering.fine)
    real, imaginary = turned.chunk(2, dim=1)
    assert int((real**2 + imaginary**2).mean((0, 2, 3)).argmax()) == 4


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("wavelets", (1, 28, 28), "no features 'wavelets'"),
        ("scattering", (3, 28, 28), "grey images"),
        ("scattering", (1, 8, 8), "at least 12 by 12"),
    ],
)
def test_refused(name, shape, message):
    with pytest.raises(ValueError, match=message):
        feature_shape(name, shape)


@pytest.mark.slow
def test_features_export_with_the_model():
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(81 * 9, 3))
    module = ImageClassifier(
        (0.0, 255.0),
        mean=0.0,
        std=1.0,
        body=body,
        features=FEATURE_MAPS["scattering"](),
    )
    pixels = (images(5, 12) * 255).numpy()
    model = exported(recorded(module, (1, 12, 12)), IMAGES)
    probabilities, _ = run_onnx(model, pixels)
    with torch.no_grad():
        wanted, _ = module.eval()(torch.as_tensor(pixels))
    np.testing.assert_allclose(probabilities, wanted.numpy(), atol=1e-5)


def test_centre():
    columns = [Column("a", 0.0, 10.0)]
    module = TabularClassifier(columns, torch.nn.Linear(1, 2), centre=0.3)
    given = torch.tensor([[3.0], [0.0], [10.0], [float("nan")]])
    wanted = torch.tensor([[0.0], [-0.6], [1.4], [0.0]])
    torch.testing.assert_close(module.network_input(given), wanted)


@pytest.mark.parametrize("key", ["features = 'scatering'", "centre = 1.5"])
def test_configuration_refused(key):
    text = (EXAMPLES / "digits.toml").read_text()
    text = text.replace('architecture = "linear"', f'architecture = "linear"\n{key}')
    with pytest.raises(TrainingError, match=f"model.{key.split()[0]}"):
        parse_config(text.encode())


@pytest.mark.parametrize("file", ["digits.toml", "breast_cancer_tuned.toml"])
def test_recipes_load_what_they_name(file):
    config = load_config(EXAMPLES / file)
    train, holdout = load_split(config)
    module = build_classifier(config, train)
    inputs = module.network_input(torch.as_tensor(holdout.features[:20]).float())
    assert torch.isfinite(inputs).all()
    assert float(inputs.abs().max()) < 2


def test_adult_recipe_reads_the_official_files(shared_data):
    config = load_config(EXAMPLES / "adult.toml")
    train, holdout = load_split(replace(config, _base=shared_data / "adult"))
    assert len(holdout) == 16281
    # Without the rows that the test file holds too. The census weight is dropped, so
    # that people are compared by what the model reads of them.
    assert len(train) == 28_250
    assert train.classes == ("<=50K", ">50K")


def test_fashion_recipe(shared_data, monkeypatch):
    monkeypatch.setenv("FASHION_MNIST", str(shared_data / "fashion-mnist"))
    config = load_config(EXAMPLES / "fashion_mnist.toml")
    assert "FASHION_MNIST" in os.environ
    train, holdout = load_split(config)
    assert len(holdout) == 10_000
    module = build_classifier(config, train)
    inputs = module.network_input(torch.as_tensor(train.features[:4]).float())
    assert tuple(inputs.shape) == (4, 81, 7, 7)


def test_the_tolerance_is_wider_for_fixed_features_alone():
    shown = images(4, 12).numpy() * 255
    held = ImageDataset(
        "m", shown, np.zeros(4, np.int64), (0, 255), 0, 1, ("a", "b"), False
    )
    for features, width, most in ((Scattering(), 81 * 9, 1e-3), (None, 144, 1e-5)):
        body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(width, 2))
        module = ImageClassifier((0, 255), mean=0, std=1, body=body, features=features)
        network = Network(module, recorded(module, (1, 12, 12)), rules=None, seed=0)
        compared = exporting.export(network, held)
        assert compared.most == most
        assert compared.worst.max_abs_difference <= most
