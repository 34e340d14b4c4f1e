"""JSON whose long arrays of values are read in portions, each against its shape.

A JSON parser takes a text at one go, however long, and makes an object of every value
and of every bracket. So the long arrays "data" are taken out of the text first, and
what is left is bounded. Of an array 64 KiB are parsed at a time, and no more of it than
its shape allows.

Nothing passes here that a parser would refuse in an array that is read: each portion
goes through the parser, and brackets must be where nested arrays of equal sizes have
them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sealgate.errors import JsonError, TensorError

__all__ = ["LongArray", "loads", "offset_of"]

Parser = Callable[[bytes], Any]

_PORTION_BYTES = 64 << 10
# A shorter array stays in the text.
_LONG_BYTES = 1 << 10
# A text with more of them is refused for what is left of it.
_MAX_ARRAYS = 1 << 10
_MAX_NESTING = 16
# Numbers without a comma; one string, whose bytes take six at most.
_STRETCH_BYTES = 1 << 20
_STRING_BYTES = 6 << 20
_KEY = b'"data"'
_SPACE = b" \t\r\n"
_COLON = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+(?=\[)")
_BEFORE = re.compile(rb"[ \t\r\n\[\]]*+")
_BEHIND = re.compile(rb"[ \t\r\n\[\]]*+,?")
_INSIDE = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_STRING = re.compile(rb'("%b")' % _INSIDE.pattern, re.DOTALL)
_STRINGS = re.compile(
    rb"(?:%b%b%b,)*+" % (_BEFORE.pattern, _STRING.pattern, _BEFORE.pattern), re.DOTALL
)
_BLANKED = bytes.maketrans(b"[]", b"  ")
_NO_STRUCTURE = bytes(set(range(256)) - set(b"[],"))
# Between brackets and values stands a comma, or nothing is between them.
_AFTER_CLOSING = re.compile(rb"\](?=[^\],])")
_BEFORE_OPENING_REVERSED = re.compile(rb"\[(?=[^\[,])")
_MISPLACED = b"]["


@dataclass(frozen=True)
class LongArray:
    """An array that is still text.

    Attributes:
        text: from its first bracket to its last one.
        begin: where that is in the message.
        parse: JSON, or raises ValueError.
    """

    text: bytes
    begin: int
    parse: Parser

    def values(self, count: int, where: str) -> Iterator[list[Any]]:
        """Its values, a portion at a time.

        Args:
            count: how many there must be.
            where: role and name, for error texts.

        Raises:
            JsonError: not JSON; says at which byte.
            TensorError: another count, or the brackets are not those of nested arrays
                of equal sizes. Some values may have been given by then.
        """
        # Each takes a byte at least, and one for what is behind it.
        found = 0 if count <= len(self.text) // 2 else -1
        structure = []
        for begin, text, bare in self._portions():
            values = self._parse(begin, text)
            found += len(values)
            if not 0 <= found <= count:
                break
            structure.append(_structure(bare))
            yield values
        if found != count:
            raise TensorError(f"{where}: data does not have {count} values")
        if _nested_count(b"".join(structure)) != count:
            raise TensorError(f"{where}: data is ragged or nested too deeply")

    def _parse(self, begin: int, text: bytes) -> list[Any]:
        try:
            values: list[Any] = self.parse(b"[%b]" % text)
        except ValueError as error:
            at = self.begin + begin
            if text[:1] != b'"':  # white space between strings is gone
                at += offset_of(error, text) - 1
            raise JsonError(f"not JSON at byte {at}, or soon after") from None
        return values

    def _portions(self) -> Iterator[tuple[int, bytes, bytes]]:
        """Where each portion begins; its values alone; and all but what they are."""
        text, strings = self.text, _begins_with_string(self.text, 0)
        cut = _after_strings if strings else _after_comma
        begin = 0
        while begin < len(text):
            end = cut(text, begin)
            if end == begin:
                raise JsonError(f"not JSON at byte {self.begin + begin}")
            portion = text[begin:end]
            if strings:
                parts = _split(portion)
                bare = b"0".join(parts[::2]).translate(None, _SPACE)
                yield begin, b",".join(parts[1::2]), bare
            else:
                blanked = portion.translate(_BLANKED).rstrip(_SPACE)
                bare = portion.translate(None, _SPACE)
                yield begin, blanked.removesuffix(b","), bare
            begin = end


def loads(text: bytes, parse: Parser, *, max_other_bytes: int) -> Any:
    """Parse a request whose inputs may hold long arrays.

    Args:
        text: possibly hostile; its size has been bounded.
        parse: JSON, or raises ValueError.
        max_other_bytes: of all but long arrays and white space.

    Returns:
        What ``parse`` would, with `LongArray` in the place of long data.

    Raises:
        JsonError: not JSON, or too much beside the long arrays.
    """
    names, end = secrets.token_hex(16), 0
    parts: list[bytes] = []
    arrays: dict[str, LongArray] = {}
    for begin, close in _long_arrays(text):
        name = f"{names}{len(arrays):04}"
        arrays[name] = LongArray(text[begin:close], begin, parse)
        parts += (text[end:begin], b'"%b"' % name.encode())
        end = close
    parts.append(text[end:])
    other = b"".join(parts)
    if len(other) > max_other_bytes:
        size = len(other.translate(None, _SPACE))
        if size > max_other_bytes:
            raise JsonError(
                f"{size} bytes of JSON beside arrays of values, at most "
                f"{max_other_bytes} allowed"
            )
    try:
        document = parse(other)
    except ValueError as error:
        at = offset_of(error, other)
        for array in arrays.values():
            if at > array.begin:
                at += len(array.text) - len(names) - 6
        raise JsonError(f"not JSON at byte {at}") from None
    _put_back(document, arrays)
    return document


def offset_of(error: ValueError, text: bytes) -> int:
    """At which byte of a text its parser stopped."""
    try:
        text.decode()
    except UnicodeDecodeError as wrong:
        return wrong.start
    doc, pos = getattr(error, "doc", ""), getattr(error, "pos", 0)
    return len(doc[:pos].encode(errors="replace"))


def _put_back(document: Any, arrays: dict[str, LongArray]) -> None:
    inputs = document.get("inputs") if isinstance(document, dict) else None
    for tensor in inputs if isinstance(inputs, list) else ():
        data = tensor.get("data") if isinstance(tensor, dict) else None
        if isinstance(data, str) and data in arrays:
            tensor["data"] = arrays[data]


def _long_arrays(text: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of long arrays behind a key "data".

    No string can hold the key's quotes unescaped: where they belong to no key, the
    text is no JSON, and stays none without what is taken out.
    """
    position = 0
    for _ in range(_MAX_ARRAYS):
        key = text.find(_KEY, position)
        if key < 0:
            return
        position = key + len(_KEY)
        colon = _COLON.match(text, position)
        if colon is None or text[key - 1 : key] == b"\\":
            continue
        begin = colon.end()
        end = _end_of_array(text, begin)
        if end - begin >= _LONG_BYTES:
            yield begin, end
            position = end


