"""Windows of a toy model, released by the real code into a deployment's ledger."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np

from models.bundle import Bundle, read_bundle, report_file
from models.files import write_atomic
from models.manifest import Manifest
from models.report import Metric, Report
from security.monitoring.estimate import ScoreBins
from security.monitoring.guarantee import epsilon_of, rho_of, sigma_of
from security.monitoring.layout import layout_of
from security.monitoring.ledger import Budget, LocalLedger
from security.monitoring.noise import rounded_gaussian
from security.monitoring.reference import reference_details
from security.monitoring.release import About, Release, release
from security.monitoring.windows import Window, window_at
from tests.conftest import check_security, toy_settings
from tests.support.bundles import WEIGHTS, Keys, report, write_bundle
from tests.support.promotions import ASKING

WATCHED = (
    ASKING
    + b"""
[require.reference]
signers = ["assessor"]
max_age_days = 30
"""
)
BUDGET = Budget(8.0, 1e-6)
SUBJECTS = 6000

Rows = np.ndarray
Draw = Callable[[np.random.Generator, int], Rows]


def usual(random: np.random.Generator, count: int) -> Rows:
    """Rows as the reference has them."""
    return random.normal(0.0, 2.0, (count, 3)).clip(-9.9, 9.9).astype(np.float32)


def shifted(random: np.random.Generator, count: int) -> Rows:
    """The first column moved, by half of its deviation, within its range."""
    rows = usual(random, count)
    rows[:, 0] = (rows[:, 0] + 1.0).clip(-9.9, 9.9)
    return rows


def beyond(random: np.random.Generator, count: int) -> Rows:
    """A tenth of the rows beyond the first column's range."""
    rows = usual(random, count)
    rows[: count // 10, 0] = 25.0
    return rows


def probabilities(rows: Rows) -> Rows:
    """What the toy model answers."""
    logits = rows @ WEIGHTS
    exact = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exact / exact.sum(axis=1, keepdims=True))


def counts_of(manifest: Manifest, rows: Rows) -> dict[str, np.ndarray]:
    """Histograms of rows and their answers, as a server counts them."""
    layout = layout_of(manifest)
    answers = {"probabilities": probabilities(rows)}
    codes = layout.codes({"features": rows}, answers, slice(0, len(rows)))
    return layout.counts(codes)


def reference(bundle: Bundle, *, rows: int = 20_000) -> Report:
    """Evidence of what is usual, of personal rows: with noise, at an epsilon of 1."""
    layout, delta = layout_of(bundle.manifest), 1e-6
    sigma = sigma_of(rho_of(1.0, delta), layout.sensitivity)
    noise = rounded_gaussian(sigma)
    exact = counts_of(bundle.manifest, usual(np.random.default_rng(0), rows))
    with known_noise(0):
        part = {n: (c + noise.sample(len(c))).tolist() for n, c in exact.items()}
    return Report(
        kind="reference",
        created_at=datetime.now(UTC).replace(microsecond=0),
        subject=bundle.subject,
        tools={"tests": "1"},
        conditions={"season": "none"},
        metrics={
            "events": Metric(float(rows)),
            "sigma": Metric(sigma),
            "epsilon": Metric(epsilon_of(layout.sensitivity**2 / 2 / sigma**2, delta)),
            "delta": Metric(delta),
        },
        details=reference_details(bundle.manifest, "none", {"": part}),
    )


def known_noise(seed: int) -> AbstractContextManager[object]:
    """The same noise each time: one in a hundred windows alarms by chance."""
    return mock.patch.object(os, "urandom", Random(seed).randbytes)


def score_bins() -> ScoreBins:
    """Of held-out rows whose answers are as often right as their scores say."""
    random = np.random.default_rng(5)
    scores = probabilities(usual(random, 4000))
    bins = ScoreBins.of_rows(scores, random.random(4000) < scores.max(axis=1))
    assert bins is not None
    return bins


def evidence(bundle: Bundle) -> dict[str, Report]:
    """What the gate would have verified of a version."""
    quality = replace(
        report("quality", bundle.subject),
        details={"score_bins": score_bins().to_object()},
    )
    return {"quality": quality, "reference": reference(bundle)}


def monitored_settings(home: Path) -> dict[str, str]:
    """Of a deployment that counts, and reads its models from a folder."""
    return toy_settings(home) | {
        "SEALGATE_MONITORING_ENABLED": "true",
        "SEALGATE_SERVICE_MODELS": f"path:{home / 'bundle'}",
    }


def make_monitored(home: Path) -> None:
    """A deployment whose toy model has a reference, and that signs what it sees."""
    home.mkdir(parents=True)
    (home / "policy.toml").write_bytes(WATCHED)
    settings = monitored_settings(home)
    check_security(home, "keygen", **settings)
    folder = home / "bundle"
    write_bundle(folder, Keys.generate(), admit=False)
    for kind, made in evidence(read_bundle(folder)).items():
        write_atomic(folder / report_file(kind), made.to_json())
    for role in ("trainer", "assessor"):
        check_security(home, "sign", str(folder), "--role", role, **settings)
    check_security(home, "admit", str(folder), **settings)


def past(length: str, back: int, *, now: float) -> Window:
    """A window that has ended; the last one is 1 back."""
    window = window_at(length, now)
    for _ in range(back):
        window = window.last
    return window


def put(
    folder: Path,
    manifest: Manifest,
    window: Window,
    draw: Draw = usual,
    *,
    seed: int = 0,
    subjects: int = SUBJECTS,
    min_subjects: int = 200,
) -> Release:
    """Release one window of the toy model, a minute after its end."""
    counts = counts_of(manifest, draw(np.random.default_rng(seed), subjects))
    kept = {"seed": seed, "subjects": subjects, "min_subjects": min_subjects}
    return put_counts(folder, manifest, window, counts, **kept)


def put_counts(
    folder: Path,
    manifest: Manifest,
    window: Window,
    counts: Mapping[str, np.ndarray],
    *,
    seed: int,
    subjects: int,
    min_subjects: int = 200,
) -> Release:
    """Release counts of any model, a minute after their window's end."""
    layout = layout_of(manifest)
    ledger = LocalLedger(folder)
    ledger.start()
    try:
        with known_noise(seed):
            return release(
                ledger,
                BUDGET,
                About("drift", manifest.name, manifest.version, window),
                counts,
                rho=BUDGET.per_window(window.length) * 0.8,
                sensitivity=layout.sensitivity,
                contribution="one event of each subject",
                subjects=subjects,
                min_subjects=min_subjects,
                max_subjects=1 << 17,
                now=window.end + 60.0,
                details={"histograms": layout.describe()},
            )
    finally:
        ledger.close()


def put_weeks(home: Path, draw: Draw, *back: int) -> None:
    """Release weeks of the toy model that a deployment serves."""
    toy = read_bundle(home / "bundle").manifest
    for number in back:
        window = past("weekly", number, now=time.time())
        put(home / "monitoring", toy, window, draw, seed=number)
