"""manifest.json: what a model is called, what it takes, what it gives.

The manifest is inside the signed root digest, so the server trusts it as the model's
contract: it validates every request against it before onnxruntime sees a tensor.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from models.conformal import Conformal
from models.conforming import Conforming
from models.errors import ManifestError
from models.explanations import DEFAULT, Explanations
from models.names import NAME, VERSION
from models.output_policy import ALL_SCORES, OutputPolicy
from models.release import Release
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from sealgate.protocol.tensors import DATATYPES, Array, TensorSpec
from sealgate.protocol.versions import unread

__all__ = [
    "FORMS",
    "MANIFEST_SCHEMA",
    "Column",
    "Manifest",
    "Tensor",
]

MANIFEST_SCHEMA = "https://sealgate.dev/manifest/v1"
MAX_MANIFEST_BYTES = 4 << 20
MAX_ROWS = 1 << 20

# "maps" is a sequence of maps, as classical converters emit for class scores: rows of
# the tensor are its maps, columns their keys, which the labels name. "sequence" is a
# sequence of tensors of one shape, which are stacked.
FORMS = ("tensor", "maps", "sequence")

_Item = TypeVar("_Item")
_OPTIONAL = {"columns", "labels", "bounds", "form"}


@dataclass(frozen=True)
class Column:
    """One feature of a tabular input, with the public range it is clipped to.

    Attributes:
        name: of the column.
        low, high: of its public range; of the codes, 0 to k - 1, for k categories.
        categories: what each code means, in order; none for a number.
    """

    name: str
    low: float
    high: float
    categories: tuple[str, ...] = ()

    def to_object(self) -> dict[str, Any]:
        """The column as JSON values."""
        value: dict[str, Any] = {"name": self.name, "low": self.low, "high": self.high}
        return (
            {**value, "categories": list(self.categories)} if self.categories else value
        )


@dataclass(frozen=True)
class Tensor:
    """An input or output: its v2 signature, and what its last axis means.

    Attributes:
        spec: name, v2 datatype and shape; -1 is a dynamic dimension.
        columns: for tabular inputs, one per element of the last axis.
        labels: for outputs of class scores, one per element of the last axis.
        bounds: for other inputs, the public range of every element; beyond is clipped.
        form: what the graph gives, see `FORMS`; requests and answers have tensors only.
    """

    spec: TensorSpec
    columns: tuple[Column, ...] = ()
    labels: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    form: str = "tensor"

    def described(self) -> dict[str, Any]:
        """As the protocol's metadata of a model has it."""
        result: dict[str, Any] = {
            "name": self.spec.name,
            "datatype": self.spec.datatype,
            "shape": list(self.spec.shape),
        }
        parameters: dict[str, Any] = {}
        if self.columns:
            parameters["columns"] = [column.to_object() for column in self.columns]
        if self.labels:
            parameters["labels"] = list(self.labels)
        return result | ({"parameters": parameters} if parameters else {})

    def made_up(self, rows: int, random: np.random.Generator) -> Array:
        """Values that an input may take, within its public ranges where it has any.

        Args:
            rows: where the first axis is dynamic; other dynamic axes are 1.
            random: where numbers come from.
        """
        shape = [1 if size == -1 else size for size in self.spec.shape]
        if self.spec.shape[:1] == (-1,):
            shape[0] = rows
        dtype = DATATYPES.get(self.spec.datatype, np.dtype(object))
        ends = [(item.low, item.high) for item in self.columns] or self.bounds
        if ends is not None and dtype.kind in "iuf":
            low, high = np.transpose(ends)
            values = low + (high - low) * random.random(shape)
            codes = [bool(item.categories) for item in self.columns] or False
            made: Array = np.where(codes, np.rint(values), values).astype(dtype)
            return made
        if dtype.kind == "f":
            return random.standard_normal(shape).astype(dtype)
        # Small enough to be an index of whatever there is.
        whole = random.integers(0, 2, shape)
        texts = dtype.kind == "O"
        return whole.astype(str).astype(object) if texts else whole.astype(dtype)


