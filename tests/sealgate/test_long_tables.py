"""sealgate.long_tables: a part of a file at a time, the same rows as all at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sealgate.convert import to_arrays
from sealgate.errors import ProfileError
from sealgate.long_tables import open_table
from sealgate.tables import read_inputs

METADATA = {
    "name": "m",
    "inputs": [
        {"name": "t", "datatype": "BYTES", "shape": [-1]},
        {"name": "n", "datatype": "FP32", "shape": [-1]},
    ],
    "outputs": [],
}
CASES = {
    "plain": "t,n\na,1\nb,2\nc,3\n",
    "quoted lines": 't,n\n"a\nb, ""c""",1\n"\r\n",2\nd,3',
    "another mark of order": "\ufefft,n\r\nä,1\r\nb,2\r\n\r\nc,3\r\n",
    "old ends of lines": "t,n\ra,1\rb,\rc,3\r",
    "a quote inside": 'n,t\n1,5" pipe\n2,"x"\n\n3,y\n',
    "blanks": "t, n\n\na, 1\n\n\nb, 2\n",
}


def rows(path: Path, part_rows: int, most: int) -> dict[str, list]:
    table = open_table(path, METADATA)
    found: dict[str, list] = {"t": [], "n": [], "row": []}
    first = 0
    for place in table.places(part_rows):
        assert place.first == first
        frames = list(table.read(place, None, most))
        assert sum(map(len, frames)) == place.rows
        first += place.rows
        for frame in frames:
            frame.check()
            assert len(frame) <= most
            arrays = to_arrays(frame, METADATA, row=frame.row)
            for name, array in arrays.items():
                found[name] += array.tolist()
            found["row"] += [frame.row(place) for place in range(len(frame))]
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("part_rows", [1, 2, 100])
def test_parts_of_a_csv_are_its_rows(tmp_path: Path, name: str, part_rows: int) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(CASES[name].encode())
    whole = read_inputs(path, METADATA).arrays
    for most in (1, 50):
        found = rows(path, part_rows, most)
        assert found["t"] == whole["t"].tolist()
        np.testing.assert_array_equal(found["n"], whole["n"])
        assert found["row"] == rows(path, 100, 50)["row"]


def test_lines_are_named_as_in_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('t,n\n"a\nb",1\nc,x\n')
    with pytest.raises(ProfileError, match=r"line 4: 'x' is not a number"):
        read_inputs(path, METADATA)
    assert rows_named(path) == ["line 3", "line 4"]


def rows_named(path: Path) -> list[str]:
    table = open_table(path, METADATA)
    return [
        frame.row(0)
        for place in table.places(1)
        for frame in table.read(place, None, 10)
    ]


def test_parts_of_parquet_are_row_groups(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    table = arrow.table({"n": np.arange(10.0), "t": [f"{n}" for n in range(10)]})
    parquet.write_table(table, path, row_group_size=3)
    places = list(open_table(path, METADATA).places(4))
    assert [(place.first, place.rows) for place in places] == [(0, 6), (6, 4)]
    found = rows(path, 4, 2)
    assert found["n"] == list(range(10))
    assert found["row"][-1] == "row 9"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.csv", b"", "the file is empty"),
        ("x.csv", b"a,a\n1,2\n", "'a' occurs twice"),
        ("x.csv", b"a\n\xff\n", "utf-8"),
        ("x.parquet", b"PAR1", "Parquet"),
        ("x.parquet", b"PAR1" + bytes(90) + b"PAR1", r"x\.parquet: "),
        ("x.json", b"{}", r"expected a \.csv or \.parquet file"),
        ("none.csv", None, "No such file"),
    ],
)
def test_what_is_no_table(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ProfileError, match=message):
        table = open_table(path, METADATA)
        table.sha256()
        list(table.places(1))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sealgate.long_tables._LINE", 100)
    path = tmp_path / "x.csv"
    path.write_text("t,n\n" + "a" * 200 + ",1\n")
    with pytest.raises(ProfileError, match="more than 100 characters"):
        list(open_table(path, METADATA).places(1))


def test_a_row_without_end_is_refused(tmp_path: Path, monkeypatch) -> None:
    """Each of its lines is short: they end within a quoted cell."""
    monkeypatch.setattr("sealgate.long_tables._ROW_BYTES", 100)
    path = tmp_path / "x.csv"
    path.write_text("t,n\n" + "a,1\n" * 90 + '"\n",' * 90 + "1\n")
    with pytest.raises(ProfileError, match="a row of more than 100 bytes"):
        list(open_table(path, METADATA).places(1))


def test_long_rows_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sealgate.long_tables._BATCH_BYTES", 100)
    path = tmp_path / "x.csv"
    path.write_text("t,n\n" + "".join(f"{'a' * 45},{n}\n" for n in range(9)))
    table = open_table(path, METADATA)
    (place,) = table.places(100)
    frames = list(table.read(place, None, 100))
    assert [len(frame) for frame in frames] == [3, 3, 3]
    assert [cell for f in frames for cell in f.raw("n")] == [str(n) for n in range(9)]
