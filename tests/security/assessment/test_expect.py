"""`import --expect`: a file that answers something else than its author says."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from models.bundle import read_bundle, report_file
from models.files import write_atomic
from models.manifest import Manifest
from models.report import Report
from security.assessment import parity, trial
from security.assessment.imported import corrected, describe
from security.commands import main
from security.errors import AdmissionRefused
from security.inspection.findings import StructureLimits
from tests.conftest import Command
from tests.security.assessment.checks import test_inputs
from tests.support import chains, zoo
from tests.support.bundles import WEIGHTS, Keys, attest, evaluate, onnx_model, policy

NAMES = ("a", "b", "c")
ROWS = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
POLICY = chains.policy(
    provenance=(),
    parity=(
        'conditions.reference = "answers_of_the_original"',
        "metrics.max_abs_difference = { max = 1e-4, min_n = 50 }",
        "metrics.label_agreement = { min = 0.99, min_n = 50 }",
    ),
).encode()


def truth() -> tuple[np.ndarray, np.ndarray]:
    """Classes and probabilities, by numpy."""
    logits = np.exp(ROWS @ WEIGHTS)
    shares = logits / logits.sum(axis=1, keepdims=True)
    return shares.argmax(axis=1), shares


def regressor(columns: int = 1) -> bytes:
    """y = x of the first columns, doubled."""
    weights = 2 * np.eye(3, columns, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        [helper.make_tensor("w", TensorProto.FLOAT, [3, columns], weights.ravel())],
    )
    opset = helper.make_opsetid("", 21)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return made.SerializeToString()


def other_labels() -> bytes:
    """Classes 1 and 2 are listed, and 0 and 1 are answered, as onnxruntime may do."""
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["right", "probabilities"],
            domain="ai.onnx.ml",
            classlabels_ints=[1, 2],
            coefficients=[*(-WEIGHTS[:, 1]), *WEIGHTS[:, 1]],
            intercepts=[0.0, 0.0],
            post_transform="SOFTMAX",
        ),
        helper.make_node("Sub", ["right", "one"], ["label"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 2]),
        ],
        [helper.make_tensor("one", TensorProto.INT64, [1], [1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return made.SerializeToString()


def table(path: Path, columns: dict[str, object]) -> Path:
    lists = [list(column) for column in columns.values()]
    lines = [",".join(columns)] + [",".join(map(str, row)) for row in zip(*lists)]
    path.write_text("\n".join(lines) + "\n")
    return path


class Case:
    """A folder with a model, rows and answers."""

    def __init__(self, folder: Path, model: bytes) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "m.onnx").write_bytes(model)
        self.rows = table(folder / "rows.csv", dict(zip(NAMES, ROWS.T)))

    def run(self, *more: object, **answers: object) -> int:
        columns = {name.replace("__", ":"): value for name, value in answers.items()}
        expect = table(self.folder / "expect.csv", columns)
        arguments = ("import", self.folder / "m.onnx", "--name", "toy")
        given = ("--version", "1.0.0", "--out", self.out, "--expect", expect)
        return main([str(x) for x in (*arguments, *given, "--data", self.rows, *more)])

    def parity(self) -> Report:
        return read_bundle(self.out).report("parity")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path, onnx_model())


def test_the_same_answers(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    labels, shares = truth()
    assert case.run(prediction=labels, probability__1=shares[:, 1]) == 0
    said = capsys.readouterr().out
    assert "0 of 60 rows differ; same class on 60; largest difference" in said
    report = case.parity()
    assert report.subject == read_bundle(case.out).subject
    assert report.conditions["reference"] == parity.REFERENCE
    assert report.metrics["label_agreement"].value == 1
    assert report.metrics["label_agreement"].n == 60
    assert report.metrics["max_abs_difference"].value < 1e-6
    (rows,) = report.datasets
    assert (rows.name, rows.role, rows.rows) == ("expect.csv", "compared", 60)


def test_a_difference_is_shown_with_its_row(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, shares = truth()
    given = shares.copy()
    labels[4] = 1 - labels[4]
    given[7] += 0.25
    assert case.run(prediction=labels, probability=given[:, 1]) == 0
    said = capsys.readouterr().out
    assert "2 of 60 rows differ; same class on 59; largest difference of a" in said
    assert f"line 6: prediction is {labels[4]}, the file gives {1 - labels[4]}" in said
    assert (
        f"line 9: probability is {given[7, 1]:.6g}, the file gives {shares[7, 1]:.6g}"
        in said
    )
    metrics = case.parity().metrics
    assert metrics["rows_that_differ"].value == 2
    assert metrics["max_abs_difference"].value == pytest.approx(0.25, abs=1e-6)
    assert metrics["label_agreement"].value == pytest.approx(59 / 60)


def test_many_differences_are_counted(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.run(prediction=1 - truth()[0]) == 0
    said = capsys.readouterr().out
    assert said.count("differs ") == 11
    assert "… and 50 more answers" in said
    assert "max_abs_difference" not in case.parity().metrics


def test_an_engine_that_answers_other_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case(tmp_path, other_labels())
    second = ROWS @ WEIGHTS[:, 1]
    classes = np.where(second > 0, 2, 1)
    assert case.run(prediction=classes) == 0
    said = capsys.readouterr().out
    assert "60 of 60 rows differ; same class on 0" in said
    assert f"line 2: prediction is {classes[0]}, the file gives {classes[0] - 1}" in (
        said
    )
    assert case.parity().metrics["label_agreement"].value == 0


def test_a_regressor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(tmp_path, regressor())
    values = 2 * ROWS[:, 0].astype(float)
    assert case.run(value=values) == 0
    assert case.parity().conditions["unit"] == "value"
    values[2] = 1000.0
    case.out = tmp_path / "again"
    assert case.run(value=values) == 0
    assert "1 of 60 rows differ" in capsys.readouterr().out
    metrics = case.parity().metrics
    assert "label_agreement" not in metrics
    wanted = (1000 - 2 * ROWS[2, 0]) / 1000
    assert metrics["max_relative_difference"].value == pytest.approx(wanted, rel=1e-6)


def test_several_values(tmp_path: Path) -> None:
    case = Case(tmp_path, regressor(2))
    # By number, whatever order they stand in.
    assert case.run(value__1=2 * ROWS[:, 1], value__0=2 * ROWS[:, 0]) == 0
    assert case.parity().metrics["rows_that_differ"].value == 0


def test_rows_by_their_key(case: Case) -> None:
    keys = [f"r{row}" for row in range(60)]
    table(case.rows, {"id": keys, **dict(zip(NAMES, ROWS.T))})
    chosen = np.array([40, 3, 17])
    said = {"id": [keys[row] for row in chosen], "prediction": truth()[0][chosen]}
    assert case.run("--key", "id", **said) == 0
    metric = case.parity().metrics["label_agreement"]
    assert (metric.value, metric.n) == (1, 3)


def test_names_of_classes(case: Case, tmp_path: Path) -> None:
    (tmp_path / "dc.toml").write_text('classes = ["no", "yes"]\nprediction = "said"\n')
    labels, shares = truth()
    given = {"said": np.array(["no", "yes"])[labels], "probability__no": shares[:, 0]}
    assert case.run("--data-config", tmp_path / "dc.toml", **given) == 0
    assert case.parity().metrics["rows_that_differ"].value == 0


def test_what_decides_can_be_stated(tmp_path: Path) -> None:
    case = Case(tmp_path, regressor())
    # A sum of products decides above 0, unless it is stated otherwise.
    above = (2 * ROWS[:, 0] > 1).astype(int)
    assert case.run("--decision", "score>1", prediction=above) == 0
    assert case.parity().metrics["label_agreement"].value == 1


def test_answers_that_are_no_numbers(tmp_path: Path) -> None:
    model = zoo._model(
        [helper.make_node("Log", ["x"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    case = Case(tmp_path, model)
    places = {f"value__{i}": np.zeros(60) for i in range(3)}
    assert case.run(**places) == 0
    report = case.parity()
    assert [(c.id, c.passed) for c in report.checks] == [("answers-finite", False)]
    assert "max_abs_difference" not in report.metrics


BAD = {
    "other rows": (
        {"prediction": [0] * 59},
        "expect.csv has 59 rows, rows.csv 60; name a column that both have as --key",
    ),
    "no answers": ({"predicted": [0] * 60}, "no answers; name columns 'prediction',"),
    "another class": (
        {"prediction": ["yes"] * 60},
        "for classes 0, 1, yes: which is which cannot be known; name them as",
    ),
    "another class's score": (
        {"probability__7": [0.5] * 60},
        "'7' is none of the model's classes",
    ),
    "not a number": (
        {"probability": [0.5] * 59 + ["nan"]},
        "line 61: 'nan' is not a number",
    ),
    "a missing class": (
        {"prediction": [0] * 59 + [""], "probability": [0.5] * 60},
        "line 61: '' is no class",
    ),
    "two kinds": (
        {"probability": [0.5] * 60, "value": [1] * 60},
        "probability and value: name one",
    ),
    "two of one": (
        {"probability": [0.5] * 60, "probability__1": [1] * 60},
        "two columns are of one class",
    ),
    "a column without a role": (
        {"prediction": [0] * 60, "probabilty": [0] * 60},
        "column 'probabilty' has no role",
    ),
    "values of a classifier": ({"value": [0] * 60}, "2 outputs have numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_answers(case: Case, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    columns, message = BAD[name]
    assert case.run(**columns) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not case.out.exists()


def test_other_columns_than_the_models(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    table(case.rows, dict(zip(NAMES[:2], ROWS.T)))
    assert case.run(prediction=truth()[0]) == 2
    assert "the data has rows of 2 values, input 'features' takes 3" in (
        capsys.readouterr().err
    )
    columns = [{"name": name, "low": -9, "high": 9} for name in NAMES]
    (case.folder / "c.json").write_text(json.dumps(columns))
    assert case.run("--columns", case.folder / "c.json", prediction=truth()[0]) == 2
    assert "no column 'c'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["r0"] * 60, "column 'id' names a row twice"),
        ([f"r{row + 1}" for row in range(60)], "1 rows are not in rows.csv: id 'r60'"),
    ],
)
def test_keys_that_are_none(
    case: Case, keys: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [f"r{row}" for row in range(60)]
    table(case.rows, {"id": known, **dict(zip(NAMES, ROWS.T))})
    assert case.run("--key", "id", id=keys, prediction=truth()[0]) == 2
    assert message in capsys.readouterr().err


def test_half_of_it(security: Command, case: Case) -> None:
    arguments = ("import", str(case.folder / "m.onnx"), "--name", "toy")
    result = security(
        *(*arguments, "--version", "1", "--out", str(case.out), "--decision", "label")
    )
    assert result.returncode == 2
    assert "give --expect and --data together" in result.stderr


# What the policy makes of it.


def evidence(case: Case, keys: Keys, *, wrong: int = 0) -> None:
    labels, shares = truth()
    labels[:wrong] = 1 - labels[:wrong]
    assert case.run(prediction=labels, probability=shares[:, 1]) == 0
    for kind in ("provenance", "parity"):
        attest(case.out, kind, keys.trainer)


def verdict(case: Case, keys: Keys) -> None:
    bundle = read_bundle(case.out)
    evaluate(bundle, policy(POLICY), keys.trust, now=datetime.now(UTC))


def test_the_policy_decides(case: Case, keys: Keys) -> None:
    evidence(case, keys)
    verdict(case, keys)


def test_the_policy_refuses(case: Case, keys: Keys) -> None:
    evidence(case, keys, wrong=2)
    with pytest.raises(AdmissionRefused, match="label_agreement"):
        verdict(case, keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditions": {"reference": "torch"}}, "where the model comes from"),
        ({"datasets": ()}, "not measured on the rows that it names"),
    ],
)
def test_parity_that_contradicts_itself(
    case: Case, keys: Keys, change: dict[str, object], message: str
) -> None:
    evidence(case, keys)
    report = replace(case.parity(), **change)
    write_atomic(case.out / report_file("parity"), report.to_json())
    attest(case.out, "parity", keys.trainer)
    asked = POLICY.replace(b'conditions.reference = "answers_of_the_original"\n', b"")
    with pytest.raises(AdmissionRefused, match=message) as caught:
        evaluate(
            read_bundle(case.out), policy(asked), keys.trust, now=datetime.now(UTC)
        )
    assert caught.value.check == 27


# Shapes that come.


def test_the_manifest_says_what_comes() -> None:
    declared = describe(zoo.misdeclared_model(), name="m", version="1")
    manifest, notes = corrected(zoo.misdeclared_model(), declared)
    assert [item.spec.shape for item in manifest.outputs] == [(-1,), (-1, 1)]
    assert notes == (
        "output 'label' is declared [1], [-1] comes",
        "output 'scores' is declared [-1, 2], [-1, 1] comes",
    )


def test_what_is_declared_rightly_stays() -> None:
    declared = describe(onnx_model(), name="m", version="1")
    assert corrected(onnx_model(), declared) == (declared, ())


def needs_seven_rows() -> bytes:
    return zoo._model(
        [helper.make_node("Reshape", ["x", "s"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", 7])],
        initializers=[helper.make_tensor("s", TensorProto.INT64, [2], [-1, 7])],
    )


def test_a_model_that_rejects_made_up_rows_is_imported() -> None:
    declared = describe(needs_seven_rows(), name="m", version="1")
    manifest, (note,) = corrected(needs_seven_rows(), declared)
    assert manifest == declared
    assert note.startswith("the model did not run on made-up rows")


def endless() -> tuple[bytes, Manifest]:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Add", ["kept", "kept"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, None),
        ],
    )
    model = zoo._model(
        [helper.make_node("Loop", ["most", "", "x"], ["y"], body=body)],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        initializers=[helper.make_tensor("most", TensorProto.INT64, [], [1 << 60])],
    )
    return model, describe(model, name="m", version="1")


def test_a_first_run_without_an_end_is_stopped() -> None:
    limits = StructureLimits(cpu_s=20, wall_s=3.0)
    assert trial.shapes_that_come(*endless(), limits) is None


def test_made_up_rows_are_within_bounds() -> None:
    columns = [{"name": n, "low": 5, "high": 6} for n in "ab"]
    colours = {"name": "c", "low": 0, "high": 2, "categories": ["x", "y", "z"]}
    manifest = {
        "schema": "https://sealgate.dev/manifest/v1",
        "name": "m",
        "version": "1",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
            | {"columns": [*columns, colours]},
            {"name": "z", "datatype": "UINT8", "shape": [-1, 4], "bounds": [10, 20]},
        ],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
    }
    first, second = Manifest.from_json(json.dumps(manifest).encode()).inputs
    made = first.made_up(50, np.random.default_rng(0))
    assert made.shape == (50, 3)
    assert made.dtype == np.float32
    assert made[:, :2].min() >= 5
    assert made[:, :2].max() <= 6
    assert set(made[:, 2]) == {0, 1, 2}
    other = second.made_up(50, np.random.default_rng(0))
    assert other.dtype == np.uint8
    assert (other.min(), other.max()) >= (10, 11)
    assert other.max() <= 20


def test_texts_and_several_inputs(tmp_path):
    """Columns of texts are known from the inputs, and found by name in any order."""
    rows = test_inputs.labelled(test_inputs.table_rows())
    names = list(reversed(test_inputs.NAMES))
    case = Case(tmp_path, test_inputs.table_model())
    test_inputs.write(case.rows, rows, names)
    said = [row["label"] for row in rows]
    config = tmp_path / "data.toml"
    config.write_text(test_inputs.CONFIG.replace('text = ["city"]\n', ""))
    assert case.run("--data-config", config, prediction=said) == 0
    metrics = read_bundle(case.out).report("parity").metrics
    assert metrics["label_agreement"].value == 1.0


def test_one_text_of_which_a_row_is_shown(tmp_path, capsys):
    rows = test_inputs.text_rows()
    case = Case(tmp_path, test_inputs.text_model())
    test_inputs.write(case.rows, rows)
    said = [row["label"] for row in rows]
    said[7] = 1 - said[7]
    assert case.run(prediction=said) == 0
    out = capsys.readouterr().out
    assert "1 of 120 rows differ; same class on 119" in out
    assert f"prediction is {said[7]}" in out
    # Which texts they are is in the digest.
    before = read_bundle(case.out).report("parity").datasets[0].sha256
    rows[3]["review"] += " indeed"
    test_inputs.write(case.rows, rows)
    case.out = tmp_path / "again"
    assert case.run(prediction=said) == 0
    assert read_bundle(case.out).report("parity").datasets[0].sha256 != before
