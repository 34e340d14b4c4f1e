"""The UCI Adult census, a few of its rows, from the file to an answer of the server."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from models.bundle import read_bundle
from sealgate import Client
from tests.support.chains import Chain, policy
from tests.support.servers import ROOT, serve

TRAIN_ROWS, TEST_ROWS = 800, 200
NAME = "adult-income"
POLICY = policy(
    provenance=(),
    privacy=(
        'conditions.accountant = "prv"',
        'conditions.noise_generator = "os_urandom"',
        "metrics.epsilon = { max = 3.0 }",
    ),
    parity=(),
    structure=(),
    quality=("metrics.accuracy = { min = 0.65, min_n = 150 }",),
)


def shorten(source: Path, to: Path, rows: int) -> None:
    """The first rows of a file that may begin with a comment."""
    with gzip.open(source, "rt") as file, gzip.open(to, "wt") as short:
        kept = [line for line in file if line.strip() and not line.startswith("|")]
        short.writelines(kept[:rows])


def write_config(folder: Path) -> Path:
    text = (ROOT / "examples" / "adult.toml").read_text()
    for before, after in (
        ("steps = 200", "steps = 15"),
        ("expected_batch = 32000", f"expected_batch = {TRAIN_ROWS}"),
        ("max_grad_norm = 4.0", "max_grad_norm = 1.0"),
    ):
        assert before in text
        text = text.replace(before, after)
    path = folder / "adult.toml"
    path.write_text(text)
    return path


@pytest.mark.slow
def test_adult_from_the_file_to_an_answer(tmp_path: Path, shared_data: Path) -> None:
    adult = shared_data / "adult"
    if not (adult / "adult.data.gz").exists():
        pytest.skip("../shared/data/adult is not on this machine")
    shorten(adult / "adult.data.gz", tmp_path / "adult.data.gz", TRAIN_ROWS)
    shorten(adult / "adult.test.gz", tmp_path / "adult.test.gz", TEST_ROWS)
    config, out = write_config(tmp_path), tmp_path / "out"
    (tmp_path / "policy.toml").write_text(POLICY)
    chain = Chain(tmp_path / "home", tmp_path / "policy.toml")
    assert chain.command("train", config, "--out", out) == 0
    # 1 where a check in a report failed, which the policy then decides about.
    assert chain.command("assess", out, "--config", config) in (0, 1)
    chain.admit(out, "trainer", "assessor")
    bundle = read_bundle(out)
    columns = bundle.manifest.inputs[0].columns
    assert bundle.report("quality").metrics["accuracy"].n == TEST_ROWS
    with (
        serve(str(out), chain.home, extra=chain.settings, own=()),
        Client.from_profile(chain.home / "profile.json") as client,
    ):
        row = np.array([[column.low for column in columns]], dtype=np.float32)
        answer = client.infer(NAME, {"features": row})
    assert answer["probabilities"].shape == (1, 2)
    assert answer["probabilities"].sum() == pytest.approx(1.0, abs=1e-5)
