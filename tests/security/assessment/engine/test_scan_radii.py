"""Several radii, and radii per row, through the real `scan`, on an exact model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from security.commands import main
from tests.support.scanned import linear_onnx, save_npz

# Class 1 where the columns sum to more than 1.5: L-infinity distances are gaps / 3.
WEIGHTS = np.array([[0.0, 1.0]] * 3)
BIAS = [0.0, -1.5]
X = (0.25 + 0.5 * np.random.default_rng(4).random((60, 3))).astype(np.float32)
GAPS = X.astype(np.float64).sum(axis=1) - 1.5
Y = (GAPS > 0).astype(np.int64)
DISTANCES = np.abs(GAPS) / 3
RADII = (0.05, 0.02, 0.12)


@pytest.fixture
def scan(tmp_path, capsys):
    """Runs `scan`; gives the code, and the evasion result or what was printed."""
    model = tmp_path / "model.onnx"
    model.write_bytes(linear_onnx(WEIGHTS, BIAS))
    config = tmp_path / "data.toml"
    config.write_text("low = 0.0\nhigh = 1.0\n")

    def run(data, *more, out="out"):
        given = ["scan", str(model), "--data", str(data), "--data-config", str(config)]
        given += ["--out", str(tmp_path / out), "--jobs", "1", "--check", "evasion"]
        code = main([*given, *more])
        if code:
            return code, capsys.readouterr().err
        report = json.loads((tmp_path / out / "scan.json").read_text())
        (result,) = (r for r in report["results"] if r["check"] == "evasion")
        return code, result

    run.folder = tmp_path
    return run


def rows_of(result):
    return result["details"]["norms"]["linf"]["rows"]


def standing(result, radius):
    return sum(r["distance"] is None or r["distance"] > radius for r in rows_of(result))


def test_several_radii_in_one_run(scan):
    data = save_npz(scan.folder / "rows.npz", X, Y)
    _, result = scan(data, "--radius-linf", *map(str, RADII))
    metrics = result["metrics"]
    # Policies read the first; each is stated, exactly.
    assert metrics["radius"]["value"] == metrics["radius_linf"]["value"] == RADII[0]
    names = ["robust_accuracy_linf"] + [
        f"robust_accuracy_linf/{r:g}" for r in RADII[1:]
    ]
    for name, radius in zip(names, RADII):
        exact = (radius < DISTANCES).mean()
        assert metrics[name]["value"] == pytest.approx(exact), name
        assert metrics[name]["low"] < exact < metrics[name]["high"]
    assert metrics["robust_accuracy"] == metrics["robust_accuracy_linf"]
    # One distance per row: what breaks within a radius is broken within each larger.
    left = [standing(result, radius) for radius in sorted(RADII)]
    assert left == sorted(left, reverse=True)
    radii = [p["radius"] for p in result["details"]["norms"]["linf"]["curve"]]
    assert {*RADII} < {*radii}


def test_a_distance_does_not_grow_with_the_radii_that_are_asked_for(scan):
    data = save_npz(scan.folder / "rows.npz", X, Y)
    _, few = scan(data, "--radius-linf", "0.02", out="few")
    _, more = scan(data, "--radius-linf", "0.02", "0.05", "0.12", out="more")
    for one, other in zip(rows_of(few), rows_of(more)):
        if one["distance"] is not None and one["distance"] <= 0.02:
            assert other["distance"] <= one["distance"] * 1.01


def test_each_radius_is_in_every_report(scan):
    data = save_npz(scan.folder / "rows.npz", X, Y)
    scan(data, "--radius-linf", "0.05", "0.12")
    out = scan.folder / "out"
    found = json.loads((out / "scan.sarif").read_text())["runs"][0]["results"]
    broken = [r for r in found if r["ruleId"] in ("evasion-broken", "evasion-weak")]
    texts = [r["message"]["text"] for r in broken if "linf" in r["message"]["text"]]
    assert any("within linf 0.05;" in text for text in texts)
    assert any("within linf 0.12;" in text for text in texts)
    prints = [json.dumps(r["partialFingerprints"]) for r in broken]
    assert len({*prints}) == len(prints)
    page = (out / "scan.html").read_text()
    assert "0.05" in page
    assert "0.12" in page
    assert "0.12" in (out / "scan.junit.xml").read_text()


def test_two_scans_of_several_radii_are_compared(scan, capsys):
    data = save_npz(scan.folder / "rows.npz", X, Y)
    scan(data, "--radius-linf", "0.05", "0.12", out="before")
    moved = save_npz(scan.folder / "moved.npz", X, Y)
    scan(moved, "--radius-linf", "0.05", "0.12", "--seed", "1", out="after")
    files = [str(scan.folder / name / "scan.json") for name in ("before", "after")]
    capsys.readouterr()
    assert main(["compare", *files, "--all"]) == 0
    assert "robust_accuracy_linf/0.12" in capsys.readouterr().out


def table(path, radii, *, name="eps"):
    lines = [f"a,b,c,{name},label"]
    lines += [
        f"{','.join(repr(float(v)) for v in row)},{radius},{label}"
        for row, radius, label in zip(X, radii, Y)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_radii_of_rows(scan, kind):
    own = np.where(np.arange(len(X)) % 2, DISTANCES * 0.98, DISTANCES * 1.02)
    if kind == "csv":
        data = table(scan.folder / "rows.csv", own)
    else:
        data = scan.folder / "rows.npz"
        np.savez(data, x=X, y=Y, eps=own)
    _, result = scan(data, "--radius-linf", "eps")
    for place, row in enumerate(rows_of(result)):
        assert row["radius"] == pytest.approx(own[place])
        assert (row["distance"] <= row["radius"]) == (place % 2 == 0), place
    assert result["metrics"]["robust_accuracy"]["value"] == pytest.approx(0.5)
    # What is claimed of every row is the smallest.
    assert result["metrics"]["radius"]["value"] == pytest.approx(own.min())
    assert result["conditions"]["radius"] == "column eps"


@pytest.mark.parametrize(
    ("radii", "message"),
    [
        (("0.1", "eps"), "numbers, or the name of one column"),
        (("nothing",), "there is no column 'nothing'"),
        (("0.1", "0.1"), "each once"),
        (tuple(f"0.{i}" for i in range(11, 20)), "up to 8 radii"),
        (("0.1", "-2"), "--radius-linf must be positive"),
        (("zero",), "a radius is positive"),
    ],
)
def test_radii_that_are_none(scan, radii, message):
    data = table(scan.folder / "rows.csv", np.zeros(len(X)), name="zero")
    code, printed = scan(data, "--radius-linf", *radii)
    assert code == 2
    assert message in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("count", [1, 5])
def test_few_rows_are_enough_for_evasion_alone(scan, count):
    data = save_npz(scan.folder / "rows.npz", X[:count], Y[:count])
    _, result = scan(data, "--radius-linf", "0.12")
    assert len(rows_of(result)) == count
    for row, exact in zip(rows_of(result), DISTANCES):
        broken = row["distance"] is not None and row["distance"] <= 0.12
        assert broken == (exact <= 0.12)
    code, printed = scan(data, "--check", "quality")
    assert code == 2
    assert "but for --check evasion alone" in printed
