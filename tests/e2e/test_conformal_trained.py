"""Intervals and sets of what was trained here: on the rows that it held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.bundle import read_bundle
from models.conformal import Conformal
from models.sessions import make_session
from tests.support.chains import Chain
from tests.support.servers import ROOT
from tests.support.small_regression import CONFIG, write_prices

PROFILE = ROOT / "deploy/policies/private-regression.toml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prices")
    write_prices(folder / "rows.csv", rows=1600)
    text = CONFIG.replace("delta = 1e-3", "delta = 1e-4").replace("= 700", "= 1100")
    (folder / "c.toml").write_text(text)
    chain = Chain(folder / "home", PROFILE)
    assert chain.command("train", folder / "c.toml", "--out", folder / "prices") == 0
    return folder


def own(folder: Path) -> Conformal | None:
    return read_bundle(folder / "prices").manifest.conformal


def test_intervals_of_a_number_that_was_learnt_privately(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, bundle = Chain(folder / "home", PROFILE), folder / "prices"
    given = bundle, "--config", folder / "c.toml"
    before = (bundle / "manifest.json").read_bytes()
    assert chain.command("calibrate", *given) == 2
    assert "the held-out rows are personal" in capsys.readouterr().err
    assert chain.command("calibrate", *given, "--range", "0", "9", "--epsilon", "4") > 0
    assert "the manifest says 100 to 1000" in capsys.readouterr().err
    assert (bundle / "manifest.json").read_bytes() == before
    assert "epsilon 4" not in ledger(chain, capsys)
    private = "--scale", "log", "--epsilon", "4"
    assert chain.command("calibrate", *given, *private) == 0
    made = own(folder)
    assert made is not None
    assert (made.scale, made.epsilon, made.waiver) == ("log", 4.0, None)
    # In the account of the data that the model was trained on.
    assert ledger(chain, capsys).count("flats") == 1
    assert chain.command("assess", *given) == 0
    quality = read_bundle(bundle).report("quality")
    covered = quality.metrics["coverage"]
    # Five deviations of some 240 rows below what is stated; noise only widens.
    assert covered.value > 0.9 - 5 * (0.09 / (covered.n or 1)) ** 0.5
    assert quality.conditions["calibration_epsilon"] == 4.0
    chain.admit(bundle, "trainer", "assessor")
    session = make_session((bundle / "model.onnx").read_bytes())
    release = read_bundle(bundle).manifest.release
    rows = np.array([[3, 80, 0], [6, 150, 1]], np.float32)
    (name,) = release.sources(release.names)
    (number,) = session.run([name], {session.get_inputs()[0].name: rows})
    middle, low, high = release.answer(release.names, {name: number})
    assert ((low < middle) & (middle < high)).all()
    assert (low >= 100).all()
    assert (high <= 1000).all()


def ledger(chain: Chain, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert chain.command("ledger", "show") == 0
    return capsys.readouterr().out


def test_calibrated_again_it_is_booked_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After it was signed, too: then it is admitted no more."""
    chain, bundle = Chain(folder / "home", PROFILE), folder / "prices"
    first, told = own(folder), ledger(chain, capsys)
    given = bundle, "--config", folder / "c.toml", "--scale", "log"
    assert chain.command("calibrate", *given, "--epsilon", "4") == 0
    assert "assess and sign again" in capsys.readouterr().out
    again = own(folder)
    assert first is not None
    assert again is not None
    assert again.split_key != first.split_key
    assert ledger(chain, capsys) != told
    assert chain.command("verify", bundle, "--policy", PROFILE) == 1
