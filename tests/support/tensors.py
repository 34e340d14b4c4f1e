"""Requests read, and answers written, as the server does it in several steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sealgate.protocol import binary_tensors
from sealgate.protocol.tensors import Array, TensorSpec, request_heads


def decode_request(
    request: Any,
    specs: Sequence[TensorSpec],
    *,
    max_rows: int,
    tail: bytes | memoryview = b"",
) -> dict[str, Array]:
    """The inputs of a request by name; ``tail`` is what follows its JSON."""
    heads = request_heads(request, specs, max_rows=max_rows)
    return binary_tensors.decode_inputs(heads, memoryview(tail))


def encode_response(
    outputs: Iterable[tuple[str, Array]], *, model: str, version: str
) -> dict[str, Any]:
    """An answer whose values are all JSON."""
    document, _ = binary_tensors.encode_response(
        outputs, binary=(), model=model, version=version
    )
    return document
