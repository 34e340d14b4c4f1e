"""A model's first runs, before it is ready: what they teach decides how it is run.

The inputs are made up from the manifest. Nothing here refuses a model: one that fails
on them is run in a thread, one request at a time, and that is always right. One whose
answers have another shape than its manifest says is named in the log: it fails on
requests, too.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from sealgate.protocol.tensors import Array
from security.admission.loaded import LoadedModel
from security.admission.signature import ShapeError
from service.inference.batching import InferenceFailedError
from service.inference.memory import give_back

__all__ = ["Lesson", "limited", "tidy_up", "warm_up"]

_SAMPLES = 9

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """What the first runs taught.

    Attributes:
        rows_apart: rows together gave what each gave alone, as far as was seen.
        inline_rows: a run of so many rows is short.
        at_once_rows: and of so many, very short.
    """

    rows_apart: bool = False
    inline_rows: int = 0
    at_once_rows: int = 0


def warm_up(
    model: LoadedModel,
    *,
    inline_s: float,
    at_once_s: float = 0.0,
    max_batch_rows: int,
    limit_s: float = 2.0,
) -> Lesson:
    """Run a model for the first times.

    Args:
        model: just loaded.
        inline_s: how long a short run takes at most.
        at_once_s: and a very short one.
        max_batch_rows: rows that requests may share a run of.
        limit_s: until the runs are stopped; what was not learned is not assumed.
    """
    with limited(limit_s) as options:
        probe = _Probe(model, options)
        try:
            probe.run(probe.sample(1, seed=0))
            apart = max_batch_rows > 1 and probe.rows_apart()
            rows = max(max_batch_rows, model.manifest.max_rows)
            return Lesson(apart, *probe.short_rows((inline_s, at_once_s), rows))
        except ShapeError as error:
            _log.warning("%s: %s", model.manifest.tag, error)
            return Lesson()
        except InferenceFailedError:
            return Lesson()


def tidy_up(model: LoadedModel, *, limit_s: float = 2.0) -> None:
    """Give back the memory that a run had taken when it was stopped.

    onnxruntime keeps it for later runs. It lets go at the end of a run that asks for
    it, but of none that is stopped or fails, so another run has to ask: one row.
    """
    with limited(limit_s) as options, contextlib.suppress(InferenceFailedError):
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        probe = _Probe(model, options)
        probe.run(probe.sample(1, seed=0))
    give_back()


@contextlib.contextmanager
def limited(limit_s: float) -> Iterator[ort.RunOptions]:
    """Options of runs that are stopped together, after so many seconds."""
    options = ort.RunOptions()
    timer = threading.Timer(limit_s, _terminate, [options])
    timer.daemon = True
    timer.start()
    try:
        yield options
    finally:
        timer.cancel()


class _Probe:
    def __init__(self, model: LoadedModel, options: ort.RunOptions) -> None:
        self._model = model
        self._inputs = model.manifest.inputs
        self._options = options

    def run(self, inputs: dict[str, Array]) -> list[Array]:
        return self._model.run_whole(inputs, self._options)

    def sample(self, rows: int, *, seed: int) -> dict[str, Array]:
        random = np.random.default_rng(seed)
        return {item.spec.name: item.made_up(rows, random) for item in self._inputs}

    def rows_apart(self) -> bool:
        """Whether every tensor has a first axis of rows, and they do not mix.

        A model that normalises over the whole run, say, would let one caller's answer
        depend on another's input: those are told by their answers to random rows.
        """
        tensors = (*self._inputs, *self._model.manifest.outputs)
        if any(tensor.spec.shape[:1] != (-1,) for tensor in tensors):
            return False
        try:
            return all(self._is_apart(self.sample(3, seed=seed)) for seed in (1, 2))
        except ShapeError:
            raise
        except InferenceFailedError:
            if self._options.terminate:
                raise
            return False

    def _is_apart(self, inputs: dict[str, Array]) -> bool:
        together = self.run(inputs)
        for row in range(3):
            alone = self.run({n: a[row : row + 1] for n, a in inputs.items()})
            if not _same(alone, [array[row : row + 1] for array in together]):
                return False
        return all(len(array) == 3 for array in together)

    def short_rows(self, limits_s: tuple[float, float], max_rows: int) -> list[int]:
        """Up to how many rows a run takes no longer: powers of two, or 0.

        Only where an input's size follows from its rows; of others the size, and with
        it the time, is the caller's to choose.
        """
        short = [0, 0]
        if any(-1 in tensor.spec.shape[1:] for tensor in self._inputs):
            return short
        rows = 1
        while rows <= max_rows:
            seconds = self._seconds(rows)
            if seconds > max(limits_s):
                break
            for place, limit_s in enumerate(limits_s):
                # Once it took longer, it is not short for more rows either.
                if seconds <= limit_s and short[place] == rows // 2:
                    short[place] = rows
            rows *= 2
        return short

    def _seconds(self, rows: int) -> float:
        inputs = self.sample(rows, seed=0)
        seconds = []
        for _ in range(_SAMPLES):
            began = time.perf_counter()
            self.run(inputs)
            seconds.append(time.perf_counter() - began)
        # The least: what comes on top is the machine's other work.
        return min(seconds)


def _same(left: Sequence[Array], right: Sequence[Array]) -> bool:
    for a, b in zip(left, right):
        if a.shape != b.shape:
            return False
        if a.dtype.kind == "f":
            if not np.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True):
                return False
        elif not np.array_equal(a, b):
            return False
    return True


def _terminate(options: ort.RunOptions) -> None:
    options.terminate = True
