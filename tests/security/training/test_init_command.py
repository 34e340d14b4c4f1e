"""`init`: a configuration that lacks only what must not come from private rows."""

from __future__ import annotations

import re
import tomllib

import numpy as np
import pytest

from security.commands import main
from security.training.config import load_config
from tests.support.bundles import onnx_model

ROWS = [
    ("ida", 17.25, "north", 31415, "no"),
    ("bob", 64.5, "south", 27182, "yes"),
    ("ida", 33.75, "north", 16180, "no"),
    ("eve", 71.125, "west", 14142, "yes"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path / "home"))
    return tmp_path


def write(path, separator=",", repeat=1):
    lines = [["who", "age", "region", "id", "outcome"], *(ROWS * repeat)]
    path.write_text("".join(separator.join(map(str, line)) + "\n" for line in lines))
    return path


def init(*arguments):
    return main(["init", *map(str, arguments)])


def test_private_rows_tell_nothing(folder, capsys):
    write(folder / "people.csv")
    assert init("people.csv", "--label", "outcome", "--person", "who") == 0
    text = (folder / "people.toml").read_text()
    for row in ROWS:
        for cell in row:
            assert str(cell) not in re.sub(r"#.*|TODO.*", "", text).split('"')
    config = tomllib.loads(text)
    data = config["data"]
    assert (data["label"], data["unit"], data["personal"]) == ("outcome", "who", True)
    assert [column["name"] for column in data["columns"]] == ["age", "region", "id"]
    left = capsys.readouterr().out.splitlines()
    assert left[0] == "wrote people.toml"
    lines = text.splitlines()
    for told in left[1:]:
        number = int(re.match(r"people\.toml:(\d+): data\.\w+.*: TODO: ", told)[1])
        assert "TODO: " in lines[number - 1]
    assert len(left) - 1 == 7 == text.count('"TODO: ')


def test_what_is_left_is_told_until_it_is_filled(folder, capsys):
    write(folder / "people.csv", repeat=80)
    assert init("people.csv", "--label", "outcome", "--person", "who") == 0
    path = folder / "people.toml"
    assert main(["check", str(path)]) == 2
    assert capsys.readouterr().err.count("TODO: ") == 7
    text = path.read_text()
    text = re.sub(r'classes = \["TODO.*\]', 'classes = ["no", "yes"]', text)
    region = '(name = "region"\n)low = .*\nhigh = .*\n'
    text = re.sub(region, r'\1categories = ["north", "south", "west"]\n', text)
    text = re.sub(r"low = .TODO.*", "low = 0", text)
    path.write_text(re.sub(r"high = .TODO.*", "high = 99999", text))
    config = load_config(path)
    assert (config.private, config.data.unit) == (True, "who")
    assert config.data.columns[1].categories == ("north", "south", "west")


def test_public_rows_fill_it_in(folder, capsys):
    random = np.random.default_rng(0)
    lines = ["id;age;town;flag;note;outcome"]
    for index in range(400):
        age = random.uniform(18, 90)
        town = "?" if index % 40 == 3 else "abc"[index % 3]
        number = "" if index % 50 == 7 else f"{age:.2f}"
        lines.append(f"{index};{number};{town};7;text {index};{int(age > 50)}")
    (folder / "Open data.csv").write_text("\n".join(lines) + "\n")
    assert init("Open data.csv", "--label", "outcome", "--public") == 0
    assert capsys.readouterr().out == "wrote Open data.toml\n"
    config = load_config(folder / "Open data.toml")
    data = config.data
    assert (config.model.name, data.delimiter, data.personal) == (
        "Open-data",
        ";",
        False,
    )
    assert data.classes == ("0", "1")
    assert data.missing == ("", "?")
    assert data.drop == ("id", "flag", "note")
    age, town = data.columns
    assert (age.low, age.high) == pytest.approx((18, 90), abs=1)
    assert town.categories == ("a", "b", "c")
    assert main(["check", "Open data.toml"]) == 0
    assert "has no mistake" in capsys.readouterr().out


def test_nothing_is_overwritten(folder, capsys):
    write(folder / "people.csv")
    (folder / "people.toml").write_text("mine")
    assert init("people.csv", "--label", "outcome") == 2
    assert "people.toml exists already" in capsys.readouterr().err
    assert (folder / "people.toml").read_text() == "mine"
    assert init("people.csv", "--label", "outcome", "--out", "other.toml") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["people.csv"], "give DATA and --label, or --model"),
        (["people.csv", "--label", "outcom"], "no column 'outcom'; it has who, age"),
        (["none.csv", "--label", "x"], "none.csv: No such file"),
        (["people.csv", "--label", "id", "--person", "he"], "no column 'he'"),
    ],
)
def test_what_cannot_be(folder, capsys, arguments, message):
    write(folder / "people.csv")
    assert init(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "people.toml").exists()


def test_a_number_is_no_class(folder, capsys):
    rows = "\n".join(f"{i},{i / 7}" for i in range(200))
    (folder / "n.csv").write_text(f"a,price\n{rows}\n")
    assert init("n.csv", "--label", "price", "--public") == 2
    assert "200 different values" in capsys.readouterr().err


def test_the_source_is_found_from_the_file(folder):
    write(folder / "people.csv", repeat=50)
    (folder / "below").mkdir()
    assert init("people.csv", "--label", "outcome", "--out", "below/c.toml") == 0
    config = tomllib.loads((folder / "below/c.toml").read_text())
    assert config["data"]["source"] == "../people.csv"
    assert config["data"]["holdout"] == 0.5  # fewer than a policy asks for, otherwise


@pytest.fixture
def onnx(folder):
    (folder / "theirs.onnx").write_bytes(onnx_model())
    return folder


def test_a_model_without_rows(onnx, capsys):
    assert init("--model", "theirs.onnx") == 0
    text = (onnx / "theirs.toml").read_text()
    assert "# input   features: FP32 [-1, 3]" in text
    assert [item["name"] for item in tomllib.loads(text)["columns"]] == [
        "column 1",
        "column 2",
        "column 3",
    ]
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "wrote theirs.toml"
    assert out[1].startswith("theirs.toml:")
    assert "columns[1].low: TODO: the least that requests may hold" in out[1]
    assert len(out) == 1 + 2 * 3


def test_rows_with_more_columns_than_the_model_takes(onnx, capsys):
    (onnx / "rows.csv").write_text("a,b,c,d,target\n1,2,3,4,0\n5,6,7,8,1\n")
    arguments = ("--model", "theirs.onnx", "--data", "rows.csv", "--public")
    assert init(*arguments) == 0
    text = (onnx / "theirs.toml").read_text()
    assert "# It takes 3 columns; the file has 4 beside the class." in text
    (left,) = capsys.readouterr().out.splitlines()[1:]
    assert "drop[1]: TODO: the columns that it does not take" in left
    config = tomllib.loads(text)
    assert config["label"] == "target"
    assert config["columns"][3] == {"name": "d", "low": 4, "high": 8}


def test_what_is_no_model_of_a_table(onnx, capsys):
    (onnx / "rows.csv").write_text("a,b,c\n1,2,3\n")
    assert init("--model", "theirs.onnx", "--data", "rows.csv") == 2
    message = "no column label or target or class or y with the class"
    assert message in capsys.readouterr().err
    assert init("--model", "none.onnx") == 2
    (onnx / "bad.onnx").write_bytes(b"\x08\x07no model")
    assert init("--model", "bad.onnx") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("refused: ")
    assert init("--model", "theirs.onnx", "--person", "a") == 2
    assert not (onnx / "theirs.toml").exists()
