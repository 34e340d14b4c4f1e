"""CloudEvents by a webhook: what a command has to tell, sent by the command itself.

An event is JSON in structured mode (CloudEvents 1.0.2, HTTP binding section 3.2; JSON
format section 3). It goes to one address by one POST: https, plain http only to this
machine, no redirect, no proxy, within ten seconds; of the answer nothing but its status
is looked at. An event that is sent again has the same id, by which its receiver may
drop it (section 3.1.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.report import format_time
from sealgate.protocol import strict_json
from security.bounded_fetch import fetch, trusting
from security.errors import KeyFileError, MonitoringError, SettingsError
from security.key_files import read_secret
from security.settings.issuers import https_url

__all__ = ["EVENT_TYPE", "Webhook", "event"]

EVENT_TYPE = "dev.sealgate.monitoring"
_MEDIA_TYPE = b"application/cloudevents+json; charset=utf-8"
_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 64 << 10
_MAX_EVENT_BYTES = 256 << 10
_TAKEN = (200, 201, 202, 204)


@dataclass(frozen=True)
class Webhook:
    """Where events go.

    Attributes:
        url: https, or http on this machine.
        token: file with the bearer token to show, if it takes one.
        authorities: who may certify the URL's host; the system's without it.
    """

    url: str
    token: Path | None = None
    authorities: Path | None = None

    def __post_init__(self) -> None:
        """Refuse an address before anything is measured.

        Raises:
            SettingsError: not such a URL.
        """
        https_url(self.url, "--webhook", or_here=True)

    def send(self, document: Mapping[str, Any]) -> None:
        """Deliver one event.

        Raises:
            MonitoringError: it was not taken; nothing of what was sent or answered is
                told.
        """
        content = strict_json.dumps(document)
        if len(content) > _MAX_EVENT_BYTES:
            raise MonitoringError("webhook: an event is too long to be sent")
        try:
            fetch(
                self.url,
                context=trusting(self.authorities),
                max_bytes=_MAX_ANSWER_BYTES,
                timeout_s=_TIMEOUT_S,
                form=content,
                content_type=_MEDIA_TYPE,
                statuses=_TAKEN,
                authorization=self._authorization(),
            )
        except KeyFileError as error:
            # Not the address: of many webhooks it is the secret.
            reason = str(error).removeprefix(f"{self.url}: ")
            raise MonitoringError(f"webhook: {reason}") from None

    def _authorization(self) -> bytes | None:
        if self.token is None:
            return None
        token = read_secret(self.token).strip()
        if not token.isascii() or len(token.split()) != 1:
            raise SettingsError(f"{self.token}: holds no token")
        return b"Bearer " + token


def event(
    kind: str,
    subject: str,
    data: Mapping[str, Any],
    *,
    source: str,
    same: str,
    now: datetime,
) -> dict[str, Any]:
    """An event in structured mode.

    >>> at = datetime(2026, 12, 1, tzinfo=UTC)
    >>> made = event("quiet", "toy:1", {}, source="urn:x", same="w", now=at)
    >>> made["type"], made["time"]
    ('dev.sealgate.monitoring.quiet.v1', '2026-12-01T00:00:00Z')

    Args:
        kind: what happened; the end of its type.
        subject: what it is about.
        data: of the event.
        source: URI of who tells it.
        same: what the event is told apart by: for the same, its id is the same.
        now: the time.
    """
    name = f"{EVENT_TYPE}.{kind}.v1"
    told = strict_json.dumps([name, source, subject, same])
    return {
        "specversion": "1.0",
        "id": hashlib.sha256(told).hexdigest()[:32],
        "source": source,
        "type": name,
        "subject": subject,
        "time": format_time(now.astimezone(UTC)),
        "datacontenttype": "application/json",
        "data": dict(data),
    }
