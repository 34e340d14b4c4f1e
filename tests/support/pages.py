"""What every HTML page of Sealgate must be: whole, and sufficient to itself."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "line", "rect", "circle", "path", "polyline", "polygon"}


class Structure(HTMLParser):
    """Elements, attributes, and the texts of what may run or style."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(data.decode())
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in self.texts:
            self.texts[self.open[-1]].append(data)

    def values(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def check_structure(data: bytes) -> Structure:
    """A page that loads nothing, runs one script, and whose links lead somewhere."""
    found = Structure(data)
    ids = found.values("id")
    assert len(ids) == len({*ids})
    for link in found.values("href"):
        assert link[0] == "#"
        assert link[1:] in ids
    for source in found.values("src"):
        assert re.fullmatch("data:image/png;base64,[A-Za-z0-9+/]+=*", source)
    names = {name for _, attrs in found.tags for name in attrs}
    assert not {name for name in names if name.startswith("on")}
    # `style` would need a policy that allows any.
    assert not names & {"style", "srcset", "action", "background", "data", "poster"}
    kinds = {tag for tag, _ in found.tags}
    assert not kinds & {"iframe", "object", "embed", "link", "base", "form"}
    (policy,) = (
        attrs["content"]
        for _, attrs in found.tags
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed["default-src"] == "'none'"
    assert "unsafe" not in policy
    for kind, texts in found.texts.items():
        (text,) = texts
        digest = hashlib.sha256(text.encode()).digest()
        assert allowed[f"{kind}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    return found
