"""What names, versions and tags of models look like.

>>> is_tag("densenet_onnx:1.0.0")
True
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["NAME", "VERSION", "is_tag", "names_that_clash", "store_tag"]

# Both are also path segments, scope suffixes and labels: no separator, no blank, and a
# dot only between other characters.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
VERSION = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}")


def is_tag(text: str) -> bool:
    """Whether a text is a full tag, of a name and a version as manifests have them.

    >>> is_tag("densenet_onnx:1.0.0"), is_tag("densenet_onnx:latest")
    (True, False)
    """
    name, _, version = text.partition(":")
    return bool(NAME.fullmatch(name) and VERSION.fullmatch(version))


def store_tag(tag: str) -> str:
    """What BentoML's store calls a tag: it knows no capitals.

    >>> store_tag("DenseNet.v2:1.0.0")
    'densenet.v2:1.0.0'
    """
    return tag.lower()


def names_that_clash(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that are equal but for case, if there are any."""
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(store_tag(name), name)
        if other != name:
            return other, name
    return None
