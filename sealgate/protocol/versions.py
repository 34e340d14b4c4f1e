"""What to say of a format's identifier that is not known here: docs/formats.md.

A format names its kind and version in its bytes. One of a later version is refused, and
the refusal says which version it is: whoever reads it needs a newer release, and no
other cure. What is of another kind altogether is only that.
"""

from __future__ import annotations

import re

__all__ = ["later", "unread"]

# What a schema, a media type or a predicate type ends in: v2, v0.3+json.
_VERSIONED = re.compile(
    r"(?P<kind>[!-~]{0,200}v)(?P<number>[0-9]{1,6}(?:\.[0-9]{1,6})?)(?P<rest>\D{0,20})"
)


def unread(found: object, *known: str, what: str = "") -> str:
    """Why an identifier is refused: what was expected, and what `later` says.

    Args:
        found: what a document says of itself; possibly hostile. Only the number of its
            version is repeated.
        known: identifiers that are read here, oldest first.
        what: to call them, with a blank behind it.

    Returns:
        The end of a message: without a full stop, to stand behind a colon.

    >>> unread("text/plain", "https://x.example/trust/v2")
    'expected https://x.example/trust/v2'
    """
    return f"expected {what}{' or '.join(known)}{later(found, *known)}"


def later(found: object, *known: str) -> str:
    """That an identifier is of a later version, behind a colon; else nothing.

    Both are as `unread`'s.

    >>> later("https://x.example/trust/v3", "https://x.example/trust/v2")
    ': version 3 is not known here, only 2: a newer release is needed'
    >>> later("https://x.example/trust/v1", "https://x.example/trust/v2")
    ''
    """
    split = _split(found)
    if split is None:
        return ""
    kind, number, rest = split
    read = [item for item in map(_split, known) if item is not None]
    same = [item[1] for item in read if (item[0], item[2]) == (kind, rest)]
    if not same or _number(number) <= max(map(_number, same)):
        return ""
    only = f"version {number} is not known here, only {' and '.join(same)}"
    return f": {only}: a newer release is needed"


def _split(text: object) -> tuple[str, str, str] | None:
    match = _VERSIONED.fullmatch(text) if isinstance(text, str) else None
    return None if match is None else (match["kind"], match["number"], match["rest"])


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
