"""Models of MLflow: which file is taken of a folder that others have written."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from models.bundle import read_bundle
from models.errors import BundleError
from security.assessment import imported
from security.errors import SettingsError, TrackingError
from security.tracking.addresses import (
    ModelId,
    ModelVersion,
    RunPath,
    parse_address,
)
from security.tracking.client import Client, Registered, asking, connect
from security.tracking.fetched import FetchLimits, fetch_onnx
from security.tracking.logged import (
    metrics_of,
    params_of,
    tags_of,
    write_evidence,
    write_model,
)
from security.tracking.mlmodel import MAX_MLMODEL_BYTES, parse_mlmodel
from tests.conftest import Command
from tests.support import small_training
from tests.support.bundles import onnx_model

RUN_ID = "e5ac9925196a43388e53f779e344b1f7"
# As MLflow 3.17 writes it.
MLMODEL = f"""\
artifact_path: mlflow-artifacts:/1/models/m-64f258f1f75f4264907484fe04b2b439/artifacts
flavors:
  onnx:
    code: null
    data: model.onnx
    onnx_session_options: null
    onnx_version: 1.23.2
    providers:
    - CUDAExecutionProvider
    - CPUExecutionProvider
  python_function:
    data: model.onnx
    env:
      conda: conda.yaml
      virtualenv: python_env.yaml
    loader_module: mlflow.onnx
    python_version: 3.11.7
mlflow_version: 3.17.2
model_id: m-64f258f1f75f4264907484fe04b2b439
run_id: {RUN_ID}
utc_time_created: '2026-11-30 14:10:01.640133'
""".encode()
absent = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is not None, reason="MLflow is installed"
)


def mlmodel(data: str) -> bytes:
    return f"flavors: {{onnx: {{data: {json.dumps(data)}}}}}\n".encode()


# Addresses.


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("models:/credit/3", ModelVersion("credit", "3")),
        ("models:/credit@champion", ModelVersion("credit", "", "champion")),
        ("models:/a b/1", ModelVersion("a b", "1")),
        (f"models:/m-{'0' * 32}", ModelId(f"m-{'0' * 32}")),
        ("runs:/0a1b", RunPath("0a1b")),
        ("runs:/0a1b/a/model", RunPath("0a1b", "a/model")),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_address(text) == address
    assert parse_address(text).uri == text


@pytest.mark.parametrize(
    "text",
    [
        *("models:/credit", "models:/credit/Production", "models:/a/1/model.onnx"),
        *("models:/../1", "models:/a%2f/1", "models://host/a/1", "credit/1", ""),
        *("runs:/", "runs:/a/../b", "runs:/a/./b", "runs:/a//b", "runs:/a/b?c"),
        *("file:///etc/passwd", "http://host/model", "s3://bucket/model"),
        "runs:/a/" + "b" * 300,
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(TrackingError, match="expected models:/NAME@ALIAS"):
        parse_address(text)


# MLmodel.


def test_mlmodel() -> None:
    found = parse_mlmodel(MLMODEL)
    assert found.file == "model.onnx"
    assert found.origin == {
        "run_id": RUN_ID,
        "model_id": "m-64f258f1f75f4264907484fe04b2b439",
        "mlflow_version": "3.17.2",
    }


@pytest.mark.parametrize(
    "name",
    [
        *("../model.onnx", "/etc/passwd", "a/model.onnx", "..", ".", "", "a\\b"),
        *("a\0b", "a b", "\x1b[2J", "-rf", ".hidden", "model.onnx?x", "%2e%2e"),
        "m" * 300,
    ],
)
def test_a_file_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(BundleError, match=r"flavors\.onnx\.data is no file beside"):
        parse_mlmodel(mlmodel(name))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            b"flavors: {sklearn: {}, python_function: {}}",
            "but python_function, sklearn",
        ),
        (b"flavors: {'\\e[2J': {}}", r"but \?: "),
        (b"flavors: {onnx: model.onnx}", "no ONNX model, but onnx"),
        (b"flavors: {onnx: {data: [model.onnx]}}", "is no file beside"),
        (b"flavors: {onnx: {}}", "is no file beside"),
        (b"flavors: {}", "names no flavours"),
        (b"flavors: [onnx]", "names no flavours"),
        (b"run_id: x", "names no flavours"),
        (b"a: &a [x]\nflavors: *a", "MLmodel: aliases are not read"),
        (b"flavors: {onnx: {data: a}}\nflavors: {onnx: {data: b}}", "key is repeated"),
        (b"#" * (MAX_MLMODEL_BYTES + 1), "at most"),
    ],
)
def test_another_mlmodel_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        parse_mlmodel(text)


def test_what_is_no_identifier_is_not_recorded() -> None:
    text = mlmodel("m.onnx") + b"run_id: 'a b'\nmodel_id: [x]\nmlflow_version: 3.1\n"
    assert parse_mlmodel(text).origin == {}


# What is downloaded. A server of a folder, which may state other sizes.


def answer(**changed: object) -> SimpleNamespace:
    """What MLflow's client gives of a version."""
    source = f"models:/m-{'1' * 32}"
    found = {"version": "7", "run_id": RUN_ID, "model_id": None, "source": source}
    return SimpleNamespace(**found | changed)


