"""`sealgate infer` on files of every datatype, against a real server."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sealgate.protocol.datatypes import DATATYPES
from tests.conftest import mint
from tests.support import zoo
from tests.support.servers import ROOT, serve

pytestmark = pytest.mark.slow

PLAIN = tuple(name for name in zoo.KINDS if name != "BF16")
# Two cells of each datatype, the extremes where there are some.
CELLS = {
    "BOOL": ("true", "0"),
    "UINT64": ("0", str(2**64 - 1)),
    "INT64": (str(-(2**63)), str(2**63 - 1)),
    "FP16": ("0.5", ""),
    "FP32": ("1e-3", "-inf"),
    "FP64": ("0.1", "1e300"),
    "BF16": ("2.5", "-3"),
    "BYTES": ("", "zwölf, 12"),
}


def cells(kind: str) -> tuple[str, str]:
    if kind in CELLS:
        return CELLS[kind]
    info = np.iinfo(DATATYPES[kind])
    return str(info.min), f"{info.max}.0"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a server of models that give back what they take."""
    home = tmp_path_factory.mktemp("files") / "home"
    models = {
        "all": zoo.echo_model(PLAIN, width=1),
        "halves": zoo.echo_model(["BF16", "FP32"], width=1),
        "pictures": zoo.echo_model(["UINT8"], width=4),
    }
    zoo.admit_all(home, models)
    with serve(
        "service.app:Sealgate", home, extra=zoo.settings(home, models), alone=True
    ) as s:
        path = home / "client.json"
        path.write_text(json.dumps({"url": s.url, "token": mint(home, "infer:*")}))
        path.chmod(0o600)
        yield path


def infer(profile: Path, model: str, source: Path | str, *more: object, text: str = ""):
    return subprocess.run(
        [sys.executable, "-m", "sealgate", "infer", model, "--profile", str(profile),
         "--input", str(source), *map(str, more)],
        cwd=ROOT, input=text, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def table(kinds: tuple[str, ...]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow([f"i{kind}" for kind in kinds])
    writer.writerows(zip(*map(cells, kinds), strict=True))
    return stream.getvalue()


def test_a_csv_of_every_datatype(profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    result = infer(profile, "all", "-", "--output", out, text=table(PLAIN))
    assert result.returncode == 0, result.stderr
    with out.open(newline="") as file:
        first, second = csv.DictReader(file)
    for kind in PLAIN:
        given = cells(kind)
        # What the file has, as it is there; and the answer, by its value.
        assert (first[f"i{kind}"], second[f"i{kind}"]) == given
        got = first[f"o{kind}"], second[f"o{kind}"]
        if kind == "BYTES":
            assert got == given
        elif kind == "BOOL":
            assert got == ("True", "False")
        elif kind.startswith("FP"):
            wanted = [float(cell or "nan") for cell in given]
            np.testing.assert_allclose([float(x) for x in got], wanted, rtol=1e-6)
        else:
            assert [int(x) for x in got] == [int(x.partition(".")[0]) for x in given]


def test_a_csv_of_halves(profile: Path) -> None:
    text = table(("BF16", "FP32"))
    result = infer(profile, "halves", "-", "--json", text=text)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["oBF16"] == [[2.5], [-3.0]]


def test_parquet_of_every_datatype(profile: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    parquet = pytest.importorskip("pyarrow.parquet")
    frame = pandas.DataFrame(
        {
            **{f"i{k}": np.array([1, 2], dtype=DATATYPES[k]) for k in PLAIN[1:-1]},
            "iBOOL": pandas.array([True, False], dtype="boolean"),
            "iBYTES": pandas.Categorical(["x", "y"]),
            "kept": ["p", "q"],
        }
    )
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    frame.to_parquet(source)
    result = infer(profile, "all", source, "--output", out)
    assert result.returncode == 0, result.stderr
    read = parquet.read_table(out).to_pydict()
    assert read["kept"] == ["p", "q"]
    assert read["oBYTES"] == ["x", "y"]
    assert read["oBOOL"] == [True, False]
    assert read["oUINT64"] == [1, 2]


@pytest.mark.parametrize(
    ("kind", "cell", "message"),
    [
        ("INT8", "128", "'128' is out of range, -128 to 127"),
        ("UINT32", "-1", "'-1' is out of range"),
        ("INT64", "1.5", "'1.5' is not a whole number"),
        ("INT64", "", "an empty cell is not a whole number"),
        ("BOOL", "yes", "'yes' is neither true nor false"),
        ("FP64", "x", "'x' is not a number"),
    ],
)
def test_a_cell_that_cannot_be_sent(
    profile: Path, tmp_path: Path, kind: str, cell: str, message: str
) -> None:
    lines = table(PLAIN).splitlines()
    row = dict(zip(PLAIN, next(csv.reader([lines[1]])), strict=True)) | {kind: cell}
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        file.write(f"{lines[0]}\n")
        writer = csv.writer(file)
        writer.writerow([cells(k)[0] for k in PLAIN])
        writer.writerow(row.values())
    result = infer(profile, "all", path)
    assert result.returncode == 2
    assert result.stderr.strip() == (
        f'error: {path}: input "i{kind}", column "i{kind}", line 3: {message}'
        + result.stderr.strip().partition(message)[2]
    )


def test_rows_without_a_header(profile: Path) -> None:
    result = infer(profile, "pictures", "-", "--json", text="1,2,3,4\n5,6,7,255\n")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["oUINT8"] == [[1, 2, 3, 4], [5, 6, 7, 255]]
