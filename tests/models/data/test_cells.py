"""Cells mean the same to training, assessment and the client, by one list."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data import cells
from sealgate import cells as client_cells
from tests.support.cells import CATEGORIES, NUMBERS


@pytest.mark.parametrize("read", [cells.number, client_cells.number])
@pytest.mark.parametrize("cell", NUMBERS)
def test_a_cell_of_numbers(read, cell):
    found, wanted = read(cell), NUMBERS[cell]
    if wanted is None or math.isnan(wanted):
        assert found is wanted is None or math.isnan(found)
    else:
        assert found == wanted


@pytest.mark.parametrize(("cell", "names", "wanted"), CATEGORIES)
def test_a_cell_of_categories(cell, names, wanted):
    known = {name: code for code, name in enumerate(names)}
    assert cells.lookup(known, [cell]).get(cell) == wanted
    assert client_cells.category(cell, names) == wanted


@given(st.text(st.sampled_from("0123456789+-.eE_ natrufslif,"), max_size=8))
def test_the_client_reads_no_other_numbers(cell):
    mine, theirs = cells.number(cell), client_cells.number(cell)
    assert (mine is None) == (theirs is None)
    assert mine is None or mine == theirs or (math.isnan(mine) and math.isnan(theirs))


SAME = (
    ("3", "3.0", "3.00", "3e0", " 3", 3, 3.0, np.float32(3)),
    ("0", "-0.0", "0.0", -0.0),
    ("0.1", "0.10", "1e-1", 0.1, np.float32(0.1)),
    ("9007199254740993", "9007199254740993.0", 2**53 + 1),
    ("100", "1e2", "1E+02"),
    ("F", " F", "F "),
    ("", " ", None, math.nan, "nan"),
    ("1e400", "1E+400"),
    ("True", "true", "TRUE", True, np.bool_(True)),
    ("2020-01-02", "2020-01-02 00:00:00", "2020-01-02T00:00:00.000000000"),
    ("2020-01-02 10:30:00", "2020-01-02T10:30:00.000"),
)
OTHER = (
    "007", "7", "+7", "07.0", "7.5", "1e7", "a7", "-7", "9007199254740992",
    "9007199254740993", "None", "NA", "null", "true", "1_0", "10", "1e401",
)  # fmt: skip


@pytest.mark.parametrize("spelled", SAME)
def test_one_value_in_many_spellings(spelled):
    assert len({cells.canonical(value) for value in spelled}) == 1


def test_other_values_stay_others():
    assert len({cells.canonical(value) for value in OTHER}) == len(OTHER)


@pytest.mark.parametrize("cell", ["12e4567890123456789012", "0e123456", "0e654321"])
def test_a_digest_that_looks_like_a_power_is_a_text(cell):
    assert cells.canonical(cell) == cell
    assert cells.lookup({cell: 1}, [cell]) == {cell: 1}
    assert client_cells.category(cell, [cell, "12"]) == 0


def test_huge_exponents_are_not_written_out():
    assert len(cells.canonical("1e999999")) < 20


@pytest.mark.parametrize(
    "values",
    [
        np.array(["3", "4.0", "007"], dtype=object),
        np.array([3, 4, 7]),
        np.array([3.0, 4.0, np.nan]),
        np.array([3.5, 0.1], dtype=np.float32),
        np.array([3, None, 2**60 + 1], dtype=object),
        np.array([True, False]),
    ],
)
def test_a_column_reads_as_its_cells(values):
    wanted = [cells.canonical(cell) for cell in cells.cells_of(values)]
    assert cells.plain_texts(values).tolist() == wanted
