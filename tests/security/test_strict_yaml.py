"""YAML of one meaning: everything that could be read in two ways is refused."""

from __future__ import annotations

import pytest

from security.errors import YamlError
from security.strict_yaml import load_mapping


def test_plain_yaml() -> None:
    text = b"a: {b: [1, 2.5, null, true]}\nc: 'x'\n"
    assert load_mapping(text, max_bytes=100) == {
        "a": {"b": [1, 2.5, None, True]},
        "c": "x",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"a: 1\na: 2\n", "a key is repeated"),
        (b"a: {b: 1, b: 2}\n", "a key is repeated"),
        (b"1: a\n", "or is no text"),
        (b"a: &x [1]\nb: *x\n", "aliases are not read"),
        (b"a: !!python/object/apply:os.system [id]\n", "tags are not read"),
        (b"a: !ours 1\n", "tags are not read"),
        # What PyYAML fails at with other errors than its own.
        (b'a: !!int ""\n', "tags are not read"),
        (b"a: !!bool x\n", "tags are not read"),
        (b"a: !!timestamp x\n", "tags are not read"),
        (b"a: !<tag:yaml.org,2002:float> ''\n", "tags are not read"),
        (b'a: "\\UFFFFFFFF"\n', "not plain YAML"),
        # And what it gives that is no plain value.
        (b"a: !!set {b}\n", "tags are not read"),
        (b"a: 1\n---\nb: 2\n", "expected one document"),
        (b"[1, 2]\n", "expected one document, a mapping"),
        (b"", "expected one document"),
        (b"a: [\n", "not plain YAML"),
        (b"\xff\xfe", "not plain YAML"),
        (b"a: " + b"[" * 600, "not plain YAML"),
        (b"a: 1" + b":1" * 4000, "a number is too long"),
        (b"a: " + b"x" * 10_000, "10003 bytes, at most 10000 allowed"),
    ],
)
def test_what_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(YamlError, match=reason):
        load_mapping(text, max_bytes=10_000)
