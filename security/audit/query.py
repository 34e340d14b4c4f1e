"""Which records, for whom, as what: what is read out of a log that verifies."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from security.audit.records import FIELDS, Record
from security.errors import AuditError

__all__ = ["FORMATS", "Query", "made_us", "parse_time", "shown_time"]

# What a spreadsheet would run if a cell began with it.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_AGO = re.compile(r"(?P<count>[0-9]{1,6})(?P<unit>[smhd])")
_UNITS: Mapping[str, int] = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Query:
    """What a record must be like.

    Attributes:
        since_us, until_us: microseconds since 1970, the second one exclusive.
        equal: fields that must have one of these values.
        versions: the root digests that versions of models had, by ``name:version``. As
            a value of ``model``, such a tag also stands for answers by those bytes.
    """

    since_us: int | None = None
    until_us: int | None = None
    equal: Mapping[str, Sequence[str]] = field(default_factory=dict)
    versions: Mapping[str, Collection[str]] = field(default_factory=dict)

    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Whether a record is asked for."""
        time_us = made_us(fields)
        if self.since_us is not None and time_us < self.since_us:
            return False
        if self.until_us is not None and time_us >= self.until_us:
            return False
        return all(
            fields.get(name) in values or (name == "model" and self._version(fields))
            for name, values in self.equal.items()
        )

    def _version(self, fields: Mapping[str, Any]) -> bool:
        """Whether a record is about a version that is asked for, or a name about it."""
        name, digest = str(fields.get("model") or ""), fields.get("model_sha256")
        if name.partition(":")[0] in self.equal["model"]:
            return True
        return any(
            name == tag.partition(":")[0] and digest in digests
            for tag, digests in self.versions.items()
        )


def parse_time(text: str, *, now: float) -> int:
    """A time as an operator gives it, in microseconds since 1970.

    Args:
        text: a date, a date and time (UTC unless it says otherwise), or how long ago:
            a number with s, m, h or d.
        now: Unix seconds.

    Raises:
        AuditError: none of these.

    >>> parse_time("1970-01-01T00:00:01", now=0), parse_time("2m", now=180)
    (1000000, 60000000)
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return int((now - int(ago["count"]) * _UNITS[ago["unit"]]) * 1e6)
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return int(moment.timestamp() * 1e6)
    except (ValueError, OverflowError):
        raise AuditError(
            f"{text!r}: not a time; like 2026-11-21, 2026-11-21T10:00, or 90m ago"
        ) from None


def _json_lines(records: Iterator[tuple[str, Record]]) -> Iterator[str]:
    import orjson  # noqa: PLC0415  (not for --help)

    for writer, record in records:
        document = {
            "writer": writer,
            "seq": record.sequence,
            "time": shown_time(record.fields),
            **record.fields,
            "hash": record.digest.hex(),
            "signed": record.signed,
        }
        yield orjson.dumps(document).decode() + "\n"


def _csv_lines(records: Iterator[tuple[str, Record]]) -> Iterator[str]:
    columns = ["writer", "seq", "time", *FIELDS, "hash", "signed"]
    yield _csv_row(columns)
    for writer, record in records:
        values = [record.fields.get(name) for name in FIELDS]
        head = (writer, record.sequence, shown_time(record.fields))
        yield _csv_row([*head, *values, record.digest.hex(), record.signed])


def _csv_row(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in values])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A client's name is the issuer's to choose: no spreadsheet shall run it."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value


def made_us(fields: Mapping[str, Any]) -> int:
    """When a record was made, in microseconds since 1970; 0 if it does not say."""
    time_us = fields.get("time_us")
    return time_us if type(time_us) is int else 0


def shown_time(fields: Mapping[str, Any]) -> str | None:
    """When a record was made, in UTC (RFC 3339); None if it does not say."""
    time_us = fields.get("time_us")
    if type(time_us) is not int:
        return None
    moment = datetime.fromtimestamp(time_us / 1e6, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


FORMATS: Mapping[str, Callable[[Iterator[tuple[str, Record]]], Iterator[str]]] = {
    "csv": _csv_lines,
    "jsonl": _json_lines,
}
