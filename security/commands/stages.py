"""Progress of long commands: a bar on a terminal, one line per result anywhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Stages"]


class Stages:
    """Shows stages as they are reported: ``stages(name, share, result)``.

    A bar runs while a stage has no result; then one plain line stays, the same on a
    terminal and in a log file.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not sys.stdout.isatty(),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, stage: str, share: float, result: str, note: str = "") -> None:
        """Report that a share of a stage, from 0 to 1, is done, or what it gave.

        Args:
            stage: its name.
            share: how much of it is done.
            result: what stays when it is done; empty before.
            note: shown beside the bar.
        """
        if result:
            self._finish()
            self._console.print(f"{stage:<12}{result}")
            return
        if self._task is None:
            self._task = self._progress.add_task(stage, total=1.0, note=note)
        self._progress.update(self._task, description=stage, completed=share, note=note)

    def _finish(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
