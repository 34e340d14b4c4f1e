"""`import`: somebody else's model, through the same door as our own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.bundle import read_bundle
from models.errors import BundleError, ExportError, ManifestError, SessionError
from models.manifest import Column
from models.sessions import make_session
from security.assessment import imported
from security.assessment.imported import (
    _map_keys,
    describe,
    export_factory,
    inspected,
    read_columns,
)
from security.errors import AssessmentError, HostileModel
from security.inspection.findings import StructureLimits
from tests.conftest import Command, check_security, run_security, toy_settings
from tests.support import zoo
from tests.support.bundles import Keys, manifest, onnx_model

COLUMNS = [{"name": name, "low": -10, "high": 10} for name in ("a", "b", "c")]

FACTORY = """
import torch

class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, features):
        scores = torch.softmax(self.layer(features), dim=1)
        return scores, scores.argmax(dim=1)

def make():
    return Classifier()

def nothing():
    return 5
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "theirs.onnx").write_bytes(onnx_model())
    return tmp_path / "theirs.onnx"


def odd_model(kind: int, rank: int = 1) -> bytes:
    """One Identity node on a tensor of some type."""
    shape = ["n"] * rank
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "odd",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    opset = helper.make_opsetid("", 21)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return model.SerializeToString()


def test_the_command_makes_a_bundle(
    security: Command, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "columns.json").write_text(json.dumps(COLUMNS))
    out = tmp_path / "bundle"
    result = security(
        *("import", str(source), "--name", "toy", "--version", "1.0.0"),
        *("--out", str(out), "--columns", str(tmp_path / "columns.json")),
    )
    assert result.returncode == 0, result.stderr
    digest = hashlib.sha256(onnx_model()).hexdigest()
    assert result.stdout.endswith(f"imported  toy:1.0.0  sha256:{digest}\n")
    bundle = read_bundle(out)
    assert bundle.model == onnx_model()
    assert bundle.manifest.inputs == manifest().inputs
    specs = [tensor.spec for tensor in bundle.manifest.outputs]
    assert specs == [tensor.spec for tensor in manifest().outputs]
    report = bundle.report("provenance")
    assert report.subject == bundle.subject
    assert report.conditions["imported"] is True
    assert report.conditions["training_known"] is False
    assert report.conditions["file_sha256"] == digest


def test_it_is_admitted_by_nobody_yet(
    security: Command, source: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "policy.toml").write_bytes(policy_bytes())
    settings = toy_settings(home)
    check_security(home, "keygen", **settings)
    out = str(tmp_path / "bundle")
    arguments = ("import", str(source), "--name", "toy", "--version", "1.0.0")
    assert security(*arguments, "--out", out).returncode == 0
    for command in ("admit", "verify"):
        result = run_security(home, command, out, **settings)
        assert result.returncode == 1
        assert "structure" in result.stderr + result.stdout


def policy_bytes() -> bytes:
    from tests.support.bundles import POLICY

    return POLICY


def test_a_hostile_file_is_refused_and_nothing_is_written(
    security: Command, tmp_path: Path
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x80\x04cos\nsystem\n.")
    out = tmp_path / "bundle"
    arguments = ("import", str(tmp_path / "bad.onnx"), "--name", "bad")
    result = security(*arguments, "--version", "1.0.0", "--out", str(out))
    assert result.returncode == 1
    assert result.stderr.startswith("refused: parse: ")
    assert not out.exists()


def test_hostile_files(shared_data: Path) -> None:
    files = sorted((shared_data / "onnx-hostile").glob("*.onnx"))
    for path in files[:3]:
        with pytest.raises(HostileModel):
            inspected(path.read_bytes())


def test_nothing_is_overwritten(
    security: Command, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "bundle").mkdir()
    arguments = ("import", str(source), "--name", "toy", "--version", "1.0.0")
    result = security(*arguments, "--out", str(tmp_path / "bundle"))
    assert result.returncode == 1
    assert "exists already" in result.stderr


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("-toy", "1.0.0", r"manifest.name: expected"),
        ("../toy", "1.0.0", r"manifest.name: expected"),
        ("toy", "latest", r"manifest.version: expected"),
    ],
)
def test_a_name_that_no_tag_can_have(name: str, version: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        describe(onnx_model(), name=name, version=version)


def test_a_tensor_that_no_request_can_carry() -> None:
    with pytest.raises(AssessmentError, match="tensor 'x' is a tensor"):
        describe(odd_model(TensorProto.FLOAT8E4M3FN), name="odd", version="1")


def test_maps_whose_keys_nobody_knows() -> None:
    data = onnx.load_model_from_string(zoo.maps_model())
    del data.graph.node[0].attribute[:]
    with pytest.raises(AssessmentError, match="'scores' is maps whose keys"):
        _map_keys("scores", data.graph)
    with pytest.raises(AssessmentError, match="'other' is maps whose keys"):
        _map_keys("other", data.graph)


def test_a_sequence_of_unknown_rank() -> None:
    data = onnx.load_model_from_string(zoo.sequence_model())
    element = data.graph.output[0].type.sequence_type.elem_type.tensor_type
    element.ClearField("shape")
    with pytest.raises(AssessmentError, match="'rows' is tensors whose rank"):
        describe(data.SerializeToString(), name="odd", version="1")


def test_bf16_beside_strings_is_refused() -> None:
    model = zoo.echo_model(["BF16", "BYTES"])
    with pytest.raises(ManifestError, match="BF16 beside BYTES inputs"):
        describe(model, name="odd", version="1")


def beside(folder: Path, **entries: str) -> Path:
    """The toy model with its weights in a file beside it."""
    model = onnx.load_model_from_string(onnx_model())
    (tensor,) = model.graph.initializer
    (folder / "theirs.onnx.data").write_bytes(b"head" + tensor.raw_data)
    told = {"location": "theirs.onnx.data", "offset": "4", "length": "24"} | entries
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in told.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "theirs.onnx").write_bytes(model.SerializeToString())
    return folder / "theirs.onnx"


