"""Sentences that name what they rest on, for documents that others must rely on.

A sentence without a source cannot be made: what no signed evidence shows is a gap, and
says whose it is to fill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from models.bundle import (
    BOM_FILE,
    MANIFEST_FILE,
    MODEL_CARD_FILE,
    MODEL_FILE,
    VERDICT_FILE,
    mldsa_file,
    report_file,
)
from models.report import format_time
from security.admission.attest import signed_digest
from security.admission.gate import Admission
from security.documents.facts import Facts, Use, read_facts

__all__ = ["Gap", "Sentence", "Source", "Sourced", "sourced"]

SHORT_DIGITS = 12


@dataclass(frozen=True)
class Source:
    """A file that a sentence rests on, and who vouches for it.

    Attributes:
        name: what sentences call it.
        file: in the bundle.
        sha256: of the file.
        keys: that signed for it, by the SHA-256 of the public key in PEM; each was
            verified. What the verdict binds has none of its own.
        created_at: when a report was made, in RFC 3339; "" for other files.
    """

    name: str
    file: str
    sha256: str
    keys: tuple[str, ...] = ()
    created_at: str = ""

    @property
    def short(self) -> str:
        """The reference behind a sentence.

        >>> Source("quality", "evidence/quality.json", "ab" * 32).short
        'quality:abababababab'
        """
        return f"{self.name}:{self.sha256[:SHORT_DIGITS]}"


@dataclass(frozen=True)
class Sentence:
    """A sentence, the names of its sources, and what it introduces.

    Attributes:
        text: Markdown.
        sources: names of sources, never empty.
        header, rows: of a table after it, in Markdown; empty without one.
    """

    text: str
    sources: tuple[str, ...]
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Gap:
    """What no evidence in the bundle shows, in Markdown."""

    text: str


@dataclass(frozen=True)
class Sourced:
    """An admitted bundle, as far as keys that were trusted vouch for it.

    Attributes:
        facts: its statements; reports, and the use that one of them states, are those
            that the gate verified.
        sources: by name.
        unverified: kinds of reports in the bundle that the policy asks nothing of, so
            that no signature of theirs was checked.
        admission: what the gate said.
    """

    facts: Facts
    sources: Mapping[str, Source]
    unverified: tuple[str, ...]
    admission: Admission


def sourced(admission: Admission) -> Sourced:
    """What may be said of a bundle that was admitted.

    Raises:
        BundleError: as `read_facts`.
    """
    facts = read_facts(admission.bundle)
    verified = {k: v for k, v in facts.reports.items() if k in admission.reports}
    use = facts.use if "provenance" in verified else Use()
    return Sourced(
        facts=replace(facts, reports=verified, use=use),
        sources={
            item.name: item for item in _sources(facts, admission, list(verified))
        },
        unverified=tuple(kind for kind in facts.reports if kind not in verified),
        admission=admission,
    )


def _sources(facts: Facts, admission: Admission, kinds: list[str]) -> Iterator[Source]:
    files = facts.bundle.files
    subject = facts.bundle.subject
    yield Source("model", MODEL_FILE, subject.onnx_sha256)
    for name, file in (
        ("manifest", MANIFEST_FILE),
        ("card", MODEL_CARD_FILE),
        ("bom", BOM_FILE),
        ("verdict", VERDICT_FILE),
    ):
        if file in files:
            yield Source(name, file, signed_digest(files[file]))
    # Under a policy that asks for P-256 alone, nobody looked at ML-DSA-65 signatures.
    checked = {
        file
        for name, algorithms in admission.signatures.items()
        for file in (name, mldsa_file(name))[: len(algorithms)]
    }
    for kind in kinds:
        signed = facts.signatures.get(kind, ())
        yield Source(
            kind,
            report_file(kind),
            hashlib.sha256(files[report_file(kind)]).hexdigest(),
            tuple(it.hint for it in signed if it.binds and it.file in checked),
            format_time(facts.reports[kind].created_at),
        )