def _end_of_array(text: bytes, begin: int) -> int:
    """Behind its last bracket; before ``begin`` if it has none."""
    if not _begins_with_string(text, begin):
        quote = text.find(b'"', begin)
        quote = len(text) if quote < 0 else quote
        brace = text.find(b"}", begin, quote)
        return text.rfind(b"]", begin, quote if brace < 0 else brace) + 1
    end = begin
    while (after := _after_strings(text, end)) > end:
        end = after
    return text.rfind(b"]", begin, end) + 1


def _begins_with_string(text: bytes, begin: int) -> bool:
    first = _BEFORE.match(text, begin, begin + _LONG_BYTES)
    return first is not None and text[first.end() : first.end() + 1] == b'"'


def _after_comma(text: bytes, begin: int) -> int:
    """Where a portion of numbers ends; ``begin`` if that is too far away."""
    limit, last = begin + _PORTION_BYTES, begin + _STRETCH_BYTES
    if limit >= len(text):
        return len(text)
    end = text.rfind(b",", begin, limit) + 1 or text.find(b",", limit, last) + 1
    return end or (len(text) if last >= len(text) else begin)


def _after_strings(text: bytes, begin: int) -> int:
    """Where a portion of strings ends; ``begin`` if there is none."""
    many = _STRINGS.match(text, begin, begin + _PORTION_BYTES)
    if many is not None and many.end() > begin:
        return many.end()
    # The last one, or a long one.
    end = _end(_BEFORE, text, begin)
    if text[end : end + 1] != b'"':
        return begin
    end += 1
    while (after := _end(_INSIDE, text, end)) > end and end < begin + _STRING_BYTES:
        end = after
    if text[end : end + 1] != b'"':
        return begin
    return _end(_BEHIND, text, end + 1)


def _end(pattern: re.Pattern[bytes], text: bytes, begin: int) -> int:
    match = pattern.match(text, begin, begin + _PORTION_BYTES)
    return begin if match is None else match.end()


def _split(portion: bytes) -> list[bytes]:
    """What is between strings, and the strings, in turn."""
    if len(portion) <= _PORTION_BYTES:
        return _STRING.split(portion)
    begin, end = portion.index(b'"'), portion.rindex(b'"') + 1  # a long one
    return [portion[:begin], portion[begin:end], portion[end:]]


def _structure(bare: bytes) -> bytes:
    """The brackets and commas of a portion; nothing that fits where they are wrong."""
    if b"]" in bare or b"[" in bare:
        misplaced = _AFTER_CLOSING.search(bare)
        if misplaced or _BEFORE_OPENING_REVERSED.search(bare[::-1]):
            return _MISPLACED
    return bare.translate(None, _NO_STRUCTURE)


def _nested_count(structure: bytes) -> int:
    """The values of nested arrays of equal sizes, by brackets and commas; 0 of others.

    The first array of each level says what all of that level must be like.
    """
    depth = len(structure) - len(structure.lstrip(b"["))
    if not 0 < depth <= _MAX_NESTING:
        return 0
    block, count = b"", 1
    for level in range(1, depth + 1):
        end = structure.find(b"]" * level) + level
        size = end - (depth - level)
        number = (size - 1) // (len(block) + 1)
        block = b"[" + (block + b",") * (number - 1) + block + b"]"
        count *= number
        if number < 1 or structure[depth - level : end] != block:
            return 0
    return count if block == structure else 0
