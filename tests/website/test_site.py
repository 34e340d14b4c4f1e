"""The site: whole, reachable, self-contained, and as the code is."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest

from security.commands import COMMANDS
from security.settings.loading import _SECTIONS
from tests.support.browser import CHROMIUM
from tests.support.servers import ROOT
from website.fences import fenced

CONFIG = ROOT / "website/mkdocs.yml"

needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs: run make docs"
)


@dataclass
class Read(HTMLParser):
    """What a page links to, loads, and can be linked to at.

    Attributes:
        links: targets of anchors.
        loads: what is fetched to show the page.
        anchors: its identifiers.
    """

    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.anchors |= {named[name] for name in ("id", "name") if name in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        if tag == "link" and named.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(named["href"])
        if "src" in named:
            self.loads.append(named["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` builds."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet"]
    done = subprocess.run(
        [*command, "-f", str(CONFIG), "--site-dir", str(out)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    # Strict: a dead link or a page without a place is a warning, and that an error.
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Read]:
    found = {}
    for path in sorted(site.rglob("*.html")):
        found[path.relative_to(site).as_posix()] = page = Read()
        page.feed(path.read_text())
    return found


def targets(name: str, links: list[str]) -> Iterator[tuple[str, str]]:
    """Page and anchor of each link that stays on the site."""
    for link in links:
        if not urlsplit(link).scheme:
            path, anchor = urldefrag(urljoin(name, link))
            yield unquote(path) or name, unquote(anchor)


@needs_mkdocs
def test_each_page_can_be_reached(pages: dict[str, Read]) -> None:
    seen, waiting = set(), ["index.html"]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in pages:
            continue
        seen.add(name)
        waiting += [path for path, _ in targets(name, pages[name].links)]
    assert seen == pages.keys() - {"404.html"}
    assert len(seen) > 150


@needs_mkdocs
def test_no_link_is_dead(site: Path, pages: dict[str, Read]) -> None:
    dead = [
        (name, path, anchor)
        for name, page in pages.items()
        if name != "404.html"  # its links start from the root
        for path, anchor in targets(name, page.links)
        if not (site / path).exists()
        or (anchor and path in pages and anchor not in pages[path].anchors)
    ]
    assert dead == []


@needs_mkdocs
def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[str, Read]) -> None:
    loads = {load for page in pages.values() for load in page.loads}
    assert loads
    assert [one for one in loads if urlsplit(one).scheme or one.startswith("//")] == []
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:|//)", sheet.read_text()), sheet


@needs_mkdocs
def test_references_are_those_of_the_code(site: Path, pages: dict[str, Read]) -> None:
    for name in COMMANDS:
        assert f"reference/commands/{name}.html" in pages
    admit = (site / "reference/commands/admit.html").read_text()
    assert "--timestamp-url" in admit
    assert "sign the verdict" in admit
    settings = (site / "reference/settings.html").read_text()
    for kind in _SECTIONS.values():
        for item in fields(kind):
            assert f"<code>{item.name}</code>" in settings
    assert (
        "sealgate.client.Client.infer"
        in pages["reference/python/sealgate.html"].anchors
    )


@needs_mkdocs
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is missing")
@pytest.mark.parametrize("width", [1280, 390], ids=["wide", "phone"])
@pytest.mark.parametrize("page", ["index.html", "reference/commands/admit.html"])
def test_a_browser_shows_it(site: Path, tmp_path: Path, page: str, width: int) -> None:
    """Words on a background, at either width; `--basetemp` keeps the pictures."""
    from PIL import Image

    shot = tmp_path / "page.png"
    subprocess.run(
        [
            str(CHROMIUM),
            *("--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"),
            f"--window-size={width},1000",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={shot}",
            (site / page).as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    picture = Image.open(shot).convert("L")
    shades = picture.histogram()
    assert picture.size == (width, 1000)
    # The head is dark, the page light, and there are letters on it.
    assert sum(shades[230:]) > 0.3 * width * 1000
    assert sum(shades[:140]) > 0.02 * width * 1000


HOSTILE = """\
```js
```
````
<script src="evil.js"></script> [a link](../../docs/client.md)
`````text
<img src="x" onerror="1">
"""


@needs_mkdocs
def test_a_file_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fences and links stand in it."""
    import markdown

    from website import hooks

    (tmp_path / "notes.md").write_text(HOSTILE)
    monkeypatch.setattr(hooks, "_ROOT", tmp_path)
    listing = hooks._listing("notes.md")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="source/notes.md.md"))
    config: Any = None
    shown = hooks.on_page_markdown(listing, page, config, config)  # type: ignore[arg-type]
    assert shown == listing
    extensions = ["pymdownx.highlight", "pymdownx.superfences"]
    read = Read()
    read.feed(markdown.markdown(shown, extensions=extensions))
    assert (read.loads, read.links) == ([], [])


def test_a_fence_is_longer_than_those_within() -> None:
    assert fenced("a", "text") == "```text\na\n```"
    assert fenced("a ````\n```", "md") == "`````md\na ````\n```\n`````"


def test_each_page_stands_in_the_navigation() -> None:
    """Also where MkDocs is not installed."""
    listed = set(re.findall(r"^ +- ([\w/-]+\.md)$", CONFIG.read_text(), re.MULTILINE))
    missing = {path.name for path in (ROOT / "docs").glob("*.md")} - listed
    assert missing == set()
