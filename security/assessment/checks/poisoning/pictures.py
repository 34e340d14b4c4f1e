"""Rows and columns as a report shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from security.assessment.plan.context import Context

__all__ = ["column_name", "picture"]

_MAX_VALUES = 4096


def column_name(context: Context, column: int) -> str:
    """The column's name, or its place."""
    names = context.job.column_names
    return names[column] if names else f"[{column}]"


def picture(context: Context, row: NDArray[Any]) -> list[Any] | None:
    """Rows of pixels from 0 to 1, grey or of three channels; None for tables."""
    job = context.job
    if job.space.table or len(job.shape) not in (2, 3) or row.size > _MAX_VALUES:
        return None
    space = job.space
    share = (row.astype(np.float64) - space.low) / (space.high - space.low)
    image = np.nan_to_num(share).clip(0, 1).reshape(job.shape)
    if image.ndim == 3:
        image = image.transpose(1, 2, 0)
        image = image if image.shape[2] == 3 else image[:, :, 0]
    return list(np.round(image, 3).tolist())
