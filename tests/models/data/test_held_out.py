"""Rows to assess a model on: found by name, typed, and refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest

from models.data.held_out import Holdout, Roles, load_holdout
from models.errors import DatasetError
from models.manifest import Column

JOB = Column("job", 0.0, 2.0, ("baker", "nurse", "smith"))
AGE = Column("age", 0.0, 100.0)
GOOD = "age,job,id,label\n20,baker,1,no\n60,nurse,2,yes\n70,smith,3,yes\n"
ROLES = Roles(columns=(JOB, AGE), drop=("id",))


def load(folder, text, roles=ROLES):
    (folder / "rows.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return load_holdout(folder / "rows.csv", roles)


def test_features_stand_in_the_models_order(tmp_path):
    rows = load(tmp_path, GOOD)
    assert rows.columns == ("job", "age")
    assert rows.features.tolist() == [[0, 20], [1, 60], [2, 70]]
    assert rows.labels.tolist() == ["no", "yes", "yes"]


def test_codes_are_taken_where_no_category_is_a_number(tmp_path):
    coded = GOOD.replace("baker", "0").replace("nurse", "1").replace("smith", "2.0")
    assert load(tmp_path, coded).features[:, 0].tolist() == [0, 1, 2]
    with pytest.raises(DatasetError, match=r"line 2: '7' is no declared category's"):
        load(tmp_path, coded.replace(",0,", ",7,"))
    named = Roles(columns=(Column("job", 0.0, 2.0, ("2", "1", "0")), AGE), drop=("id",))
    assert load(tmp_path, coded, named).features[:, 0].tolist() == [2, 1, 0]


FAULTS = {
    "missing": (GOOD.replace("job", "jbo", 1), "no column 'job'; did you mean 'jbo'"),
    "all missing": ("x,label\n1,no\n", "no columns 'job', 'age'"),
    "surplus": (GOOD.replace("id", "di", 1), "column 'di' has no role"),
    "more surplus": (
        GOOD.replace("id,", "p,q,").replace(",1,", ",1,1,").replace(",2,", ",2,2,")
        .replace(",3,", ",3,3,"),
        "columns 'p', 'q' have no role",
    ),
    "category": (GOOD.replace("nurse", "nurze"), "'nurze' is no declared category"),
    "text": (GOOD.replace("60", "NA"), "column 'age', line 3: 'NA' is not a number"),
    "no class": (GOOD.replace("yes", "", 1), "column 'label', line 3: '' is no class"),
    "ragged": (GOOD + "1,2\n", "line 5: 2 cells, not 4"),
    "twice": (GOOD.replace("id", "age", 1), "column 'age' occurs twice"),
    "quoted": (GOOD.replace("60", '"60"x'), "line 3: not CSV"),
    "empty": ("", "rows.csv: empty"),
    "no rows": ("age,job,id,label\n", "there are no rows"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(tmp_path, fault):
    text, message = FAULTS[fault]
    with pytest.raises(DatasetError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


PLAIN = "a,b,label\n1,2,x\n3,,y\n5,nan,x\n"
SPELLINGS = {
    "as it is": PLAIN,
    "carriage returns": PLAIN.replace("\n", "\r"),
    "both": PLAIN.replace("\n", "\r\n"),
    "mixed": PLAIN.replace("\n", "\r\n", 2),
    "a mark of the order": "\ufeff" + PLAIN,
    "quoted": PLAIN.replace("a,b,label", '"a","b","label"').replace("x", '"x"'),
    "spaces": PLAIN.replace("a,b,label", "a , b, label"),
    "no last end": PLAIN.rstrip(),
    "empty lines after": PLAIN + "\n\n",
    "other gaps": PLAIN.replace("nan", "NaN").replace("3,,", "3,-nan,"),
    "fractions": PLAIN.replace("1,2", "1.0,2e0").replace("5", "5."),
    "spaced cells": PLAIN.replace("1,2", "1 , 2"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_table_in_many_spellings(tmp_path, spelling):
    rows = load(tmp_path, SPELLINGS[spelling], Roles())
    wanted = np.array([[1, 2], [3, np.nan], [5, np.nan]])
    assert rows.columns == ("a", "b")
    assert np.array_equal(rows.features, wanted, equal_nan=True)
    assert rows.labels.tolist() == ["x", "y", "x"]


def test_what_means_missing_is_stated(tmp_path):
    text = PLAIN.replace("nan", "-999.0").replace(",,", ",NA,")
    rows = load(tmp_path, text, Roles(missing=("NA", "-999")))
    assert np.isnan(rows.features[1:, 1]).all()
    with pytest.raises(DatasetError, match="'NA' is not a number"):
        load(tmp_path, text, Roles())


LABELS = {
    "whole": (["0", "1"], [0, 1]),
    "fractions of none": (["0.0", "1.0"], [0, 1]),
    "truths": (["False", "True"], [0, 1]),
    "zeros": (["007", "7"], ["007", "7"]),
    "marks": (["None", "NA"], ["None", "NA"]),
    "null": (["null", "nan"], ["null", "nan"]),
    "mixed": (["1", "None"], ["1", "None"]),
}


@pytest.mark.parametrize("kind", LABELS)
def test_classes(tmp_path, kind):
    cells, wanted = LABELS[kind]
    text = "a,label\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))
    assert load(tmp_path, text, Roles()).labels.tolist() == wanted


@pytest.mark.parametrize("cell", ["0.5", "1e300"])
def test_a_truth_that_is_no_class_stays_a_number(tmp_path, cell):
    labels = load(tmp_path, f"a,label\n1,1\n2,{cell}\n", Roles()).labels
    assert labels.dtype == np.float64
    assert labels.tolist() == [1.0, float(cell)]


def test_a_number_beyond_all_is_none(tmp_path):
    with pytest.raises(DatasetError, match="'1e400' is no number"):
        load(tmp_path, "a,label\n1,1\n2,1e400\n", Roles())


def test_groups_by_value(tmp_path):
    text = 'a,g,label\n1,1.0,0\n2,1,1\n3,"UK, London",0\n4,,1\n5,None,0\n6,missing,1\n'
    groups = load(tmp_path, text, Roles(sensitive=("g",))).groups["g"]
    assert groups.tolist() == [
        *("1", "1", "UK, London", "missing (no value)", "None", "missing")
    ]


def test_arranged_by_name_or_refused():
    rows = Holdout("r", np.array([[1, 2]]), np.array([0]), columns=("a", "b"))
    assert rows.arranged(["b", "a"]).features.tolist() == [[2, 1]]
    assert rows.arranged([]) is rows
    with pytest.raises(DatasetError, match="r: no column 'c'"):
        rows.arranged(["a", "c"])
    with pytest.raises(DatasetError, match="column 'b' has no role"):
        rows.arranged(["a"])


def test_archives_may_hold_more(tmp_path):
    """As the usual ones do: training rows of another length beside them."""
    np.savez(
        tmp_path / "r.npz",
        x_train=np.zeros((9, 2)),
        x_test=np.ones((3, 2)),
        y_test=np.array([0, 1, 1]),
    )
    assert load_holdout(tmp_path / "r.npz").features.shape == (3, 2)


def test_classes_of_an_archive_are_those_of_its_rows(tmp_path):
    rows = {"X_test": np.ones((2, 2)), "y": np.array([7, 8]), "y_test": np.eye(2)[0]}
    np.savez(tmp_path / "r.npz", **rows)
    assert load_holdout(tmp_path / "r.npz").labels.tolist() == [1, 0]
    with pytest.raises(DatasetError, match=r"expected .* classes as 'outcome'"):
        load_holdout(tmp_path / "r.npz", Roles(label="outcome"))
