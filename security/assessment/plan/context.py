"""What a check works with, opened anew in every process from what can be sent there."""

from __future__ import annotations

import hashlib
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import datasets
from models.data.held_out import Holdout, Predictions
from models.output_policy import OutputPolicy
from models.report import Dataset
from sealgate.profile import Profile
from security.assessment.plan.options import MIN_ROWS, Options
from security.assessment.plan.rows import data_classes, truth_of
from security.assessment.plan.source import TargetSource
from security.assessment.targets.answers import Answers, Reading
from security.assessment.targets.dataconfig import DataConfig
from security.assessment.targets.decision import Stated
from security.assessment.targets.journal import Journal
from security.assessment.targets.predictions import (
    NO_SPACE,
    predicted_reading,
    predicted_scores,
)
from security.assessment.targets.remote import RemoteLimits, RemoteTarget
from security.assessment.targets.space import Space, build_space
from security.assessment.targets.target import (
    InputSpec,
    Target,
    arranged,
    fit_rows,
)
from security.assessment.targets.texts import Texts
from security.errors import AssessmentError, BudgetError

__all__ = ["Context", "Job", "prepare"]

# What may be given anew to a scan that goes on: it changes how far it gets.
_FREE = ("jobs", "max_minutes", "max_queries")

# With more values of the truth than this, a sample is not drawn value by value.
_MAX_CLASSES = 1000

