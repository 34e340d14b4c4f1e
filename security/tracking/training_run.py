"""A training as a run of MLflow: settings, what each round showed, evidence, model.

The run is written when the training is done: what MLflow does, or fails to do, never
costs a training that has spent its budget. A search for settings has no duration in it,
since that would tell how many were tried.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.bundle import read_bundle
from security.tracking.client import Client
from security.tracking.logged import (
    metrics_of,
    params_of,
    tags_of,
    write_evidence,
    write_model,
)

__all__ = ["TrainingRun"]

MAX_POINTS = 200


class TrainingRun:
    """Gathers what is to be logged while a model is trained.

    Making one asks the server for its experiment, so that a server that is not there
    is found out before the training begins.
    """

    def __init__(self, client: Client, *, steps: int, sampling_rate: float) -> None:
        """Of so many steps, each of which takes this share of the rows."""
        client.experiment()
        self._client, self._steps = client, steps
        # A round is as many steps as take each row once, on average.
        self._every = max(1, round(1 / sampling_rate), -(-steps // MAX_POINTS))
        self._points: list[tuple[str, float, int]] = []
        self._began_ms = int(time.time() * 1000)

    def seen(self, step: int, values: Mapping[str, float]) -> None:
        """Keep what a step showed, at the end of a round."""
        if step % self._every == 0 or step == self._steps:
            self._points += [(name, value, step) for name, value in values.items()]

    def finish(self, folder: Path) -> str:
        """Write the run.

        Args:
            folder: of the bundle that the training gave.

        Returns:
            The run's id.

        Raises:
            TrackingError: MLflow refuses, or cannot be reached.
            BundleError: not a bundle.
        """
        bundle = read_bundle(folder)
        config: Any = bundle.report("provenance").details["config"]
        began = None if "search" in config else self._began_ms
        run_id = self._client.create_run(bundle.manifest.tag, began_ms=began)
        self._client.log(
            run_id,
            params=params_of(config),
            metrics=metrics_of(bundle),
            tags=tags_of(bundle, None),
        )
        self._client.log_points(run_id, self._points)
        with tempfile.TemporaryDirectory() as name:
            write_evidence(bundle, Path(name, "evidence"))
            self._client.log_files(run_id, Path(name, "evidence"), "sealgate")
            version = importlib.metadata.version("onnx")
            write_model(bundle, Path(name, "model"), run_id=run_id, onnx=version)
            self._client.log_files(run_id, Path(name, "model"), "model")
        self._client.end_run(run_id)
        return run_id
