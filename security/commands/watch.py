"""What `monitor` shows, signs and tells of the models that are served."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from models.files import write_atomic
from models.report import Metric, Report, format_time
from sealgate.monitoring import lines
from sealgate.protocol import strict_json
from security.admission.gate import Admission
from security.admission.lifecycle import Canary
from security.admission.observations import write_observation
from security.admission.plan import Plan, PlanFolder
from security.admission.policy import load_policy
from security.admission.promotion import DRIFT_ALARMS
from security.audit.journal import record_operation
from security.commands.events import Webhook, event
from security.commands.models import current
from security.commands.screen import Screen
from security.commands.signing import signers
from security.errors import AdmissionRefused, MonitoringError, PlanError, SettingsError
from security.monitoring.estimate import CONFIDENCE
from security.monitoring.ledger import Budget, open_ledger
from security.monitoring.outcomes import Estimate
from security.monitoring.overview import (
    Evidence,
    Overview,
    Sight,
    Spent,
    labels_of,
    overview,
)
from security.monitoring.release import read_releases
from security.settings.loading import Settings, load_settings

__all__ = ["DRIFT", "Seen", "report_of", "run", "see"]

QUIET, UNKNOWN, DRIFT = 0, 1, 4
_SOURCE = "urn:sealgate:monitoring"


def run(args: argparse.Namespace) -> int:
    """Show, and tell whom the options name; returns the exit code."""
    settings = load_settings()
    if args.new_ledger:
        with closing(open_ledger(settings.monitoring)) as ledger:
            ledger.new_ledger()
        print("made a ledger of releases, with nothing spent")
        return QUIET
    webhook = _webhook(args)
    seen = see(settings, args.models)
    if not seen:
        raise PlanError("no version is served that could be monitored")
    _show(args, seen)
    if args.html is not None:
        from security.documents.monitoring import to_html  # noqa: PLC0415  (a page)

        write_atomic(args.html, to_html([item.document for item in seen]))
    if args.sign:
        _sign(args, seen, settings)
    if webhook is not None:
        for item in seen:
            webhook.send(_event(item, settings))
    states = {item.overview.state for item in seen}
    if "drift" in states or any(item.overview.below for item in seen):
        return DRIFT
    return UNKNOWN if "unknown" in states else QUIET


@dataclass(frozen=True, eq=False)
class Seen:
    """A version that is served, with what was released of it.

    Attributes:
        admission: of the version, by the gate, now.
        by_default: it answers requests that name no version.
        overview: of its windows.
    """

    admission: Admission
    by_default: bool
    overview: Overview

    @property
    def document(self) -> dict[str, Any]:
        """The overview, as the server's endpoint answers it."""
        return self.overview.to_object()


def see(settings: Settings, models: Sequence[str] = ()) -> list[Seen]:
    """Read what was released of versions that are served.

    Args:
        settings: of the deployment.
        models: names or tags; every version that answers where there are none.

    Raises:
        SettingsError: monitoring is off.
        PlanError: a model or version is not served.
        SealgateError: the ledger cannot be asked, or the gate refuses a version.
    """
    from security.admission.hooks import open_tag  # noqa: PLC0415  (bentoml)

    monitoring = settings.monitoring
    if not monitoring.enabled:
        raise SettingsError("monitoring.enabled is false: nothing is counted here")
    plan = current(PlanFolder(settings.deployment.directory), settings)
    tags = list(dict.fromkeys(_tags(plan, models)))
    admissions = [open_tag(tag, settings) for tag in tags]
    ledger, now = open_ledger(monitoring), time.time()
    try:
        entries = ledger.entries()
        releases, labels = (read_releases(ledger, kind=k) for k in ("drift", "labels"))
    finally:
        ledger.close()
    budget = Budget(monitoring.epsilon, monitoring.delta)
    spent = Spent.of(entries, budget, now=now)

    def seen(admission: Admission) -> Seen:
        subject = admission.bundle.subject
        found = overview(
            Evidence.of_bundle(admission.bundle, admission.reports),
            releases,
            length=monitoring.window,
            spent=spent,
            now=now,
            labels=labels_of(labels, subject, monitoring.window),
        )
        default = plan.models[subject.name].default == subject.version
        return Seen(admission, default, found)

    return list(map(seen, admissions))


def _tags(plan: Plan, models: Sequence[str]) -> Iterator[str]:
    for given in models or plan.models:
        name, _, version_ = given.partition(":")
        model = plan.models.get(name)
        if model is None or (version_ and version_ not in model.versions):
            raise PlanError(f"{given} is not served")
        if version_:
            yield given
            continue
        yield f"{name}:{model.default}"
        for number, state in model.versions.items():
            if isinstance(state, Canary):
                yield f"{name}:{number}"


