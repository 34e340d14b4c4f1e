"""The bytes against the message parsed from them: nothing unread, merged or lost.

A protobuf parser keeps fields that it does not know without reading them. Of a field
that stands twice it takes the last, or, where the field is a message, it merges both:
two graphs become one. Other readers take the first, or skip, or know the field. So a
file holds only fields that the pinned ONNX knows (its onnx-ml.proto), and each that is
not repeated stands once.

A file that is the canonical encoding of its message has neither, which protobuf itself
can tell. The few that are not (fields in another order, numbers in longer encodings,
packed lists) are walked here, without recursion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["check_wire"]

_Problem = tuple[str, str, str]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
# By the types of google/protobuf/descriptor.proto, FieldDescriptorProto.Type.
_FIXED = {1: _FIXED64, 6: _FIXED64, 16: _FIXED64, 2: _FIXED32, 7: _FIXED32}
_FIXED |= {15: _FIXED32}
_DELIMITED = (9, 11, 12)  # string, message, bytes
_ENUM = 14


def check_wire(data: bytes, model: Any) -> _Problem | None:
    """Look for what a parser skipped, merged or dropped.

    Args:
        data: the file, hostile.
        model: the onnx.ModelProto that protobuf parsed from it; what it does not know
            is taken out of it.

    Returns:
        The first problem as rule, place and message.
    """
    model.DiscardUnknownFields()
    if model.SerializeToString(deterministic=True) == data:
        return None
    return _Walk(data).run(model.DESCRIPTOR)


@dataclass(slots=True)
class _Part:
    """A message within the bytes, and which of its fields were seen."""

    kind: Any
    start: int
    end: int
    where: str
    seen: set[str] = field(default_factory=set)


class _Walk:
    """Every field of every message, outermost first."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def run(self, kind: Any) -> _Problem | None:
        waiting = [_Part(kind, 0, len(self.data), "")]
        while waiting:
            part = waiting.pop()
            self.at = part.start
            while self.at < part.end:
                found = self._field(part)
                if isinstance(found, _Part):
                    waiting.append(found)
                elif found is not None:
                    return found
        return None

    def _field(self, part: _Part) -> _Part | _Problem | None:
        tag = self._varint()
        number, wire = tag >> 3, tag & 7
        start = self.at
        length = self._value(wire)
        known = part.kind.fields_by_number.get(number)
        place = f"field {number} of {part.kind.name}"
        if known is None or not _fits(known, wire):
            return "unknown-field", part.where, place
        if known.type == _ENUM and not self._names(known, start):
            return "unknown-field", part.where, f"{place}: a value without a name"
        if not known.is_repeated:
            # Of the members of a oneof, one can be set.
            one = known.containing_oneof
            name = known.name if one is None else one.name
            if name in part.seen:
                return "field-twice", part.where, f"{name} of {part.kind.name}"
            part.seen.add(name)
        if known.message_type is None:
            return None
        where = f"{part.where}/{known.name}".lstrip("/")
        return _Part(known.message_type, self.at - length, self.at, where[-300:])

    def _names(self, known: Any, start: int) -> bool:
        end, self.at = self.at, start
        value = self._varint()
        self.at = end
        return value in known.enum_type.values_by_number

    def _value(self, wire: int) -> int:
        """Step over a value; its length, where it says one."""
        if wire == _VARINT:
            self._varint()
        elif wire == _LENGTH:
            length = self._varint()
            self.at += length
            return length
        else:
            # A group (3, 4) is in no message of ONNX: what follows is not looked at.
            self.at += {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
        return 0

    def _varint(self) -> int:
        """A number. The parser has accepted the bytes, so that it ends within them."""
        result = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result
            shift += 7


def _fits(known: Any, wire: int) -> bool:
    if known.type in _DELIMITED:
        return wire == _LENGTH
    # Lists of numbers may be packed or not, whatever the schema prefers.
    packed = known.is_repeated and wire == _LENGTH
    return packed or wire == _FIXED.get(known.type, _VARINT)