def test_weights_beside_the_model_are_embedded(tmp_path: Path) -> None:
    source = beside(tmp_path)
    result = run_security(
        tmp_path,
        *("import", str(source), "--name", "theirs", "--version", "1.0.0"),
        *("--out", str(tmp_path / "made")),
    )
    assert result.returncode == 0, result.stderr
    model = read_bundle(tmp_path / "made").model
    rows = {"features": np.array([[1.0, 2.0, 3.0]], np.float32)}
    for got, wanted in zip(
        make_session(model).run(None, rows), make_session(onnx_model()).run(None, rows)
    ):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../theirs.onnx.data"}, "is no file beside the model"),
        ({"location": "/etc/passwd"}, "is no file beside the model"),
        ({"location": ""}, "is no file beside the model"),
        ({"location": "nothing.data"}, "nothing.data: no such file"),
        ({"offset": "5"}, "'weights' is not in 'theirs.onnx.data'"),
        ({"length": "-1"}, "'weights' is not in"),
        ({"length": "20"}, "tensor-bytes: shape"),
        ({"offset": "x"}, "offset or length is no number"),
    ],
)
def test_weights_that_are_elsewhere(
    tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    source = beside(tmp_path, **entries)
    with pytest.raises(HostileModel, match=message):
        inspected(source.read_bytes(), tmp_path)


def test_a_link_to_other_files_is_not_followed(tmp_path: Path) -> None:
    source = beside(tmp_path)
    (tmp_path / "theirs.onnx.data").rename(tmp_path / "secret")
    (tmp_path / "theirs.onnx.data").symlink_to("secret")
    with pytest.raises(HostileModel, match="external-data: "):
        inspected(source.read_bytes(), tmp_path)
    (tmp_path / "theirs.onnx.data").unlink()
    (tmp_path / "theirs.onnx.data").hardlink_to(tmp_path / "secret")
    with pytest.raises(HostileModel, match="hard links"):
        inspected(source.read_bytes(), tmp_path)


def test_one_file_named_many_times_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = beside(tmp_path)
    model = onnx.load(source, load_external_data=False)
    for index in range(3):
        copy = model.graph.initializer.add()
        copy.CopyFrom(model.graph.initializer[0])
        copy.name = f"copy{index}"
    limits = StructureLimits(max_model_bytes=80)
    monkeypatch.setattr(imported, "StructureLimits", lambda: limits)
    with pytest.raises(HostileModel, match="more weights than a model may have"):
        imported.embedded(model.SerializeToString(), tmp_path)


def test_elsewhere_the_message_says_how_to_embed(tmp_path: Path) -> None:
    source = beside(tmp_path)
    with pytest.raises(HostileModel, match="embed it: onnx") as caught:
        inspected(source.read_bytes())
    # And what it says works.
    model = onnx.load(source)
    onnx.save(model, tmp_path / "embedded.onnx")
    assert "onnx.save(onnx.load('model.onnx'), 'embedded.onnx')" in str(caught.value)
    assert inspected((tmp_path / "embedded.onnx").read_bytes())[1] == ()


@pytest.mark.slow
def test_what_torch_writes_by_default(shared_data: Path) -> None:
    folder = shared_data.parent / "cases" / "models" / "torch_default"
    if not folder.is_dir():
        pytest.skip("the shared cases are not here")
    model, findings = inspected((folder / "model.onnx").read_bytes(), folder)
    assert findings == ()
    assert make_session(model).get_inputs()


def test_what_onnxruntime_refuses() -> None:
    with pytest.raises(SessionError, match="onnxruntime refuses the model"):
        describe(onnx_model()[:-20], name="odd", version="1")


def test_columns_that_do_not_fit() -> None:
    columns = [Column("a", 0.0, 1.0)]
    with pytest.raises(ManifestError, match="not one per element of the last axis"):
        describe(onnx_model(), name="toy", version="1", columns=columns)


@pytest.mark.parametrize("dtype", ["FLOAT", "DOUBLE", "INT64", "BOOL", "UINT8"])
def test_types_and_shapes(dtype: str) -> None:
    kind = getattr(TensorProto, dtype)
    made = describe(odd_model(kind, rank=3), name="odd", version="1")
    assert made.inputs[0].spec.shape == (-1, -1, -1)
    wanted = helper.tensor_dtype_to_np_dtype(kind)
    from sealgate.protocol.tensors import DATATYPES

    assert DATATYPES[made.inputs[0].spec.datatype] == np.dtype(wanted)


def test_columns_from_csv_and_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,low,high\na,0,1\nb,-2.5,3e2\n")
    wanted = (Column("a", 0.0, 1.0), Column("b", -2.5, 300.0))
    assert read_columns(tmp_path / "a.csv") == wanted
    (tmp_path / "a.json").write_text(json.dumps([vars(column) for column in wanted]))
    assert read_columns(tmp_path / "a.json") == wanted


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "name,low\na,0\n"),
        ("a.csv", "name,low,high\na,0,x\n"),
        ("a.csv", "name,low,high\na,0\n"),
        ("a.csv", '"name\n'),
        ("a.json", "{}"),
        ("a.json", "[5]"),
        ("a.json", '[{"name": "a"}]'),
        ("a.json", '[{"name": "a", "low": 1e999, "high": 2}]'),
    ],
)
def test_columns_that_are_none(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BundleError, match="expected name, low and high"):
        read_columns(tmp_path / name)


