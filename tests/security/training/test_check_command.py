"""`check` and `train --dry-run`: every mistake at once, or what a training would be."""

from __future__ import annotations

import re

import pytest

from security.commands import main
from security.training.config import load_config
from security.training.ledger import Ledger
from security.training.rehearsal import rehearse
from tests.support.trained import EXAMPLE

CONFIG = """\
[model]
name = "m"
version = "1.0.0"
[data]
name = "d"
source = "rows.csv"
split_key = "k"
classes = ["no", "yes"]
personal = {personal}
[[data.columns]]
name = "age"
low = 0
high = 120
[[data.columns]]
name = "town"
categories = ["a", "b"]
[privacy]
epsilon = 3.0
sampling_rate = 0.5
steps = 20
max_grad_norm = 1.0
expected_batch = 30
[optimizer]
learning_rate = 1.0
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path / "home"))
    path = tmp_path / "c.toml"
    path.write_text(CONFIG.format(personal="true"))
    return path


def rows(folder, *, header="age,town,label", replaced=None):
    lines = [
        f"{age},{'ab'[age % 2]},{'no' if age < 50 else 'yes'}" for age in range(99)
    ]
    for place, line in (replaced or {}).items():
        lines[place] = line
    (folder / "rows.csv").write_text("\n".join([header, *lines]) + "\n")


def check(path, capsys):
    code = main(["check", str(path)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err.splitlines()


def test_every_mistake_of_a_configuration(config, capsys):
    text = config.read_text().replace("epsilon = 3.0", "epsilon = 99")
    text = text.replace("low = 0", 'low = "zero"').replace("steps = 20", "stepps = 20")
    config.write_text(text)
    code, _, mistakes = check(config, capsys)
    assert code == 2
    assert mistakes == [
        "error: c.toml:12: data.columns[1].low: expected a finite number",
        "error: c.toml:20: privacy: unknown key 'stepps'; did you mean 'steps'?",
    ]
    config.write_text(text.replace("stepps", "steps").replace('"zero"', "130"))
    code, _, mistakes = check(config, capsys)
    assert mistakes == [
        "error: c.toml:10: data.columns: 1, 'age': low must be below high",
        "error: c.toml:18: privacy.epsilon: must be above 0, at most 50",
    ]


def test_rules_of_other_sections_where_one_cannot_be_read(config, capsys):
    text = config.read_text().replace("low = 0", 'low = "TODO: from its definition"')
    config.write_text(text.replace("learning_rate = 1.0", "learning_rate = -1.0"))
    _, _, mistakes = check(config, capsys)
    assert mistakes == [
        "error: c.toml:12: data.columns[1].low: TODO: from its definition",
        "error: c.toml:24: optimizer.learning_rate: must be positive",
    ]


def test_every_mistake_of_the_data(config, capsys):
    bad = {3: "x,a,no", 5: "5,c,no", 7: "7,b,maybe"}
    rows(config.parent, header="age,town,label,more", replaced={})
    code, _, mistakes = check(config, capsys)
    assert (code, len(mistakes)) == (2, 1)
    assert "c.toml:6: rows.csv: line 2: 3 cells, not 4" in mistakes[0]
    rows(config.parent, replaced=bad)
    code, _, mistakes = check(config, capsys)
    assert code == 2
    assert mistakes == [
        "error: c.toml:4: rows.csv: column 'label', line 9: 'maybe' is no declared "
        "class",
        "error: c.toml:10: rows.csv: column 'age', line 5: 'x' is not a number",
        "error: c.toml:14: rows.csv: column 'town', line 7: 'c' is no declared "
        "category",
    ]


def test_columns_that_are_missing_or_without_a_role(config, capsys):
    rows(config.parent, header="aga,city,label")
    _, _, mistakes = check(config, capsys)
    assert mistakes == [
        "error: c.toml:6: rows.csv: columns 'aga', 'city' have no role: make each a "
        "feature, or list it in drop",
        "error: c.toml:10: rows.csv: no column 'age'; did you mean 'aga'?",
        "error: c.toml:14: rows.csv: no column 'town'",
    ]


def test_what_a_training_would_be(config, capsys):
    rows(config.parent)
    code, out, mistakes = check(config, capsys)
    assert (code, mistakes) == (0, [])
    told = {line.split()[0]: line for line in out.splitlines()}
    assert re.search(
        r"multiplier [\d.]+ in 20 steps at sampling rate 0.5", told["noise"]
    )
    assert re.search(r"epsilon (2\.9\d|3\.00) at delta", told["privacy"])
    assert re.search(r"epsilon 0.00 of 10 .* [23]\.\d\d with this", told["ledger"])
    assert re.search(r"about \d+ s here: 20 steps of [\d.]+ ms", told["time"])
    assert re.search(r"about \d{3,} MB", told["memory"])
    names = sorted(item.name for item in config.parent.iterdir())
    assert names == ["c.toml", "rows.csv"]


def test_nothing_is_booked_and_a_spent_budget_is_told(config, capsys):
    rows(config.parent)
    folder = config.parent / "home/ledger"
    assert main(["ledger", "cap", "d", "--epsilon", "4"]) == 0
    assert main(["train", str(config), "--out", str(config.parent / "b")]) == 0
    before = Ledger(folder).accounts()
    capsys.readouterr()
    assert main(["train", str(config), "--dry-run"]) == 2
    assert "epsilon 3.00 of 4 is taken" in capsys.readouterr().err
    assert Ledger(folder).accounts() == before


def test_public_data_is_not_booked(config, capsys):
    config.write_text(CONFIG.format(personal="false"))
    rows(config.parent)
    code, out, _ = check(config, capsys)
    assert code == 0
    assert "not booked: the data is declared public" in out


def test_out_or_dry_run(capsys):
    with pytest.raises(SystemExit):
        main(["train", str(EXAMPLE)])
    assert "--out --dry-run is required" in capsys.readouterr().err


def test_the_estimate_is_of_the_steps_that_would_be_taken(config):
    rows(config.parent)
    told = {}
    rehearse(
        load_config(config),
        lambda stage, share, result, note="": told.update({stage: result}),
        ledger=Ledger(config.parent / "ledger"),
    )
    assert re.search(r"as \d+ on rows of zeros took", told["time"])
