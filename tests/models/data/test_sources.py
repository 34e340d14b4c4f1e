"""Bad data: one clear line, exit code 2, nothing written, no budget spent."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from models.data.datasets import ImageDataset, TabularDataset, common_rows
from models.data.readers import CsvFormat
from models.data.sources import ImageSchema, Schema, load_source
from models.errors import DatasetError
from models.manifest import Column
from security.errors import TrainingError
from security.training.config import load_config
from security.training.data import load_split
from security.training.ledger import Ledger
from security.training.run import train_bundle
from tests.conftest import Command
from tests.support.small_training import CONFIG, write_config, write_rows

SCHEMA = Schema(
    name="persons",
    label="bought",
    classes=("no", "yes"),
    columns=(
        Column("age", 0.0, 100.0),
        Column("job", 0.0, 2.0, ("baker", "nurse", "smith")),
    ),
)
GOOD = "age,job,bought\n20,baker,no\n60,nurse,yes\n70,smith,yes\n"


def load(folder: Path, text: str | bytes, schema: Schema = SCHEMA, name="rows.csv"):
    data = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(data)
    return load_source(name, schema, folder)


def changed(**fields) -> Schema:
    return Schema(**{**vars(SCHEMA), **fields})


def test_good(tmp_path):
    dataset = load(tmp_path, GOOD)
    assert isinstance(dataset, TabularDataset)
    assert dataset.features.tolist() == [[20, 0], [60, 1], [70, 2]]
    assert dataset.labels.tolist() == [0, 1, 1]


FAULTS = {
    "missing column": (GOOD.replace("job", "jbo", 1), "no column 'job'; did you mean"),
    "unknown category": (
        GOOD.replace("nurse", "nurze"),
        "'job', line 3: 'nurze' is no declared category; did you mean 'nurse'",
    ),
    "label out of range": (GOOD.replace("no\n", "maybe\n"), "'maybe' is no declared"),
    "constant column": (GOOD.replace("60", "20").replace("70", "20"), "is constant"),
    "one class": (GOOD.replace(",no", ",yes"), "every row has the same class"),
    "not a number": (GOOD.replace("60", "sixty"), "line 3: 'sixty' is not a number"),
    "nan": (GOOD.replace("60", "nan"), "'nan' is not a number"),
    "infinite": (GOOD.replace("60", "inf"), "'inf' is infinite"),
    "too large": (GOOD.replace("60", "1e999"), "'1e999' is infinite"),
    "empty cell": (GOOD.replace("60", ""), "'' is not a number"),
    "empty file": ("", "empty"),
    "header only": ("age,job,bought\n", "no rows"),
    "few cells": (GOOD.replace("60,nurse,yes", "60,nurse"), "line 3: 2 cells, not 3"),
    "many cells": (GOOD.replace("60,nurse,yes", "60,nurse,yes,1"), "line 3: 4 cells"),
    "column twice": (GOOD.replace("job", "age", 1), "'age' occurs twice"),
    "million columns": (",".join(["a"] * 1_000_000) + "\n1\n", "1000000 columns"),
    "mixed encodings": (GOOD.encode() + b"50,b\xe4cker,no\n", "line 5: not utf-8"),
    "zero byte": (GOOD.encode() + b"5\x000,nurse,no\n", "zero byte"),
    "bad quotes": (GOOD.replace("60", '"60"x'), "line 3: not CSV"),
    "blank line": (GOOD.replace("60,", "\n60,"), "line 3: 0 cells"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_csv(tmp_path, fault):
    text, message = FAULTS[fault]
    with pytest.raises(DatasetError, match=message) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert str(caught.value).startswith("rows.csv: ")


def test_faults_of_roles(tmp_path):
    named = GOOD.replace("age", "id,age", 1)
    for index, line in enumerate(("20,", "60,", "70,")):
        named = named.replace(f"\n{line}", f"\n{index},{line}")
    schema = changed(identifier="id")
    assert len(load(tmp_path, named, schema)) == 3
    with pytest.raises(DatasetError, match="column 'id' has no role"):
        load(tmp_path, named)
    twice = named.replace("\n1,", "\n0,")
    with pytest.raises(DatasetError, match="of line 2 is also that of line 3"):
        load(tmp_path, twice, schema)
    owned = load(tmp_path, twice, changed(unit="id"))
    assert owned.units.tolist() == ["0", "0", "2"]
    bounded = load(tmp_path, twice, changed(unit="id", max_rows_per_unit=1))
    assert bounded.features[:, 0].tolist() == [20, 70]


def test_missing_values_are_allowed_where_declared(tmp_path):
    text = GOOD.replace("60", "?").replace("smith", "?")
    dataset = load(tmp_path, text, changed(missing=("?",)))
    assert np.isnan(dataset.features[1, 0])
    assert np.isnan(dataset.features[2, 1])


def test_other_files(tmp_path):
    for name, message in (
        ("rows.txt", "not a .csv, .parquet or .npz"),
        ("rows.parquet", "not parquet"),
        ("rows.npz", "not an npz"),
        ("rows.csv.gz", "not a whole gzip|Not a gzip"),
    ):
        with pytest.raises(DatasetError, match=message):
            load(tmp_path, GOOD, name=name)
    with pytest.raises(DatasetError, match="No such file"):
        load_source("none.csv", SCHEMA, tmp_path)
    packed = gzip.compress(GOOD.encode())
    assert len(load(tmp_path, packed, name="rows.csv.gz")) == 3
    with pytest.raises(DatasetError, match="not a whole gzip"):
        load(tmp_path, packed[:-10], name="rows.csv.gz")


def test_layouts(tmp_path):
    text = "# made by hand\n20; baker; no\n60; nurse; yes\n"
    layout = CsvFormat(("age", "job", "bought"), ";", "latin-1", "#")
    dataset = load(tmp_path, text, changed(csv=layout))
    assert dataset.features.tolist() == [[20, 0], [60, 1]]
    with pytest.raises(DatasetError, match="no encoding"):
        load(tmp_path, text, changed(csv=CsvFormat(encoding="utf-9")))


def test_parquet_npz_and_a_function_say_the_same(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    wanted = load(tmp_path, GOOD)
    columns = {
        "age": np.array([20, 60, 70]),
        "job": np.array(["baker", "nurse", "smith"]),
        "bought": np.array(["no", "yes", "yes"]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    np.savez(tmp_path / "rows.npz", **columns)
    listed = {name: values.tolist() for name, values in columns.items()}
    (tmp_path / "made_rows.py").write_text(
        "def rows():\n"
        f"    return {listed!r}\n"
        "def broken():\n    raise KeyError('x')\n"
        "def nothing():\n    return 3\n"
    )
    for source in ("rows.parquet", "rows.npz", "python:made_rows:rows"):
        dataset = load_source(source, SCHEMA, tmp_path)
        assert np.array_equal(dataset.features, wanted.features)
        assert np.array_equal(dataset.labels, wanted.labels)
    for name, message in (("broken", "KeyError"), ("nothing", "no mapping")):
        with pytest.raises(DatasetError, match=message):
            load_source(f"python:made_rows:{name}", SCHEMA, tmp_path)


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "rows.npz", age=np.array([{}, {}], dtype=object))
    with pytest.raises(DatasetError, match="not an npz file: Object arrays"):
        load_source("rows.npz", SCHEMA, tmp_path)


IMAGES = Schema(
    name="digits",
    label="label",
    classes=("0", "1"),
    image=ImageSchema((1, 4, 4), 0.0, 255.0, 0.5, 0.5),
)


def test_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "i.npz", images=pixels, label=np.array([0, 1, 0, 1, 1]))
    dataset = load_source("i.npz", IMAGES, tmp_path)
    assert isinstance(dataset, ImageDataset)
    assert dataset.features.shape == (5, 1, 4, 4)
    faults = (
        (pixels[:, :3], "shape"),
        (pixels.astype(complex), "pixels of type"),
        (np.full((5, 4, 4), np.nan), "not finite"),
        (np.zeros((5, 4, 4)), "same value"),
        (pixels[:4], "different lengths"),
    )
    for images, message in faults:
        np.savez(tmp_path / "i.npz", images=images, label=np.array([0, 1, 0, 1, 1]))
        with pytest.raises(DatasetError, match=message):
            load_source("i.npz", IMAGES, tmp_path)


def test_owners_never_stand_on_both_sides(tmp_path):
    write_rows(tmp_path / "rows.csv", rows=200, units=40)
    text = CONFIG.replace('label = "bought"', 'label = "bought"\nunit = "person"')
    config = load_config(write_config(tmp_path, text))
    train, holdout = load_split(config)
    assert not set(train.units) & set(holdout.units)
    assert common_rows(train, holdout) == 0
    again, _ = load_split(config)
    assert again.units.tolist() == train.units.tolist()


def test_a_file_of_held_out_rows_is_never_trained_on(tmp_path):
    write_rows(tmp_path / "rows.csv", rows=60)
    with (tmp_path / "rows.csv").open() as file:
        lines = list(csv.reader(file))
    with (tmp_path / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines[:11])
    text = CONFIG.replace(
        'source = "rows.csv"', 'source = "rows.csv"\nholdout_source = "test.csv"'
    )
    train, holdout = load_split(load_config(write_config(tmp_path, text)))
    assert len(holdout) == 10
    assert len(train) <= 50
    assert common_rows(train, holdout) == 0


CONFIG_FAULTS = {
    "low above high": ("low = 0", "low = 200", "low must be below high"),
    "scale": ("low = 0", 'low = 0\nscale = "logs"', "scale: one of linear, log"),
    "negative": ("low = 0", 'low = -1\nscale = "log"', "that is not negative"),
    "wide": ("low = 0", 'low = 1e-20\nscale = "log"', "up to 1e.12 times low"),
    "scaled category": ('["baker",', '["a", "b"]\nscale = "log"\n#', "for numbers"),
    "one category": ('["baker", "nurse", "smith"]', '["baker"]', "two categories"),
    "column key": ("low = 0", "lwo = 0", "did you mean 'low'"),
    "no range": ("low = 0\n", "", "needs its public range"),
    "one class": ('classes = ["no", "yes"]', 'classes = ["no"]', "two classes"),
    "two roles": ('name = "age"', 'name = "bought"', "column bought has two roles"),
    "not private": ("epsilon = 2.0", 'mechanism = "none"', "personal = false"),
    "unsafe": ("epsilon = 2.0", "epsilon = 2.0\nsecure = false", "benchmark = true"),
    "shape": (
        "[privacy]",
        "[data.image]\nshape = [3]\n[privacy]",
        "either .*columns.* or .*image",
    ),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_faults_of_the_configuration_have_their_line(tmp_path, fault):
    before, after, message = CONFIG_FAULTS[fault]
    assert before in CONFIG
    (tmp_path / "c.toml").write_text(CONFIG.replace(before, after, 1))
    with pytest.raises(TrainingError, match=message) as caught:
        load_config(tmp_path / "c.toml")
    assert str(caught.value).startswith("c.toml:")
    assert str(caught.value).split(":")[1].isdigit()
    assert "\n" not in str(caught.value)


def test_bad_data_writes_and_spends_nothing(security: Command, tmp_path):
    config = write_config(tmp_path)
    rows = (tmp_path / "rows.csv").read_text().replace("nurse", "pilot", 1)
    (tmp_path / "rows.csv").write_text(rows)
    result = security("train", str(config), "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: rows.csv: column 'job', line ")
    assert {path.name for path in tmp_path.iterdir()} <= {"c.toml", "rows.csv", "home"}
    assert Ledger(tmp_path / "home" / "ledger").accounts() == []


def test_public_data_without_privacy_says_so(tmp_path):
    said = []
    text = CONFIG.replace("epsilon = 2.0", 'mechanism = "none"')
    text = text.replace('label = "bought"', 'label = "bought"\npersonal = false')
    train_bundle(
        load_config(write_config(tmp_path, text)),
        tmp_path / "out",
        lambda *told: said.append(" ".join(map(str, told))),
        ledger=Ledger(tmp_path / "ledger"),
    )
    assert any("NONE: trained without privacy" in line for line in said)
    from models.bundle import read_bundle

    privacy = read_bundle(tmp_path / "out").report("privacy")
    assert privacy.conditions["differentially_private"] is False
    assert "epsilon" not in privacy.metrics
    assert Ledger(tmp_path / "ledger").accounts() == []
