"""What a worker's Prometheus metrics say about its models.

BentoML serves them at /metrics, added up over its workers, to tokens with that scope.
The workers of one server add up files in a folder that BentoML names after its home,
and empties at every start: a second server would wipe the first one's numbers. Here
each server has a folder of its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Sequence

from security.admission.gate import Admission

__all__ = ["describe_models", "make_folder", "use_folder"]

_FOLDER = "_SEALGATE_METRICS_FOLDER"


def make_folder() -> None:
    """Make this server's folder, in the parent process; it goes when that ends."""
    folder = tempfile.mkdtemp(prefix="sealgate-metrics-")
    os.environ[_FOLDER] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def use_folder() -> None:
    """Use the parent's folder in a worker, before anything is counted."""
    folder = os.environ.get(_FOLDER)
    if folder is not None:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder


def describe_models(admissions: Sequence[Admission]) -> None:
    """Set ``sealgate_model_info`` to 1 for each model, with what admitted it.

    The labels come from the signed manifest and verdict: there are as many series as
    models. ``waived`` names the kinds of evidence that a waiver let pass.
    """
    # At its first import the library decides how it keeps its numbers, by a variable
    # that a worker has and the parent process has not.
    from prometheus_client import Gauge  # noqa: PLC0415

    gauge = Gauge(
        "sealgate_model_info",
        "A model that this server runs, and the verdict that admitted it.",
        ("model", "version", "root_sha256", "verdict_sha256", "waived"),
        multiprocess_mode="max",
    )
    for admission in admissions:
        subject = admission.bundle.subject
        gauge.labels(
            model=subject.name,
            version=subject.version,
            root_sha256=subject.root_sha256,
            verdict_sha256=admission.verdict_sha256,
            waived=",".join(sorted(admission.waivers)),
        ).set(1)