def test_what_a_server_may_say_of_a_version() -> None:
    found = Registered("credit", answer(name="../other", run_id="a b", source="s3://x"))
    assert found.address.uri == "models:/credit/7"
    assert (found.run_id, found.model_id) == ("", "")
    with pytest.raises(TrackingError, match="its version is no number"):
        Registered("credit", answer(version="1/../../x"))


class Folder(Client):
    """A client whose server has the files of one model."""

    def __init__(
        self, files: Mapping[str, bytes], sizes: Mapping[str, int] | None = None
    ) -> None:
        self._files, self.taken = files, []
        self._sizes = {name: len(data) for name, data in files.items()} | (sizes or {})

    @property
    def server(self) -> str:
        return "https://mlflow.example"

    def registered(self, address: ModelVersion) -> Registered:
        return Registered(address.name, answer())

    def files(self, address: Any) -> dict[str, int]:
        assert not getattr(address, "alias", "")
        return dict(self._sizes)

    def download(self, address: Any, name: str, folder: Path, room: int) -> Path:
        self.taken.append(name)
        if len(self._files[name]) > room:
            raise TrackingError("MLflow: file too large")
        (folder / name).write_bytes(self._files[name])
        return folder / name


def outside() -> tuple[bytes, bytes]:
    """The toy model with its weights beside it, in weights.bin."""
    model = onnx.load_model_from_string(onnx_model())
    (weights,) = model.graph.initializer
    data = weights.raw_data
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")
    return model.SerializeToString(), data


def test_only_what_is_named_is_downloaded(tmp_path: Path) -> None:
    model, weights = outside()
    others = {"conda.yaml": b"- pip", "model.pkl": b"\x80", "weights.bin.old": b"x"}
    files = {"MLmodel": MLMODEL, "model.onnx": model, "weights.bin": weights}
    client = Folder({**files, **others})
    found = fetch_onnx(client, parse_address("models:/credit@best"), tmp_path)
    assert client.taken == ["MLmodel", "model.onnx", "weights.bin"]
    assert found.origin == {
        "mlflow_server": "https://mlflow.example",
        "mlflow_uri": "models:/credit/7",
        "mlflow_version": "3.17.2",
        "mlflow_model": "credit",
        "mlflow_model_version": "7",
        "mlflow_alias": "best",
        "mlflow_run_id": RUN_ID,
        "mlflow_model_id": f"m-{'1' * 32}",
    }
    whole, _ = imported.inspected(found.model, tmp_path)
    assert whole == onnx_model()


def test_bounds(tmp_path: Path) -> None:
    model, weights = outside()
    files = {"MLmodel": MLMODEL, "model.onnx": model, "weights.bin": weights}
    address = parse_address(f"runs:/{RUN_ID}/model")
    small = FetchLimits(max_model_bytes=1000, max_total_bytes=len(model) + 10)
    with pytest.raises(
        BundleError, match=r"weights\.bin: 24 bytes, at most 10 allowed"
    ):
        fetch_onnx(Folder(files), address, tmp_path, small)
    lying = Folder(files, {"weights.bin": 1})
    with pytest.raises(TrackingError, match="too large"):
        fetch_onnx(lying, address, tmp_path, small)
    with pytest.raises(BundleError, match=r"model\.onnx: 9000 bytes, at most"):
        fetch_onnx(Folder(files, {"model.onnx": 9000}), address, tmp_path, small)
    large = Folder({**files, "MLmodel": b"#" * (MAX_MLMODEL_BYTES + 1)})
    with pytest.raises(BundleError, match="MLmodel: 262145 bytes"):
        fetch_onnx(large, address, tmp_path)
    many = Folder(files, {f"{i}.txt": 1 for i in range(300)})
    with pytest.raises(BundleError, match="more than 256 files"):
        fetch_onnx(many, address, tmp_path)


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    address = parse_address(f"runs:/{RUN_ID}/model")
    with pytest.raises(BundleError, match="no MLmodel: not a model of MLflow"):
        fetch_onnx(Folder({"model.onnx": b""}), address, tmp_path)
    with pytest.raises(BundleError, match=r"model\.onnx is missing"):
        fetch_onnx(Folder({"MLmodel": MLMODEL}), address, tmp_path)


