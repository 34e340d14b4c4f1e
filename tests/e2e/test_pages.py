"""The pages for who has a CSV, or a model: their commands, run as they stand."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

from models.bundle import read_bundle
from models.report import KINDS
from security.commands import main
from tests.support.servers import ROOT

pytestmark = pytest.mark.slow

_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(r"^\$ python -m security ((?:.*\\\n)*.*)", re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, as the project's is seen from its commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path / "home"))
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    return tmp_path


def commands(page: str) -> list[list[str]]:
    text = (ROOT / "docs" / page).read_text()
    blocks = "\n".join(_BLOCK.findall(text))
    return [shlex.split(line.replace("\\\n", " ")) for line in _COMMAND.findall(blocks)]


def write_table(path: Path, label: str, rows: slice = slice(None)) -> None:
    source = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in source.feature_names]
    lines = [",".join([*names, label])]
    for row, place in zip(source.data[rows], source.target[rows]):
        lines.append(",".join([*map(str, row), str(source.target_names[place])]))
    path.write_text("\n".join(lines) + "\n")


def model(rows: slice) -> bytes:
    """A logistic regression of the same table, as an ONNX file of its own."""
    source = load_breast_cancer()
    mean, spread = source.data[rows].mean(0), source.data[rows].std(0)
    fitted = LogisticRegression(C=0.1, max_iter=1000)
    fitted.fit((source.data[rows] - mean) / spread, source.target[rows])
    weights = fitted.coef_[0] / spread / 2
    bias = fitted.intercept_[0] / 2 - mean @ weights
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "w"], ["products"]),
            helper.make_node("Add", ["products", "b"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "theirs",
        [helper.make_tensor_value_info("features", floats, ["n", 30])],
        [helper.make_tensor_value_info("probabilities", floats, ["n", 2])],
        [
            numpy_helper.from_array(
                np.stack([-weights, weights], 1).astype(np.float32), "w"
            ),
            numpy_helper.from_array(np.array([-bias, bias], np.float32), "b"),
        ],
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    data: bytes = made.SerializeToString()
    return data


def test_i_have_a_csv(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(folder / "rows.csv", "kind")
    (folder / "people.csv").write_text("who,age,outcome\nida,31415,no\nbob,27182,yes\n")
    began = time.monotonic()
    for command in commands("from-csv.md"):
        assert main(command) == 0, command
    out = capsys.readouterr().out
    assert re.search(
        r"^quality +meets accuracy: 0\.9\d+, the lower end of", out, re.MULTILINE
    )
    assert re.search(
        r"always saying the most frequent class gives 0\.\d+$", out, re.MULTILINE
    )
    assert "policy      met; to be signed by assessor, trainer" in out
    assert "31415" not in (folder / "people.toml").read_text()
    assert time.monotonic() - began < 180
    page = (ROOT / "docs/from-csv.md").read_text()
    (shown,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert shown in (folder / "people.toml").read_text()


def test_i_have_a_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(folder / "holdout.csv", "label", slice(284, None))
    text = (folder / "holdout.csv").read_text()
    numbered = text.replace(",malignant", ",0").replace(",benign", ",1")
    (folder / "holdout.csv").write_text(numbered)
    (folder / "model.onnx").write_bytes(model(slice(284)))
    given = commands("from-model.md")
    for command in given:
        assert main(command) == 0, command
    out = capsys.readouterr().out
    assert "admitted credit:1.0.0 under policy" in out
    to_the_verdict = [command[0] for command in given[: 1 + 4]]
    assert to_the_verdict == ["keygen", "import", "assess", "sign", "admit"]
    bundle = read_bundle(folder / "credit")
    assert bundle.report("privacy").conditions["personal_data"] is False
    assert "parity" in KINDS
    assert "evidence/parity.json" not in bundle.files
    assert main(["verify", "credit", "--policy", "deploy/policies/imported.toml"]) == 0


def test_what_init_says_of_a_model_is_read_by_import_and_assess(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(folder / "holdout.csv", "kind", slice(284, None))
    (folder / "model.onnx").write_bytes(model(slice(284)))
    asked = ["init", "--model", "model.onnx", "--data", "holdout.csv"]
    assert main([*asked, "--label", "kind", "--public"]) == 0
    assert capsys.readouterr().out == "wrote model.toml\n"
    text = Path("model.toml").read_text()
    assert '# classes = ["no", "yes"]' in text
    named = text.replace(
        '# classes = ["no", "yes"]', 'classes = ["malignant", "benign"]'
    )
    Path("model.toml").write_text(named)
    made = ["import", "model.onnx", "--name", "m", "--version", "1.0.0", "--out", "b"]
    assert main([*made, "--columns", "model.toml"]) == 0
    columns = read_bundle(folder / "b").manifest.columns
    assert columns[0].name == "mean_radius"
    assert columns[0].low < 8
    assert columns[0].high > 25
    arguments = ["assess", "b", "--data", "holdout.csv", "--data-config", "model.toml"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "privacy     MISSES the report: there is none; `train` writes it" in out
    assert "membership  MISSES the report: there is none; give the rows" in out
    robustness = read_bundle(folder / "b").report("robustness")
    assert robustness.conditions["ranges"] == "configuration"
    unfilled = ["init", "--model", "model.onnx", "--out", "empty.toml"]
    assert main(unfilled) == 0
    assert main([*made[:-1], "b2", "--columns", "empty.toml"]) == 2
    assert "columns[1].low: TODO: the least" in capsys.readouterr().err
