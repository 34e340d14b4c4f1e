"""Reports about what is served, and a policy that asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from models.report import Metric, Report, Subject, format_time
from tests.support.bundles import POLICY

PROMOTION = b"""
[waivers]
signers = ["privacy-officer"]
max_days = 7
kinds = ["agreement", "comparison"]
[promotion]
[promotion.comparison]
min_n = 100
[promotion.comparison.metrics]
worse = { max = 0 }
accuracy_loss = { max = 0.05, bound = "interval" }
[promotion.agreement]
signers = ["monitor"]
max_age_days = 7
min_n = 50
[promotion.agreement.conditions]
trial = "shadow"
[promotion.agreement.metrics]
disagreement = { max = 0.1, bound = "interval" }
[promotion.monitoring]
signers = ["monitor"]
max_age_days = 14
[promotion.monitoring.metrics]
drift_alarms = { max = 0 }
"""
ASKING = POLICY + PROMOTION


def window(*, age: timedelta = timedelta(0), days: int = 7) -> dict[str, str]:
    """Conditions of a report that stopped looking so long ago."""
    end = datetime.now(UTC) - age
    return {
        "window_start": format_time(end - timedelta(days=days)),
        "window_end": format_time(end),
    }


def agreement(
    subject: Subject,
    beside: Subject,
    *,
    n: int = 2000,
    disagreement: tuple[float, float, float] = (0.02, 0.015, 0.03),
    age: timedelta = timedelta(0),
    **conditions: str,
) -> Report:
    value, low, high = disagreement
    return observed(
        "agreement",
        subject,
        {"disagreement": Metric(value, n=n, low=low, high=high, confidence=0.95)},
        {
            "trial": "shadow",
            "beside": beside.version,
            "beside_sha256": beside.root_sha256,
            **window(age=age),
            **conditions,
        },
    )


def monitoring(
    subject: Subject, alarms: int | None = 0, *, age: timedelta = timedelta(0)
) -> Report:
    known = alarms is not None
    metrics = {"drift_alarms": Metric(float(alarms), n=1000)} if known else {}
    return observed("monitoring", subject, metrics, window(age=age))


def observed(
    kind: str,
    subject: Subject,
    metrics: Mapping[str, Metric],
    conditions: Mapping[str, str],
) -> Report:
    return Report(
        kind=kind,
        created_at=datetime.now(UTC).replace(microsecond=0),
        subject=subject,
        tools={"tests": "1"},
        conditions=conditions,
        metrics=metrics,
    )
