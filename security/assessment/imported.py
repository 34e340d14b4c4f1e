"""Models from elsewhere: inspected before anything else parses them, then described.

The manifest is what onnxruntime says that the model takes and gives, with the shapes of
outputs that a first run gave. Nothing more is known of it, and nothing is claimed: no
labels, no ranges that were not given.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from models.data.columns import numbers
from models.data.readers import read_table
from models.errors import BundleError, DatasetError, ExportError
from models.files import read_regular
from models.manifest import Column, Manifest, Tensor
from models.messages import messages
from models.sessions import MAPS, SEQUENCE, TYPES, make_session, shape_of
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from sealgate.protocol.tensors import TensorSpec
from security.assessment.targets.dataconfig import load_data_config
from security.assessment.trial import shapes_that_come
from security.errors import AssessmentError, HostileModel
from security.inspection import structure
from security.inspection.calls import show
from security.inspection.findings import Finding, StructureLimits

__all__ = [
    "corrected",
    "describe",
    "embedded",
    "export_factory",
    "inspected",
    "read_columns",
    "tools",
]

MAX_COLUMNS_BYTES = 4 << 20
MAX_ROWS = 1024
_COLUMN = ("name", "low", "high")
MAX_WEIGHTS_BYTES = 512 << 20  # of the files beside a model


def inspected(
    model: bytes, folder: Path | None = None
) -> tuple[bytes, tuple[Finding, ...]]:
    """Inspect a file of unknown origin.

    Args:
        model: the file's bytes.
        folder: where weights may lie that the file names; None where nowhere.

    Returns:
        The model, with those weights in it, and what is worth a look.

    Raises:
        HostileModel: the inspection found an error, or weights cannot be read.
    """
    inspection = structure.examine(model)
    reasons = {item.rule for item in inspection.refused}
    if folder is not None and reasons == {"external-data"}:
        model = embedded(model, folder)
        inspection = structure.examine(model)
    for finding in inspection.refused:
        raise HostileModel(f"{finding.rule}: {finding.message}")
    return model, inspection.findings


def embedded(model: bytes, folder: Path) -> bytes:
    """The model with the weights in it that lie beside it.

    torch.onnx.export writes weights to ``model.onnx.data`` by default. Only plain
    files of the same folder are read, each once, and no more than an inspected file
    may have. The result was inspected by nobody.

    Args:
        model: the bytes of an ONNX file whose inspection found nothing but external
            data.
        folder: where the file lies.

    Raises:
        HostileModel: weights are elsewhere or beyond the end of their file, or that
            file is missing, linked, or too large.
    """
    proto = onnx.load_model_from_string(model)
    left = StructureLimits().max_model_bytes
    files: dict[str, bytes] = {}
    for tensor in messages(proto):
        if isinstance(tensor, onnx.TensorProto) and tensor.external_data:
            tensor.raw_data = _beside(tensor, folder, files, left)
            left -= len(tensor.raw_data)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _beside(tensor: Any, folder: Path, files: dict[str, bytes], left: int) -> bytes:
    """The bytes of one tensor; at most so many."""
    told = {entry.key: entry.value for entry in tensor.external_data}
    name = told.get("location", "")
    if not name or name != Path(name).name or "\0" in name:
        raise HostileModel(f"external-data: {show(name)} is no file beside the model")
    if name not in files:
        room = MAX_WEIGHTS_BYTES - sum(map(len, files.values()))
        try:
            files[name] = read_regular(folder / name, max_bytes=room)
        except BundleError as error:
            raise HostileModel(f"external-data: {error}") from None
    data = files[name]
    try:
        start = int(told.get("offset", "0"))
        length = int(told.get("length", len(data) - start))
    except ValueError:
        raise HostileModel("external-data: offset or length is no number") from None
    if min(start, length) < 0 or start + length > len(data):
        raise HostileModel(f"external-data: {show(tensor.name)} is not in {show(name)}")
    if length > left:
        raise HostileModel("external-data: more weights than a model may have")
    return data[start : start + length]


def describe(
    model: bytes, *, name: str, version: str, columns: Sequence[Column] = ()
) -> Manifest:
    """The manifest of a model whose structure was inspected.

    Args:
        model: the file's bytes.
        name: what it shall be called.
        version: and in which version.
        columns: of its only input's last axis, or none.

    Raises:
        AssessmentError: it has tensors that requests cannot carry.
        SessionError: onnxruntime refuses the model.
        ManifestError: the name, version or columns do not fit.
    """
    session = make_session(model)
    inputs = tuple(_tensor(node) for node in session.get_inputs())
    if columns:
        if len(inputs) != 1:
            raise AssessmentError(
                f"columns are for one input, the model has {len(inputs)}"
            )
        inputs = (Tensor(inputs[0].spec, columns=tuple(columns)),)
    graph = onnx.load_model_from_string(model).graph
    outputs = tuple(_output(node, graph) for node in session.get_outputs())
    manifest = Manifest(name, version, inputs, outputs, max_rows=MAX_ROWS)
    return Manifest.from_json(manifest.to_json())


def corrected(model: bytes, manifest: Manifest) -> tuple[Manifest, tuple[str, ...]]:
    """The manifest with the shapes that outputs really have, and what was changed.

    Args:
        model: the file's bytes.
        manifest: as `describe` made it.
    """
    came = shapes_that_come(model, manifest)
    if came is None:
        return manifest, (
            "the model did not run on made-up rows: outputs have the shapes that it "
            "declares",
        )
    outputs, notes = [], []
    for tensor in manifest.outputs:
        spec, shape = tensor.spec, came.get(tensor.spec.name)
        if shape is None or _declares(spec.shape, shape):
            outputs.append(tensor)
            continue
        notes.append(
            f"output {spec.name!r} is declared {list(spec.shape)}, {list(shape)} comes"
        )
        outputs.append(replace(tensor, spec=replace(spec, shape=shape)))
    changed = replace(manifest, outputs=tuple(outputs))
    return Manifest.from_json(changed.to_json()), tuple(notes)


def _declares(declared: tuple[int, ...], came: tuple[int, ...]) -> bool:
    same_rank = len(declared) == len(came)
    return same_rank and all(d in (-1, c) for d, c in zip(declared, came))


def read_columns(path: Path) -> tuple[Column, ...]:
    """Read names and public ranges from JSON, a table, or a data configuration.

    Raises:
        BundleError: another form.
        AssessmentError: the data configuration is malformed.
    """
    if path.suffix.lower() == ".toml":
        return _columns_of_config(path)
    table = path.suffix.lower() in (".csv", ".gz", ".parquet")
    try:
        rows = _columns_of_table(path) if table else _columns_of_json(path)
        return tuple(
            Column(str(name), float(low), float(high)) for name, low, high in rows
        )
    except DatasetError as error:
        reason = f": {error}"
    except (JsonError, ValueError, TypeError, KeyError, OverflowError):
        reason = ""
    raise BundleError(f"{path.name}: expected name, low and high of columns{reason}")


def _columns_of_config(path: Path) -> tuple[Column, ...]:
    columns = []
    for item in load_data_config(path).columns:
        if item.low is None or item.high is None:
            raise BundleError(f"{path.name}: column {item.name!r} has no low and high")
        columns.append(Column(item.name, item.low, item.high))
    return tuple(columns)


def _columns_of_table(path: Path) -> Iterable[tuple[Any, ...]]:
    table = read_table(str(path), base=Path(), max_bytes=MAX_COLUMNS_BYTES)
    table.require(_COLUMN, also=table.arrays)
    ends = [numbers(table, item).tolist() for item in _COLUMN[1:]]
    return zip(table.column("name").tolist(), *ends)


def _columns_of_json(path: Path) -> Iterable[tuple[Any, ...]]:
    data = read_regular(path, max_bytes=MAX_COLUMNS_BYTES)
    value = strict_json.loads(data, max_bytes=MAX_COLUMNS_BYTES)
    if not isinstance(value, list):
        raise TypeError
    return [tuple(row[item] for item in _COLUMN) for row in value]


def export_factory(source: str, columns: Sequence[Column]) -> bytes:
    """Export the torch module that ``pkg.module:factory`` makes.

    This runs the factory, with all rights of the caller. What `models.export` takes is
    a classifier of tabular rows that returns probabilities and labels.

    Raises:
        ExportError: no such factory, it makes no module, or the export refuses it.
    """
    from torch import nn  # noqa: PLC0415  (seconds)

    from models.export import export_onnx  # noqa: PLC0415  (as above)

    if not columns:
        raise ExportError("a torch module needs --columns")
    module_name, _, factory_name = source.partition(":")
    try:
        module = getattr(importlib.import_module(module_name), factory_name)()
    except Exception as error:  # noqa: BLE001  (someone else's code)
        raise ExportError(f"{source}: {type(error).__name__}: {error}") from None
    if not isinstance(module, nn.Module):
        raise ExportError(f"{source}: makes a {type(module).__name__}, no torch module")
    return export_onnx(module, columns)


def tools() -> dict[str, str]:
    """What handled the file, with versions."""
    names = ("onnx", "onnxruntime")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}


def _tensor(node: Any) -> Tensor:
    datatype = TYPES.get(node.type)
    if datatype is None:
        raise AssessmentError(f"tensor {node.name!r} is a {node.type}: not served")
    return Tensor(TensorSpec(node.name, datatype, shape_of(node)))


def _output(node: Any, graph: onnx.GraphProto) -> Tensor:
    """A tensor, or what is presented as one."""
    maps, sequence = (kind.fullmatch(node.type) for kind in (MAPS, SEQUENCE))
    if maps is not None and maps[2] in TYPES:
        labels = _map_keys(node.name, graph)
        spec = TensorSpec(node.name, TYPES[maps[2]], (-1, len(labels)))
        return Tensor(spec, labels=labels, form="maps")
    if sequence is not None and sequence[1] in TYPES:
        shape = (-1, *_element_shape(node.name, graph))
        return Tensor(TensorSpec(node.name, TYPES[sequence[1]], shape), form="sequence")
    return _tensor(node)


def _map_keys(name: str, graph: onnx.GraphProto) -> tuple[str, ...]:
    """The keys of the maps that an output gives, as its ZipMap names them."""
    makers = {output: node for node in graph.node for output in node.output}
    node = makers.get(name)
    for attribute in node.attribute if node is not None else ():
        if attribute.name == "classlabels_int64s":
            return tuple(str(key) for key in attribute.ints)
        if attribute.name == "classlabels_strings":
            return tuple(key.decode("utf-8", "replace") for key in attribute.strings)
    raise AssessmentError(f"tensor {name!r} is maps whose keys are not known")


def _element_shape(name: str, graph: onnx.GraphProto) -> tuple[int, ...]:
    """The declared shape of the tensors in a sequence."""
    (value,) = (item for item in graph.output if item.name == name)
    element = value.type.sequence_type.elem_type.tensor_type
    if not element.HasField("shape"):
        raise AssessmentError(f"tensor {name!r} is tensors whose rank is not known")
    return tuple(size.dim_value or -1 for size in element.shape.dim)
