"""A reference for monitoring: the histogram of public rows, or of the training rows.

Where the data is personal it is the training rows, one row of each owner at most, with
noise, and what that costs is booked in the training's ledger before it is drawn.
Held-out personal rows are nobody's to publish: no ledger knows them.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.data import datasets
from models.data.datasets import AnyDataset
from models.data.sources import rows_of
from models.manifest import Column
from models.report import Dataset, Metric, Report
from models.sessions import make_session
from security.errors import TrainingError
from security.monitoring.guarantee import epsilon_of, rho_of
from security.monitoring.layout import layout_of
from security.monitoring.noise import rounded_gaussian
from security.monitoring.reference import KIND, reference_details, season_keys
from security.training.config_sections import TrainingConfig
from security.training.data import load_split
from security.training.entries import Request
from security.training.ledger import Ledger
from security.training.session import booked_data, owners_of

__all__ = ["Season", "make_reference", "public_reference"]

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
    every = config, train, holdout
    rows = _one_of_each(train) if train.personal else holdout
    parts = _parts(bundle, rows.features, _seasons(rows, season), season)
    if train.personal:
        told = _with_noise(bundle, every, parts, ledger, (epsilon, delta))
    else:
        told = _as_it_is(rows, every, ledger)
    return _report(bundle, season, parts, told)


def public_reference(
    bundle: Bundle, file: Path, *, season: Season = Season()
) -> Report:
    """The report of public rows, for a bundle that may have been made anywhere.

    Args:
        bundle: whose model and manifest; the model's columns have names.
        file: a table with these columns. Whoever signs the report says that it is
            public: no ledger knows it.
        season: divides it.

    Raises:
        TrainingError: the model does not take such rows, or there is no such column.
        DatasetError: the table cannot be read, or lacks a column.
    """
    columns = bundle.manifest.columns
    if not columns:
        raise TrainingError("the model's columns have no names")
    # A server counts values that are missing: so does this.
    features = rows_of(str(file), columns, missing=frozenset({""}))
    digest = datasets.digest(features, np.zeros(len(features), np.int64))
    told = _public(Dataset(file.name, "holdout", len(features), digest))
    keys = _season_keys(columns, features, season)
    return _report(bundle, season, _parts(bundle, features, keys, season), told)


@dataclass(frozen=True)
class _Told:
    """What a report says of its counts."""

    conditions: dict[str, str | float | bool]
    metrics: dict[str, Metric]
    datasets: tuple[Dataset, ...] = ()


# A configuration, its training rows, its held-out ones.
_Rows = tuple[TrainingConfig, AnyDataset, AnyDataset]
_Parts = dict[str, dict[str, NDArray[np.int64]]]


def _parts(
    bundle: Bundle,
    features: NDArray[Any],
    keys: NDArray[np.str_],
    season: Season,
) -> _Parts:
    """Histograms of each season's rows."""
    layout, codes = layout_of(bundle.manifest), _codes(bundle, features)
    return {key: layout.counts(codes[keys == key]) for key in season_keys(season.name)}


def _report(bundle: Bundle, season: Season, parts: _Parts, told: _Told) -> Report:
    whole = {
        key: {name: counts.tolist() for name, counts in part.items()}
        for key, part in parts.items()
    }
    return Report(
        kind=KIND,
        created_at=datetime.now(UTC).replace(microsecond=0),
        subject=bundle.subject,
        tools={"numpy": np.__version__, "onnxruntime": version("onnxruntime")},
        datasets=told.datasets,
        conditions={**told.conditions, "season": season.name},
        metrics=told.metrics,
        details=reference_details(bundle.manifest, season.name, whole),
    )


def _public(rows: Dataset) -> _Told:
    return _Told(
        {"personal_data": False, "rows": "held_out"},
        {"events": Metric(float(rows.rows)), "sigma": Metric(0.0)},
        (rows,),
    )


