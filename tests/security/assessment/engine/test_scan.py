"""`scan`: target and data fitted to each other, planned, run, resumed, reported."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from security.commands import main
from tests.support.scanned import (
    DOUBLE,
    INT64,
    UINT8,
    digits,
    digits_onnx,
    linear_onnx,
    node,
    onnx_model,
    save_npz,
)

WEIGHTS = np.array([[4.0, -4.0], [2.0, -1.0], [-3.0, 3.0]])


def toy_rows(n=120, dtype=np.float32, seed=0):
    x = np.random.default_rng(seed).random((n, 3)).astype(dtype)
    return x, np.argmax(x @ WEIGHTS, axis=1)


@pytest.fixture
def files(tmp_path):
    """A folder, with writers of a model and of rows."""

    class Files:
        out = tmp_path / "out"

        def model(self, data: bytes) -> str:
            path = tmp_path / "model.onnx"
            path.write_bytes(data)
            return str(path)

        def rows(self, x, y) -> str:
            return str(save_npz(tmp_path / "rows.npz", x, y))

        def text(self, name: str, text: str) -> str:
            (tmp_path / name).write_text(text)
            return str(tmp_path / name)

        def scan(self, model, rows, *more) -> int:
            return main(
                [
                    *("scan", model, "--data", rows),
                    *("--out", str(self.out), "--jobs", "1"),
                    *more,
                ]
            )

        @property
        def report(self):
            return json.loads((self.out / "scan.json").read_text())

        def result(self, name):
            return next(r for r in self.report["results"] if r["check"] == name)

        def rules(self):
            return {item["rule"] for item in self.report["findings"]}

    return Files()


ANSWERS = ("--check", "answers")


def refused(files, capsys, model, rows, message, *more):
    assert files.scan(model, rows, *more) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0], lines[0]
    assert not files.out.exists()


def test_a_small_model(files, capsys):
    x, y = toy_rows()
    assert (
        files.scan(files.model(linear_onnx(WEIGHTS)), files.rows(x, y), *ANSWERS) == 0
    )
    report = files.report
    assert report["schema"] == "https://sealgate.dev/scan/v1"
    assert report["data"]["rows_used"] == 120
    assert report["target"]["answers"] == "scores"
    accuracy = files.result("answers")["metrics"]["clean_accuracy"]
    assert accuracy["value"] == 1.0
    assert accuracy["low"] > 0.95
    assert files.result("structure")["metrics"]["errors"]["value"] == 0
    assert not (files.out / "work").exists()
    assert "clean_accuracy 1.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((5, 3)), [0, 1, 0, 1, 0], "fewer than 30"),
        (np.zeros((40, 3)), [1] * 40, "one class only"),
        (np.zeros((40, 4)), [0, 1] * 20, "rows of 4 values, input 'x' takes 3"),
        (np.zeros((40, 3)), [0, 1] * 10, "40 rows of features, 20 classes"),
        (np.zeros((40, 3)), [0, 7] * 20, "class '7' is none of the model's 2: 0, 1"),
        (np.zeros((40, 3)), [0.5, 1] * 20, "the truth has fractions, so it is no"),
        (np.zeros(40), [0, 1] * 20, "rows of 1 values, input 'x' takes 3"),
        (np.zeros((0, 3)), [], "there are no rows"),
        (np.full((40, 3), "a"), [0, 1] * 20, "not rows of numbers"),
    ],
)
def test_data_that_does_not_fit(files, capsys, x, y, message):
    model = files.model(linear_onnx(WEIGHTS))
    refused(files, capsys, model, files.rows(x, np.array(y)), message)


def test_files_that_are_no_data(files, capsys, tmp_path):
    model = files.model(linear_onnx(WEIGHTS))
    for name, text, message in (
        ("a.npz", "no archive", "not an npz file"),
        ("a.txt", "", "not a .csv, .parquet or .npz file"),
        ("a.csv", "a,b,c\n1,2,3\n", "no column 'label'"),
        ("b.csv", "a,b,label\nred,2,3\n", "column 'a', line 2: 'red' is not a number"),
        ("c.csv", "", "c.csv: empty"),
        ("d.parquet", "PAR1", "d.parquet: "),
    ):
        refused(files, capsys, model, files.text(name, text), message)
    refused(files, capsys, model, str(tmp_path / "none.npz"), "No such file")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    refused(files, capsys, model, str(tmp_path / "other.npz"), "no column 'label'")
    objects = np.array([{}, 1], dtype=object)
    np.savez(tmp_path / "pickle.npz", x=objects, y=objects)
    refused(files, capsys, model, str(tmp_path / "pickle.npz"), "not an npz file")


def test_a_table_with_names(files):
    x, y = toy_rows(60)
    lines = ["a,b,c,outcome"]
    lines += [f"{r[0]},{r[1]},{r[2]},{'yes' if c else 'no'}" for r, c in zip(x, y)]
    rows = files.text("rows.csv", "\n".join(lines))
    config = files.text(
        "data.toml", 'label = "outcome"\nclasses = ["no", "yes"]\nlow = 0\nhigh = 1\n'
    )
    model = files.model(linear_onnx(WEIGHTS))
    assert files.scan(model, rows, "--data-config", config, *ANSWERS) == 0
    assert files.report["target"]["classes"] == ["no", "yes"]
    assert files.report["data"]["ranges_from"] == "configuration"
    assert files.result("answers")["metrics"]["clean_accuracy"]["value"] == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases = ['a']", "unknown key 'clases'; did you mean 'classes'"),
        ("low = 1", "low and high go together"),
        ("low = 1\nhigh = 1", "low must be below high"),
        ("units = 'metres'", "expected one of range, raw"),
        ("max_cost = 0", "must be positive"),
        ("low = nan\nhigh = 1", "expected a finite number"),
        ("columns = 3", "expected a list of tables"),
        ("[[columns]]\nlow = 1", "missing name"),
        ("[[columns]]\nname = 'zz'", "'zz' is no column"),
        ("[[columns]]\nname = '[0]'\nkind = 'category'", "has values"),
        ("[[columns]]\nname = '[0]'\nkind = 'integer'", "is integer, a row is not"),
        ("[[columns]]\nname = '[0]'\ngroup = 'g'", "is not one-hot"),
        ("[[columns]]\nname = '[0]'\ncost = -1", "must not be negative"),
        ("x = ", "not TOML"),
    ],
)
def test_a_data_configuration_that_is_none(files, capsys, text, message):
    model, rows = files.model(linear_onnx(WEIGHTS)), files.rows(*toy_rows(40))
    config = files.text("data.toml", text)
    refused(files, capsys, model, rows, message, "--data-config", config)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--jobs", "0", "--jobs must be positive"),
        ("--max-minutes", "-1", "--max-minutes must be positive"),
        ("--max-minutes", "nan", "--max-minutes must be positive"),
        ("--radius-linf", "0", "--radius-linf must be positive"),
        ("--radius-l2", "inf", "--radius-l2 must be positive"),
        ("--seed", "-1", "--seed must not"),
        ("--check", "nonsense", "no check 'nonsense'; there are: answers"),
        ("--output", "nonsense", "no output 'nonsense'; there are: scores"),
        ("--evidence", None, "--evidence is for bundles"),
        ("--client-profile", "p.json", "--client-profile is for URLs"),
        ("--data-config", "none.toml", "none.toml: no such file"),
    ],
)
def test_options_that_make_no_sense(files, capsys, option, value, message):
    model, rows = files.model(linear_onnx(WEIGHTS)), files.rows(*toy_rows(40))
    given = (option,) if value is None else (option, value)
    refused(files, capsys, model, rows, message, *given)


def test_targets_that_are_none(files, capsys, tmp_path):
    rows = files.rows(*toy_rows(40))
    refused(files, capsys, str(tmp_path / "none.onnx"), rows, "no such file")
    refused(files, capsys, "https://models.example", rows, "needs --client-profile")


def test_a_hostile_file_is_reported_and_nothing_else_reads_it(files, capsys):
    rows = files.rows(*toy_rows(40))
    assert files.scan(files.model(b"\x00garbage"), rows) == 1
    assert [result["check"] for result in files.report["results"]] == ["structure"]
    assert files.report["findings"][0]["rule"] == "parse"
    assert files.report["findings"][0]["severity"] == "error"


def scores_of(tail, **more):
    return linear_onnx(WEIGHTS, tail=tail, **more)


def test_logits_and_probabilities_are_told_apart(files):
    rows = files.rows(*toy_rows())
    for tail, form in (((), "scores"), (("Softmax",), "probabilities")):
        assert files.scan(files.model(scores_of(tail)), rows, *ANSWERS) == 0
        assert files.report["target"]["answers"] == form


def test_double_precision(files):
    x, y = toy_rows(dtype=np.float64)
    model = linear_onnx(WEIGHTS, dtype=np.float64, kind=DOUBLE, out=DOUBLE)
    assert files.scan(files.model(model), files.rows(x, y), *ANSWERS) == 0
    assert files.report["target"]["input"]["dtype"] == "float64"


def test_labels_only(files):
    x, y = toy_rows()
    nodes = [
        node("MatMul", ["x", "w"], "v"),
        node("ArgMax", ["v"], "scores", axis=1, keepdims=0),
    ]
    model = onnx_model(
        nodes, {"w": WEIGHTS.astype(np.float32)}, shape=[3], out=INT64, rank=1
    )
    assert files.scan(files.model(model), files.rows(x, y), *ANSWERS) == 0
    assert files.report["target"]["answers"] == "labels"
    assert files.result("answers")["metrics"]["clean_accuracy"]["value"] == 1.0


def test_one_score_for_two_classes(files):
    x, y = toy_rows()
    second = (WEIGHTS[:, 1] - WEIGHTS[:, 0])[:, None]
    for tail in ((), ("Sigmoid",)):
        model = files.model(linear_onnx(second, tail=tail))
        assert files.scan(model, files.rows(x, y), *ANSWERS) == 0
        assert files.report["target"]["classes"] == ["0", "1"]
        assert files.result("answers")["metrics"]["clean_accuracy"]["value"] == 1.0


def test_zipmap(files):
    x, y = toy_rows()
    nodes = [
        node("MatMul", ["x", "w"], "v"),
        node("Softmax", ["v"], "p"),
        node(
            "ZipMap",
            ["p"],
            "scores",
            domain="ai.onnx.ml",
            classlabels_strings=["no", "yes"],
        ),
    ]
    from onnx import TensorProto, helper, load_from_string

    model = onnx_model(
        nodes,
        {"w": WEIGHTS.astype(np.float32)},
        shape=[3],
        domains=[("ai.onnx.ml", 3)],
    )
    proto = load_from_string(model)
    kind = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    proto.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(kind))
    rows = files.rows(x, np.where(y == 1, "yes", "no"))
    assert files.scan(files.model(proto.SerializeToString()), rows, *ANSWERS) == 0
    assert files.report["target"]["classes"] == ["no", "yes"]
    assert files.result("answers")["metrics"]["clean_accuracy"]["value"] == 1.0


def test_a_fixed_batch_and_whole_numbers(files):
    x, _ = toy_rows()
    whole = np.round(x * 255).astype(np.uint8)
    nodes = [
        node("Cast", ["x"], "f", to=1),
        node("MatMul", ["f", "w"], "scores"),
    ]
    model = onnx_model(
        nodes,
        {"w": WEIGHTS.astype(np.float32)},
        shape=[3],
        kind=UINT8,
        batch=7,
    )
    truth = np.argmax(whole.astype(float) @ WEIGHTS, axis=1)
    assert files.scan(files.model(model), files.rows(whole, truth), *ANSWERS) == 0
    assert files.report["target"]["input"]["batch"] == 7
    assert files.result("answers")["metrics"]["clean_accuracy"]["value"] == 1.0


def test_whole_numbers_wanted_and_not_given(files, capsys):
    nodes = [node("Cast", ["x"], "f", to=1), node("MatMul", ["f", "w"], "scores")]
    model = onnx_model(nodes, {"w": WEIGHTS.astype(np.float32)}, shape=[3], kind=UINT8)
    x, y = toy_rows(40)
    refused(files, capsys, files.model(model), files.rows(x, y), "has fractions")
    x = np.round(x * 300)
    refused(
        files, capsys, files.model(model), files.rows(x, y), "takes uint8, 0 to 255"
    )


def test_flat_rows_fit_an_image_and_open_axes(files):
    _, _, x, y = digits()
    model = files.model(digits_onnx())
    rows = files.rows(x[:60].reshape(60, 64), y[:60])
    assert files.scan(model, rows, *ANSWERS) == 0
    assert files.report["target"]["input"]["row_shape"] == [1, 8, 8]
    nodes = [node("ReduceMean", ["x", "a"], "scores", keepdims=0)]
    axes = {"a": np.array([2, 3])}
    model = onnx_model(nodes, axes, shape=[2, "h", "w"])
    images = np.random.default_rng(0).random((40, 2, 2, 5)).astype(np.float32)
    rows = files.rows(images, [0, 1] * 20)
    assert files.scan(files.model(model), rows, *ANSWERS) == 0
    assert files.report["target"]["input"]["row_shape"] == [2, 2, 5]


def test_no_numbers_for_an_answer(files):
    x, y = toy_rows()
    model = linear_onnx(WEIGHTS - 0.5, tail=("Log",))  # NaN for negative scores
    assert files.scan(files.model(model), files.rows(x, y), *ANSWERS) == 0
    assert "answer-not-finite" in files.rules()
    assert files.result("answers")["metrics"]["rows_answered"]["value"] < 120


def test_one_answer_for_everything(files):
    x, y = toy_rows()
    model = linear_onnx(np.zeros((3, 2)), [0.0, 1.0])
    assert files.scan(files.model(model), files.rows(x, y), *ANSWERS) == 0
    assert "answer-constant" in files.rules()


def test_answers_that_change(files):
    x, y = toy_rows()
    nodes = [
        node("MatMul", ["x", "w"], "v"),
        node("RandomNormalLike", ["v"], "r", scale=0.5),
        node("Add", ["v", "r"], "scores"),
    ]
    model = onnx_model(nodes, {"w": WEIGHTS.astype(np.float32)}, shape=[3])
    assert files.scan(files.model(model), files.rows(x, y), *ANSWERS) == 0
    assert "answer-random" in files.rules()


def test_fail_on(files):
    x, y = toy_rows()
    model = files.model(linear_onnx(np.zeros((3, 2)), [0.0, 1.0]))
    rows = files.rows(x, y)
    assert files.scan(model, rows, *ANSWERS, "--fail-on", "error") == 1
    model = files.model(linear_onnx(WEIGHTS))
    assert files.scan(model, rows, *ANSWERS, "--fail-on", "error") == 0


def test_ray_is_asked_for_and_missing(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    model, rows = files.model(linear_onnx(WEIGHTS)), files.rows(*toy_rows(40))
    assert files.scan(model, rows, "--ray", *ANSWERS) == 2
    assert "--ray needs the package 'ray'" in capsys.readouterr().err


def test_another_scans_work_is_not_continued(files, capsys):
    model, rows = files.model(linear_onnx(WEIGHTS)), files.rows(*toy_rows(40))
    work = files.out / "work"
    work.mkdir(parents=True)
    (work / "plan.json").write_text("{}")
    assert files.scan(model, rows) == 2
    assert "unfinished scan of another target" in capsys.readouterr().err
    assert not (files.out / "scan.json").exists()
