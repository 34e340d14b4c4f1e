"""Files that are one model for one reader and another for the next."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import onnx
import onnxruntime

__all__ = ["in_ort_format", "polyglot", "two_graphs", "varint"]

# IR version 10, and a producer's name that is the mark of onnxruntime's own format.
_HEAD = b"\x08\x0a\x12\x04ORTM"


def in_ort_format(model: bytes) -> bytes:
    """A model as onnxruntime writes it in its other format."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.save_model_format", "ORT")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ort"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return path.read_bytes()


def polyglot(served: bytes, shown: bytes) -> bytes:
    """`served` as ONNX; `shown` for a session that guesses the format from the bytes.

    The flatbuffer's root lies where the ONNX file's first four bytes point, 68 MB on,
    within a doc_string; what it holds follows it, and is relative.
    """
    buffer = in_ort_format(shown)
    targets = _targets(buffer)
    root = struct.unpack_from("<I", _HEAD)[0]
    base = root + 80 - root % 16
    vtable = struct.pack("<HH", 4 + 2 * len(targets), 4 + 4 * len(targets))
    table = struct.pack("<i", 32)
    for index, target in enumerate(targets):
        at = 4 + 4 * index
        vtable += struct.pack("<H", 0 if target is None else at)
        table += struct.pack("<I", base + (target or 0) - root - at)
    model = onnx.load_model_from_string(served)
    for name in ("ir_version", "producer_name", "doc_string"):
        model.ClearField(name)
    start = _HEAD + model.SerializeToString()
    data = bytearray(base + len(buffer))
    start += b"\x32" + varint(len(data) - len(start) - 5)
    for position, part in ((0, start), (root - 32, vtable), (root, table)):
        data[position : position + len(part)] = part
    data[base:] = buffer
    return bytes(data)


def _targets(buffer: bytes) -> list[int | None]:
    """Where the parts of a flatbuffer's root lie."""
    (root,) = struct.unpack_from("<I", buffer)
    vtable = root - struct.unpack_from("<i", buffer, root)[0]
    (size,) = struct.unpack_from("<H", buffer, vtable)
    fields = struct.unpack_from(f"<{size // 2 - 2}H", buffer, vtable + 4)
    places = [root + offset if offset else None for offset in fields]
    return [
        None if place is None else place + struct.unpack_from("<I", buffer, place)[0]
        for place in places
    ]


def two_graphs(served: bytes, shown: bytes) -> bytes:
    """Two graphs in one message: parsers merge them, others take the first or last."""
    graph = onnx.load_model_from_string(shown).graph.SerializeToString()
    return served + b"\x3a" + varint(len(graph)) + graph


def varint(number: int, *, longer: int = 0) -> bytes:
    """A number in protobuf's encoding, in more bytes than it needs if wanted."""
    parts = [number >> shift & 0x7F for shift in range(0, 63, 7)]
    length = max(1, -(-number.bit_length() // 7)) + longer
    return bytes([*(part | 0x80 for part in parts[: length - 1]), parts[length - 1]])
