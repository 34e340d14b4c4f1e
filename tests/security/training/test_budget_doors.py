"""Ways past the ledger: killed trainings, old checkpoints, shared people, other names.

A killed process is one that ends at once, wherever it is, with nothing cleaned up.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from models.bundle import read_bundle
from models.errors import BundleError
from security.errors import LedgerError, TrainingError
from security.training.checkpoint import read_checkpoints
from security.training.config import load_config
from security.training.ledger import Account, Ledger
from security.training.noise import SystemRandomness
from security.training.overlap import MARKS, share, sketch
from security.training.retrain import retrain
from security.training.run import train_bundle
from tests.support.small_training import CONFIG, write_config, write_rows

KEPT_EVERY_5 = CONFIG + "[compute]\ncheckpoint_steps = 5\n"
KILLED = 9


def quiet(*_: object) -> None:
    """Progress that nobody watches."""


def only(ledger: Ledger) -> Account:
    (account,) = ledger.accounts()
    return account


class KilledAt:
    """The system's generator, until the process is gone in the middle of a step.

    A step asks for its batch, for noise, and for noise on the loss.
    """

    name = "os_urandom"

    def __init__(self, step: int) -> None:
        self._left = 3 * step - 1

    def uniform(self, count: int) -> np.ndarray:
        self._left -= 1
        if not self._left:
            os._exit(KILLED)
        return SystemRandomness().uniform(count)


def killed(folder: Path, step: int, *, going_on: bool) -> None:
    """Train in a process of its own, which is gone in the so-many-th step it takes."""

    def work() -> None:
        train_bundle(
            load_config(folder / "c.toml"),
            folder / "out",
            quiet,
            ledger=Ledger(folder / "l"),
            randomness=KilledAt(step),
            going_on=going_on,
        )

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(120)
    assert child.exitcode == KILLED


def test_killed_twice_and_resumed_is_paid_once(tmp_path: Path) -> None:
    write_config(tmp_path, KEPT_EVERY_5, steps="16")
    ledger, work = Ledger(tmp_path / "l"), tmp_path / ".out.training"
    killed(tmp_path, 7, going_on=False)
    # Kept after 5; the chunk of 6 to 10 was booked before its first step.
    assert (only(ledger).entries[0].state, only(ledger).entries[0].spent) == (
        "interrupted",
        10,
    )
    shutil.copytree(work, tmp_path / "after the first")
    killed(tmp_path, 3, going_on=True)
    # At most five of the six left are booked: one is for a crash in the last one.
    assert only(ledger).entries[0].spent == 15
    config = load_config(tmp_path / "c.toml")
    # An old checkpoint is put back: alone, it is not taken up again.
    shutil.move(work, tmp_path / "newest")
    shutil.move(tmp_path / "after the first", work)
    with pytest.raises(LedgerError, match="spend the budget twice"):
        train_bundle(config, tmp_path / "out", quiet, ledger=ledger, going_on=True)
    # Beside the newest one it is not chosen.
    for path in (tmp_path / "newest").iterdir():
        shutil.copy(path, work)
    train_bundle(config, tmp_path / "out", quiet, ledger=ledger, going_on=True)
    entry = only(ledger).entries[0]
    assert (entry.state, entry.spent) == ("finished", 16)
    privacy = read_bundle(tmp_path / "out").report("privacy")
    # Five steps before the first kill, and the one that was left: never more than 16.
    assert privacy.conditions["steps"] == 16
    assert privacy.conditions["steps_in_weights"] == 6


def test_killed_in_the_last_step_still_gives_what_was_kept(tmp_path: Path) -> None:
    write_config(tmp_path, KEPT_EVERY_5)
    ledger = Ledger(tmp_path / "l")
    killed(tmp_path, 12, going_on=False)
    assert only(ledger).entries[0].spent == 12
    config = load_config(tmp_path / "c.toml")
    train_bundle(config, tmp_path / "out", quiet, ledger=ledger, going_on=True)
    privacy = read_bundle(tmp_path / "out").report("privacy")
    assert privacy.conditions["steps"] == 12
    assert privacy.conditions["steps_in_weights"] == 11
    assert only(ledger).entries[0].state == "finished"


def test_nothing_is_released_of_a_training_that_kept_no_step(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG + "[compute]\ncheckpoint_steps = 12\n", steps="1")
    killed(tmp_path, 1, going_on=False)
    ledger, config = Ledger(tmp_path / "l"), load_config(tmp_path / "c.toml")
    with pytest.raises(TrainingError, match="nothing is left to take"):
        train_bundle(config, tmp_path / "out", quiet, ledger=ledger, going_on=True)
    assert only(ledger).entries[0].spent == 1


@pytest.mark.parametrize("personal", [True, False])
def test_an_export_that_fails_is_finished_later(tmp_path: Path, personal: bool) -> None:
    """What is in the way comes after the budget was spent."""
    declared = "" if personal else "personal = false\n"
    text = CONFIG.replace("[[data.columns]]", f"{declared}[[data.columns]]", 1)
    config = load_config(write_config(tmp_path, text))
    ledger, out = Ledger(tmp_path / "l"), tmp_path / "out"

    def in_the_way(stage: str, *_: object) -> None:
        if stage == "export":
            out.write_text("not a folder")

    with pytest.raises((BundleError, TrainingError)):
        train_bundle(config, out, in_the_way, ledger=ledger)
    (kept,) = read_checkpoints(tmp_path / ".out.training").values()
    assert kept.state.step == 12
    out.unlink()
    if personal:  # finishing asks for no budget, even where none is left
        assert only(ledger).entries[0].state == "finished"
        ledger.set_cap("persons", 0.5, None)
    train_bundle(config, out, quiet, ledger=ledger, going_on=True)
    privacy = read_bundle(out).report("privacy")
    assert privacy.conditions["steps_in_weights"] == 12
    assert privacy.conditions["ledger"] == ("booked" if personal else "not_booked")
    assert all(check.passed for check in privacy.checks)
    assert not (tmp_path / ".out.training").exists()
    if personal:
        assert only(ledger).entries[0].spent == 12
    else:
        assert ledger.accounts() == []


def test_a_checkpoint_is_bound_to_what_training_does_not_change(tmp_path: Path) -> None:
    """Other buffers than those that training began with would be released."""
    text = CONFIG.replace(
        'version = "1.0.0"',
        'version = "1.0.0"\narchitecture = "module"\nmodule = "bound_network:make"\n'
        'initial_weights = "public"',
    )
    source = tmp_path / "bound_network.py"
    source.write_text(
        "import json, pathlib, torch\n"
        "class Own(torch.nn.Module):\n"
        "    def __init__(self, spec):\n"
        "        super().__init__()\n"
        "        self.inner = torch.nn.Linear(spec.inputs[0], spec.classes)\n"
        "        self.inner.requires_grad_(True)\n"
        "        torch.nn.init.zeros_(self.inner.weight)\n"
        "        torch.nn.init.zeros_(self.inner.bias)\n"
        "        at = pathlib.Path(__file__).with_name('values.json')\n"
        "        values = torch.tensor(json.loads(at.read_text()))\n"
        "        self.register_buffer('values', values)\n"
        "    def forward(self, rows):\n"
        "        return self.inner(rows * self.values)\n"
        "def make(spec):\n"
        "    return Own(spec)\n"
    )
    (tmp_path / "values.json").write_text("[1.0, 2.0, 3.0, 4.0]")
    write_config(tmp_path, text + "[compute]\ncheckpoint_steps = 5\n")
    killed(tmp_path, 7, going_on=False)
    (tmp_path / "values.json").write_text("[1.0, 2.0, 3.0, 5.0]")
    ledger, config = Ledger(tmp_path / "l"), load_config(tmp_path / "c.toml")
    with pytest.raises(TrainingError, match="other buffers or frozen weights"):
        train_bundle(config, tmp_path / "out", quiet, ledger=ledger, going_on=True)
    assert only(ledger).entries[0].spent == 10


def rows_of(folder: Path, name: str, *, without: int = 0, seed: int = 0) -> str:
    """Rows of persons, without the last few."""
    path = write_rows(folder / name, rows=120, units=60, seed=seed)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[: len(lines) - without]) + "\n")
    return name


def spend(folder: Path, ledger: Ledger, name: str, source: str) -> None:
    """Train on it, as far as the budget is concerned."""
    text = CONFIG.replace('name = "persons"', f'name = "{name}"')
    text = text.replace('label = "bought"', 'label = "bought"\nunit = "person"')
    config = load_config(write_config(folder, text, source=f'"{source}"'))
    train_bundle(config, folder / f"out-{name}", quiet, ledger=ledger)


def test_people_in_two_data_sets_pay_in_one_account(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.set_cap("first", 2.5, None)
    spend(tmp_path, ledger, "first", rows_of(tmp_path, "first.csv"))
    # Another name, other rows of mostly the same people: another digest.
    other = rows_of(tmp_path, "other.csv", without=30, seed=4)
    with pytest.raises(LedgerError, match=r"data first, second: .* is taken"):
        spend(tmp_path, ledger, "second", other)
    # And none of it is public.
    text = (tmp_path / "c.toml").read_text()
    text = text.replace("[[data.columns]]", "personal = false\n[[data.columns]]", 1)
    for declared in (text, text.replace('"second"', '"first"')):
        (tmp_path / "c.toml").write_text(declared)
        config = load_config(tmp_path / "c.toml")
        with pytest.raises(LedgerError, match="booked as personal, as first"):
            train_bundle(config, tmp_path / "out", quiet, ledger=ledger)
    # Neither is it without any claim.
    plain = 'epsilon = 2.0\nmechanism = "none"'
    (tmp_path / "c.toml").write_text(text.replace("epsilon = 2.0", plain))
    config = load_config(tmp_path / "c.toml")
    with pytest.raises(LedgerError, match="booked as personal, as first"):
        train_bundle(config, tmp_path / "out", quiet, ledger=ledger)
    assert len(only(ledger).entries) == 1


def test_a_chain_of_retrainings_adds_up(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.set_cap("persons", 3.6, None)
    config = load_config(write_config(tmp_path))
    train_bundle(config, tmp_path / "v0", quiet, ledger=ledger)
    write_rows(tmp_path / "new.csv", rows=250, seed=1)
    options = {"ledger": ledger, "base": tmp_path}
    retrain(tmp_path / "v0", "new.csv", tmp_path / "v1", quiet, **options)
    entries = only(ledger).entries
    assert [item.request.model for item in entries] == ["small:1.0.0", "small:1.0.1"]
    assert only(ledger).spent > 2.2
    with pytest.raises(LedgerError, match="is taken"):
        retrain(tmp_path / "v1", "new.csv", tmp_path / "v2", quiet, **options)


def test_sketches_estimate_what_is_shared() -> None:
    key = b"k" * 32
    large = [f"p{i}".encode() for i in range(40_000)]
    small = large[:300] + [f"q{i}".encode() for i in range(700)]
    whole = sketch(large, key)
    assert len(whole) == 8 * MARKS
    assert share(whole, sketch(small, key)) == pytest.approx(0.3, abs=0.15)
    assert share(whole, sketch(large[20_000:], key)) > 0.9
    strangers = [f"r{i}".encode() for i in range(40_000)]
    assert share(whole, sketch(strangers, key)) == 0
    assert share(whole, sketch(large, b"another key")) == 0
    for name in (b"p1", b"p39999"):
        assert name not in whole


def test_ledgers_differ_in_their_key(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "a"), Ledger(tmp_path / "b")
    assert first.sketch([b"x"]) == first.sketch([b"x"]) != second.sketch([b"x"])


def test_copies_are_told_to_whoever_trains_alone(tmp_path: Path) -> None:
    write_config(tmp_path)
    path = tmp_path / "rows.csv"
    path.write_text(
        "\n".join([*path.read_text().split(), "42,nurse,no", "42,nurse,no"])
    )
    config = load_config(tmp_path / "c.toml")
    said: list[str] = []

    def listen(stage: str, share: float, result: str, note: str = "") -> None:
        said.extend([result] * (stage == "warning"))

    options = {"ledger": Ledger(tmp_path / "l")}
    train_bundle(config, tmp_path / "out", listen, **options)
    (line,) = said
    count = line.partition(" ")[0]
    assert int(count) > 1
    assert "name data.unit" in line
    files = read_bundle(tmp_path / "out").files
    assert not any(line.encode() in data for data in files.values())
    rows = [item.encode() for item in path.read_text().split()[1:]]
    assert int(count) == len(rows) - len(
        {row.rpartition(b",")[0] for row in rows}
    )  # whole rows but for the label


def test_a_finished_training_is_not_begun_again(tmp_path: Path) -> None:
    """Its last checkpoint gives its weights, and no further step."""
    ledger, config = Ledger(tmp_path / "l"), load_config(write_config(tmp_path))
    kept: list[Path] = []

    def keep(stage: str, *_: object) -> None:
        if stage == "export":
            kept.append(shutil.copytree(tmp_path / ".out.training", tmp_path / "kept"))

    train_bundle(config, tmp_path / "out", keep, ledger=ledger)
    shutil.move(kept[0], tmp_path / ".again.training")
    train_bundle(config, tmp_path / "again", quiet, ledger=ledger, going_on=True)
    models = [read_bundle(tmp_path / name).model for name in ("out", "again")]
    assert models[0] == models[1]
    assert only(ledger).entries[0].spent == 12
