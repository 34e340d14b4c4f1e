"""Whether this worker should be sent requests: what /readyz and /v2/health/ready say.

A worker is ready if it can answer for the default version of one model at least: that
one is admitted now, the keys of one issuer are there, and what the worker keeps on its
own disk can be written. One bad model or issuer does not count, and neither does a
store that all replicas share, since all of them would be taken away at once; metrics
and alerts tell of those. A thread looks; a request for it only reads the result.

A single look decides nothing: it takes `BAD_LOOKS` in a row to be not ready, and
`GOOD_LOOKS` to be ready again, so that a worker at a limit does not come and go.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from security.settings.loading import Settings
from service.inference.lineup import Lineup
from service.inference.served import answers_now
from service.telemetry.metrics import Metrics

__all__ = ["Readiness", "answers", "own_folders", "usable"]

LOOK_S = 1.0
BAD_LOOKS, GOOD_LOOKS = 3, 2
# As much as a record or a page of a database takes.
_PROBE_BYTES = 4096

_log = logging.getLogger(__name__)


class Readiness:
    """What the last looks found.

    Attributes:
        ready: send requests.
    """

    def __init__(
        self, checks: Mapping[str, Callable[[], bool]], metrics: Metrics
    ) -> None:
        """Look for the first time; that look decides.

        Args:
            checks: what must hold, by the name that metrics say it with.
            metrics: told of each look.
        """
        self._checks = checks
        self._metrics = metrics
        self._in_row = 0
        self.ready = self._holds()
        self._tell()

    def start(self) -> None:
        """Look again and again, in a thread that ends with the process."""
        threading.Thread(target=self._watch, name="readiness", daemon=True).start()

    def look(self) -> None:
        """Look once."""
        if self._holds() is self.ready:
            self._in_row = 0
            return
        self._in_row += 1
        if self._in_row >= (BAD_LOOKS if self.ready else GOOD_LOOKS):
            self.ready, self._in_row = not self.ready, 0
            self._tell()

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            self.look()

    def _holds(self) -> bool:
        found = {name: check() for name, check in self._checks.items()}
        for name, holds in found.items():
            self._metrics.set("sealgate_unready", name, value=float(not holds))
        return all(found.values())

    def _tell(self) -> None:
        self._metrics.set("sealgate_ready", value=float(self.ready))
        _log.log(
            logging.INFO if self.ready else logging.WARNING,
            "this worker is %sready", "" if self.ready else "not ",
        )  # fmt: skip


def answers(lineup: Lineup) -> bool:
    """Whether the default version of one model at least may answer now."""
    return any(answers_now(entry.default) for entry in lineup.table.values())


def own_folders(settings: Settings) -> list[Path]:
    """Where this machine keeps what no request may be answered without."""
    audit, quotas = settings.audit, settings.quotas
    kept = [
        (audit.on_failure == "refuse", audit.directory),
        (quotas.store == "local" and quotas.on_failure == "refuse", quotas.directory),
        (settings.sealing.replay_store == "local", settings.sealing.replay_directory),
    ]
    return [folder for counts, folder in kept if counts]


def usable(folder: Path) -> bool:
    """Whether a folder takes data: it is there, and neither read-only nor full."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError:
        return False
    return True