def _show(args: argparse.Namespace, seen: Sequence[Seen]) -> None:
    if args.json:
        documents = [item.document for item in seen]
        print(strict_json.dumps(documents).decode())
        return
    screen = Screen(color=not args.no_color)
    for item in seen:
        for text, kind in lines(item.document):
            screen.line((text, kind))


def _sign(args: argparse.Namespace, seen: Sequence[Seen], settings: Settings) -> None:
    """Sign what was seen of each default version, and say so in the audit log.

    Raises:
        AdmissionRefused: check 40, the policy does not let the role sign that.
        MonitoringError: nothing was released of one yet.
    """
    policy = load_policy(settings.admission.policy)
    defaults = [item for item in seen if item.by_default]
    for item in defaults:
        name = item.admission.bundle.manifest.name
        needed = policy.promotion_of(name).of("monitoring")
        if needed is not None and args.role not in needed.signers:
            raise AdmissionRefused(
                40, f"the policy does not let {args.role} sign monitoring"
            )
    reports = [report_of(item.overview) for item in defaults]
    keys = signers(args, args.role)
    for report in reports:
        path = write_observation(settings.deployment.directory, report, keys)
        subject = report.subject
        record = {
            "action": "monitoring",
            "model": f"{subject.name}:{subject.version}",
            "model_sha256": subject.root_sha256,
        }
        record_operation(settings.audit, [record])
        if not args.json:
            print(f"signed as {args.role}: {path}")


def report_of(seen: Overview) -> Report:
    """The report about a version's last window of which drift can be told.

    The estimate of accuracy without labels is none of its metrics, so that no policy
    can ask for it.

    Raises:
        MonitoringError: nothing was released yet, so there is no window to be about.
    """
    shown = seen.last or (seen.sights[-1] if seen.sights else None)
    if shown is None:
        raise MonitoringError(f"{seen.tag}: nothing was released of it yet")
    window, spent = shown.window, seen.spent
    start, end = (
        format_time(datetime.fromtimestamp(moment, UTC))
        for moment in (window.start, window.end)
    )
    return Report(
        kind="monitoring",
        created_at=datetime.now(UTC).replace(microsecond=0),
        subject=seen.evidence.subject,
        tools={name: version(name) for name in ("numpy",)},
        conditions={
            "window": window.name,
            "window_start": start,
            "window_end": end,
            "unit": "subject",
            "delta": spent.delta,
            "epsilon_cap": spent.cap,
        },
        metrics=dict(_metrics(seen, shown)),
        details={"state": seen.state, "reason": seen.reason, **shown.to_object()},
    )


def _metrics(seen: Overview, shown: Sight) -> Iterator[tuple[str, Metric]]:
    yield "epsilon", Metric(seen.spent.epsilon)
    subjects = max(0, shown.release.subjects or 0)
    if shown.alarms is not None:
        yield DRIFT_ALARMS, Metric(len(shown.alarms), n=subjects)
    for name, finding in shown.alone.items():
        yield f"psi/{name}", Metric(finding.psi, n=subjects)
    labelled = [item.labels for item in seen.sights if item.labels is not None]
    accuracy = labelled[-1].accuracy if labelled else None
    if accuracy is not None:
        yield "accuracy", _share(accuracy, labelled[-1].subjects)
    covered = labelled[-1].coverage if labelled else None
    if covered is not None and covered.share is not None:
        yield "coverage", _share(covered.share, labelled[-1].subjects)


def _share(estimate: Estimate, subjects: int) -> Metric:
    return Metric(
        estimate.value,
        n=max(0, subjects),
        low=estimate.low,
        high=estimate.high,
        confidence=CONFIDENCE,
    )


def _webhook(args: argparse.Namespace) -> Webhook | None:
    if args.webhook is None:
        return None
    return Webhook(args.webhook, args.webhook_token_file, args.webhook_ca)


def _event(item: Seen, settings: Settings) -> dict[str, Any]:
    """What is told of a version: its state, and the last window, nothing of others."""
    seen, document = item.overview, item.document
    windows = document.pop("windows")
    shown = seen.last or (seen.sights[-1] if seen.sights else None)
    name = "" if shown is None else shown.window.name
    document["window"] = next((w for w in windows if w["name"] == name), None)
    root = seen.evidence.subject.root_sha256
    return event(
        seen.state,
        seen.tag,
        document,
        source=settings.access.resource or _SOURCE,
        same=f"{root} {name} {seen.reason}",
        now=datetime.now(UTC),
    )
