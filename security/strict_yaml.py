"""YAML of one meaning, as `sealgate.protocol.strict_json` is for JSON.

YAML lets one text mean several things: documents after one another, keys twice,
aliases, tags. One reader takes the last key, another the first. So each of these is
refused: what is left is one mapping with texts for keys.
"""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]  # it comes with BentoML, untyped

from security.errors import YamlError

__all__ = ["load_mapping"]

# Of a whole number, which may have a base of 60: time grows with their square.
_MAX_DIGITS = 100


class _StrictLoader(yaml.SafeLoader):  # type: ignore[misc]  # as above
    """Plain YAML, each key once."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise YamlError("aliases are not read")
        if getattr(event, "tag", None) is not None:
            raise YamlError("tags are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        names = [key for key in keys if isinstance(key, str)]
        if len(names) != len(keys) or len(set(names)) != len(names):
            raise YamlError("a key is repeated, or is no text")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > _MAX_DIGITS:
            raise YamlError("a number is too long")
        return int(super().construct_yaml_int(node))


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)


def load_mapping(data: bytes, *, max_bytes: int) -> dict[str, Any]:
    """Parse one document, a mapping.

    Args:
        data: in UTF-8; whoever wrote it may be hostile.
        max_bytes: refuse more before parsing, which takes about 20 s for a megabyte.

    Raises:
        YamlError: too large, not plain YAML, or another number of documents.

    >>> load_mapping(b"a: [1, x]", max_bytes=100)
    {'a': [1, 'x']}
    """
    if len(data) > max_bytes:
        raise YamlError(f"{len(data)} bytes, at most {max_bytes} allowed")
    try:
        documents = list(yaml.load_all(data.decode(), _StrictLoader))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        raise YamlError("not plain YAML") from None
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise YamlError("expected one document, a mapping")
    found: dict[str, Any] = documents[0]
    return found
