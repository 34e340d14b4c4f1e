"""service.http.intake: who is read, who is worked on, and who has to go."""

from __future__ import annotations

import asyncio

import pytest

from security.settings.service import ServiceSettings
from service.http.intake import Intake, Visit
from service.problems import Problem
from service.telemetry.metrics import Metrics


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(**bounds: int) -> tuple[Intake, Clock]:
    clock = Clock()
    return Intake(ServiceSettings(**bounds), Metrics(), clock), clock


class Reader:
    """A request whose body arrives when the test says so."""

    def __init__(self, intake: Intake, size: int | None) -> None:
        self.visit = Visit(intake)
        self.done = asyncio.Event()
        self.task = asyncio.create_task(self._read(size))

    async def _read(self, size: int | None) -> str:
        try:
            async with self.visit.reading(size, 60.0):
                await self.done.wait()
        except Problem as problem:
            return problem.code
        else:
            return "read"
        finally:
            self.visit.leave()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_readers_hold_no_place_in_work() -> None:
    async def run() -> None:
        intake, _ = make(max_concurrency=1)
        readers = [Reader(intake, 10) for _ in range(1)]
        await settle()
        readers += [Reader(intake, 10)]
        await settle()
        assert (intake.in_work, len(intake.readers), intake.held_bytes) == (0, 2, 20)
        working = Visit(intake)
        with pytest.raises(Problem, match="overloaded"):
            Visit(intake)
        # Whoever has read its body needs a place then.
        readers[0].done.set()
        assert await readers[0].task == "overloaded"
        working.leave()
        readers[1].done.set()
        assert await readers[1].task == "read"
        assert (intake.in_work, len(intake.readers), intake.held_bytes) == (0, 0, 0)

    asyncio.run(run())


def test_the_slowest_makes_room_for_memory() -> None:
    async def run() -> None:
        intake, clock = make(max_body_memory_bytes=100)
        fast, slow = Reader(intake, 40), Reader(intake, 40)
        await settle()
        fast.visit.take(30)
        slow.visit.take(1)
        assert intake.held_bytes == 80
        clock.now = 2.0
        third = Reader(intake, 40)
        assert await slow.task == "body-timeout"
        await settle()
        for reader in (fast, third):
            reader.done.set()
            assert await reader.task == "read"
        assert intake.held_bytes == 0

    asyncio.run(run())


def test_nobody_is_sent_away_at_once() -> None:
    async def run() -> None:
        intake, clock = make(max_readers=2)
        readers = [Reader(intake, 1), Reader(intake, 1)]
        await settle()
        clock.now = 0.9
        assert await Reader(intake, 1).task == "overloaded"
        clock.now = 1.1
        newcomer = Reader(intake, 1)
        await settle()
        codes = {reader.task.done() for reader in readers}
        assert codes == {True, False}
        for reader in (*readers, newcomer):
            reader.done.set()
            await reader.task

    asyncio.run(run())


def test_what_is_in_work_is_accounted_for_and_never_sent_away() -> None:
    async def run() -> None:
        intake, clock = make(max_body_memory_bytes=100)
        visit = Visit(intake)
        async with visit.reading(90, 60.0):
            visit.take(90)
        clock.now = 100.0
        assert (intake.in_work, intake.held_bytes) == (1, 90)
        assert await Reader(intake, 20).task == "overloaded"
        visit.leave()
        visit.leave()
        assert (intake.in_work, intake.held_bytes) == (0, 0)

    asyncio.run(run())


def test_a_body_of_unknown_length_is_counted_as_it_arrives() -> None:
    async def run() -> None:
        intake, _ = make(max_body_memory_bytes=100)
        visit = Visit(intake)
        async with visit.reading(None, 60.0):
            visit.take(60)
            visit.take(40)
            assert intake.held_bytes == 100
            with pytest.raises(Problem, match="overloaded"):
                visit.take(1)
        visit.leave()
        assert intake.held_bytes == 0

    asyncio.run(run())


def test_a_body_that_is_larger_than_all_room() -> None:
    async def run() -> None:
        intake, clock = make(max_body_memory_bytes=100)
        other = Reader(intake, 50)
        await settle()
        clock.now = 5.0
        assert await Reader(intake, 101).task == "overloaded"
        other.done.set()
        assert await other.task == "read"

    asyncio.run(run())