@dataclass(frozen=True)
class Manifest:
    """A parsed, validated manifest.

    Attributes:
        name: ``[A-Za-z0-9._-]``, at most 63 characters; the ``{model}`` of every URL.
        version: dotted numbers, ``1.0.0``.
        inputs: at least one.
        outputs: at least one.
        max_rows: rows (first dimension) accepted in one request.
        output_policy: what may leave of its answers.
        explanations: how they are explained, where that may be.
        conformal: how they are widened to intervals or sets; None where they are not.
    """

    name: str
    version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_rows: int
    output_policy: OutputPolicy = ALL_SCORES
    explanations: Explanations = DEFAULT
    conformal: Conformal | None = None

    @property
    def release(self) -> Release:
        """Its outputs, as its policy lets them leave."""
        parts = self.explanations.contributions
        return Release(
            self.output_policy, self.outputs, self.conformal, explaining=parts
        )

    @property
    def conforming(self) -> Conforming | None:
        """Its outputs, as its quantile widens them; None where it has none."""
        known = self.conformal
        return None if known is None else Conforming(known, self.outputs)

    @property
    def served(self) -> tuple[Tensor, ...]:
        """The outputs that callers may ask for: of the others they are told nothing."""
        release = self.release
        own = [item for item in self.outputs if item.spec.name in release.names]
        about = {item.spec.name: item for item in self.outputs}
        for spec in release.added:
            source = about[spec.name.rpartition("_")[0]]
            own.append(Tensor(spec, labels=source.labels, bounds=source.bounds))
        return tuple(own)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Of its inputs side by side; none where it says nothing of one of them."""
        if not all(item.columns for item in self.inputs):
            return ()
        return tuple(column for item in self.inputs for column in item.columns)

    @property
    def number(self) -> Tensor | None:
        """Its only output, where that is a number for each row, of a public range."""
        first, *others = self.outputs
        one = first.spec.shape in ((-1,), (-1, 1)) and not (others or first.labels)
        return first if one and first.bounds is not None else None

    @property
    def text(self) -> tuple[str, ...]:
        """Names of its inputs that are texts."""
        found = (item.spec for item in self.inputs)
        return tuple(spec.name for spec in found if spec.datatype == "BYTES")

    @property
    def tag(self) -> str:
        """``name:version``; BentoML's own is in lower case, see `names.store_tag`."""
        return f"{self.name}:{self.version}"

    @property
    def has_bf16(self) -> bool:
        """Whether a tensor is BF16, which onnxruntime runs by another way."""
        every = (*self.inputs, *self.outputs)
        return any(tensor.spec.datatype == "BF16" for tensor in every)

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Parse and validate.

        Raises:
            ManifestError: not JSON, an unknown or missing field, a wrong type, or a
                value out of range. The message names the field.
        """
        try:
            value = strict_json.loads_object(data, max_bytes=MAX_MANIFEST_BYTES)
        except JsonError as error:
            raise ManifestError(f"manifest.json: {error}") from None
        # First: a later version has other fields.
        schema = value.get("schema", MANIFEST_SCHEMA)
        if schema != MANIFEST_SCHEMA:
            raise ManifestError(f"manifest.schema: {unread(schema, MANIFEST_SCHEMA)}")
        _fields(
            value,
            "manifest",
            {"schema", "name", "version", "inputs", "outputs"},
            {"limits", "output_policy", "explanations", "conformal"},
        )
        inputs = _inputs(value["inputs"])
        outputs = _tensors(value["outputs"], "manifest.outputs")
        manifest = cls(
            name=_match(value["name"], "manifest.name", NAME),
            version=_match(value["version"], "manifest.version", VERSION),
            inputs=inputs,
            outputs=outputs,
            max_rows=_max_rows(value.get("limits", {})),
            output_policy=OutputPolicy.from_object(
                value.get("output_policy", {}), "manifest.output_policy"
            ),
            explanations=Explanations.from_object(
                value.get("explanations", {}),
                [tensor.spec for tensor in inputs],
                [tensor.spec for tensor in outputs],
            ),
            conformal=Conformal.from_object(value["conformal"], "manifest.conformal")
            if "conformal" in value
            else None,
        )
        _check_bf16(manifest)
        _ = manifest.release  # refuses a policy that is not one for these outputs
        return manifest

    def to_json(self) -> bytes:
        """The canonical bytes of this manifest; `from_json` gives it back."""
        policy, explained = (
            self.output_policy.to_object(),
            self.explanations.to_object(),
        )
        widened = None if self.conformal is None else self.conformal.to_object()
        return strict_json.dumps(
            {
                "schema": MANIFEST_SCHEMA,
                "name": self.name,
                "version": self.version,
                "inputs": [_tensor_object(tensor) for tensor in self.inputs],
                "outputs": [_tensor_object(tensor) for tensor in self.outputs],
                "limits": {"max_rows": self.max_rows},
                **({"output_policy": policy} if policy else {}),
                **({"explanations": explained} if explained else {}),
                **({"conformal": widened} if widened else {}),
            }
        )


def _tensor_object(tensor: Tensor) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": tensor.spec.name,
        "datatype": tensor.spec.datatype,
        "shape": list(tensor.spec.shape),
    }
    if tensor.columns:
        result["columns"] = [column.to_object() for column in tensor.columns]
    if tensor.labels:
        result["labels"] = list(tensor.labels)
    if tensor.bounds is not None:
        result["bounds"] = list(tensor.bounds)
    if tensor.form != "tensor":
        result["form"] = tensor.form
    return result


def _check_bf16(manifest: Manifest) -> None:
    # The way that onnxruntime's Python interface has for BF16 takes neither of these.
    others = any(tensor.form != "tensor" for tensor in manifest.outputs) or any(
        tensor.spec.datatype == "BYTES" for tensor in manifest.inputs
    )
    if others and manifest.has_bf16:
        raise ManifestError(
            "manifest: BF16 beside BYTES inputs, maps or sequences is not served"
        )


def _inputs(value: Any) -> tuple[Tensor, ...]:
    inputs = _tensors(value, "manifest.inputs")
    for tensor in inputs:
        if tensor.form != "tensor":
            raise ManifestError(f"manifest.inputs: {tensor.form} cannot be sent")
    return inputs


def _tensors(value: Any, where: str) -> tuple[Tensor, ...]:
    tensors = _list(value, where, _tensor)
    if not 1 <= len(tensors) <= 64:
        raise ManifestError(f"{where}: expected 1 to 64 tensors")
    if len({tensor.spec.name for tensor in tensors}) != len(tensors):
        raise ManifestError(f"{where}: a name occurs twice")
    return tensors


def _tensor(value: Any, where: str) -> Tensor:
    _fields(value, where, {"name", "datatype", "shape"}, _OPTIONAL)
    if not isinstance(value["datatype"], str) or value["datatype"] not in DATATYPES:
        raise ManifestError(f"{where}.datatype: not a supported v2 datatype")
    spec = TensorSpec(
        name=_text(value["name"], f"{where}.name"),
        datatype=value["datatype"],
        shape=_list(value["shape"], f"{where}.shape", _dimension),
    )
    columns = _list(value.get("columns", []), f"{where}.columns", _column)
    labels = _list(value.get("labels", []), f"{where}.labels", _text)
    for field, given in (("columns", columns), ("labels", labels)):
        if given and (not spec.shape or len(given) != spec.shape[-1]):
            raise ManifestError(
                f"{where}.{field}: not one per element of the last axis"
            )
    bounds = _bounds(value["bounds"], f"{where}.bounds") if "bounds" in value else None
    form = value.get("form", "tensor")
    if form not in FORMS:
        raise ManifestError(f"{where}.form: expected one of {', '.join(FORMS)}")
    if form == "maps" and (len(spec.shape) != 2 or not labels):
        raise ManifestError(f"{where}: maps have rows, and a label for each column")
    if form == "sequence" and spec.shape[:1] != (-1,):
        raise ManifestError(f"{where}: a sequence has any number of tensors")
    return Tensor(spec, columns, labels, bounds, form)


def _bounds(value: Any, where: str) -> tuple[float, float]:
    ends = _list(value, where, _number)
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise ManifestError(f"{where}: expected a low and a high end")
    return ends[0], ends[1]


def _column(value: Any, where: str) -> Column:
    _fields(value, where, {"name", "low", "high"}, {"categories"})
    low, high = (_number(value[key], f"{where}.{key}") for key in ("low", "high"))
    if not low < high:
        raise ManifestError(f"{where}: low must be below high")
    categories = _list(value.get("categories", []), f"{where}.categories", _text)
    if categories and (low, high) != (0.0, len(categories) - 1.0):
        raise ManifestError(f"{where}: low and high are not the categories' codes")
    if len(set(categories)) != len(categories):
        raise ManifestError(f"{where}.categories: a name occurs twice")
    return Column(_text(value["name"], f"{where}.name"), low, high, categories)


def _max_rows(value: Any) -> int:
    _fields(value, "manifest.limits", set(), {"max_rows"})
    rows = value.get("max_rows", 1024)
    if type(rows) is not int or not 1 <= rows <= MAX_ROWS:
        raise ManifestError(f"manifest.limits.max_rows: expected 1 to {MAX_ROWS}")
    return rows


def _dimension(value: Any, where: str) -> int:
    if type(value) is not int or not (value == -1 or 1 <= value < 1 << 31):
        raise ManifestError(f"{where}: expected -1 or a positive integer")
    return value


def _number(value: Any, where: str) -> float:
    # By comparison: float() and math.isfinite() fail on an integer beyond a double.
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise ManifestError(f"{where}: expected a number")
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 256:
        raise ManifestError(f"{where}: expected 1 to 256 characters")
    return value


def _match(value: Any, where: str, pattern: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ManifestError(f"{where}: expected {pattern.pattern}")
    return value


def _list(
    value: Any, where: str, parse: Callable[[Any, str], _Item]
) -> tuple[_Item, ...]:
    if not isinstance(value, list):
        raise ManifestError(f"{where}: expected an array")
    return tuple(parse(item, f"{where}[{i}]") for i, item in enumerate(value))


def _fields(value: Any, where: str, required: set[str], optional: set[str]) -> None:
    if not isinstance(value, Mapping):
        raise ManifestError(f"{where}: expected an object")
    missing = required - value.keys()
    unknown = value.keys() - required - optional
    if missing:
        raise ManifestError(f"{where}: missing {', '.join(sorted(missing))}")
    if unknown:
        raise ManifestError(f"{where}: unknown field {min(unknown)!r}")
