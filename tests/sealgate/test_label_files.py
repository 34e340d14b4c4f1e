"""Files of labels are read as other tables of the client are."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealgate.errors import ProfileError
from sealgate.tables import read_labels


def read(folder: Path, text: str, name: str = "labels.csv") -> list[dict[str, str]]:
    path = folder / name
    path.write_bytes(text.encode())
    return read_labels(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_with_a_label_are_read(tmp_path: Path, end: str) -> None:
    lines = ("age,ticket, label", "30,AA, None", "31,AB,", "32,,yes", "33,AC,nan")
    assert read(tmp_path, end.join(lines)) == [
        {"ticket": "AA", "label": "None"},
        {"ticket": "AC", "label": "nan"},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ticket,label,label\nAA,yes,no\n", "'label' occurs twice"),
        ("ticket,label\nAA\n", "line 2 has 1 cells, not 2"),
        ("ticket,answer\nAA,yes\n", "expected the columns ticket and label"),
        ("ticket,label\nAA,\n,yes\n", "no row has both a ticket and a label"),
        ("ticket,label\n", "no row"),
        ("", "the file is empty"),
    ],
)
def test_what_is_no_file_of_labels(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        read(tmp_path, text)


def test_lines_without_any_label(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no row has both"):
        read(tmp_path, '{"ticket": "AA"}\n', "labels.jsonl")
