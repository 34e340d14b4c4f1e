"""What `train` cannot take: one clear line, exit 2, nothing written, nothing spent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from security.commands import main
from security.training.ledger import Ledger
from tests.support.small_training import CONFIG, write_config, write_rows

# What is changed in the configuration or in the rows, and what the line says.
CONFIGURATION = {
    "misspelt key": (("max_grad_norm", "max_grad_nrom"), "did you mean 'max_grad_norm"),
    "misspelt section": (("[optimizer]", "[optimiser]"), "did you mean 'optimizer'"),
    "misspelt value": (
        ("learning_rate = 1.0", 'learning_rate = 1.0\nkind = "sdg"'),
        "one of sgd, adam",
    ),
    "sampling rate": (("sampling_rate = 1.0", "sampling_rate = 1.5"), "at most 1"),
    "delta": (("delta = 1e-3", "delta = 0.1"), "not below 1/n"),
    "delta of exactly 1/n": (("delta = 1e-3", "delta = DELTA"), "not below 1/n"),
    "no such column": (('name = "age"', 'name = "aeg"'), "did you mean"),
    "no role": (('label = "bought"', 'label = "job"'), "two roles|is no declared"),
    "over the cap": (("epsilon = 2.0", "epsilon = 20.0"), "of 10 is taken"),
    "no file": (("rows.csv", "rows.cvs"), "not a .csv|No such file"),
    "a directory": (('"rows.csv"', '".."'), "not a .csv"),
    "epsilon": (("epsilon = 2.0", "epsilon = -2.0"), "must be above 0"),
    "unreachable": (
        ("epsilon = 2.0", "epsilon = 1e-9"),
        "no noise reaches|no finite epsilon",
    ),
    "clipping norm": (("max_grad_norm = 1.0", "max_grad_norm = 0.0"), "positive"),
}
ROWS = {
    "missing column": ("age,job,bought", "age,jbo,bought", "no column 'job'"),
    "unknown category": ("nurse", "pilot", "'pilot' is no declared category"),
    "label": (",yes", ",perhaps", "'perhaps' is no declared class"),
    "not a number": ("\n", "\nold,nurse,no\n", "'old' is not a number"),
    "nan": ("\n", "\nnan,nurse,no\n", "'nan' is not a number"),
    "infinite": ("\n", "\n-inf,nurse,no\n", "'-inf' is infinite"),
    "torn": ("\n", "\n50,nurse\n", "2 cells, not 3"),
}


def run(folder: Path, capsys, monkeypatch, message: str) -> None:
    monkeypatch.setenv("SEALGATE_HOME", str(folder / "home"))
    before = {path.name for path in folder.iterdir()}
    code = main(["train", str(folder / "c.toml"), "--out", str(folder / "out")])
    said = capsys.readouterr()
    assert code == 2
    lines = said.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 400
    assert any(part in lines[0] for part in message.split("|")), lines[0]
    left = {path.name for path in folder.iterdir()} - before
    assert left <= {"home"}
    assert all(not account.entries for account in Ledger(folder / "home" / "ledger")
               .accounts())  # fmt: skip


@pytest.mark.parametrize("fault", CONFIGURATION)
def test_configuration(tmp_path, capsys, monkeypatch, fault):
    (before, after), message = CONFIGURATION[fault]
    path = write_config(tmp_path)
    text = path.read_text()
    assert before in text
    # 186 of the 240 rows are on this side of the split.
    path.write_text(text.replace(before, after.replace("DELTA", f"{1 / 186!r}"), 1))
    run(tmp_path, capsys, monkeypatch, message)


@pytest.mark.parametrize("fault", ROWS)
def test_rows(tmp_path, capsys, monkeypatch, fault):
    before, after, message = ROWS[fault]
    write_config(tmp_path)
    path = tmp_path / "rows.csv"
    text = path.read_text().replace("\r\n", "\n")
    assert before in text
    path.write_text(text.replace(before, after, 1))
    run(tmp_path, capsys, monkeypatch, message)


def whole(folder: Path, data: bytes, name: str = "rows.csv") -> None:
    text = CONFIG.replace("rows.csv", name)
    write_config(folder, text)
    (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"age,job,bought\n", "no rows"),
        (b"age,job,bought\n" + b"30,nurse,no\n30,baker,yes\n" * 9, "is constant"),
        (b"age,job,bought\n30,nurse,no\n31,b\xe4cker,yes\n", "not utf-8"),
        (b"\xff\xfea\x00g\x00e\x00", "not utf-8"),
        (b",".join([b"a"] * 1_000_000) + b"\n", "1000000 columns"),
        (
            b"age,job,bought\n30,nurse,no\n" + b"9" * 400 + b",nurse,yes\n",
            "is infinite",
        ),
    ],
)
def test_files(tmp_path, capsys, monkeypatch, data, message):
    whole(tmp_path, data)
    run(tmp_path, capsys, monkeypatch, message)


def test_duplicate_identifiers(tmp_path, capsys, monkeypatch):
    write_rows(tmp_path / "rows.csv", rows=60, units=20)
    text = CONFIG.replace('label = "bought"', 'label = "bought"\nidentifier = "person"')
    write_config(tmp_path, text)
    run(tmp_path, capsys, monkeypatch, "is also that of line")


def test_wrong_types(tmp_path, capsys, monkeypatch):
    write_config(tmp_path, CONFIG.replace("rows.csv", "rows.npz"))
    np.savez(
        tmp_path / "rows.npz",
        age=np.array([1j, 2j]),
        job=np.array(["nurse", "baker"]),
        bought=np.array(["no", "yes"]),
    )
    run(tmp_path, capsys, monkeypatch, "age")


def test_groups_without_a_bound(tmp_path, capsys, monkeypatch):
    write_rows(tmp_path / "rows.csv", rows=60, units=20)
    text = CONFIG.replace('label = "bought"', 'label = "bought"\nunit = "person"')
    text = text.replace("steps = 12", 'steps = 12\nunit_bound = "group"')
    write_config(tmp_path, text)
    run(tmp_path, capsys, monkeypatch, "needs data.max_rows_per_unit")


def test_a_network_whose_gradient_is_not_finite(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path / "home"))
    (tmp_path / "odd_network.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self, width, classes):\n"
        "        super().__init__()\n"
        "        self.inner = torch.nn.Linear(width, classes)\n"
        "    def forward(self, rows):\n"
        "        return self.inner(rows * 3e38 * 10)\n"
        "def make(spec):\n"
        "    return Odd(spec.inputs[0], spec.classes)\n"
    )
    text = CONFIG.replace(
        'version = "1.0.0"',
        'version = "1.0.0"\narchitecture = "module"\nmodule = "odd_network:make"',
    )
    path = write_config(tmp_path, text)
    assert main(["train", str(path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "finite" in line or "cannot be trained privately" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rows", [6])
def test_tiny_sets_are_trained_or_refused(tmp_path, capsys, monkeypatch, rows):
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path / "home"))
    write_rows(tmp_path / "rows.csv", rows=rows, seed=1)
    path = write_config(tmp_path, steps="2")
    code = main(["train", str(path), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err.splitlines()
    assert (code, len(said)) in {(0, 0), (2, 1)}
    assert (tmp_path / "out").exists() == (code == 0)
