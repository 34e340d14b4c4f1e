"""Rows and owners are what they are by value, however a program wrote them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.data.datasets import common_rows, split, without
from models.data.sources import Schema, load_source
from models.errors import DatasetError
from models.manifest import Column

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

SCHEMA = Schema(
    name="persons",
    label="out",
    classes=("no", "yes"),
    columns=(Column("age", 0.0, 100.0), Column("job", 0.0, 2.0, ("1", "2", "None"))),
    sensitive=("sex",),
    missing=("?",),
)
AGES = [int(age) for age in np.random.default_rng(0).integers(20, 30, 60)]
JOBS = ["1", "2", "None"] * 20
SEXES = ["F", "M", "x y", "F", "M"] * 12
OUT = ["no", "yes"] * 30
SPELLINGS = {
    "whole": lambda age: f"{age}",
    "fraction": lambda age: f"{age}.0",
    "power": lambda age: f"{age / 10:g}e1",
    "spaced": lambda age: f" {age} ",
    "zeros": lambda age: f"0{age}.00",
}


def write(folder, name, columns):
    lines = [
        ",".join(columns),
        *(",".join(map(str, r)) for r in zip(*columns.values())),
    ]
    (folder / name).write_text("\n".join(lines))
    return name


def table(spell=str):
    ages = [spell(age) for age in AGES]
    return {"age": ages, "job": JOBS, "sex": SEXES, "out": OUT}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_split_stays_when_a_file_is_rewritten(tmp_path, spelling):
    first = load_source(write(tmp_path, "a.csv", table()), SCHEMA, tmp_path)
    again = table(SPELLINGS[spelling])
    again["job"] = [job if job == "None" else f"{job}.0" for job in JOBS]
    second = load_source(write(tmp_path, "b.csv", again), SCHEMA, tmp_path)
    parts = [split(item, key="k", holdout=0.3) for item in (first, second)]
    for one, two in zip(*parts):
        assert np.array_equal(one.features, two.features)
    assert len(without(first, second)) == 0


KINDS = {
    "whole numbers": pa.int64(),
    "fractions": pa.float64(),
    "half of the width": pa.float32(),
    "small": pa.int8(),
    "texts": pa.string(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "decimals": pa.decimal128(24, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_of_any_type_is_the_same_table(tmp_path, kind):
    first = load_source(write(tmp_path, "a.csv", table()), SCHEMA, tmp_path)
    ages = pa.array(AGES)
    if pa.types.is_dictionary(KINDS[kind]):
        ages = ages.cast(pa.string()).dictionary_encode()
    columns = {**table(), "age": ages if "dict" in kind else ages.cast(KINDS[kind])}
    parquet.write_table(pa.table(columns), tmp_path / "b.parquet")
    second = load_source("b.parquet", SCHEMA, tmp_path)
    assert np.array_equal(first.features, second.features)
    assert first.keys.tolist() == second.keys.tolist()


def test_single_precision_is_as_far_as_a_model_sees(tmp_path):
    values = [str(age / 7) for age in AGES]
    first = load_source(
        write(tmp_path, "a.csv", {**table(), "age": values}), SCHEMA, tmp_path
    )
    narrow = pa.array([np.float32(age / 7) for age in AGES], pa.float32())
    parquet.write_table(pa.table({**table(), "age": narrow}), tmp_path / "b.parquet")
    second = load_source("b.parquet", SCHEMA, tmp_path)
    assert len(without(first, second)) == 0


def test_a_gap_does_not_change_whole_numbers(tmp_path):
    """What pandas does: a column of whole numbers with a gap becomes fractions."""
    ages = [None, *AGES[1:]]
    for name, kind in (("a.parquet", pa.int64()), ("b.parquet", pa.float64())):
        columns = {**table(), "age": pa.array(ages, kind), "job": pa.array([1, 2] * 30)}
        if name == "b.parquet":
            columns["job"] = columns["job"].cast(pa.float64())
        parquet.write_table(pa.table(columns), tmp_path / name)
    written = table(lambda age: f"{age}.0") | {"job": ["1.0", "2.0"] * 30}
    written["age"][0] = "?"
    write(tmp_path, "c.csv", written)
    a, b, c = (
        load_source(name, SCHEMA, tmp_path)
        for name in ("a.parquet", "b.parquet", "c.csv")
    )
    assert np.isnan(a.features[0, 0])
    assert a.keys.tolist() == b.keys.tolist() == c.keys.tolist()


def test_a_dropped_column_does_not_tell_rows_apart(tmp_path):
    schema = replace(SCHEMA, drop=("note",))
    notes = {"note": [f"n{i}" for i in range(60)]}
    first = load_source(
        write(tmp_path, "a.csv", {**table(), **notes}), schema, tmp_path
    )
    other = {"note": ["again"] * 60}
    second = load_source(
        write(tmp_path, "b.csv", {**table(), **other}), schema, tmp_path
    )
    assert len(without(first, second)) == 0


def test_a_sensitive_column_does(tmp_path):
    first = load_source(write(tmp_path, "a.csv", table()), SCHEMA, tmp_path)
    other = {**table(), "sex": ["other"] * 60}
    second = load_source(write(tmp_path, "b.csv", other), SCHEMA, tmp_path)
    assert len(without(first, second)) == 60


def owned(folder, name, owners, kind=None):
    schema = replace(SCHEMA, unit="pid")
    columns = {**table(), "pid": owners}
    if kind is None:
        return load_source(write(folder, name, columns), schema, folder)
    parquet.write_table(
        pa.table({**table(), "pid": pa.array(owners, kind)}), folder / name
    )
    return load_source(name, schema, folder)


def test_owners_are_compared_by_value(tmp_path):
    numbers = [i % 20 for i in range(60)]
    whole = owned(tmp_path, "a.csv", numbers)
    for other in (
        owned(tmp_path, "b.csv", [f"{i}.0" for i in numbers]),
        owned(tmp_path, "c.parquet", numbers, pa.int32()),
        owned(tmp_path, "d.parquet", numbers, pa.float64()),
        owned(tmp_path, "e.parquet", [str(i) for i in numbers], pa.string()),
    ):
        assert other.units.tolist() == whole.units.tolist()
        assert common_rows(whole, other) == 60


def test_text_owners_stay_what_they_are(tmp_path):
    names = ["007", "7", "+7", "0x7", "7a", "None"] * 10
    assert owned(tmp_path, "a.csv", names).units.tolist() == names


def test_large_owners_do_not_collide(tmp_path):
    numbers = [2**53 + i for i in range(60)]
    for found in (
        owned(tmp_path, "a.csv", numbers),
        owned(tmp_path, "b.parquet", numbers, pa.int64()),
    ):
        assert len(set(found.units)) == 60


@pytest.mark.parametrize("empty", ["", " ", "?", "nan"])
def test_a_row_without_an_owner_is_refused(tmp_path, empty):
    names = [*["1"] * 30, empty, *["2"] * 29]
    with pytest.raises(DatasetError, match=r"'pid', line 32: .* is no owner"):
        owned(tmp_path, "a.csv", names)


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64()])
def test_nor_is_a_null_an_owner(tmp_path, kind):
    with pytest.raises(DatasetError, match=r"'pid', row 1: .* is no owner"):
        owned(tmp_path, "a.parquet", [None, *range(59)], kind)


def test_the_earlier_version_tells_rows_apart_by_their_texts(tmp_path):
    """Digests as the release before wrote them: its splits stay as they were."""
    before = replace(SCHEMA, identity=1)
    text = "age,job,sex,out\n65,1,F,no\n65.0,2,M,yes\n70,2,M,no\n"
    (tmp_path / "a.csv").write_text(text)
    columns = {
        "age": [65.0, 66.5],
        "job": ["1", "2"],
        "sex": pa.array([1, None]),
        "out": ["no", "yes"],
    }
    parquet.write_table(pa.table(columns), tmp_path / "b.parquet")
    found = [
        [key[:12] for key in load_source(name, before, tmp_path).keys]
        for name in ("a.csv", "b.parquet")
    ]
    assert found == [
        [b"c955a0e0549c", b"86e1f620ff0d", b"a93fc9a18cc4"],
        [b"2c74f82f58a0", b"15c03b976be1"],
    ]


OWNED = replace(SCHEMA, unit="pid", sensitive=())
IDS = [2**53 + 1 + 2 * i for i in range(60)]


def test_owners_whose_numbers_were_rounded_are_refused(tmp_path):
    columns = {"pid": np.array(IDS), "age": AGES, "job": JOBS, "out": OUT}
    np.savez(tmp_path / "a.npz", **columns)
    assert len(set(load_source("a.npz", OWNED, tmp_path).units)) == 60
    np.savez(tmp_path / "b.npz", **columns | {"pid": np.array(IDS, dtype=np.float64)})
    texts = columns | {"pid": [f"{float(pid)}" for pid in IDS]}
    for name in ("b.npz", write(tmp_path, "b.csv", texts)):
        with pytest.raises(DatasetError, match=r"'pid'.*is a rounded number"):
            load_source(name, OWNED, tmp_path)


def test_truths_and_days_are_the_same_however_written(tmp_path):
    for mine, other in ((("True", "False"), ("TRUE", "false")), (DAYS, STAMPS)):
        names = [
            write(tmp_path, f"{i}.csv", table() | {"sex": list(cells) * 30})
            for i, cells in enumerate((mine, other))
        ]
        first, second = (load_source(name, SCHEMA, tmp_path) for name in names)
        assert common_rows(first, second) == 60


DAYS = ("2020-01-02", "2021-03-04")
STAMPS = ("2020-01-02 00:00:00", "2021-03-04T00:00:00.000")
