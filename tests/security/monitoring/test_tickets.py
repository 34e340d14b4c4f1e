"""Tickets: only their own server and model open them, and nothing in them shows."""

from __future__ import annotations

import base64
import secrets
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.errors import MonitoringError
from security.monitoring.tickets import TICKET_CHARACTERS, Tickets, mark_of
from security.monitoring.windows import window_at

SECRET = bytes(range(32))
WINDOW = window_at("weekly", 1_796_000_000)
SUBJECT = bytes(range(16))
ANSWERS = [(b"\0\0\0\1", 4), (b"\0\0\0\0", 0)]


@pytest.fixture(scope="module")
def office() -> Tickets:
    return Tickets(SECRET)


@pytest.fixture(scope="module")
def ticket(office: Tickets) -> str:
    return office.seal("toy", "1.0.0", WINDOW, SUBJECT, ANSWERS)[0][1]


def test_what_a_ticket_says(office: Tickets) -> None:
    made = office.seal("toy", "1.0.0", WINDOW, SUBJECT, ANSWERS)
    opened = [office.open("toy", text) for _, text in made]
    assert [(one.answer, one.bin) for one in opened] == ANSWERS
    assert [one.id for one in opened] == [identifier for identifier, _ in made]
    assert {one.subject for one in opened} == {SUBJECT}
    assert {one.mark for one in opened} == {mark_of("toy", "1.0.0")}
    assert {one.window for one in opened} == {WINDOW}
    assert all(len(base64.urlsafe_b64decode(text)) == 60 for _, text in made)
    assert "answer" not in repr(opened[0])
    assert repr(office) == "<Tickets>"


@pytest.mark.parametrize("length", ["daily", "weekly", "monthly"])
def test_windows_of_every_length(office: Tickets, length: str) -> None:
    window = window_at(length, 1_796_000_000)
    ((_, text),) = office.seal("toy", "1.0.0", window, SUBJECT, ANSWERS[:1])
    assert office.open("toy", text).window == window


def test_the_same_answer_has_another_ticket_each_time(office: Tickets) -> None:
    made = office.seal("toy", "1.0.0", WINDOW, SUBJECT, ANSWERS[:1] * 100)
    assert len({text[4:] for _, text in made}) == 100


def test_of_another_model(office: Tickets, ticket: str) -> None:
    with pytest.raises(MonitoringError, match="no ticket of this server and model"):
        office.open("other", ticket)


def test_of_another_server(ticket: str) -> None:
    with pytest.raises(MonitoringError, match="no ticket of this server and model"):
        Tickets(secrets.token_bytes(32)).open("toy", ticket)


def test_of_another_window(office: Tickets, ticket: str) -> None:
    """Its header is not secret, but bound, and each window has a key of its own."""
    data = bytearray(base64.urlsafe_b64decode(ticket))
    data[2] += 7
    with pytest.raises(MonitoringError):
        office.open("toy", base64.urlsafe_b64encode(data).decode())


@given(at=st.integers(0, TICKET_CHARACTERS - 1), other=st.characters(codec="ascii"))
def test_changed_anywhere(office: Tickets, ticket: str, at: int, other: str) -> None:
    if other != ticket[at]:
        with pytest.raises(MonitoringError):
            office.open("toy", ticket[:at] + other + ticket[at + 1 :])


@given(text=st.text(max_size=200))
def test_anything_else(office: Tickets, text: str) -> None:
    with pytest.raises(MonitoringError, match="no ticket of this server and model"):
        office.open("toy", text)


@given(data=st.binary(min_size=60, max_size=60))
def test_as_long_as_one(office: Tickets, data: bytes) -> None:
    with pytest.raises(MonitoringError):
        office.open("toy", base64.urlsafe_b64encode(data).decode())


def test_a_key_that_is_too_short() -> None:
    with pytest.raises(MonitoringError, match="less than 32 bytes"):
        Tickets(bytes(16))


def test_guesses_cost_no_memory(office: Tickets) -> None:
    """Keys of windows that strangers name are let go again."""
    began = time.thread_time()
    for day in range(2000):
        data = bytes((0x10,)) + day.to_bytes(2, "big") + bytes(57)
        with pytest.raises(MonitoringError):
            office.open("toy", base64.urlsafe_b64encode(data).decode())
    assert office._aead.cache_info().currsize <= 64
    assert time.thread_time() - began < 20