def _as_it_is(rows: AnyDataset, every: _Rows, ledger: Ledger) -> _Told:
    """Public rows, unless the ledger knows them as personal.

    Raises:
        LedgerError: it does.
    """
    booked = booked_data(*every)
    digests = [booked["digest"], *booked["former"]]
    ledger.check_public(booked["name"], digests, owners_of(*every))
    digest = datasets.digest(rows.features, rows.labels)
    return _public(Dataset(rows.name, "holdout", len(rows), digest))


def _with_noise(
    bundle: Bundle,
    every: _Rows,
    parts: _Parts,
    ledger: Ledger,
    claim: tuple[float, float],
) -> _Told:
    """Add noise to each count, once it is booked.

    Raises:
        LedgerError: the budget does not reach.
    """
    epsilon, delta = claim
    noise = 1.0 / math.sqrt(2.0 * rho_of(epsilon, delta))
    sensitivity = layout_of(bundle.manifest).sensitivity
    table = rounded_gaussian(noise * sensitivity)
    # One step over all rows: that is what it costs.
    request = Request(
        **booked_data(*every),
        rate=1.0,
        noise=noise,
        group=1,
        steps=1,
        delta=delta,
        sketch=ledger.sketch(owners_of(*every)),
    )
    _book(ledger, request)
    for part in parts.values():
        for name, counts in part.items():
            part[name] = counts + table.sample(len(counts))
    return _Told(
        {
            "personal_data": True,
            "rows": "train",
            "unit": request.unit,
            "neighbouring": "add_or_remove_one",
            "contribution": "one row of each unit",
            "mechanism": "gaussian_rounded_to_integers",
            "sensitivity": sensitivity,
            "ledger": "booked",
        },
        {
            "sigma": Metric(table.sigma),
            "epsilon": Metric(epsilon_of(0.5 / noise**2, delta)),
            "delta": Metric(delta),
        },
    )


def _book(ledger: Ledger, request: Request) -> None:
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


def _codes(bundle: Bundle, features: NDArray[Any]) -> NDArray[np.uint8]:
    """Each row with the model's answer, as the server would count it."""
    manifest = bundle.manifest
    if len(manifest.inputs) != 1 or manifest.inputs[0].spec.datatype != "FP32":
        raise TrainingError("a reference is made for models with one FP32 input")
    session = make_session(bundle.model)
    name = manifest.inputs[0].spec.name
    tensors = {item.spec.name for item in manifest.outputs if item.form == "tensor"}
    release = manifest.release
    outputs = [item for item in release.names if item in tensors]
    sources = release.sources(outputs)
    if not {*sources} <= tensors:
        raise TrainingError("the scores that sets are made from are no tensor")
    layout, found = layout_of(manifest), []
    for start in range(0, len(features), _AT_ONCE):
        given = {name: features[start : start + _AT_ONCE].astype(np.float32)}
        own = dict(zip(sources, session.run(sources, given)))
        answered = dict(zip(outputs, release.answer(outputs, own)))
        found.append(layout.codes(given, answered, slice(0, len(given[name]))))
    return np.concatenate(found)


def _seasons(rows: AnyDataset, season: Season) -> NDArray[np.str_]:
    """The key of each row's season.

    Raises:
        TrainingError: there is no such column, or it has other values.
    """
    return _season_keys(getattr(rows, "columns", ()), rows.features, season)


def _season_keys(
    columns: Sequence[Column], features: NDArray[Any], season: Season
) -> NDArray[np.str_]:
    if season.name == "none":
        return np.full(len(features), "")
    at = next((i for i, item in enumerate(columns) if item.name == season.column), None)
    if at is None:
        raise TrainingError(f"the data has no column {season.column!r}")
    values = features[:, at]
    if columns[at].categories:
        names = columns[at].categories
        values = np.array([float(names[int(code)]) for code in values])
    width = len(season_keys(season.name)[0])
    keys = np.array([f"{int(value):0{width}}" for value in values])
    if not set(keys) <= set(season_keys(season.name)):
        raise TrainingError(f"column {season.column!r} has no {season.name}s")
    return keys
