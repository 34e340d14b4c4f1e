"""Each subject counts once, by an event chosen uniformly, wherever it was answered."""

from __future__ import annotations

import secrets
from collections import Counter
from random import Random

import numpy as np
import pytest
from scipy import stats

from models.manifest import Column, Manifest, Tensor
from sealgate.protocol.tensors import TensorSpec
from security.errors import MonitoringError
from security.monitoring.counts import Counts, Sealer, _pause, merge
from security.monitoring.layout import layout_of

INPUT = Tensor(TensorSpec("x", "FP32", (-1, 1)), (Column("a", 0, 10),))
LAYOUT = layout_of(Manifest("toy", "1", (INPUT,), (INPUT,), 99))
ALICE, BOB = "a" * 32, "b" * 32
NOTHING: dict[str, np.ndarray] = {}


def counts(max_subjects: int = 100) -> Counts:
    return Counts(LAYOUT, max_subjects=max_subjects)


def add(some: Counts, subject: str, *values: float) -> None:
    given = {"x": np.array(values, dtype=np.float32).reshape(-1, 1)}
    some.add(subject, len(values), given, NOTHING)


def kept(*some: Counts) -> list[int]:
    parts = [item.take(whole=True)[0] for item in some]
    return sorted(merge(parts, 1)[:, 0].tolist())


def test_a_heavy_subject_counts_once() -> None:
    here, there = counts(), counts()
    for _ in range(500):
        add(here, ALICE, 0.5, 0.5, 0.5)
        add(there, ALICE, 0.5)
    add(there, BOB, 9.5)
    assert kept(here, there) == [2, 11]


def test_which_event_counts_is_uniform_over_rows_requests_and_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten events of one subject: two requests of several rows here, the rest there."""
    # The same draws each time, of a generator that is as uniform.
    monkeypatch.setattr("security.monitoring.counts._random", Random(1).random)
    found: Counter[int] = Counter()
    for _ in range(4000):
        here, there = counts(), counts()
        add(here, ALICE, 0.5, 1.5, 2.5)
        add(here, ALICE, 3.5, 4.5)
        for value in (5.5, 6.5, 7.5, 8.5, 9.5):
            add(there, ALICE, value)
        found.update(kept(here, there))
    seen = [found[code] for code in range(2, 12)]
    assert sum(seen) == 4000
    # Uniform draws fail it for one seed of a million, and this is none of those.
    assert stats.chisquare(seen).pvalue > 1e-6


def test_a_change_is_taken_once_and_again_if_it_went_nowhere() -> None:
    some = counts()
    assert some.take(whole=False) == (b"", set())
    add(some, ALICE, 3.5)
    data, changed = some.take(whole=False)
    assert merge([data], 1).tolist() == [[5]]
    assert some.take(whole=False)[0] == b""
    some.put_back(changed)
    assert merge([some.take(whole=False)[0]], 1).tolist() == [[5]]


def test_subjects_beyond_the_bound_are_not_kept() -> None:
    some = counts(max_subjects=1)
    for subject in (ALICE, BOB, ALICE):
        add(some, subject, 1.5)
    assert len(some) == 1


def test_a_segments_length_hides_how_many_there_are() -> None:
    lengths = set()
    for number in (1, 20, 64):
        some = counts()
        for _ in range(number):
            add(some, secrets.token_hex(16), 1.5)
        lengths.add(len(some.take(whole=True)[0]))
    assert len(lengths) == 1


@pytest.mark.parametrize("tag", [1.0, 0.5, 1e-12, 1e-300, 0.0])
def test_a_pause_is_a_number_of_events_whatever_the_tag(tag: float) -> None:
    assert 0 <= _pause(tag) <= 1 << 62
    assert (_pause(tag) == 0) >= (tag == 1.0)


def test_what_is_sealed_opens_in_its_place_with_its_key_only() -> None:
    secret = secrets.token_bytes(32)
    sealer = Sealer(secret)
    some = counts()
    add(some, ALICE, 1.5)
    plain, _ = some.take(whole=True)
    sealed = sealer.seal(plain, "here")
    assert Sealer(secret).open(sealed, "here") == plain
    assert bytes.fromhex(ALICE) not in sealed
    assert secret.hex() not in repr(sealer)
    changed = bytes([sealed[0] ^ 1]) + sealed[1:]
    for other, data, place in (
        (sealer, sealed, "there"),
        (sealer, changed, "here"),
        (sealer, b"", "here"),
        (Sealer(secrets.token_bytes(32)), sealed, "here"),
    ):
        with pytest.raises(MonitoringError):
            other.open(data, place)
    with pytest.raises(MonitoringError):
        Sealer(b"short")


def test_parts_of_another_layout_are_refused() -> None:
    with pytest.raises(MonitoringError):
        merge([b"x" * 7], 1)
    assert merge([], 3).shape == (0, 3)