def test_no_error_tells_a_secret() -> None:
    """Neither of a server's address nor of a store's, whose query is signed."""
    text = (
        "no answer from https://me:pass@word@mlflow.example/api and "
        "HTTPSConnectionPool(host='s3.example', port=443): Max retries exceeded with "
        "url: /bucket/model.onnx?X-Amz-Credential=AK&X-Amz-Signature=5ec7e7 (Caused)"
    )
    with pytest.raises(TrackingError) as found, asking():
        raise OSError(f"\x1b{text}")
    said = str(found.value)
    assert said.startswith("MLflow: no answer from https://mlflow.example/api and ")
    assert said.endswith("url: /bucket/model.onnx?... (Caused)")


# What goes back.


def test_metrics_and_tags(bundle_folder: Path, tmp_path: Path) -> None:
    bundle = read_bundle(bundle_folder)
    assert metrics_of(bundle) == {
        "sealgate.structure.errors": 0.0,
        "sealgate.quality.accuracy": 0.95,
        "sealgate.privacy.epsilon": 2.5,
        "sealgate.privacy.delta": 1e-3,
    }
    assert tags_of(bundle, None) == {
        "sealgate.model": "toy:1.0.0",
        "sealgate.root": f"sha256:{bundle.subject.root_sha256}",
        "sealgate.onnx": f"sha256:{bundle.subject.onnx_sha256}",
        "sealgate.verdict": "none",
    }
    write_evidence(bundle, tmp_path / "evidence")
    assert not list((tmp_path / "evidence").rglob("model.onnx*"))
    write_model(bundle, tmp_path / "model", run_id=RUN_ID, onnx="1.23.2")
    told = parse_mlmodel((tmp_path / "model" / "MLmodel").read_bytes())
    assert (told.file, told.origin["run_id"]) == ("model.onnx", RUN_ID)
    assert (tmp_path / "model" / "model.onnx").read_bytes() == bundle.model


def test_params_are_single_values() -> None:
    config = {"data": {"classes": ["no"], "label": "x" * 900}, "model": {"seed": 0}}
    assert params_of(config) == {"data.label": "x" * 500, "model.seed": "0"}


# Without MLflow.


@absent
def test_without_mlflow_one_line_says_what_to_install(
    security: Command, bundle_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError):
        connect(None)
    out = ("--name", "toy", "--version", "1.0.0", "--out", str(tmp_path / "out"))
    result = security("import", "mlflow:models:/credit/1", *out)
    assert result.returncode == 2
    assert result.stderr == (
        "error: MLflow is not installed: pip install mlflow-skinny\n"
    )
    assert not (tmp_path / "out").exists()


@absent
def test_without_mlflow_no_training_begins(security: Command, tmp_path: Path) -> None:
    small_training.write_rows(tmp_path / "rows.csv")
    (tmp_path / "small.toml").write_text(small_training.CONFIG)
    out = ("--out", str(tmp_path / "bundle"), "--mlflow")
    result = security("train", str(tmp_path / "small.toml"), *out)
    assert result.returncode == 2
    assert result.stderr.endswith(
        "error: MLflow is not installed: pip install mlflow-skinny\n"
    )
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "home" / "ledger").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "mlflow:credit/1"), "expected models:/NAME@ALIAS"),
        (("import", "model.onnx", "--tracking-uri", "x"), "is about a source mlflow:"),
    ],
)
def test_wrong_usage_of_import(
    security: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    out = ("--name", "toy", "--version", "1.0.0", "--out", str(tmp_path / "out"))
    result = security(*arguments, *out)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "target", ["models:/credit@best", "runs:/a/model", "models:/x"]
)
def test_log_wants_a_version_or_a_run(
    security: Command, bundle_folder: Path, target: str
) -> None:
    result = security("mlflow", "log", str(bundle_folder), "--to", target)
    assert result.returncode == 2
    assert "models:/NAME/VERSION" in result.stderr


def test_tracking_uri_is_about_mlflow(security: Command, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "b"), "--tracking-uri", "http://127.0.0.1:1")
    result = security("train", "none.toml", *out)
    assert result.returncode == 2
    assert result.stderr == "error: --tracking-uri is about --mlflow\n"
