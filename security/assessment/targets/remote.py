"""An endpoint as a target: black box, sealed, and within what it allows.

Every question goes through the SDK, as a caller's would. A refusal for load or quota is
waited out as the server says; where that takes too long, the scan ends with what it
has. An answer that never comes stops the scan, whose work stays on disk: `Journal`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ManifestError
from models.manifest import Column
from models.output_policy import OutputPolicy
from sealgate.errors import (
    ClientError,
    InvalidInputError,
    OverloadedError,
    TransportError,
)
from sealgate.options import options_of
from sealgate.profile import Profile
from sealgate.retry import RetryPolicy
from security.assessment.targets.answers import Answers, Reading, read_answers
from security.assessment.targets.decision import Stated, settle
from security.assessment.targets.journal import Journal
from security.assessment.targets.target import (
    InputSpec,
    Rows,
    dtype_of,
    input_of,
    side_by_side,
)
from security.assessment.targets.texts import Texts
from security.errors import AssessmentError, BudgetError

__all__ = ["RemoteLimits", "RemoteTarget"]

_AGAIN = "; finished work is kept: run the same command again to go on"


@dataclass(frozen=True)
class RemoteLimits:
    """Bounds on what an endpoint is asked.

    Attributes:
        max_queries: rows, over the whole scan.
        batch_rows: rows of one request.
        timeout_s: for connecting, and for each read and write.
        attempts: of one request, where the endpoint does not answer at all. All of
            them count as one, whether or not the endpoint has run any.
        pause_s: before the second attempt, twice that before the third, and so on.
        retry: where it says not now.
    """

    max_queries: int
    batch_rows: int = 256
    timeout_s: float = 30.0
    attempts: int = 3
    pause_s: float = 0.5
    retry: RetryPolicy = field(
        default_factory=lambda: RetryPolicy(max_retries=20, max_wait_s=120.0)
    )


class RemoteTarget:
    """A model behind an endpoint, asked as its callers ask it.

    Attributes:
        journal: of what was asked, and answered.
        closed: why the endpoint takes no more in this run, or "".
        leaving: what it says that it lets leave of answers.
        added: outputs that it makes from others: ends of intervals, and sets of
            classes, which are no answers of their own.
    """

    kind = "remote"
    sha256: str | None = None

    def __init__(
        self,
        url: str,
        profile: Path,
        limits: RemoteLimits,
        journal: Journal | None = None,
    ) -> None:
        """Ask for the model's metadata.

        Args:
            url: the endpoint's base URL; must be the profile's.
            profile: a client profile's file. Its token is read again before each
                request, so a fresh one may be put there while a scan runs.
            limits: on what is asked.
            journal: of what was asked before; None keeps none.

        Raises:
            AssessmentError: the profile names no model or another server.
            ClientError: no right to the model, or no usable answer.
        """
        from sealgate.client import Client  # noqa: PLC0415  (its HTTP: a moment)

        first = Profile.load(profile)
        if first.model is None:
            raise AssessmentError("the client profile names no model")
        if first.url.rstrip("/") != url.rstrip("/"):
            raise AssessmentError("the client profile is for another URL")
        self._limits = limits
        self._model = first.model
        self._client = Client(
            first.url,
            token=lambda: Profile.load(profile).token,
            options=replace(options_of(first), retry=limits.retry),
            timeout_s=limits.timeout_s,
        )
        self.name = first.model
        self.journal = journal or Journal()
        self.closed = ""
        self._size = limits.batch_rows
        self.shape: tuple[int, ...] = ()
        self.texts = Texts()
        self.reading: Reading
        try:
            metadata = self._patiently(lambda: self._client.metadata(self._model))
            self.spec = _input_spec(metadata)
            self.columns = _columns(metadata)
            self.labels = _labels(metadata)
            self.leaving = _leaving(metadata)
            self.added = _added(metadata)
        except BaseException:
            self.close()
            raise

    @property
    def queries(self) -> int:
        """Rows asked so far, over all runs of the scan."""
        return self.journal.asked

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def calibrate(self, rows: Rows, stated: Stated) -> Answers:
        """As `Target`.

        Raises:
            AssessmentError: the model cannot take the rows, or is no classifier.
            ClientError: no usable answer.
        """
        outputs = self._run_all(rows)
        told = ~self._unanswered(outputs)
        if not told.any():
            raise AssessmentError(
                f"the endpoint abstains: it answers none of {len(rows)} rows"
            )
        self.reading = settle(
            {name: value[told] for name, value in outputs.items()},
            replace(stated, classes=stated.classes or self.labels),
        )
        return self._read(outputs, len(rows))

    def ask(self, rows: Rows) -> Answers:
        """As `Target`.

        Raises:
            BudgetError: the scan has asked all it may.
            AssessmentError: the endpoint does not answer.
        """
        return self._read(self._run_all(rows), len(rows))

    def _read(self, outputs: dict[str, Any], rows: int) -> Answers:
        """Answers; of rows that it abstains from no class, and scores of 0."""
        answers = read_answers(outputs, self.reading, rows)
        silent = self._unanswered(outputs)
        return replace(
            answers,
            scores=np.where(silent[:, None], 0.0, answers.scores),
            labels=np.where(silent, -1, answers.labels),
        )

    def _unanswered(self, outputs: dict[str, Any]) -> NDArray[np.bool_]:
        """Rows that it abstains from ``(n,)``, as it says that it may.

        Every output then has nothing there: scores are 0, a decision is -1 or empty.
        """
        count = len(next(iter(outputs.values())))
        silent = np.full(count, self.leaving.abstain)
        for value in outputs.values():
            nothing: Any = 0
            if value.dtype.kind in "iU":
                nothing = "" if value.dtype.kind == "U" else -1
            silent &= (value.reshape(count, -1) == nothing).all(axis=1)
        return silent

    def _run_all(self, rows: Rows) -> dict[str, Any]:
        answers: list[Any] = self.journal.take(rows)
        left = [place for place, item in enumerate(answers) if item is None]
        if self.queries + len(left) > self._limits.max_queries:
            raise BudgetError(f"all {self._limits.max_queries} queries are spent")
        while left:
            places = left[: self.spec.batch or self._size]
            outputs = self._asked(rows[places])
            if outputs is None:
                continue
            for index, place in enumerate(places):
                answers[place] = {name: value[index] for name, value in outputs.items()}
            left = left[len(places) :]
        names = [name for name in answers[0] if name not in self.added]
        if not names or any(name not in item for name in names for item in answers):
            raise AssessmentError("the endpoint does not answer with its own outputs")
        return {name: np.stack([item[name] for item in answers]) for name in names}

    def _asked(self, rows: Rows) -> dict[str, Any] | None:
        """Answers, kept; or None: the endpoint takes fewer rows at once."""
        if self.closed:
            raise BudgetError(self.closed)
        self.journal.spend(len(rows))
        try:
            outputs = self._infer(rows)
        except (InvalidInputError, OverloadedError) as error:
            self.journal.spend(-len(rows))
            busy = isinstance(error, OverloadedError)
            if busy and (error.retry_after_s is not None or len(rows) == 1):
                self.closed = f"the endpoint takes no more queries now: {error}"
                raise BudgetError(self.closed + _AGAIN) from None
            if self.spec.batch or len(rows) == 1:
                raise AssessmentError(
                    f"the endpoint refuses the rows: {error}"
                ) from None
            self._size = max(1, len(rows) // 2)
            return None
        self.journal.keep(rows, outputs)
        return outputs

    def _infer(self, rows: Rows) -> dict[str, Any]:
        missing = (self.spec.batch or len(rows)) - len(rows)
        filled = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
        inputs = self.spec.feeds(filled, self.shape, self.texts)
        outputs = self._patiently(lambda: self._client.infer(self._model, inputs))
        found = {name: _texts(value)[: len(rows)] for name, value in outputs.items()}
        if any(len(value) != len(rows) for value in found.values()):
            raise AssessmentError(
                f"the endpoint does not answer each of {len(rows)} rows"
            )
        return found

    def _patiently(self, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        for attempt in range(1, self._limits.attempts + 1):
            try:
                return call()
            except TransportError as error:
                if attempt == self._limits.attempts:
                    raise AssessmentError(f"{error}{_AGAIN}") from None
                time.sleep(self._limits.pause_s * attempt)
            except (InvalidInputError, OverloadedError):
                raise
            except ClientError as error:
                raise AssessmentError(f"{error}{_AGAIN}") from None
        raise AssessmentError("the endpoint was not asked")


def _texts(value: Any) -> Any:
    """Text as numpy's own, so that it can be written down."""
    array = np.asarray(value)
    if array.dtype.kind != "O":
        return array
    plain = [
        item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)
        for item in array.ravel().tolist()
    ]
    return np.array(plain, dtype=str).reshape(array.shape)


