"""What breaks in a turn: who is answered all the same, and what is given back."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from security.access.quota_table import Limits
from service.errands import Errand
from service.inference.batching import Batcher
from service.telemetry.recorder import Recorder
from tests.service.test_turns import GOOD, message, tensors
from tests.support.rooms import Rooms, token, wire
from tests.support.side_by_side import House, play

ODD = tensors(data=[7, 7, 7])


@pytest.fixture
def rooms(tmp_path: Path) -> Rooms:
    # Slots only: no budget has to be reserved anew when a minute ends.
    limits = Limits(None, None, None, None, 1000)
    return wire(tmp_path, require_sealed=False, limits=limits)


def batcher(house: House) -> Batcher:
    state = house.rooms.routes.lineup.find("toy")
    assert state is not None
    return state.content.batcher


def held(house: House) -> tuple[int, int, int]:
    """What requests hold: slots, places in the queue, bytes of their inputs."""
    accounts = house.rooms.routes.quotas._accounts.values()
    model = batcher(house)
    return sum(one.in_use for one in accounts), model.waiting, -model._budget._left


def breaking(call: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    """The same call with a bug in it."""

    def broken(*arguments: Any, **named: Any) -> Any:
        if when(*arguments):
            raise LookupError("a bug, and no refusal")
        return call(*arguments, **named)

    return broken


async def turn(house: House, *bodies: bytes) -> list[int]:
    """Statuses of requests that are there in one turn and go side by side.

    First their head has to be known, and as many slots as that takes reserved.
    """
    quotas, bearer = house.rooms.routes.quotas, token("infer:toy")
    for _ in range(10):
        clients = [await house.connect() for _ in bodies]
        for account in quotas._accounts.values():
            await quotas._hold(account, len(clients))
        house.guard.ordinary = 0
        for client, body in zip(clients, bodies):
            client.writer.write(message(bearer, body))
        statuses = [(await client.take())[0] for client in clients]
        if not house.guard.ordinary:
            return statuses
    raise AssertionError("all went the ordinary way")


STEPS = ["begin", "finish_at_once"]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_breaks_for_one_gives_back_what_it_held(
    rooms: Rooms, name: str
) -> None:
    inferences = rooms.routes.inferences

    def is_odd(first: Any, *_: Any) -> bool:
        asked = first if name == "begin" else first.asked
        return bool(asked.content.document["inputs"][0]["data"] == [7, 7, 7])

    setattr(inferences, name, breaking(getattr(inferences, name), is_odd))

    async def scene(house: House) -> None:
        before = held(house)
        assert await turn(house, GOOD, GOOD, ODD) == [200, 200, 500]
        assert held(house) == before

    play(rooms, scene)


def test_a_run_that_breaks_ends_for_those_who_wait_for_it(rooms: Rooms) -> None:
    async def scene(house: House) -> None:
        before, model = held(house), batcher(house)

        def is_odd(inputs: Any, *_: Any) -> bool:
            return bool((inputs["features"] == 7).any())

        model._run = breaking(model._run, is_odd)
        # Each of a shared run that fails is run again by itself.
        assert await turn(house, GOOD, ODD, GOOD) == [200, 500, 200]
        assert held(house) == before

    play(rooms, scene)


@pytest.mark.parametrize("name", ["run_queued", "record_at_once"])
def test_what_breaks_for_all_leaves_nobody_waiting(
    rooms: Rooms, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(house: House) -> None:
        before = held(house)
        with monkeypatch.context() as patch:
            owner: type = Batcher if name == "run_queued" else Recorder
            call = getattr(owner, name)
            patch.setattr(owner, name, breaking(call, lambda *_: True))
            assert await turn(house, GOOD, GOOD, GOOD) == [500] * 3
        assert held(house) == before
        assert await turn(house, GOOD, GOOD, GOOD) == [200] * 3

    play(rooms, scene)


def test_an_idle_connection_keeps_nothing_of_its_last_request(rooms: Rooms) -> None:
    async def scene(house: House) -> None:
        assert await turn(house, GOOD, GOOD, GOOD) == [200] * 3
        gc.collect()
        errands = [one for one in gc.get_objects() if type(one) is Errand]
        assert not [e for e in errands if isinstance(e.connection, house.protocol)]

    play(rooms, scene)
