"""Input files and printed tables of the command line."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import ProfileError
from sealgate.output import format_json, format_table
from sealgate.tables import MAX_INPUT_BYTES
from sealgate.tables import read_inputs as read_whole

METADATA = {
    "inputs": [
        {
            "name": "features",
            "datatype": "FP32",
            "shape": [-1, 2],
            "parameters": {"columns": [{"name": "a"}, {"name": "b"}]},
        }
    ],
    "outputs": [
        {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": [-1, 2],
            "parameters": {"labels": ["no", "yes"]},
        },
        {"name": "label", "datatype": "INT64", "shape": [-1]},
    ],
}
PLAIN = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}], "outputs": []}
TWO = {"inputs": [METADATA["inputs"][0], PLAIN["inputs"][0]], "outputs": []}


def read_inputs(path, metadata):
    return read_whole(path, metadata).arrays


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: bytes | str):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", "[[1, 2], [3, 4.5]]"),
        ("named.json", '{"features": [[1, 2], [3, 4.5]]}'),
        (
            "v2.json",
            '{"inputs": [{"name": "features", "datatype": "FP32", "shape": [2, 2],'
            ' "data": [1, 2, 3, 4.5]}]}',
        ),
        ("upper.JSON", "[[1, 2], [3, 4.5]]"),
        ("rows.npz", npz(features=np.array([[1, 2], [3, 4.5]]))),
        ("plain.csv", "1,2\n3,4.5\n"),
        ("header.csv", "a,b\n1,2\n3,4.5\n"),
        ("order.csv", "b,a\n2,1\n4.5,3\n"),
        ("spaces.csv", " a , b\n1, 2\n\n3, 4.5\n"),
        ("quoted.csv", '"a","b"\r\n"1","2"\r\n"3","4.5"\r\n'),
        ("bom.csv", "\ufeffa,b\n1,2\n3,4.5"),
        ("more.csv", "a,target,b\n1,x,2\n3,y,4.5\n"),
        ("returns.csv", "a,b\r1,2\r3,4.5"),
        ("spelled.csv", "a,b\n1e0,2.0\n3.00,4.5\n"),
    ],
)
def test_every_kind_of_file(write, name, content):
    arrays = read_inputs(write(name, content), METADATA)
    assert list(arrays) == ["features"]
    assert arrays["features"].tolist() == [[1.0, 2.0], [3.0, 4.5]]


def test_ignored_columns_are_named(write, capsys):
    read_inputs(write("x.csv", "id,a,b,target\n1,2,3,4\n"), METADATA)
    assert capsys.readouterr().err == "ignored columns: id, target\n"


def test_columns_of_a_model_that_names_none(write, capsys):
    arrays = read_inputs(write("x.csv", "p,q\n1,2\n"), PLAIN)
    assert arrays["x"].tolist() == [[1.0, 2.0]]
    assert capsys.readouterr().err == ""


def test_several_inputs_by_name(write):
    arrays = read_inputs(write("x.json", '{"features": [[1, 2]], "x": [[3, 4]]}'), TWO)
    assert {k: v.tolist() for k, v in arrays.items()} == {
        "features": [[1, 2]],
        "x": [[3, 4]],
    }


BAD_ZIP = bytearray(npz(features=np.arange(1000.0)))
BAD_ZIP[200:300] = bytes(100)
DEFLATED = io.BytesIO()
np.savez_compressed(DEFLATED, features=np.arange(10_000.0))
BAD_DEFLATE = bytearray(DEFLATED.getvalue())
BAD_DEFLATE[200:300] = b"\xff" * 100


def _zip(member: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("features.npy", member)
    return buffer.getvalue()


HUGE = (
    b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(
        117
    )
    + b"\n"
)

FAULTS = {
    "unknown kind": (
        "x.txt",
        "1,2",
        METADATA,
        "expected a .json, .npz, .csv or .parquet file",
    ),
    "no suffix": (
        "x",
        "1,2",
        METADATA,
        "expected a .json, .npz, .csv or .parquet file",
    ),
    "empty json": ("x.json", "", METADATA, "not JSON"),
    "NaN": ("x.json", "[[NaN, 1]]", METADATA, "NaN is not JSON"),
    "repeated name": ("x.json", '{"x": [], "x": []}', METADATA, "repeats a key"),
    "ragged json": ("x.json", "[[1, 2], [3]]", METADATA, "inhomogeneous"),
    "rows for two inputs": ("x.json", "[[1, 2]]", TWO, "the model has several inputs"),
    "malformed v2": (
        "x.json",
        '{"inputs": [{"name": "x", "shape": [1], "data": [1]}]}',
        METADATA,
        '"x": unknown datatype',
    ),
    "tensor given twice": (
        "x.json",
        json.dumps(
            {
                "inputs": [
                    {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]},
                    {"name": "x", "datatype": "FP32", "shape": [1], "data": [2]},
                ]
            }
        ),
        METADATA,
        '"x": given twice',
    ),
    "empty npz": ("x.npz", b"", METADATA, "No data left in file"),
    "text as npz": ("x.npz", b"hello", METADATA, "pickled"),
    "npy as npz": ("x.npz", npy(np.ones(3)), METADATA, "not an .npz archive"),
    "damaged npz": ("x.npz", bytes(BAD_ZIP), METADATA, "x.npz: "),
    "damaged compression": ("x.npz", bytes(BAD_DEFLATE), METADATA, "x.npz: "),
    "cut npz": ("x.npz", npz(features=np.ones(9))[:100], METADATA, "x.npz: "),
    "a claim of petabytes": ("x.npz", _zip(HUGE), METADATA, "x.npz: "),
    "pickle": (
        "x.npz",
        npz(features=np.array([{}], dtype=object)),
        METADATA,
        "Object arrays cannot be loaded",
    ),
    "empty csv": ("x.csv", "", METADATA, "the file is empty"),
    "blank csv": ("x.csv", "\n\n", METADATA, "the file is empty"),
    "header only": ("x.csv", "a,b\n", METADATA, "there is a header, but no row"),
    "missing column": (
        "x.csv",
        "a,c\n1,2\n",
        METADATA,
        'input "features": column "b" is missing',
    ),
    "short row": ("x.csv", "a,b\n1,2\n3\n", METADATA, "line 3 has 1 cells, not 2"),
    "long row": ("x.csv", "a,b\n1,2,3\n", METADATA, "line 2 has 3 cells, not 2"),
    "text cell": (
        "x.csv",
        "a,b\n1,2\n1,x\n",
        METADATA,
        "column \"b\", line 3: 'x' is not a number",
    ),
    "column twice": ("x.csv", "a,b,a\n1,2,3\n", METADATA, "column 'a' occurs twice"),
    "ragged csv": ("x.csv", "1,2\n3\n", METADATA, "line 2 has 1 cells, not 2"),
    "csv for two inputs": ("x.csv", "1,2\n", TWO, "the model has several inputs"),
    "not UTF-8": ("x.csv", b"\xff\xfe1,2", METADATA, "can't decode byte 0xff"),
    "long cell": ("x.csv", "1," + "2" * 200_000, METADATA, "field larger than"),
}


@pytest.mark.parametrize(
    ("name", "content", "metadata", "message"), FAULTS.values(), ids=FAULTS
)
def test_refused_files(write, name, content, metadata, message):
    path = write(name, content)
    with pytest.raises(ProfileError) as caught:
        read_inputs(path, metadata)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(ProfileError, match=r"x\.csv: No such file or directory"):
        read_inputs(tmp_path / "x.csv", METADATA)


def test_a_folder(tmp_path):
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(ProfileError, match=r"x\.csv: Is a directory"):
        read_inputs(tmp_path / "x.csv", METADATA)


def test_too_large_a_file_is_not_read(tmp_path):
    path = tmp_path / "x.csv"
    with path.open("wb") as file:
        file.truncate(MAX_INPUT_BYTES + 1)  # sparse: takes no space
    with pytest.raises(ProfileError, match=r"x\.csv: more than 268435456 bytes"):
        read_inputs(path, METADATA)


@given(st.sampled_from([".json", ".npz", ".csv"]), st.binary(max_size=60))
@settings(deadline=None, max_examples=150)
def test_arbitrary_files_only_raise_profile_error(tmp_path_factory, suffix, data):
    path = tmp_path_factory.getbasetemp() / f"input{suffix}"
    path.write_bytes(data)
    try:
        read_inputs(path, METADATA)
    except ProfileError:
        return


@given(st.integers(0, 400), st.integers(0, 255), st.integers(0, 400))
@settings(deadline=None, max_examples=200)
def test_damaged_archives_only_raise_profile_error(tmp_path_factory, at, byte, cut):
    data = bytearray(npz(features=np.ones((2, 2)), x=np.arange(3)))
    data[at % len(data)] = byte
    path = tmp_path_factory.getbasetemp() / "input.npz"
    path.write_bytes(data[: len(data) - cut] if cut % 2 else data)
    try:
        read_inputs(path, METADATA)
    except ProfileError:
        return


CELLS = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(
    -1000, 1000
)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), st.booleans())
@settings(deadline=None, max_examples=50)
def test_csv_round_trip(tmp_path_factory, rows, header):
    lines = ["a,b"] * header + [f"{a!r},{b!r}" for a, b in rows]
    path = tmp_path_factory.getbasetemp() / "input.csv"
    path.write_text("\n".join(lines))
    array = read_inputs(path, METADATA)["features"]
    assert array.tolist() == [[float(a), float(b)] for a, b in rows]


def test_table():
    outputs = {
        "probabilities": np.array([[0.25, 0.75], [1, 0]], dtype=np.float32),
        "label": np.array([1, 0]),
    }
    assert format_table(outputs, METADATA) == (
        "row      no     yes  label\n"
        "  0  0.2500  0.7500      1\n"
        "  1  1.0000  0.0000      0"
    )


def test_table_without_labels():
    outputs = {"p": np.array([[[1, 2], [3, 4]]]), "q": np.array([True])}
    assert format_table(outputs, METADATA) == (
        "row  p[0]  p[1]  p[2]  p[3]     q\n  0     1     2     3     4  True"
    )


def test_table_of_no_rows():
    outputs = {
        "probabilities": np.zeros((0, 2), dtype=np.float32),
        "label": np.zeros(0, dtype=np.int64),
    }
    assert format_table(outputs, METADATA) == "row  no  yes  label"


def test_table_of_rows_without_columns():
    assert format_table({"p": np.zeros((2, 0))}, METADATA) == "row"


def test_table_of_a_scalar():
    assert format_table({"p": np.array(0.5)}, METADATA) == "row       p\n  0  0.5000"


def test_labels_that_do_not_fit_are_not_used():
    outputs = {"probabilities": np.array([[0.5]], dtype=np.float32)}
    assert format_table(outputs, METADATA) == ("row  probabilities\n  0         0.5000")


def test_json():
    outputs = {"p": np.array([[0.5, 1]], dtype=np.float32), "label": np.array([1])}
    assert json.loads(format_json(outputs)) == {"p": [[0.5, 1.0]], "label": [1]}
