"""Batching: runs are shared, bounded, stopped; nobody pays for others."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from security.admission.gate import Admission
from security.admission.loaded import LoadedModel
from security.settings.runtime import RuntimeSettings
from service.inference.batching import (
    InferenceFailedError,
    InferenceTimeoutError,
    OverloadedError,
)
from service.inference.lineup import Lineup
from service.inference.served import Served
from service.inference.warmup import Lesson, warm_up
from service.inference.watchdog import Watchdog
from tests.support.rooms import (
    admitted,
    centring_model,
    counting_model,
    endless_model,
    log_model,
    lookup_model,
    quantising_model,
    reshape_model,
    serving,
    wide_model,
)
from tests.support.servers import ROOT

FOREVER = np.full((1, 3), 1e15, np.float32)


def lineup(admission: Admission, *, timeout_s: float = 20.0, **settings: Any) -> Lineup:
    runtime = RuntimeSettings(**{"at_once_run_us": 0, **settings})
    return serving([admission], timeout_s=timeout_s, settings=runtime)


def only(models: Lineup) -> Served:
    (entry,) = models.table.values()
    return entry.default.content


def batches(models: Lineup) -> float:
    """How many runs there were."""
    text = models._metrics.text().decode()
    lines = text.splitlines()
    prefix = "sealgate_batch_requests_count"
    return sum(float(line.split()[-1]) for line in lines if line.startswith(prefix))


def together(
    models: Lineup, name: str, inputs: list[np.ndarray]
) -> list[list[np.ndarray] | BaseException]:
    """Ask for all at the same moment."""
    served = only(models)

    async def ask() -> list[Any]:
        wanted = [tensor.spec.name for tensor in served.manifest.outputs]
        asked = [models.infer(served, {name: array}, wanted) for array in inputs]
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(ask())


# inline_run_us=0 is the way through threads, the other one that of short runs.
WAYS = [{"inline_run_us": 0}, {"inline_run_us": 50_000}]
AT_ONCE = {"inline_run_us": 50_000, "at_once_run_us": 50_000}


@pytest.mark.parametrize("way", WAYS)
def test_requests_share_runs_and_each_gets_its_own(tmp_path: Path, way: dict) -> None:
    models = lineup(lookup_model(tmp_path), **way)
    inputs = [np.arange(i, i + 1 + i % 5) for i in range(60)]
    answers = together(models, "x", inputs)
    for asked, answer in zip(inputs, answers):
        assert isinstance(answer, list)
        np.testing.assert_array_equal(answer[0][:, 0], asked * 3.0)
    # 176 rows in runs of at most 32.
    assert 6 <= batches(models) <= 12


@pytest.mark.parametrize(("inline_rows", "runs"), [(0, 1), (64, 6)])
def test_large_inputs_are_not_copied_to_share_a_short_run(
    tmp_path: Path, inline_rows: int, runs: int
) -> None:
    models = lineup(wide_model(tmp_path))
    # What a warm-up finds of this model depends on how busy the machine is.
    batcher = only(models).batcher
    batcher.rows_apart, batcher.inline_rows = True, inline_rows
    inputs = [np.full((1, 100_000), number, np.float32) for number in range(6)]
    for number, answer in enumerate(together(models, "x", inputs)):
        assert isinstance(answer, list)
        assert answer[0].tolist() == [[number]]
    assert batches(models) == runs


def test_very_short_runs_wait_for_nobody(tmp_path: Path) -> None:
    models = lineup(lookup_model(tmp_path), **AT_ONCE)
    inputs = [np.arange(i, i + 1 + i % 5) for i in range(20)]
    for asked, answer in zip(inputs, together(models, "x", inputs)):
        assert isinstance(answer, list)
        np.testing.assert_array_equal(answer[0][:, 0], asked * 3.0)
    assert batches(models) == 20


@pytest.mark.parametrize("way", [*WAYS, AT_ONCE])
def test_a_bad_request_fails_alone(tmp_path: Path, way: dict) -> None:
    models = lineup(lookup_model(tmp_path), **way)
    inputs = [np.array([9999 if i % 7 == 3 else i]) for i in range(40)]
    for asked, answer in zip(inputs, together(models, "x", inputs)):
        if asked[0] == 9999:
            assert isinstance(answer, InferenceFailedError)
        else:
            assert isinstance(answer, list)
            assert answer[0][0, 0] == asked[0] * 3


@pytest.mark.parametrize("way", [*WAYS, AT_ONCE])
def test_a_request_that_never_ends_times_out_alone(tmp_path: Path, way: dict) -> None:
    models = lineup(counting_model(tmp_path), timeout_s=3.0, **way)
    inputs = [FOREVER, *(np.full((1, 3), i, np.float32) for i in range(5))]
    assert only(models).batcher.rows_apart
    answers = together(models, "x", inputs)
    assert isinstance(answers[0], InferenceTimeoutError)
    for asked, answer in zip(inputs[1:], answers[1:]):
        assert isinstance(answer, list), answer
        np.testing.assert_array_equal(answer[0], asked)


@pytest.mark.parametrize("way", [WAYS[1], AT_ONCE])
def test_a_long_run_leaves_the_event_loop(tmp_path: Path, way: dict) -> None:
    """Short in every warm-up, and then endless: stopped, and moved to a thread."""
    models = lineup(counting_model(tmp_path), timeout_s=1.0, **way)
    assert only(models).batcher.inline_rows > 0

    async def scene() -> int:
        asked = asyncio.ensure_future(models.infer(only(models), {"x": FOREVER}, ["y"]))
        beats = 0
        while not asked.done():
            await asyncio.sleep(0.01)
            beats += 1
        with pytest.raises(InferenceTimeoutError):
            await asked
        return beats

    assert asyncio.run(scene()) > 3
    assert only(models).batcher.inline_rows == 0
    (answer,) = together(models, "x", [np.ones((2, 3), np.float32)])
    assert isinstance(answer, list)


def test_the_watchdog_is_rearmed() -> None:
    import onnxruntime as ort

    watchdog = Watchdog(limit_s=0.01)

    def stopped() -> bool:
        options = ort.RunOptions()
        watchdog.begin(options)
        deadline = 1000
        while not options.terminate and deadline:
            threading_sleep(0.01)
            deadline -= 1
        watchdog.end()
        return bool(options.terminate)

    from time import sleep as threading_sleep

    assert stopped()
    threading_sleep(0.6)  # long enough for its thread to fall asleep
    assert stopped()


def test_more_than_may_wait_are_turned_away(tmp_path: Path) -> None:
    models = lineup(lookup_model(tmp_path), max_waiting=8)
    answers = together(models, "x", [np.array([i]) for i in range(20)])
    assert sum(isinstance(a, list) for a in answers) == 8
    assert sum(isinstance(a, OverloadedError) for a in answers) == 12
    # And nobody is counted for ever.
    answers = together(models, "x", [np.array([i]) for i in range(8)])
    assert all(isinstance(a, list) for a in answers)


def test_waiting_bytes_are_bounded_over_models(tmp_path: Path) -> None:
    models = lineup(lookup_model(tmp_path), max_waiting_bytes=8 * 10)
    answers = together(models, "x", [np.arange(4)] * 4)
    assert [isinstance(a, list) for a in answers] == [True, True, False, False]
    answers = together(models, "x", [np.arange(10)])
    assert isinstance(answers[0], list)


def scene(models: Lineup, play: Callable[[Served], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(30):
            await play(only(models))

    asyncio.run(run())


def test_cancelling_stops_the_run(tmp_path: Path) -> None:
    models = lineup(counting_model(tmp_path), timeout_s=60.0, inline_run_us=0)

    async def play(served: Served) -> None:
        gone = asyncio.ensure_future(models.infer(served, {"x": FOREVER}, ["y"]))
        await asyncio.sleep(0.1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        # The one slot of this model is free long before the deadline.
        ones = np.ones((1, 3), np.float32)
        await models.infer(served, {"x": ones}, ["y"])
        assert served.batcher.waiting == 0

    scene(models, play)


def test_cancelled_while_waiting(tmp_path: Path) -> None:
    models = lineup(counting_model(tmp_path), timeout_s=60.0, inline_run_us=0)

    async def play(served: Served) -> None:
        first = asyncio.ensure_future(models.infer(served, {"x": FOREVER}, ["y"]))
        await asyncio.sleep(0.1)
        ones = np.ones((1, 3), np.float32)
        second = asyncio.ensure_future(models.infer(served, {"x": ones}, ["y"]))
        await asyncio.sleep(0.1)
        assert len(served.batcher._queue) == 1
        second.cancel()
        await asyncio.wait([second])
        assert not served.batcher._queue
        assert not first.done()
        first.cancel()
        await asyncio.wait([first])

    scene(models, play)


def test_nobody_waits_beyond_the_deadline(tmp_path: Path) -> None:
    models = lineup(counting_model(tmp_path), timeout_s=2.0, inline_run_us=0)

    async def play(served: Served) -> None:
        first = asyncio.ensure_future(models.infer(served, {"x": FOREVER}, ["y"]))
        await asyncio.sleep(0.5)
        ones = np.ones((1, 3), np.float32)
        # It cannot share the run that is under way; when that is stopped, it runs.
        second = asyncio.ensure_future(models.infer(served, {"x": ones}, ["y"]))
        with pytest.raises(InferenceTimeoutError):
            await first
        assert len(await second) == 1

    scene(models, play)


def test_a_stuck_model_leaves_a_thread_to_others(tmp_path: Path) -> None:
    admissions = [endless_model(tmp_path / "odd"), admitted(tmp_path / "toy")]
    settings = RuntimeSettings(inline_run_us=0, at_once_run_us=0)
    models = serving(admissions, timeout_s=60.0, settings=settings)

    async def play() -> None:
        odd, toy = models.find("odd"), models.find("toy")
        assert odd is not None
        assert toy is not None
        rows = np.ones((1, 3), np.float32)
        stuck = [
            asyncio.ensure_future(models.infer(odd.content, {"x": rows}, ["y"]))
            for _ in range(3)
        ]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(30):
            await models.infer(toy.content, {"features": rows}, ["label"])
        for item in stuck:
            item.cancel()
        await asyncio.wait(stuck)

    asyncio.run(play())


def test_waiting_for_others_to_share_a_run(tmp_path: Path) -> None:
    models = lineup(lookup_model(tmp_path), max_batch_delay_ms=1000, max_batch_rows=4)

    async def play(served: Served) -> None:
        async def ask(i: int) -> float:
            (rows,) = await models.infer(served, {"x": np.array([i])}, ["y"])
            return float(rows[0, 0])

        first = asyncio.ensure_future(ask(1))
        await asyncio.sleep(0.02)
        assert not first.done()
        assert await asyncio.gather(first, ask(2), ask(3), ask(4)) == [3, 6, 9, 12]

    scene(models, play)
    assert batches(models) == 1


@pytest.mark.parametrize(
    ("make", "apart"),
    [
        (lookup_model, True),
        (log_model, True),
        (counting_model, True),
        (centring_model, False),  # it would mix callers
        (quantising_model, False),
        (reshape_model, False),
        (admitted, True),
    ],
)
def test_what_warming_up_teaches(
    tmp_path: Path, make: Callable[[Path], Admission], apart: bool
) -> None:
    model = LoadedModel(make(tmp_path))
    lesson = warm_up(model, inline_s=0.05, max_batch_rows=8)
    assert lesson.rows_apart is apart
    assert (lesson.inline_rows > 0) is (make is not reshape_model)
    assert warm_up(model, inline_s=0.0, max_batch_rows=1) == Lesson()


def test_warming_up_ends(tmp_path: Path) -> None:
    model = LoadedModel(endless_model(tmp_path))
    assert warm_up(model, inline_s=1, max_batch_rows=8, limit_s=0.2) == Lesson()


def test_outputs_in_the_order_asked_for(tmp_path: Path) -> None:
    models = lineup(admitted(tmp_path))
    rows = np.eye(3, dtype=np.float32)

    async def play(served: Served) -> None:
        one, two, three = await asyncio.gather(
            models.infer(served, {"features": rows}, ["label"]),
            models.infer(served, {"features": rows[:1]}, ["label", "probabilities"]),
            models.infer(served, {"features": rows[1:]}, ["probabilities"]),
        )
        assert [array.shape for array in one] == [(3,)]
        assert [array.shape for array in two] == [(1,), (1, 2)]
        assert [array.shape for array in three] == [(2, 2)]

    scene(models, play)
    assert batches(models) == 1


BOMB = """
import asyncio, sys
from pathlib import Path
import numpy as np
from service.inference.batching import InferenceFailedError
from service.inference.lineup import Lineup
from service.inference.memory import bound_memory
from tests.support.rooms import bomb_model, serving
models = serving([bomb_model(Path(sys.argv[1]))], timeout_s=60)
# What the imports have mapped differs from machine to machine: a bound above that.
status = Path("/proc/self/status").read_text()
used = 1024 * int(status.partition("VmData:")[2].split()[0])
bound_memory(used + (1 << 30))
ask = lambda n: models.infer(
    models.find("odd").content, {"x": np.full((1, 3), n, np.float32)}, ["y"]
)
for size in (0, 64, 100_000, 0):
    try:
        (y,) = asyncio.run(ask(size))
        print("answered", y[0, 0])
    except InferenceFailedError:
        print("failed")
"""


def test_a_run_that_wants_too_much_memory_fails_alone(tmp_path: Path) -> None:
    """The worker, and the next request, live on."""
    result = subprocess.run(
        [sys.executable, "-c", BOMB, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    answers = ["answered 0.0", "failed", "failed", "answered 0.0"]
    assert result.stdout.splitlines() == answers, result.stderr
