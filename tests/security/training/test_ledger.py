"""The privacy ledger: nothing is spent twice, nothing is forgotten."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundle import read_bundle
from models.data.datasets import TabularDataset, multiset_digest
from models.manifest import Column
from security.commands import main
from security.errors import LedgerError, TrainingError
from security.training.accounting import Mechanism, Spent, compose, epsilon_prv
from security.training.config import load_config, parse_object
from security.training.data import load_split, read_config
from security.training.ledger import DEFAULT_CAP, Ledger, Request
from security.training.noise import SystemRandomness
from security.training.run import train_bundle
from tests.conftest import Command
from tests.support.servers import ROOT, environment
from tests.support.small_training import CONFIG, write_config, write_rows

# Full batches, because their accounting is quick.
REQUEST = Request(
    name="persons",
    digest="d1",
    unit="row",
    model="m:1.0.0",
    rate=1.0,
    noise=8.0,
    group=1,
    steps=12,
    delta=1e-3,
)
ONE = epsilon_prv(Mechanism(1.0, 8.0, 12), 1e-3)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def account(ledger: Ledger):
    (only,) = ledger.accounts()
    return only


def test_composition_is_what_it_claims() -> None:
    item = Spent(1.0, 8.0, 12)
    assert compose([item], 1e-3) == ONE
    two = compose([item, item], 1e-3)
    # Never less than the same steps in one training, never more than the plain sum.
    assert epsilon_prv(Mechanism(1.0, 8.0, 24), 1e-3) - 0.02 <= two < 2 * ONE
    assert compose([item, Spent(1.0, 8.0, 0)], 1e-3) == ONE
    grouped = Spent(1.0, 8.0, 12, group=2)
    assert compose([grouped, item], 1e-3) > compose([item, item], 1e-3)


def test_reserve_take_and_finish(ledger: Ledger) -> None:
    held = ledger.reserve(REQUEST)
    assert account(ledger).spent == 0
    assert account(ledger).held == pytest.approx(ONE)
    held.take(5)
    assert account(ledger).entries[0].spent == 5
    held.take(12)
    held.close("finished")
    assert account(ledger).spent == account(ledger).held == pytest.approx(ONE)
    with pytest.raises(LedgerError, match="was not reserved"):
        held.take(13)


def test_the_cap_holds_by_name_and_by_digest(ledger: Ledger) -> None:
    ledger.set_cap("persons", ONE * 1.1, None)
    ledger.reserve(REQUEST).close("finished")
    ledger.update(account(ledger).entries[0].id, spent=12)
    for again in (
        REQUEST,
        replace(REQUEST, digest="d2"),
        replace(REQUEST, name="renamed"),
    ):
        with pytest.raises(LedgerError, match=r"epsilon .* is taken") as caught:
            ledger.reserve(again)
        assert "\n" not in str(caught.value)
    other = ledger.reserve(replace(REQUEST, name="other", digest="d3"))
    other.close("finished")
    assert len(ledger.accounts()) == 2


def test_names_are_linked_through_what_they_share(ledger: Ledger) -> None:
    ledger.set_cap("a", 2.5 * ONE, None)
    for name, digest in (("a", "1"), ("b", "1"), ("b", "2")):
        held = ledger.reserve(replace(REQUEST, name=name, digest=digest))
        held.take(12)
        held.close("finished")
    # The rows "2" were never called "a", but "b" shares rows with "a".
    with pytest.raises(LedgerError, match="data a, b, c"):
        for _ in range(5):
            held = ledger.reserve(replace(REQUEST, name="c", digest="2"))
            held.take(12)
            held.close("finished")


def test_without_a_cap_there_is_a_cap(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match=f"of {DEFAULT_CAP:g}"):
        ledger.reserve(replace(REQUEST, noise=1.0))


def test_units_do_not_mix(ledger: Ledger) -> None:
    ledger.reserve(REQUEST).close("finished")
    with pytest.raises(LedgerError, match="has no meaning"):
        ledger.reserve(replace(REQUEST, unit="owner by person"))


def test_an_interrupted_training_keeps_what_it_took_only(ledger: Ledger) -> None:
    ledger.set_cap("persons", ONE * 1.2, None)
    held = ledger.reserve(REQUEST)
    held.take(2)
    with pytest.raises(LedgerError, match="is taken"):
        ledger.reserve(REQUEST)
    held.close("interrupted")
    taken = account(ledger).spent
    assert 0 < taken < ONE
    assert account(ledger).held == taken


def test_a_checkpoint_is_taken_up_once(ledger: Ledger) -> None:
    held = ledger.reserve(REQUEST)
    held.take(5)
    held.settle(5, "first")
    with pytest.raises(LedgerError, match="is running already"):
        ledger.resume(held.id, token="first", successor="second")
    held.close("interrupted")
    with pytest.raises(LedgerError, match="spend the budget twice"):
        ledger.resume(held.id, token="other", successor="second")
    again = ledger.resume(held.id, token="first", successor="second")
    assert (again.planned, again.spent) == (12, 5)
    again.close("interrupted")
    with pytest.raises(LedgerError, match="spend the budget twice"):
        ledger.resume(held.id, token="first", successor="third")
    with pytest.raises(LedgerError, match="no training"):
        ledger.resume("00", token="first", successor="third")


def test_a_resume_needs_its_budget_still_to_be_there(ledger: Ledger) -> None:
    ledger.set_cap("persons", ONE * 1.1, None)
    held = ledger.reserve(REQUEST)
    held.settle(0, "first")
    held.close("interrupted")
    other = ledger.reserve(REQUEST)
    other.take(12)
    other.close("finished")
    with pytest.raises(LedgerError, match="is taken"):
        ledger.resume(held.id, token="first", successor="second")


def test_the_file_is_for_its_owner_and_not_followed(
    ledger: Ledger, tmp_path: Path
) -> None:
    ledger.set_cap("persons", 1.0, None)
    path = tmp_path / "ledger" / "ledger.sqlite"
    assert path.stat().st_mode & 0o777 == 0o600
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="ledger"):
        ledger.accounts()
    path.unlink()
    path.write_bytes(b"no database" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        ledger.reserve(REQUEST)


def race(folder: Path, go: int, answer: int, hold: int) -> None:
    """In a process of its own: reserve when told, say how it went, hold on to it."""
    os.read(go, 1)
    try:
        held = Ledger(folder).reserve(REQUEST)
        os.write(answer, b"got\n")
        os.read(hold, 1)
        del held
    except LedgerError:
        os.write(answer, b"refused\n")


def test_two_at_once_cannot_both_take_the_last_of_the_budget(
    ledger: Ledger, tmp_path: Path
) -> None:
    ledger.set_cap("persons", ONE * 1.1, None)
    go, answer, hold = os.pipe(), os.pipe(), os.pipe()
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "ledger", go[0], answer[1], hold[0])
    racers = [context.Process(target=race, args=arguments) for _ in range(2)]
    try:
        for racer in racers:
            racer.start()
        os.write(go[1], b"12")
        said = b""
        while said.count(b"\n") < 2:
            said += os.read(answer[0], 100)
        assert sorted(said.split()) == [b"got", b"refused"]
        # While the winner lives it holds everything; killed, it has spent nothing yet.
        assert account(ledger).held == pytest.approx(ONE)
    finally:
        for racer in racers:
            racer.kill()
            racer.join()
        for descriptor in (*go, *answer, *hold):
            os.close(descriptor)
    assert account(ledger).held == 0
    assert account(ledger).entries[0].state == "interrupted"


STEPS = 5000  # more than are taken until somebody looks


def start(folder: Path, *extra: str) -> subprocess.Popen[str]:
    """`train` in a process of its own, with a checkpoint after every step."""
    return subprocess.Popen(
        [sys.executable, "-m", "security", "train", str(folder / "c.toml"), "--out",
         str(folder / "out"), *extra],
        cwd=ROOT,
        env=environment(folder / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def wait_for_steps(folder: Path, process: subprocess.Popen[str], steps: int) -> None:
    path = folder / "home" / "ledger" / "ledger.sqlite"
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if path.exists():
            try:
                with sqlite3.connect(path) as database:
                    row = database.execute("SELECT spent FROM trainings").fetchone()
                database.close()
            except sqlite3.OperationalError:
                row = None
            if row and row[0] >= steps:
                return
        time.sleep(0.02)
    raise AssertionError("it never got there")


def long_config(folder: Path) -> None:
    text = CONFIG + "[compute]\ncheckpoint_steps = 1\n"
    write_config(folder, text, steps=str(STEPS))


@pytest.mark.slow
def test_a_killed_training_goes_on_and_spends_nothing_twice(tmp_path: Path) -> None:
    long_config(tmp_path)
    process = start(tmp_path)
    wait_for_steps(tmp_path, process, 5)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out").exists()
    ledger = Ledger(tmp_path / "home" / "ledger")
    entry = account(ledger).entries[0]
    assert entry.state == "interrupted"
    assert 5 <= entry.spent < STEPS
    # A copy of the checkpoint, for a second continuation.
    shutil.copytree(tmp_path / ".out.training", tmp_path / "copy")
    resumed = start(tmp_path, "--resume")
    wait_for_steps(tmp_path, resumed, entry.spent + 2)
    resumed.send_signal(signal.SIGINT)
    _, error = resumed.communicate(timeout=500)
    assert resumed.returncode == 2
    assert "go on with --resume" in error
    later = account(ledger).entries[0].spent
    assert entry.spent < later < STEPS
    shutil.rmtree(tmp_path / ".out.training")
    (tmp_path / "copy").rename(tmp_path / ".out.training")
    with pytest.raises(LedgerError, match="spend the budget twice"):
        train_bundle(
            load_config(tmp_path / "c.toml"),
            tmp_path / "out",
            lambda *_: None,
            ledger=ledger,
            going_on=True,
        )
    assert account(ledger).entries[0].spent == later


class StopAt:
    """Progress that asks for an end after some steps."""

    def __init__(self, share: float) -> None:
        self.event, self._share = threading.Event(), share
        self.notes: list[str] = []

    def __call__(self, stage: str, share: float, result: str, note: str = "") -> None:
        self.notes += [note] * bool(note)
        if stage == "training" and share >= self._share:
            self.event.set()


class Recorded:
    """The system's generator, remembering what it gave."""

    name = "os_urandom"

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def uniform(self, count: int) -> np.ndarray:
        values = SystemRandomness().uniform(count)
        self.given.append(values[:8].tobytes())
        return values