Rows = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Job:
    """Everything a worker process needs; can be pickled, and decides the result.

    Attributes:
        source: of the target.
        options, config: as given.
        spec, shape, reading: as found when the target was first asked.
        space: that attacks move in.
        rows: ``(n, d)`` in the model's type: the rows that the scan uses.
        labels: ``(n,)``, their truth: classes, int64; or numbers, float64, where the
            model predicts one (`Reading.number`).
        places: ``(n,)``, where each row stands in the file.
        clean: answers about the rows.
        others: names of the data's classes that the model does not know; empty.
        dataset: the whole file.
        data_key: names it, with its groups, for work that goes on.
        compared: whether its rows are known to be none that was trained on.
        column_names: of tables, otherwise none.
        groups: by sensitive column: each row's value ``(n,)``.
        texts: that the rows hold the places of, where a column means texts.
        radii: by norm, each row's own ``(n,)``, where the data has them.
        extras: for checks that need more data, by name.
        deadline: `time.monotonic` that no work starts after, or None.
    """

    source: TargetSource
    options: Options
    config: DataConfig
    spec: InputSpec
    shape: tuple[int, ...]
    reading: Reading
    space: Space
    rows: Rows
    labels: NDArray[Any]
    places: NDArray[np.int64]
    clean: Answers
    dataset: Dataset
    data_key: str
    compared: bool = False
    column_names: tuple[str, ...] = ()
    groups: dict[str, NDArray[np.str_]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    radii: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    deadline: float | None = None

    @property
    def remote(self) -> bool:
        """Whether every question costs an endpoint's quota."""
        return self.source.kind == "remote"

    @property
    def answered(self) -> bool:
        """Whether there is no model to ask, only what it once answered."""
        return self.source.kind == "predictions"

    @property
    def limits(self) -> RemoteLimits:
        """Bounds on an endpoint."""
        budget = self.options.max_queries or self.options.effort.remote_queries
        return RemoteLimits(max_queries=budget)

    def cell(self, column: int | np.integer[Any], value: float) -> float | str:
        """What a value of a row means: itself, or the text whose place it is."""
        if self.spec.types(self.rows.shape[1])[column] != "str":
            return float(value)
        return self.texts[round(float(value))]

    @property
    def fractions(self) -> NDArray[np.int64]:
        """Places of the columns that may hold a fraction, or NaN."""
        types = self.spec.types(self.rows.shape[1])
        held = [kind.startswith("float") for kind in types.tolist()]
        return np.flatnonzero(held)

    def identity(self) -> dict[str, Any]:
        """What the result depends on, as JSON: an interrupted scan goes on with it."""
        options = {**vars(self.options)}
        for name in _FREE:
            del options[name]
        return {
            "target": {
                "kind": self.source.kind,
                "name": self.source.name,
                "sha256": hashlib.sha256(self.source.model).hexdigest(),
                "url": self.source.url,
                "manifest": repr(self.source.manifest),
            },
            "data": self.data_key,
            "config": repr(self.config),
            "extras": {
                name: getattr(item, "sha256", "") for name, item in self.extras.items()
            },
            "options": {**options, "checks": list(self.options.checks)},
        }


class Context:
    """A job, with its target open.

    Attributes:
        job: the job.
        target: the open target.
        cache: for what a check wants to keep between the units of one process.
    """

    def __init__(self, job: Job, target: Target | None = None) -> None:
        """Open the target, unless it is open already."""
        self.job = job
        self.target = target or job.source.open(job.limits)
        self.target.shape, self.target.reading = job.shape, job.reading
        self.target.texts = Texts(job.texts)
        self.cache: dict[str, Any] = {}

    @property
    def leaving(self) -> OutputPolicy:
        """What a caller of the target gets of its answers."""
        stated = getattr(self.target, "leaving", None)
        return stated if stated is not None else self.job.source.leaving

    @property
    def abstains(self) -> bool:
        """Whether answers are an endpoint's that may abstain, not the graph's own."""
        return self.job.remote and self.leaving.abstain

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """Rows ``(n,)`` that it abstains from."""
        silent = self.job.clean.finite & (self.job.clean.labels < 0)
        return np.asarray(silent & self.abstains)

    def random(self, key: str) -> np.random.Generator:
        """Random numbers of one unit: from the seed and its key, nothing else."""
        return np.random.default_rng(self.seed(key))

    def seed(self, key: str) -> int:
        """A number below 2^63 from the seed and a key."""
        text = f"{self.job.options.seed}/{key}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1

    def begin(self, unit: str) -> None:
        """A unit of work begins: an endpoint's earlier answers to it are used."""
        if isinstance(self.target, RemoteTarget):
            self.target.journal.begin(unit)

    def aside(self, name: str) -> AbstractContextManager[None]:
        """Questions that are asked once in a scan, whatever units use the answers."""
        if isinstance(self.target, RemoteTarget):
            return self.target.journal.aside(name)
        return nullcontext()

    def end(self) -> None:
        """The unit is saved: those answers are not needed any more."""
        if isinstance(self.target, RemoteTarget):
            self.target.journal.end()

    @property
    def ended_by(self) -> str:
        """Why no more work could be done, as far as the target knows."""
        closed = getattr(self.target, "closed", "")
        return str(closed) or "no budget was left"

    def check_time(self) -> None:
        """Stop where no time is left.

        Raises:
            BudgetError: the scan has used up its minutes.
        """
        deadline = self.job.deadline
        if deadline is not None and time.monotonic() > deadline:
            raise BudgetError("no time is left")


def prepare(
    source: TargetSource,
    holdout: Holdout,
    options: Options,
    config: DataConfig = DataConfig(),
    *,
    work: Path | None = None,
) -> tuple[Job, Target]:
    """Fit data and target to each other.

    Where a folder for finished work is given, an endpoint's answers are kept there.

    1. enough rows, of two classes or more;
    2. the rows fit the input;
    3. answers about them can be read, and their classes are the model's;
    4. a sample is drawn, of every class in its proportion.

    Raises:
        AssessmentError: says what does not fit.
    """
    _check_enough(holdout, options)
    if isinstance(holdout, Predictions):
        job = _answered(source, holdout, options, config)
        return job, source.open(job.limits)
    effort = options.effort
    budget = options.max_queries or effort.remote_queries
    journal = None
    if source.kind == "remote":
        journal = Journal(work, _asked_by(source, holdout, options, config))
        journal.begin("calibration")
    target = source.open(RemoteLimits(max_queries=budget), journal)
    try:
        return _fitted(source, holdout, options, config, target=target), target
    except BaseException:
        target.close()
        raise


def _asked_by(
    source: TargetSource, holdout: Holdout, options: Options, config: DataConfig
) -> dict[str, Any]:
    """What the questions of a scan depend on, before any is asked."""
    chosen = {name: item for name, item in vars(options).items() if name not in _FREE}
    model = None if source.profile is None else Profile.load(source.profile).model
    return {
        "url": source.url,
        "model": model,
        "data": holdout.sha256,
        "config": repr(config),
        "options": chosen,
    }


def _fitted(
    source: TargetSource,
    holdout: Holdout,
    options: Options,
    config: DataConfig,
    *,
    target: Target,
) -> Job:
    """Steps 2 to 4 of `prepare`."""
    effort = options.effort
    columns = source.columns or getattr(target, "columns", ())
    holdout = arranged(holdout, target.spec, [column.name for column in columns])
    features = target.texts.placed(holdout)
    rows, shape = fit_rows(target.spec, features)
    target.shape = shape
    remote = source.kind == "remote"
    wanted = options.max_rows or (effort.remote_rows if remote else effort.rows)
    chosen = _sample(holdout, wanted, options.seed)
    sample = np.ascontiguousarray(rows[chosen])
    stated = Stated(
        source.classes or config.classes or holdout.classes,
        data_classes(holdout),
        options.output or source.output,
        options.decision or ("number" if source.predicts_number else None),
        fractions=holdout.labels.dtype.kind == "f",
    )
    clean = target.calibrate(sample, stated)
    labels = truth_of(holdout, target.reading)
    digest = datasets.digest(features, labels)
    if holdout.texts:  # places say nothing of the texts themselves
        digest = holdout.sha256
    return Job(
        source=source,
        options=options,
        config=config,
        spec=target.spec,
        shape=shape,
        reading=target.reading,
        space=build_space(
            rows,
            target.spec.dtype,
            table=bool(columns or holdout.columns) or len(shape) == 1,
            columns=columns,
            bounds=source.bounds,
            names=holdout.columns or target.spec.columns,
            config=config,
            types=target.spec.types(rows.shape[1]),
            texts=target.texts,
        ),
        rows=sample,
        labels=labels[chosen],
        places=chosen,
        clean=clean,
        dataset=Dataset(holdout.name, "holdout", len(holdout), digest),
        data_key=holdout.sha256,
        column_names=holdout.columns or target.spec.columns,
        texts=tuple(target.texts.texts),
        groups={name: values[chosen] for name, values in holdout.groups.items()},
        radii=_radii(holdout, options, chosen),
    )


def _radii(
    holdout: Holdout, options: Options, chosen: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Each row's own radii, by norm, where a column of the data has them.

    Raises:
        AssessmentError: there is no such column, or a row has no radius.
    """
    found = {}
    for norm in ("linf", "l2"):
        name = options.radius_column(norm)
        if name is None:
            continue
        if holdout.labels.dtype.kind == "f":
            raise AssessmentError("radii of rows are for models that decide a class")
        if name not in holdout.beside:
            raise AssessmentError(f"{holdout.name}: no column {name[:40]!r} of radii")
        own = holdout.beside[name]
        if not (np.isfinite(own) & (own > 0)).all():
            raise AssessmentError(
                f"{holdout.name}: {name[:40]!r}: a radius is positive and finite"
            )
        found[norm] = own[chosen]
    return found


def _answered(
    source: TargetSource, given: Predictions, options: Options, config: DataConfig
) -> Job:
    """Steps 3 and 4 of `prepare` where answers are given and nothing can be asked.

    Raises:
        AssessmentError: the predictions do not have the classes, or as many scores.
    """
    reading = predicted_reading(given, config, options.decision)
    labels, decided = (
        truth_of(replace(given, labels=values), reading)
        for values in (given.labels, given.decided)
    )
    if reading.number:
        scores, decided = decided[:, None], np.zeros(len(given), np.int64)
    else:
        scores = predicted_scores(given, decided, reading, config.positive)
    chosen = _sample(given, options.max_rows or len(given), options.seed)
    return Job(
        source=source,
        options=options,
        config=config,
        spec=InputSpec("none", "float64", ()),
        shape=(),
        reading=reading,
        space=NO_SPACE,
        rows=given.features[chosen],
        labels=labels[chosen],
        places=chosen,
        clean=Answers(scores[chosen], decided[chosen]),
        dataset=Dataset(given.name, "holdout", len(given), given.sha256),
        data_key=given.sha256,
        groups={name: values[chosen] for name, values in given.groups.items()},
    )


def _check_enough(holdout: Holdout, options: Options) -> None:
    if options.checks == ("evasion",):
        return  # what breaks is said row by row, of a single one too
    if len(holdout) < MIN_ROWS:
        raise AssessmentError(
            f"{holdout.name} has {len(holdout)} rows; nothing can be concluded from "
            f"fewer than {MIN_ROWS}, but for --check evasion alone"
        )
    if len(np.unique(holdout.labels.astype(str))) < 2:
        what = "number" if holdout.labels.dtype.kind == "f" else "class"
        raise AssessmentError(
            f"{holdout.name} has one {what} only; nothing can be concluded from it"
        )


def _sample(holdout: Holdout, wanted: int, seed: int) -> NDArray[np.int64]:
    """Places of the rows to use, ascending: all, or some of each class.

    Of more values than classes have, any rows.
    """
    total = len(holdout)
    if total <= wanted:
        return np.arange(total)
    random = np.random.default_rng(seed)
    order = random.permutation(total)
    names, classes = np.unique(holdout.labels.astype(str), return_inverse=True)
    if len(names) > _MAX_CLASSES:
        return np.sort(order[:wanted])
    # Round robin within proportion: each row's rank in its class, as a share of it.
    share = np.empty(total)
    for index in range(len(names)):
        own = order[classes[order] == index]
        share[own] = (np.arange(len(own)) + 0.5) / len(own)
    return np.sort(np.argsort(share, kind="stable")[:wanted])
