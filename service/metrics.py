"""What a worker's Prometheus metrics say about its models.

BentoML serves them at /metrics, added up over its workers, to tokens with that scope.
"""

from __future__ import annotations

from collections.abc import Sequence

from security.admission.gate import Admission

__all__ = ["describe_models"]


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
