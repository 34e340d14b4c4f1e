"""Which keys are published while new ones are not in the public log yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from security.audit.offers import Offers
from security.sealing.keyring import KeyRing, generate_key, load_keyring
from service.offering import Offering
from tests.security.audit.test_offers import settings_in


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rings(tmp_path: Path) -> tuple[KeyRing, KeyRing, KeyRing]:
    """Before a rotation, after it, and after the first key was retired."""
    loaded = []
    for name, ids in (("before", (1,)), ("after", (1, 2)), ("retired", (2,))):
        for key_id in ids:
            generate_key(tmp_path / name, key_id)
        loaded.append(load_keyring(tmp_path / name))
    before, after, retired = loaded
    return before, after, retired


@pytest.fixture
def offering(tmp_path: Path, rings: tuple[KeyRing, ...], clock: Clock) -> Offering:
    made = Offering(
        Offers(settings_in(tmp_path)),
        ring=lambda: made_ring[0],
        admissions=list,
        monotonic=clock,
    )
    made_ring = [rings[0]]
    made._look()
    made_ring[0] = rings[1]
    return made


def test_those_of_before_until_the_new_ones_are_covered(
    offering: Offering, rings: tuple[KeyRing, ...]
) -> None:
    before, after, _ = rings
    assert offering.published(before) is before
    assert offering.published(after) is before  # seen by the gateway first
    offering._look()
    assert offering.published(after) is before  # there, and not shown by all
    offering._look()
    assert offering.published(after) is after
    assert offering.published(after) is after


def test_no_longer_than_a_minute(
    offering: Offering, rings: tuple[KeyRing, ...], clock: Clock
) -> None:
    """Else a configuration could be kept for longer than its key opens requests."""
    before, after, _ = rings
    assert offering.published(after) is before
    clock.now = 59.0
    assert offering.published(after) is before
    clock.now = 61.0
    assert offering.published(after) is after


def test_at_once_where_nothing_else_opens(
    offering: Offering, rings: tuple[KeyRing, ...]
) -> None:
    before, _, retired = rings
    assert offering.published(before) is before
    assert offering.published(retired) is retired
