"""A reference for monitoring: the histogram of public rows, or of the training rows.

Where the data is personal it is the training rows, one row of each owner at most, with
noise, and what that costs is booked in the training's ledger before it is drawn.
Held-out personal rows are nobody's to publish: no ledger knows them.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.data import datasets
from models.data.datasets import AnyDataset
from models.report import Dataset, Metric, Report
from models.sessions import make_session
from security.errors import TrainingError
from security.monitoring.guarantee import epsilon_of, rho_of
from security.monitoring.layout import layout_of
from security.monitoring.noise import discrete_gaussian
from security.monitoring.reference import KIND, reference_details, season_keys
from security.training.config_sections import TrainingConfig
from security.training.data import load_split
from security.training.entries import Request
from security.training.ledger import Ledger
from security.training.session import booked_data, owners_of

__all__ = ["Season", "make_reference"]

_AT_ONCE = 4096


@dataclass(frozen=True)
class Season:
    """By what a reference is divided.

    Attributes:
        name: "none", "month" or "weekday".
        column: the feature that has it: 1 to 12, or 1 to 7 from Monday.
    """

    name: str = "none"
    column: str = ""


def make_reference(
    bundle: Bundle,
    config: TrainingConfig,
    *,
    ledger: Ledger,
    epsilon: float,
    delta: float,
    season: Season = Season(),
) -> Report:
    """The report, for a bundle that a configuration trained.

    Args:
        bundle: whose model and manifest.
        config: names the data.
        ledger: of trainings; not asked where the data is public.
        epsilon: what it may cost, at ``delta``; of no meaning for public data.
        delta: of that.
        season: divides it.

    Raises:
        TrainingError: the model does not take such rows, or there is no such column.
        LedgerError: the budget does not reach, or data that is declared public is
            booked as personal.
    """
    train, holdout = load_split(config)
    rows = _one_of_each(train) if train.personal else holdout
    layout = layout_of(bundle.manifest)
    codes, keys = _codes(bundle, rows), _seasons(rows, season)
    parts: dict[str, dict[str, NDArray[np.int64]]] = {
        key: layout.counts(codes[keys == key]) for key in season_keys(season.name)
    }
    sigma, told = 0.0, {"events": Metric(float(len(rows))), "sigma": Metric(0.0)}
    conditions: dict[str, Any] = {"personal_data": False, "rows": "held_out"}
    asked = booked_data(config, train, holdout)
    if not train.personal:
        digests = [asked["digest"], *asked["former"]]
        owners = owners_of(config, train, holdout)
        ledger.check_public(config.data.name, digests, owners)
    else:
        noise = 1.0 / math.sqrt(2.0 * rho_of(epsilon, delta))
        sigma = noise * layout.sensitivity
        table = discrete_gaussian(sigma)
        request = Request(
            **asked,
            rate=1.0,
            noise=noise,
            group=1,
            steps=1,
            delta=delta,
            sketch=ledger.sketch(owners_of(config, train, holdout)),
        )
        _book(ledger, request)
        for part in parts.values():
            for name, counts in part.items():
                part[name] = counts + table.sample(len(counts))
        told = {
            "sigma": Metric(sigma),
            "epsilon": Metric(epsilon_of(0.5 / noise**2, delta)),
            "delta": Metric(delta),
        }
        conditions = {
            "personal_data": True,
            "rows": "train",
            "unit": request.unit,
            "neighbouring": "add_or_remove_one",
            "contribution": "one row of each unit",
            "mechanism": "gaussian_rounded_to_integers",
            "sensitivity": layout.sensitivity,
            "ledger": "booked",
        }
    whole = {
        key: {name: counts.tolist() for name, counts in part.items()}
        for key, part in parts.items()
    }
    digest = datasets.digest(rows.features, rows.labels)
    used = Dataset(rows.name, "holdout", len(rows), digest)
    return Report(
        kind=KIND,
        created_at=datetime.now(UTC).replace(microsecond=0),
        subject=bundle.subject,
        tools={"numpy": np.__version__, "onnxruntime": version("onnxruntime")},
        datasets=() if train.personal else (used,),
        conditions={**conditions, "season": season.name},
        metrics=told,
        details=reference_details(bundle.manifest, season.name, whole),
    )


def _book(ledger: Ledger, request: Request) -> None:
    """Book it as one step over all rows: that is what it costs.

    Raises:
        LedgerError: the budget does not reach.
    """
    reservation = ledger.reserve(request)
    reservation.take(1)
    reservation.close("finished")


def _one_of_each(rows: AnyDataset) -> AnyDataset:
    """One row of each owner, chosen at random; all where each is its own."""
    if rows.units is None:
        return rows
    order = np.array(secrets.SystemRandom().sample(range(len(rows)), len(rows)))
    _, first = np.unique(rows.units[order], return_index=True)
    return rows.take(np.sort(order[first]))


def _codes(bundle: Bundle, rows: AnyDataset) -> NDArray[np.uint8]:
    """Each row with the model's answer, as the server would count it."""
    manifest = bundle.manifest
    if len(manifest.inputs) != 1 or manifest.inputs[0].spec.datatype != "FP32":
        raise TrainingError("a reference is made for models with one FP32 input")
    session = make_session(bundle.model)
    name = manifest.inputs[0].spec.name
    outputs = [item.spec.name for item in manifest.outputs if item.form == "tensor"]
    layout, found = layout_of(manifest), []
    for start in range(0, len(rows), _AT_ONCE):
        given = {name: rows.features[start : start + _AT_ONCE].astype(np.float32)}
        answered = dict(zip(outputs, session.run(outputs, given)))
        found.append(layout.codes(given, answered, slice(0, len(given[name]))))
    return np.concatenate(found)


def _seasons(rows: AnyDataset, season: Season) -> NDArray[np.str_]:
    """The key of each row's season.

    Raises:
        TrainingError: there is no such column, or it has other values.
    """
    if season.name == "none":
        return np.full(len(rows), "")
    columns = getattr(rows, "columns", ())
    at = next((i for i, item in enumerate(columns) if item.name == season.column), None)
    if at is None:
        raise TrainingError(f"the data has no column {season.column!r}")
    values = rows.features[:, at]
    if columns[at].categories:
        names = columns[at].categories
        values = np.array([float(names[int(code)]) for code in values])
    width = len(season_keys(season.name)[0])
    keys = np.array([f"{int(value):0{width}}" for value in values])
    if not set(keys) <= set(season_keys(season.name)):
        raise TrainingError(f"column {season.column!r} has no {season.name}s")
    return keys
