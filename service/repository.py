"""What is told of all models at once: their list, Triton's index, their statistics.

Deny by default, as everywhere: a caller is told of the versions whose metadata it may
read. Statistics are the metrics in another form, of everybody's requests, so they take
the right to those.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.access.permissions import Permissions
from security.access.tokens import Principal
from security.admission.lifecycle import State
from service.descriptions import model_statistics, repository_entry, server_metadata
from service.inference.lineup import Lineup
from service.inference.served import Served
from service.problems import NO_MODEL, Problem
from service.telemetry.metrics import Metrics

__all__ = ["SERVER_PATHS", "Repository"]

_READ = (b"GET", b"HEAD")
# What is asked of the server as a whole: the action, and its methods.
SERVER_PATHS: Mapping[bytes, tuple[Any, ...]] = {
    b"/v2": ("metadata", *_READ),
    b"/v2/": ("metadata", *_READ),
    b"/v2/models": ("list", *_READ),
    b"/v2/models/stats": ("stats", *_READ),
    b"/v2/repository/index": ("index", b"POST"),
}
_MAX_INDEX_BYTES = 4 << 10


class Repository:
    """Tells of all models that a worker serves."""

    def __init__(
        self, lineup: Lineup, permissions: Permissions, metrics: Metrics
    ) -> None:
        self._lineup = lineup
        self._permissions = permissions
        self._metrics = metrics

    def versions(self, principal: Principal | None, name: str) -> list[str]:
        """The versions of a model that a caller may know of."""
        return [
            version
            for version in self._lineup.versions(name)
            if principal is not None
            and self._permissions.allows(principal, name, version, "metadata")
        ]

    async def answer(self, action: str, principal: Principal, body: bytes) -> Any:
        """Answer one of `SERVER_PATHS`.

        Raises:
            ScopeError: statistics, without the right to metrics.
            Problem: the content is not what Triton's clients send.
        """
        match action:
            case "list":
                names = self._lineup.table
                return {"models": [n for n in names if self.versions(principal, n)]}
            case "index":
                return self._index(principal, only_ready=_only_ready(body))
            case "stats":
                return await self.statistics(principal)
            case _:
                return server_metadata()

    async def statistics(
        self, principal: Principal, name: bytes = b"", version: bytes | None = None
    ) -> dict[str, Any]:
        """Of all models, of one, or of one version of it.

        Raises:
            ScopeError: without the right to metrics.
            Problem: there is no such model or version.
        """
        self._permissions.authorize_server(principal, "metrics")
        states = [
            state
            for model, entry in self._lineup.table.items()
            for number, state in entry.states.items()
            if name in (b"", model.encode()) and version in (None, number.encode())
        ]
        if name and not states:
            raise Problem("not-found", NO_MODEL)
        totals = await asyncio.to_thread(self._metrics.totals)
        return {"model_stats": [model_statistics(s.content, totals) for s in states]}

    def _index(self, principal: Principal, *, only_ready: bool) -> list[dict[str, Any]]:
        entries = map(repository_entry, self._known(principal))
        return [item for item in entries if not only_ready or item["state"] == "READY"]

    def _known(self, principal: Principal) -> Iterable[State[Served]]:
        for name, entry in self._lineup.table.items():
            for version in self.versions(principal, name):
                yield entry.states[version]


def _only_ready(body: bytes) -> bool:
    """Triton's one option of the index; its clients may send nothing at all.

    Raises:
        Problem: something else was sent.
    """
    if not body:
        return False
    try:
        value = strict_json.loads_object(body, max_bytes=_MAX_INDEX_BYTES)
    except JsonError as error:
        raise Problem("malformed-json", str(error)) from None
    ready = value.get("ready", False)
    if not isinstance(ready, bool):
        raise Problem("invalid-request", "ready: expected true or false")
    return ready
