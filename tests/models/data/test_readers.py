"""Files to tables: whoever splits a line, its cells are the same; hostile ones end."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.columns import numbers, texts
from models.data.readers import CsvFormat, _plain_columns, _rows, read_table
from models.errors import DatasetError

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

PIECES = st.sampled_from([*"ab1 ,;.\"\n\r\t'é\u2028", "\r\n", "\n", ",", ",", "1"])
TEXTS = st.lists(PIECES, max_size=20).map(lambda parts: "".join(parts).rstrip("\r\n"))


@given(TEXTS)
@settings(max_examples=400, deadline=None)
def test_both_ways_to_split_a_file_agree(text):
    layout = CsvFormat()
    width = text.partition("\n")[0].count(",") + 1
    columns = _plain_columns(text, [f"c{i}" for i in range(width)], layout)
    if columns is None:
        return
    rows, places = _rows(text, "x.csv", layout, width, 0)
    found = [np.asarray(column).tolist() for column in columns]
    assert [list(row) for row in zip(*found)] == rows
    assert places == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("quote", ["", '"'])
def test_the_line_of_a_cell_is_that_of_the_file(tmp_path, quote):
    text = f'# made by hand\n\n"a\nb",c\n1,{quote}2{quote}\n3,x\n'
    (tmp_path / "a.csv").write_text(text)
    table = read_table("a.csv", base=tmp_path, layout=CsvFormat(comment="#"))
    assert list(table.arrays) == ["a\nb", "c"]
    with pytest.raises(DatasetError, match="column 'c', line 6: 'x' is not a number"):
        numbers(table, "c")


def test_kinds_of_parquet(tmp_path):
    columns = {
        "truth": pa.array([True, None, False]),
        "day": pa.array([0, 1, None], pa.date32()),
        "price": pa.array(["1.50", "2.00", "3"]).cast(pa.decimal128(9, 2)),
        "large": pa.array([2**53 + 1, None, 2**53]),
        "__index_level_0__": pa.array([0, 1, 2]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    table = read_table("a.parquet", base=tmp_path)
    assert texts(table, "truth").tolist() == ["true", "", "false"]
    assert texts(table, "day").tolist() == ["1970-01-01", "1970-01-02", ""]
    assert texts(table, "price").tolist() == ["1.5", "2", "3"]
    assert texts(table, "large").tolist() == [str(2**53 + 1), "", str(2**53)]
    assert numbers(table, "truth", missing=frozenset([""]))[0] == 1.0
    assert "__index_level_0__" not in table.arrays
    with pytest.raises(DatasetError, match="'large', row 2: 'None' is not a number"):
        numbers(table, "large")


def test_bytes_of_parquet_are_texts_and_lists_are_no_cells(tmp_path):
    columns = {"id": [b"1.0", b"x"], "list": [[1], [2]], "pair": [{"a": 1}] * 2}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    table = read_table("a.parquet", base=tmp_path)
    assert texts(table, "id").tolist() == ["1", "x"]
    with pytest.raises(DatasetError, match="'list' has cells of type ndarray"):
        texts(table, "list")
    with pytest.raises(DatasetError, match="'pair' has cells of type dict"):
        numbers(table, "pair")


def test_repeated_columns_of_parquet_are_refused(tmp_path):
    twice = pa.table([pa.array([1]), pa.array([2])], names=["a", " a"])
    parquet.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match="column 'a' occurs twice"):
        read_table("a.parquet", base=tmp_path)


def bomb(folder: Path) -> None:
    with gzip.open(folder / "a.csv.gz", "wb") as file:
        file.write(b"a,b\n" + b"0" * 100_000)


def test_what_unpacks_to_more_than_it_may(tmp_path):
    bomb(tmp_path)
    with pytest.raises(DatasetError, match="more than 50000 bytes"):
        read_table("a.csv.gz", base=tmp_path, max_bytes=50_000)


def test_what_is_no_file(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DatasetError, match="not a regular file"):
        read_table("a.csv", base=tmp_path)
    with pytest.raises(DatasetError, match="No such file"):
        read_table("a.npz", base=tmp_path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY junk")
    with pytest.raises(DatasetError, match="not an npz file"):
        read_table("a.npz", base=tmp_path)


@given(st.sampled_from([".csv", ".npz", ".parquet", ".csv.gz"]), st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_arbitrary_files_only_raise_dataset_error(tmp_path_factory, suffix, data):
    path = tmp_path_factory.getbasetemp() / f"input{suffix}"
    path.write_bytes(data)
    try:
        read_table(path.name, base=path.parent)
    except DatasetError:
        return


def test_a_plain_table_is_read_without_pandas():
    """Which pyarrow's own conversion to numpy imports, for a quarter of a second."""
    code = (
        "import sys, numpy as np\n"
        "from models.data.readers import CsvFormat, _plain_columns\n"
        "text = '1.5,a\\n-2e3,b\\n inf,c'.replace(' ', '')\n"
        "number, name = _plain_columns(text, ['x', 'y'], CsvFormat())\n"
        "print(number.floats().tolist(), np.asarray(name).tolist(), name.floats())\n"
        "number.floats()[:] = 0.0\n"  # a copy that may be changed
        "print('pandas' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    shown, imported = done.stdout.splitlines()
    assert shown == "[1.5, -2000.0, inf] ['a', 'b', 'c'] None"
    assert imported == "False"
