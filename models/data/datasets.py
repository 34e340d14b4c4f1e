"""Data sets with public column ranges, and splits that never change.

Preprocessing needs the range of every column. The range of personal data, computed for
free, would break the guarantee that training is to give, so a data set here brings
ranges that anyone could write down without seeing one row: from the definition of the
measured quantity, or from the physical scale of the instrument. They are constants, and
generous; what lies outside is clipped.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.data.targets import Target
from models.errors import DatasetError
from models.manifest import Column

__all__ = [
    "NAMES",
    "AnyDataset",
    "ImageDataset",
    "TabularDataset",
    "common_rows",
    "digest",
    "load",
    "multiset_digest",
    "split",
    "without",
]


@dataclass(frozen=True, eq=False)
class TabularDataset:
    """Rows of numbers, each with one class, or with a number that is to be predicted.

    Attributes:
        name: of the data set; both sides of a split keep it.
        features: float64, shape ``(n, d)``; may hold NaN where a value is missing, and
            holds codes where a column has categories.
        labels: int64, shape ``(n,)``, from 0 to ``len(classes) - 1``; with a target,
            float64, as the rows have it: not clamped.
        columns: ``d`` names with public ranges.
        classes: names of the classes, in the order of the labels; none with a target.
        personal: whether a row is about a person.
        units: whose row each is, text, shape ``(n,)``; None where each is its own.
        keys: digests of whole rows as they were read, with what is no feature; None
            where the features are all there was.
        sensitive: attributes for measuring fairness, by name, text, shape ``(n,)``.
        target: what is known of the number that is predicted; None with classes.
    """

    name: str
    features: NDArray[np.float64] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    columns: tuple[Column, ...] = field(repr=False)
    classes: tuple[str, ...]
    personal: bool
    units: NDArray[np.str_] | None = field(default=None, repr=False)
    keys: NDArray[np.bytes_] | None = field(default=None, repr=False)
    sensitive: Mapping[str, NDArray[np.str_]] = field(default_factory=dict, repr=False)
    target: Target | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def outputs(self) -> int:
        """Of a network for it: one of each class, or the number's alone."""
        return len(self.classes) or 1

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> TabularDataset:
        """The same data set with only the chosen rows, in the order chosen."""
        return _take(self, chosen)


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images, each with one class.

    Attributes:
        name, labels, classes, personal, units, keys, sensitive: as of `TabularDataset`.
        features: raw pixels, any number type, shape ``(n, channels, height, width)``.
        bounds: a pixel's public range.
        mean, std: of the pixels scaled to [0, 1], public.
    """

    name: str
    features: NDArray[Any] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    bounds: tuple[float, float]
    mean: float
    std: float
    classes: tuple[str, ...]
    personal: bool
    units: NDArray[np.str_] | None = field(default=None, repr=False)
    keys: NDArray[np.bytes_] | None = field(default=None, repr=False)
    sensitive: Mapping[str, NDArray[np.str_]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def outputs(self) -> int:
        """Of a network for it: one of each class."""
        return len(self.classes)

    @property
    def target(self) -> None:
        """No number is predicted from images."""
        return None

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> ImageDataset:
        """The same data set with only the chosen images, in the order chosen."""
        return _take(self, chosen)


AnyDataset = TabularDataset | ImageDataset
_Data = TypeVar("_Data", TabularDataset, ImageDataset)


def _take(dataset: _Data, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> _Data:
    return replace(
        dataset,
        features=dataset.features[chosen],
        labels=dataset.labels[chosen],
        units=None if dataset.units is None else dataset.units[chosen],
        keys=None if dataset.keys is None else dataset.keys[chosen],
        sensitive={name: values[chosen] for name, values in dataset.sensitive.items()},
    )


class _Range(NamedTuple):
    """Upper ends of one quantity's public range; the lower end is 0.

    Attributes:
        largest: for the mean over the nuclei of an image, and for its largest nuclei.
        error: for the standard error of that mean.
    """

    largest: float
    error: float


# Street, Wolberg and Mangasarian, "Nuclear feature extraction for breast tumor
# diagnosis" (1993), define ten quantities of cell nuclei outlined in 640 by 400 pixel,
# 8-bit images of fine-needle aspirates. None can be negative. The image gives their
# scale: dozens of nuclei must fit, so no nucleus has a radius beyond a tenth of the
# image's height, 40 pixels. A standard error is a standard deviation divided by the
# root of the number of nuclei; a tenth of the quantity's own range is generous for it.
_NUCLEUS_RANGES: Mapping[str, _Range] = {
    # Pixels. The next two follow from it for a disc: 2πr = 251, πr² = 5027.
    "radius": _Range(40.0, 4.0),
    # Standard deviation of grey values; at most 127.5 in 8 bits, and a nucleus that is
    # stained dark throughout stays below a fifth of the 256 values.
    "texture": _Range(50.0, 5.0),
    "perimeter": _Range(250.0, 25.0),
    "area": _Range(5000.0, 500.0),
    # A radius' difference from its neighbours' mean, relative: a quarter is jagged.
    "smoothness": _Range(0.25, 0.025),
    # perimeter² / (4π area) - 1: 0 for a disc, 0.86 for an ellipse four times longer
    # than wide.
    "compactness": _Range(1.0, 0.1),
    # Severity of the contour's dents, as a share of it.
    "concavity": _Range(1.0, 0.1),
    # Share of contour points inside a dent; a third is a star.
    "concave points": _Range(0.3, 0.03),
    # Relative difference of the halves' lengths: one half twice the other gives 0.5.
    "symmetry": _Range(0.5, 0.05),
    # Fractal dimension of the contour minus 1; a coastline has about 0.2.
    "fractal dimension": _Range(0.2, 0.02),
}


def _breast_cancer() -> TabularDataset:
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415  (a second)

    source = load_breast_cancer()
    return TabularDataset(
        name="breast-cancer",
        features=np.ascontiguousarray(source.data, dtype=np.float64),
        labels=np.ascontiguousarray(source.target, dtype=np.int64),
        columns=tuple(_nucleus_column(str(name)) for name in source.feature_names),
        classes=tuple(str(name) for name in source.target_names),
        personal=True,
    )


def _nucleus_column(name: str) -> Column:
    if name.endswith(" error"):
        high = _NUCLEUS_RANGES[name.removesuffix(" error")].error
    else:
        high = _NUCLEUS_RANGES[
            name.removeprefix("mean ").removeprefix("worst ")
        ].largest
    return Column(name=name, low=0.0, high=high)


_LOADERS: Mapping[str, Callable[[], TabularDataset]] = {
    "breast-cancer": _breast_cancer,
}
NAMES = tuple(sorted(_LOADERS))


def load(name: str) -> TabularDataset:
    """Load a data set by name.

    Raises:
        DatasetError: no data set has this name.

    >>> dataset = load("breast-cancer")
    >>> dataset.features.shape, dataset.classes
    ((569, 30), ('malignant', 'benign'))
    """
    loader = _LOADERS.get(name)
    if loader is None:
        raise DatasetError(f"no data set {name!r}; there are: {', '.join(NAMES)}")
    return loader()


def split(dataset: _Data, *, key: str, holdout: float) -> tuple[_Data, _Data]:
    """Split into training rows and held-out rows, the same way every time.

    A row's side depends on the key and on whose row it is alone: on its unit, or on its
    own feature values where there are no units. Rows added or removed elsewhere move
    nothing; duplicates, and the rows of one unit, stay together.

    Args:
        dataset: what to split.
        key: any text; another key gives another split.
        holdout: expected share of held-out units, above 0 and below 1.

    Returns:
        The training rows and the held-out rows.

    Raises:
        DatasetError: the share is out of range, or one side would be empty.
    """
    if not 0 < holdout < 1:
        raise DatasetError(f"holdout share must be between 0 and 1, not {holdout}")
    side = np.array([_position(name, key) < holdout for name in _owners(dataset)])
    if side.all() or not side.any():
        raise DatasetError(f"{len(dataset)} rows leave one side of the split empty")
    return dataset.take(~side), dataset.take(side)


def without(dataset: _Data, other: AnyDataset) -> _Data:
    """The rows of a data set whose owner is not in the other."""
    known = set(_owners(other))
    return dataset.take(np.array([name not in known for name in _owners(dataset)]))


def digest(features: NDArray[Any], labels: NDArray[Any]) -> str:
    """Hex SHA-256 of rows in their order: the shape, the features, then the labels.

    >>> digest(np.zeros((1, 2)), np.zeros(1, dtype=np.int64))[:16]
    '2557fac978ddbca4'
    """
    state = hashlib.sha256("x".join(map(str, features.shape)).encode() + b"\n")
    kind = "u1" if features.dtype == np.uint8 else "<f8"
    state.update(np.ascontiguousarray(features, dtype=kind).tobytes())
    # Classes are whole numbers; what a regression predicts may have fractions.
    truth = "<f8" if labels.dtype.kind == "f" else "<i8"
    state.update(np.ascontiguousarray(labels, dtype=truth).tobytes())
    return state.hexdigest()


def multiset_digest(*parts: AnyDataset) -> str:
    """Hex SHA-256 of all rows in any order: shuffled data is the same data."""
    hashes = sorted(
        hashlib.sha256(row + _label(label)).digest()
        for dataset in parts
        for row, label in zip(_rows(dataset.features), dataset.labels)
    )
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def _label(label: Any) -> bytes:
    if isinstance(label, np.floating):
        return struct.pack("<d", label)
    return int(label).to_bytes(8, "little")


def common_rows(first: AnyDataset, second: AnyDataset) -> int:
    """How many rows of the second belong to owners in the first, or are rows of it."""
    known = set(_owners(first))
    return sum(name in known for name in _owners(second))


def _owners(dataset: AnyDataset) -> list[bytes]:
    """What names each row's owner: its unit, or the whole row."""
    if dataset.units is not None:
        return [str(name).encode() for name in dataset.units]
    if dataset.keys is not None:
        return [bytes(key) for key in dataset.keys]
    return _rows(dataset.features)


def _rows(features: NDArray[Any]) -> list[bytes]:
    if features.dtype == np.uint8:
        return [row.tobytes() for row in features]
    # Adding 0.0 turns -0.0 into 0.0: equal numbers must have equal bytes.
    table = np.ascontiguousarray(features + 0.0, dtype="<f8")
    return [row.tobytes() for row in table]


def _position(row: bytes, key: str) -> float:
    """A keyed hash of the row's owner, as a number from 0 to 1."""
    tag = hmac.digest(key.encode(), row, "sha256")
    return int.from_bytes(tag[:8], "big") / 2**64
