"""What MkDocs calls while it builds the site (https://www.mkdocs.org/user-guide/configuration/#hooks).

Pages are written so that they read well where the repository is looked at. Here they
become a site: README.md its first page, links to files outside docs pages of those
files, and pages from the code (`references`) and of notebooks beside them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from website import notebooks, references
from website.fences import fenced

_ROOT = Path(__file__).resolve().parents[1]
# Pages of the repository's root, and where they stand on the site.
_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
# Up to the first fence that is as long: shorter ones stand in what is shown.
_FENCES = re.compile(r"(^ *(`{3,}).*?^ *\2)", re.DOTALL | re.MULTILINE)
_MOST_BYTES = 1 << 18


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill what in the navigation follows from folders and code."""
    decisions = sorted(path.name for path in (_ROOT / "docs/decisions").glob("0*.md"))
    _put(
        config.nav,
        {
            "Decisions": [f"decisions/{name}" for name in ("README.md", *decisions)],
            "Commands": [path for path, _ in references.commands()],
            "Python modules": [path for path, _ in references.modules()],
        },
    )
    return config


def _put(nav: Any, parts: dict[str, list[str]]) -> None:
    """Replace the empty sections of the navigation that have these names."""
    for entry in nav:
        for name, below in entry.items() if isinstance(entry, dict) else ():
            if name in parts and below == []:
                entry[name] = parts[name]
            elif isinstance(below, list):
                _put(below, parts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, those that are generated, and what they link to."""
    for source, path in _PAGES.items():
        files.append(_file(config, path, (_ROOT / source).read_text()))
    for path, text in _generated():
        files.append(_file(config, path, text))
    style = (_ROOT / "website/site.css").read_text()
    files.append(_file(config, "site.css", style))
    linked = {
        target
        for file in list(files.documentation_pages())
        for target in _outside(file.content_string, _home(file.src_uri))
    }
    for target in sorted(linked):
        files.append(_file(config, _shown_at(target), _listing(target)))
    return files


def _generated() -> Iterator[tuple[str, str]]:
    yield references.settings()
    yield references.policy()
    yield from references.commands()
    yield from references.modules()
    yield from notebooks.pages()


def _file(config: MkDocsConfig, path: str, text: str) -> File:
    return File.generated(config, path, content=text)


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Lead each link to where its target stands on the site."""
    del config, files
    here = page.file.src_uri
    home = _home(here)

    def link(found: re.Match[str]) -> str:
        target = _place(posixpath.normpath(posixpath.join(home, found[1])))
        if target is None:
            return found[0]
        start = posixpath.dirname(here) or "."
        return posixpath.relpath(target, start) + (found[2] or "")

    parts = _parts(markdown)
    parts[::2] = (_LINK.sub(link, part) for part in parts[::2])
    return "".join(parts)


def _parts(markdown: str) -> list[str]:
    """Text and code blocks in turn, text first and last."""
    parts = _FENCES.split(markdown)
    del parts[2::3]  # the fences alone
    return parts


def _home(src_uri: str) -> str:
    """The folder of the repository that a page's links start from."""
    if src_uri in _PAGES.values():
        return "."
    return posixpath.dirname(posixpath.join("docs", src_uri))


def _place(target: str) -> str | None:
    """Where a file of the repository stands on the site; None: where it stood."""
    if target in _PAGES:
        return _PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if (_ROOT / target).exists():
        return _shown_at(target)
    return None


def _outside(markdown: str, home: str) -> Iterator[str]:
    """The files outside docs that a page links to."""
    for part in _parts(markdown)[::2]:
        for found in _LINK.finditer(part):
            target = posixpath.normpath(posixpath.join(home, found[1]))
            ours = target.startswith(("docs/", "..")) or target in _PAGES
            if not ours and (_ROOT / target).exists():
                yield target


def _shown_at(target: str) -> str:
    return f"source/{target}.md"


def _listing(target: str) -> str:
    """A page of a file, or of what a folder holds."""
    path = _ROOT / target
    if path.is_dir():
        names = sorted(item.name for item in path.iterdir() if item.name[0] not in "._")
        return "\n".join([f"# {target}", "", *(f"- `{name}`" for name in names)])
    kind = path.suffix.removeprefix(".") or "text"
    text = path.read_bytes()[:_MOST_BYTES].decode(errors="replace")
    return f"# {target}\n\n{fenced(text, kind)}\n"
