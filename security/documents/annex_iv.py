"""Technical documentation after Annex IV of the EU AI Act, as far as evidence shows it.

Regulation (EU) 2024/1689, Article 11(1) and Annex IV, points 1 to 9, and Article 15
(accuracy, robustness, cybersecurity). A sentence is here because a report, the manifest
or the verdict of an admitted bundle says it, and names that file by digest. What they
do not say is a gap: a provider's to write, never ours to guess.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from security.documents.annex_iv_points import POINTS, SOURCE_FREE
from security.documents.markup import code, prose, table
from security.documents.sourced import Gap, Sentence, Sourced

__all__ = ["annex_iv", "annex_iv_json"]


@dataclass(frozen=True)
class _Point:
    """One point of the annex, filled in."""

    number: str
    title: str
    sentences: tuple[Sentence, ...]
    gaps: tuple[Gap, ...]


def annex_iv(bundle: Sourced, provider: str = "") -> bytes:
    """Write the documentation as Markdown.

    Args:
        bundle: admitted; texts in it are somebody else's, and are escaped.
        provider: the provider's name, which no evidence holds; "" if unknown.

    Returns:
        UTF-8, the same bytes for the same bundle, policy and provider.
    """
    points = _points(bundle, provider)
    manifest = bundle.facts.manifest
    blocks = [
        f"# Technical documentation: {prose(manifest.name)} {prose(manifest.version)}",
        "Annex IV of Regulation (EU) 2024/1689, as far as signed evidence shows it. "
        "Each sentence ends with the file that it rests on and the first digits of its "
        "SHA-256; the table of sources has them in full. This is a part of a "
        "provider's documentation, and no statement that the system conforms.",
    ]
    for point in points:
        blocks.append(f"## {point.number} {point.title}")
        blocks += [_cited(bundle, item) for item in point.sentences]
        if not point.sentences:
            blocks.append("Nothing in the bundle is about this.")
    blocks += ["## What is not shown", *_gap_blocks(points)]
    blocks += ["## Sources", _source_table(bundle)]
    return ("\n\n".join(blocks) + "\n").encode()


def annex_iv_json(bundle: Sourced, provider: str = "") -> bytes:
    """The same for programs: points, sentences with the digests, gaps, sources."""
    document: dict[str, Any] = {
        "schema": "https://sealgate.dev/annex-iv/v1",
        "regulation": "Regulation (EU) 2024/1689, Annex IV",
        "model": f"{bundle.facts.manifest.name}:{bundle.facts.manifest.version}",
        "points": [
            {
                "point": point.number,
                "title": point.title,
                "shown": [
                    {
                        "text": item.text,
                        "sha256": [bundle.sources[n].sha256 for n in item.sources],
                        **(
                            {"rows": [dict(zip(item.header, r)) for r in item.rows]}
                            if item.rows
                            else {}
                        ),
                    }
                    for item in point.sentences
                ],
                "not_shown": [item.text for item in point.gaps],
            }
            for point in _points(bundle, provider)
        ],
        "sources": [
            {
                "file": item.file,
                "sha256": item.sha256,
                "keys": list(item.keys),
                "created_at": item.created_at or None,
            }
            for item in bundle.sources.values()
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _points(bundle: Sourced, provider: str) -> list[_Point]:
    found = []
    for number, (title, write) in POINTS.items():
        said = [*write(bundle)]
        if number == SOURCE_FREE:
            said += _provider(provider)
        found.append(
            _Point(
                number,
                title,
                tuple(item for item in said if isinstance(item, Sentence)),
                tuple(item for item in said if isinstance(item, Gap)),
            )
        )
    return found


def _provider(name: str) -> Iterator[Gap]:
    """The name is the caller's word: it stands among what no evidence shows."""
    if name:
        yield Gap(f"The provider: {prose(name)}, as whoever wrote this page says.")
    else:
        yield Gap("The provider's name.")


def _cited(bundle: Sourced, item: Sentence) -> str:
    marks = " ".join(code(bundle.sources[name].short) for name in item.sources)
    if not item.rows:
        return f"- {item.text} [{marks}]"
    return f"- {item.text} [{marks}]\n\n{table(item.header, item.rows)}"


def _gap_blocks(points: Iterable[_Point]) -> Iterator[str]:
    yield "A provider has these to write; nothing in the bundle does."
    rows = [(point.number, item.text) for point in points for item in point.gaps]
    yield table(("Point", "Not shown"), rows)


def _source_table(bundle: Sourced) -> str:
    return table(
        ("Source", "File", "SHA-256", "Made", "Signed by"),
        (
            (
                code(item.name),
                code(item.file),
                code(item.sha256),
                item.created_at or "-",
                " ".join(code(key) for key in item.keys) or "-",
            )
            for item in bundle.sources.values()
        ),
    )
