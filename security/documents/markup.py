"""Markdown and YAML out of text that others wrote.

A column name, a check's message or an intended use comes from whoever made the bundle.
It must arrive as the characters it is: no link, image, HTML, table cell, heading or
front matter may come out of it, in CommonMark, in GitHub's dialect, or in a generator
of static sites (Liquid, MDX) that reads the file first.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

__all__ = ["code", "number", "prose", "table", "yaml_number", "yaml_text"]

_SIGNIFICANT_DIGITS = 4
_ROUNDING = {"nearest": ROUND_HALF_EVEN, "up": ROUND_CEILING, "down": ROUND_FLOOR}

# Where a backslash would be read differently inside a table, an entity is used.
_ENTITIES = {char: f"&#{ord(char)};" for char in "\\`|{}$"}
_ESCAPES = (
    {char: f"\\{char}" for char in "*[]#~^"}
    | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    | _ENTITIES
)
# Emphasis needs an underscore at the edge of a word; inside one it is a letter.
_EDGE_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
_BLOCK_START = re.compile(r"(?=[-+=:])|\d+(?=[.)])")
# Autolinks are found in the text after escapes are undone. A word joiner, which has no
# width, is the one thing that breaks them in every dialect.
_AUTOLINK = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)|(?<=@)", re.IGNORECASE)
_JOINER = "\u2060"
# Also half a surrogate pair: what a byte of an argument is that is no UTF-8.
_UNSEEN = ("Cc", "Cf", "Co", "Cn", "Cs")
_PLAIN_CODE = re.compile(r"[^\\`|{}$<>&\ufffd]+")


def prose(text: str) -> str:
    r"""One line of Markdown that shows a text and does nothing else.

    >>> prose("see [here](x) <b>| now")
    'see \\[here\\](x) &lt;b&gt;&#124; now'
    """
    line = _AUTOLINK.sub(_JOINER, _one_line(text))
    line = "".join(_ESCAPES.get(char, char) for char in line)
    line = _EDGE_UNDERSCORE.sub(r"\\_", line)
    found = _BLOCK_START.match(line)
    if found:
        line = f"{found[0]}\\{line[found.end() :]}"
    return line or "(empty)"


def code(text: str) -> str:
    """A name or identifier: a code span, or `prose` where a span could be left.

    >>> code("mean radius"), code("a`b")
    ('`mean radius`', 'a&#96;b')
    """
    line = _one_line(text)
    return f"`{line}`" if _PLAIN_CODE.fullmatch(line) else prose(text)


def number(value: float, rounding: str = "nearest") -> str:
    """A number for people: whole ones in full, others to four significant digits.

    Args:
        value: finite.
        rounding: "nearest"; "up" and "down" for what must not look better than it is.

    >>> number(1475.0), number(2.99827, "up"), number(4.17e-7)
    ('1475', '2.999', '4.17e-7')
    """
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    context = Context(prec=_SIGNIFICANT_DIGITS, rounding=_ROUNDING[rounding])
    return f"{context.plus(Decimal(repr(value))).normalize():g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already, as `prose` and `code` return it."""
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def yaml_text(text: str) -> str:
    r"""A double-quoted YAML scalar in ASCII (YAML 1.2, section 5.7).

    >>> yaml_text('a"\n---')
    '"a\\"\\n---"'
    """
    return f'"{"".join(map(_yaml_character, text))}"'


def yaml_number(value: float) -> str:
    """A number that YAML 1.1 and 1.2 both read as this number.

    >>> yaml_number(1e-05), yaml_number(3.0)
    ('1.0e-05', '3.0')
    """
    text = repr(value)
    mantissa, exponent, power = text.partition("e")
    if exponent and "." not in mantissa:
        mantissa += ".0"
    return f"{mantissa}{exponent}{power}"


def _yaml_character(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if " " <= char <= "~":
        return char
    if unicodedata.category(char) == "Cs":
        char = "\ufffd"
    return "\\n" if char == "\n" else f"\\U{ord(char):08X}"


def _one_line(text: str) -> str:
    """White space is one space; what is invisible or reorders text shows as U+FFFD."""
    visible = (
        "\ufffd" if unicodedata.category(char) in _UNSEEN else char
        for char in " ".join(text.split())
    )
    return "".join(visible)
