"""Small images, as a page holds them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["png_source"]


def png_source(values: Sequence[Sequence[Any]]) -> str:
    """The address of a picture that is its own content: a PNG (RFC 2397).

    Args:
        values: rows of pixels, each a number from 0 (black) to 1 (white), or three.
    """
    shares = np.nan_to_num(np.asarray(values, np.float64)).clip(0, 1)
    buffer = io.BytesIO()
    Image.fromarray(np.round(255 * shares).astype(np.uint8)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
