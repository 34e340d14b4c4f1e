"""Batch jobs at their edges: nothing lost, overwritten or left behind."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from security.batch.plan import make_plan
from security.batch.writing import open_writer
from security.errors import BatchError
from tests.security.batch.test_batch_command import batch, home, source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

__all__ = ["home", "source"]


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
def test_a_job_without_one_good_row_ends_in_good_order(
    home: Path, tmp_path: Path, kind: str
) -> None:
    path, out, bad = tmp_path / "in.csv", tmp_path / f"o{kind}", tmp_path / "bad.csv"
    path.write_text("a,b,c\nx,1,1\n1,x,1\n")
    result = batch(home, path, out, "--skip-bad", bad, "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["rows"], summary["skipped"]) == (0, 2)
    assert out.exists()
    if kind == ".parquet":
        assert pq.read_table(out).num_rows == 0
    assert len(bad.read_text().splitlines()) == 3


def test_a_list_of_bad_rows_overwrites_nothing(
    home: Path, source: Path, tmp_path: Path
) -> None:
    out, mine = tmp_path / "o.csv", tmp_path / "mine.csv"
    mine.write_text("mine")
    for more in ((), ("--resume",)):
        result = batch(home, source, out, "--skip-bad", mine, *more)
        assert (result.returncode, "--skip-bad: " in result.stderr) == (2, True)
    assert mine.read_text() == "mine"
    for place in (out, tmp_path / "o.csv.batch.json"):
        result = batch(home, source, out, "--skip-bad", place)
        assert (result.returncode, "where the answers go" in result.stderr) == (2, True)
    assert not list(tmp_path.glob("o.csv*"))
    mine.write_text("file,row,reason\n")
    done = batch(home, source, out, "--skip-bad", mine, "--resume")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("option", ["--out", "--skip-bad"])
def test_nothing_is_written_among_the_input(
    home: Path, source: Path, tmp_path: Path, option: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    source.rename(folder / "rows.parquet")
    result = batch(home, folder, tmp_path / "o.csv", option, folder / "x.csv")
    assert (result.returncode, "the folder of the input" in result.stderr) == (2, True)
    assert [path.name for path in folder.iterdir()] == ["rows.parquet"]


def test_answers_beyond_a_budget_are_left_nowhere(
    home: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (home / "quotas.toml").write_text(
        "[batch.default]\nanswer_bits_per_30_days = 20000\n"
    )
    for resume in ((), ("--resume",)):
        result = batch(home, source, out, "--part-rows", 250, *resume)
        assert result.returncode == 1
        names = sorted(path.name for path in out.iterdir())
        assert 2 < len(names) < 14
        assert names[0] == "_about.json", names


def test_what_was_there_stays_and_nothing_comes(
    home: Path, source: Path, tmp_path: Path
) -> None:
    one, folder = tmp_path / "one.csv", tmp_path / "folder"
    one.write_text("mine")
    folder.mkdir()
    (folder / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for out in (one, folder):
        assert batch(home, source, out, "--resume").returncode == 2
    assert [p for p in sorted(tmp_path.rglob("*")) if home not in p.parents] == [
        p for p in before if home not in p.parents
    ]


def test_what_others_put_into_a_stopped_job_s_folder_stays(
    home: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (home / "quotas.toml").write_text("[batch.default]\nrows_per_day = 600\n")
    assert batch(home, source, out, "--part-rows", 500).returncode == 1
    (out / "notes.txt").write_text("mine")
    (out / "part-000000.parquet").unlink()
    assert batch(home, source, out, "--part-rows", 500, "--resume").returncode == 1
    assert (out / "notes.txt").read_text() == "mine"


def test_a_finished_job_is_not_what_was_cut_since(
    home: Path, source: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / name for name in ("o.csv", "folder")]
    for out in outs:
        assert batch(home, source, out).returncode == 0
        assert batch(home, source, out, "--resume").returncode == 0
    for file in (outs[0], outs[1] / "part-000000.parquet"):
        file.write_bytes(file.read_bytes()[:-10])
    for out in outs:
        result = batch(home, source, out, "--resume")
        assert (result.returncode, "not what was written" in result.stderr) == (2, True)


def test_parts_of_a_job_that_was_stopped_at_its_end_go(
    home: Path, source: Path, tmp_path: Path
) -> None:
    out, parts = tmp_path / "o.csv", tmp_path / "o.csv.parts"
    assert batch(home, source, out).returncode == 0
    parts.mkdir()
    (parts / "part-000000.csv").write_text("x")
    about = json.loads((tmp_path / "o.csv.batch.json").read_bytes())
    (parts / "_about.json").write_text(json.dumps(about))
    assert batch(home, source, out, "--resume").returncode == 0
    assert not parts.exists()


def test_rows_that_a_file_lacks_end_the_job(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Parquet file whose footer states more rows than there are."""
    path, out = tmp_path / "in.parquet", tmp_path / "o.csv"
    columns = {name: np.arange(100.0) for name in "abc"}
    options = {"compression": "none", "use_dictionary": False}
    pq.write_table(pa.table(columns), path, **options)
    data = path.read_bytes()
    begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    hundred, more = b"\xc8\x01", b"\x90\x03"  # as Thrift has 100 and 200
    path.write_bytes(data[:begin] + data[begin:].replace(hundred, more))
    result = batch(home, path, out)
    print(result)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert not out.exists()


def test_columns_without_names_are_in_one_order(tmp_path: Path) -> None:
    """A model that names no columns takes them as they come."""
    tensor = {"name": "x", "datatype": "FP64", "shape": [-1, 2]}
    metadata = {"inputs": [tensor]}
    (tmp_path / "0.csv").write_text("id,a,b\n1,2,3\n")
    (tmp_path / "1.csv").write_text("a,id,b\n2,1,3\n")
    assert make_plan(tmp_path, metadata, keep=("id",), part_rows=9).rows == 2
    (tmp_path / "1.csv").write_text("id,b,a\n1,3,2\n")
    with pytest.raises(BatchError, match=r"1\.csv: other columns than 0\.csv"):
        make_plan(tmp_path, metadata, keep=("id",), part_rows=9)


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("security.batch.writing._GROUP_BYTES", 1000)
    path = tmp_path / "x.parquet"
    with closing(open_writer(path, ".parquet")) as writer:
        for _ in range(5):
            writer.write({"t": ["a" * 400, "b" * 400]})
    file = pq.ParquetFile(path)
    assert (file.num_row_groups, file.metadata.num_rows) == (3, 10)


@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_a_kept_value_without_a_form_ends_the_job_in_one_line(
    home: Path, tmp_path: Path, kind: str
) -> None:
    """A point in time beyond those that Python has."""
    path, out = tmp_path / "in.parquet", tmp_path / f"o{kind}"
    columns = {name: [1.0] for name in "abc"}
    when = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table(columns | {"when": when}), path)
    result = batch(home, path, out, "--keep", "when")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "the answers cannot be written: " in result.stderr


def test_no_column_takes_another_ones_place(home: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "in.csv", tmp_path / "o.csv"
    path.write_text("a,b,c,yes,predicted_yes\n1,2,3,x,y\n")
    more = ("--keep", "yes", "--keep", "predicted_yes")
    assert batch(home, path, out, *more).returncode == 0
    header, row = (line.split(",") for line in out.read_text().splitlines())
    assert header == [
        *("yes", "predicted_yes", "no", "predicted_predicted_yes", "label")
    ]
    assert row[:2] == ["x", "y"]