def test_interrupt_and_resume_in_one_process(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    ledger, stop, source = Ledger(tmp_path / "l"), StopAt(0.4), Recorded()
    with pytest.raises(TrainingError, match=r"after step \d of 12"):
        train_bundle(
            config,
            tmp_path / "out",
            stop,
            ledger=ledger,
            randomness=source,
            stop=stop.event,
        )
    entry = account(ledger).entries[0]
    assert entry.state == "interrupted"
    assert 4 < entry.spent < 12
    with pytest.raises(TrainingError, match="go on with --resume, or remove it"):
        train_bundle(config, tmp_path / "out", stop, ledger=ledger)
    train_bundle(
        config,
        tmp_path / "out",
        stop,
        ledger=ledger,
        randomness=source,
        going_on=True,
    )
    assert account(ledger).entries[0].spent == 12
    assert account(ledger).spent <= 2.0
    # Not one draw was used twice: neither noise nor batches are replayed.
    assert len(set(source.given)) == len(source.given)
    privacy = read_bundle(tmp_path / "out").report("privacy")
    assert privacy.conditions["steps"] == 12
    # The verdicts rest on the steps before the interruption, too.
    assert privacy.conditions["verdicts_cover"] == "every_step_in_the_weights"
    assert privacy.conditions["steps_in_weights"] == 12
    weights = 2 * (1 + 3) + 2
    assert privacy.metrics["noise_deficit_detectable"].n == 12 * (weights + 1)
    assert not (tmp_path / ".out.training").exists()
    assert any("loss" in note and "epsilon" in note for note in stop.notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": "2.0"}, "another configuration"),
        ({"rows": "other"}, "other data"),
        ({"checkpoint": "broken"}, "not a checkpoint"),
        ({"checkpoint": "changed"}, "it was changed"),
    ],
)
def test_what_cannot_be_resumed(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    path = write_config(tmp_path)
    ledger, stop = Ledger(tmp_path / "l"), StopAt(0.3)
    with pytest.raises(TrainingError, match="interrupted"):
        train_bundle(
            load_config(path), tmp_path / "o", stop, ledger=ledger, stop=stop.event
        )
    spent = account(ledger).entries[0].spent
    (checkpoint,) = (tmp_path / ".o.training").glob("*.npz")
    if "learning_rate" in change:
        write_config(tmp_path, **change)
    elif "rows" in change:
        rows = (tmp_path / "rows.csv").read_text().replace("nurse", "smith", 1)
        (tmp_path / "rows.csv").write_text(rows)
    else:
        data = bytearray(checkpoint.read_bytes())
        if change["checkpoint"] == "broken":
            data = data[:100]
        else:
            arrays = dict(np.load(checkpoint, allow_pickle=False))
            arrays["body/0.weight"] = arrays["body/0.weight"] + 1
            np.savez(checkpoint, **arrays)
            data = bytearray(checkpoint.read_bytes())
        checkpoint.write_bytes(data)
    with pytest.raises(TrainingError, match=message):
        train_bundle(
            load_config(path), tmp_path / "o", StopAt(2), ledger=ledger, going_on=True
        )
    assert account(ledger).entries[0].spent == spent


def test_a_checkpoint_runs_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    config = load_config(write_config(tmp_path))
    folder = tmp_path / ".o.training"
    folder.mkdir()
    np.savez(folder / "x.npz", meta=np.array([Bomb()], dtype=object))
    with pytest.raises(TrainingError, match="not a checkpoint"):
        train_bundle(
            config,
            tmp_path / "o",
            StopAt(2),
            ledger=Ledger(tmp_path / "l"),
            going_on=True,
        )
    assert not (tmp_path / "ran").exists()


def test_shuffled_rows_are_the_same_data() -> None:
    features = np.arange(6.0).reshape(3, 2)
    columns = (Column("a", 0.0, 9.0), Column("b", 0.0, 9.0))
    dataset = TabularDataset(
        "d", features, np.array([0, 1, 0]), columns, ("n", "y"), personal=True
    )
    order = np.array([2, 0, 1])
    assert multiset_digest(dataset) == multiset_digest(dataset.take(order))
    assert multiset_digest(dataset) != multiset_digest(dataset.take(order[:2]))
    parts = (dataset.take(order[:1]), dataset.take(order[1:]))
    assert multiset_digest(dataset) == multiset_digest(*parts)


def test_the_command(security: Command, tmp_path: Path) -> None:
    assert security("ledger", "show").stdout == "nothing was spent\n"
    result = security("ledger", "cap", "persons", "--epsilon", "1.0")
    assert result.stdout == "persons: epsilon at most 1\n"
    config = str(write_config(tmp_path))
    refused = security("train", config, "--out", str(tmp_path / "out"))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: data persons: epsilon 0.00 of 1 is taken")
    assert len(refused.stderr.splitlines()) == 1
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"c.toml", "rows.csv", "home"}
    security("ledger", "cap", "persons", "--epsilon", "2.0", "--delta", "1e-3")
    done = security("train", config, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    shown = security("ledger", "show", "persons").stdout
    assert "cap 2" in shown
    assert "12 of 12 steps" in shown


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["show", "nobody"], "the ledger has no data set 'nobody'"),
        (["cap", "persons", "--epsilon", "nan"], "epsilon"),
        (["cap", "p", "--epsilon", "1", "--delta", "2"], "delta"),
    ],
)
def test_the_command_refuses(
    arguments: list[str],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path))
    assert main(["ledger", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert error in err
    assert len(err.splitlines()) == 1


HELD_OUT = CONFIG.replace(
    'source = "rows.csv"', 'source = "rows.csv"\nholdout_source = "test.csv"'
)


def spelled_rows(folder: Path) -> None:
    """Rows, and twenty of them held out, spelled as another program writes them."""
    lines = write_rows(folder / "rows.csv").read_text().splitlines()
    held = [line.replace(",", ".0,", 1) for line in lines[1:21]]
    (folder / "test.csv").write_text("\n".join([lines[0], *held]))


def test_data_that_the_release_before_booked_is_the_same_data(tmp_path: Path) -> None:
    """Its digest was of more rows: those held out under another spelling too."""
    spelled_rows(tmp_path)
    config = load_config(write_config(tmp_path, HELD_OUT))
    before = replace(config, data=replace(config.data, row_identity=1))
    ledger = Ledger(tmp_path / "l")
    train_bundle(before, tmp_path / "one", lambda *_: None, ledger=ledger)
    data = replace(config.data, name="other-name")
    renamed = replace(config, data=data)
    train_bundle(renamed, tmp_path / "two", lambda *_: None, ledger=ledger)
    (account,) = ledger.accounts()
    assert account.names == ("other-name", "persons")
    first, second = (entry.request for entry in account.entries)
    assert first.digest != second.digest
    assert second.former == (first.digest,)
    ledger.set_cap("persons", 2.5, None)
    third = replace(config, data=replace(data, name="third-name"))
    with pytest.raises(LedgerError, match="is taken at delta"):
        train_bundle(third, tmp_path / "three", lambda *_: None, ledger=ledger)


def test_a_retraining_keeps_the_split_of_its_bundle(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    assert config.to_object()["data"]["row_identity"] == 2
    before = replace(config, data=replace(config.data, row_identity=1))
    assert "row_identity" not in before.to_object()["data"]
    recorded = parse_object(before.to_object(), where="bundle")
    assert recorded.data.row_identity == 1
    train_bundle(
        before, tmp_path / "out", lambda *_: None, ledger=Ledger(tmp_path / "l")
    )
    read = read_config(tmp_path / "c.toml", tmp_path / "out")
    assert read.data.row_identity == 1
    assert read_config(tmp_path / "c.toml", None).data.row_identity == 2
    found, wanted = load_split(read)[0], load_split(before)[0]
    assert found.keys is not None
    assert wanted.keys is not None
    assert found.keys.tolist() == wanted.keys.tolist()
