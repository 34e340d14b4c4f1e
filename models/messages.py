"""Every message within a protobuf message: for what concerns a whole ONNX file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["messages"]


def messages(root: Any) -> Iterator[Any]:
    """A message and all within it, the outer ones first.

    A field that is cleared in a message that was yielded is not entered.
    """
    yield root
    for field, value in root.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else (value,):
                yield from messages(item)
