"""Which rows are images, where the pixels of one lie, and how it is drawn.

A model says the axes of its input, not which of them are channels; and many take an
image as one long row. One, three and four channels are told by their number, first as
PyTorch's exporter writes them or last as TensorFlow's. A long row is an image only if
its values say so: neighbours in a square differ far less than any two values do, also
upwards, where those of a curve differ more; and if its columns have no names of their
own. That decides how rows are drawn, and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.assessment.plan.context import Job

__all__ = ["Layout", "change_pictures", "drawn_layout", "layout_of", "picture"]

Floats = NDArray[np.float64]

# A larger picture is drawn smaller: a page of ten has to stay below a megabyte.
_MAX_SIDE = 64
_COLOURS = (1, 3, 4)
# Of a row that is an image: the least side; the largest differences of neighbours, as a
# share of those of any two values; and of upward ones, as a multiple of sideways ones.
_MIN_SIDE, _SMOOTH, _UPWARDS = 8, 0.75, 2.5
# Values of rows that this is seen by.
_LOOKED_AT = 250_000


@dataclass(frozen=True)
class Layout:
    """Where the pixels of an image lie in a row of values.

    Attributes:
        channels, height, width: of the image.
        last: whether a pixel's channels lie side by side, not one plane after another.
    """

    channels: int
    height: int
    width: int
    last: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.height, self.width

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """``(d,)``: where in a row the values lie, plane after plane."""
        places = np.arange(math.prod(self.shape))
        if not self.last:
            return places
        return places.reshape(-1, self.channels).T.ravel()

    @cached_property
    def back(self) -> NDArray[np.int64]:
        """``(d,)``: where among the planes the values of a row lie."""
        return np.argsort(self.order)

    def planes(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows ``(..., d)`` as images ``(..., channels, height, width)``."""
        return rows[..., self.order].reshape(*rows.shape[:-1], *self.shape)

    def rows(self, planes: NDArray[Any]) -> NDArray[Any]:
        """Images as rows: `planes`, undone."""
        return planes.reshape(*planes.shape[:-3], -1)[..., self.back]


def layout_of(job: Job) -> Layout | None:
    """The images that the model's axes say; None where rows are no images."""
    if job.space.table or len(job.shape) < 2:
        return None
    return drawn_layout(job)


def drawn_layout(job: Job) -> Layout | None:
    """How rows are drawn: images by their axes, or long rows that look like images."""
    match [size for size in job.shape if size > 1]:
        case [size]:
            return _of_long_rows(job, size)
        case [height, width]:
            return Layout(1, height, width)
        case [first, second, third] if first in _COLOURS or second == third:
            return Layout(first, second, third)
        case [first, second, third] if third in _COLOURS or first == second:
            return Layout(third, first, second, last=True)
        case [first, second, third]:
            return Layout(first, second, third)
        case _:
            return None


def _of_long_rows(job: Job, size: int) -> Layout | None:
    if len({re.sub(r"\d+", "", name) for name in job.column_names}) > 1:
        return None
    few = job.rows[: _LOOKED_AT // size + 1]
    rows = np.nan_to_num(few.astype(np.float64))
    rough = {layout: _roughness(layout, rows) for layout in _squares(size)}
    best = min(rough, key=lambda item: rough[item], default=None)
    return best if best is not None and rough[best] < _SMOOTH else None


def _squares(size: int) -> Iterator[Layout]:
    for channels in _COLOURS[:2]:
        side = math.isqrt(size // channels)
        if side >= _MIN_SIDE and side * side * channels == size:
            yield Layout(channels, side, side)
            if channels > 1:
                yield Layout(channels, side, side, last=True)


def _roughness(layout: Layout, rows: Floats) -> float:
    """How neighbours differ, as a share of how any two values do; 1 where no image."""
    planes = layout.planes(rows)
    upwards, sideways = (np.abs(np.diff(planes, axis=a)).mean() for a in (-2, -1))
    any_two = rows[:, np.random.default_rng(0).permutation(rows.shape[1])]
    usual = np.abs(np.diff(any_two, axis=1)).mean()
    if usual == 0 or upwards > _UPWARDS * sideways:
        return 1.0
    return float((upwards + sideways) / 2 / usual)


def picture(job: Job, row: NDArray[Any]) -> list[Any] | None:
    """Rows of pixels from 0 to 1, each grey or three colours; None where no image.

    Args:
        job: whose ranges are black and white, of each channel.
        row: ``(d,)``, raw values.
    """
    layout = drawn_layout(job)
    return None if layout is None else _pixels(_shares(job, layout, row))


def change_pictures(
    job: Job, before: NDArray[Any], after: NDArray[Any]
) -> list[Any] | None:
    """Pictures of a row before and after, and of what changed: grey where nothing did.

    Args:
        job: as in `picture`.
        before: ``(d,)``, raw values.
        after: likewise.
    """
    layout = drawn_layout(job)
    if layout is None:
        return None
    first, second = (_shares(job, layout, row) for row in (before, after))
    moved = _smaller(second - first)
    largest = float(np.abs(moved).max()) or 1.0
    return [_pixels(first), _pixels(second), _pixels(0.5 + moved / largest / 2)]


def _shares(job: Job, layout: Layout, row: NDArray[Any]) -> Floats:
    """An image's planes, each value as a share of its channel's range."""
    low, high = job.space.low, job.space.high
    if job.space.ranges_from == "data":
        # A value that never varies has a range there that no picture has.
        rows = np.where(np.isfinite(job.rows), job.rows, low)
        low, high = rows.min(axis=0), rows.max(axis=0)
    low = layout.planes(low).min(axis=(1, 2), keepdims=True)
    span = layout.planes(high).max(axis=(1, 2), keepdims=True) - low
    shares = (layout.planes(row.astype(np.float64)) - low) / np.where(span, span, 1.0)
    return np.nan_to_num(shares)


def _smaller(planes: Floats) -> Floats:
    """Planes of at most so many pixels a side: means of squares of pixels."""
    channels, height, width = planes.shape
    step = -(-max(height, width) // _MAX_SIDE)
    if step == 1:
        return planes
    fill = ((0, 0), (0, -height % step), (0, -width % step))
    full = np.pad(planes, fill, mode="edge")
    parts = full.reshape(
        channels, full.shape[1] // step, step, full.shape[2] // step, step
    )
    return np.asarray(parts.mean(axis=(2, 4)))


def _pixels(planes: Floats) -> list[Any]:
    """Grey of one channel, or of others that are no colours; the alpha is left out."""
    bounded = np.clip(_smaller(planes), 0.0, 1.0).round(4)
    if len(bounded) in _COLOURS[1:]:
        return list(np.moveaxis(bounded[:3], 0, -1).tolist())
    return list(bounded.mean(axis=0).round(4).tolist())