# Torch.


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_module.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.slow
@pytest.mark.usefixtures("factory")
def test_a_torch_module() -> None:
    columns = [Column(**column) for column in COLUMNS]
    model = export_factory("their_module:make", columns)
    assert inspected(model) == (model, ())
    made = describe(model, name="toy", version="1", columns=columns)
    assert [tensor.spec.shape for tensor in made.outputs] == [(-1, 2), (-1,)]


@pytest.mark.usefixtures("factory")
@pytest.mark.parametrize(
    ("source", "columns", "message"),
    [
        ("their_module:make", [], "needs --columns"),
        ("their_module:nothing", COLUMNS, "makes a int, no torch module"),
        ("their_module:absent", COLUMNS, "AttributeError"),
        ("no_such_module_here:make", COLUMNS, "ModuleNotFoundError"),
    ],
)
def test_a_factory_that_is_none(
    source: str, columns: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_factory(source, [Column(**column) for column in columns])


def test_an_imported_model_can_be_signed_and_stored(
    security: Command, source: Path, tmp_path: Path, keys: Keys
) -> None:
    from security.key_files import write_private

    out = tmp_path / "bundle"
    security(
        *("import", str(source), "--name", "toy", "--version", "1.0.0"),
        *("--out", str(out)),
    )
    write_private(tmp_path / "trainer.pem", keys.trainer)
    signed = security(
        *("sign", str(out), "--role", "trainer", "--kind", "provenance"),
        *("--key", str(tmp_path / "trainer.pem")),
    )
    assert signed.returncode == 0, signed.stderr
    assert "provenance" in signed.stdout


def test_a_statement_stands_for_the_privacy_of_its_data(
    source: Path, tmp_path: Path
) -> None:
    made = ["import", str(source), "--name", "a", "--version", "1.0.0"]
    out = tmp_path / "told"
    told = "  Pictures of bridges, published by a museum.\n"
    check_security(tmp_path, *made, "--out", str(out), "--public-data", told)
    privacy = read_bundle(out).report("privacy")
    assert privacy.conditions["statement"] == told.strip()
    assert privacy.conditions["basis"] == "statement"
    assert privacy.conditions["personal_data"] is False
    assert not privacy.metrics
    for wrong in (" ", "x" * 1001):
        again = ["--out", str(tmp_path / "none"), "--public-data", wrong]
        done = run_security(tmp_path, *made, *again)
        assert done.returncode == 2
        assert "1 to 1000 characters" in done.stderr