def _input_spec(metadata: dict[str, Any]) -> InputSpec:
    return side_by_side([_one_input(item) for item in metadata["inputs"]])


def _one_input(stated: dict[str, Any]) -> InputSpec:
    name, datatype = str(stated["name"]), str(stated["datatype"])
    dtype = dtype_of(datatype)
    if dtype is None:
        raise AssessmentError(f"input {name[:40]!r} is {datatype[:20]!r}, no numbers")
    shape = stated.get("shape")
    if not (isinstance(shape, list) and shape and all(_is_size(n) for n in shape)):
        raise AssessmentError(f"input {name[:40]!r} states no usable shape")
    return input_of(name, dtype, [size if size >= 0 else None for size in shape])


def _is_size(value: Any) -> bool:
    return type(value) is int and -1 <= value < 1 << 31


def _columns(metadata: dict[str, Any]) -> tuple[Column, ...]:
    """Names and ranges of the input's columns, where the endpoint states them."""
    listed = [item.get("parameters", {}).get("columns") for item in metadata["inputs"]]
    columns = [item for own in listed for item in own or ()] if all(listed) else ()
    try:
        return tuple(
            Column(str(item["name"]), float(item["low"]), float(item["high"]))
            for item in columns
        )
    except (KeyError, TypeError, ValueError):
        raise AssessmentError("the endpoint states columns without ranges") from None


def _leaving(metadata: dict[str, Any]) -> OutputPolicy:
    """What the endpoint says that it withholds."""
    told = metadata.get("parameters")
    stated = told.get("output_policy", {}) if isinstance(told, dict) else {}
    try:
        return OutputPolicy.from_object(stated, "output_policy")
    except ManifestError as error:
        raise AssessmentError(f"the endpoint's metadata: {error}") from None


def _added(metadata: dict[str, Any]) -> frozenset[str]:
    """Names of the outputs that are made from one that is there, and is not."""
    source = {
        str(item["name"]): item.get("parameters", {}).get("made_from")
        for item in metadata["outputs"]
    }
    plain = {name for name, other in source.items() if other is None}
    return frozenset(name for name, other in source.items() if str(other) in plain)


def _labels(metadata: dict[str, Any]) -> tuple[str, ...]:
    stated = [
        item.get("parameters", {}).get("labels")
        for item in metadata["outputs"]
        if item["name"] not in _added(metadata)
    ]
    labels = [item for item in stated if item]
    return tuple(map(str, labels[0])) if len(labels) == 1 else ()
