"""Requests that are decrypted while they arrive: the same answers as in one piece."""

from __future__ import annotations

import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealgate.errors import DecryptionError, EncapsulationError, UnknownKeyError
from sealgate.protocol.hpke import (
    KEM_X25519,
    KEM_XWING,
    HybridPrivateKey,
    PrivateKey,
    Suite,
    setup_receiver,
    setup_sender,
)
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.protocol.ohttp import open_request, seal_request
from sealgate.protocol.ohttp_stream import RequestReceiver

X25519 = PrivateKey.from_bytes(b"\x11" * 32)
XWING = HybridPrivateKey.from_seed(b"\x11" * 32)
CASES = [
    pytest.param(KeyConfig(7, key.kem_id, key.public_bytes, ((1, aead),)), key, id=name)
    for key, aead, name in (
        (X25519, 1, "x25519-aes"),
        (X25519, 3, "x25519-chacha"),
        (XWING, 1, "xwing-aes"),
    )
]
CONFIG = KeyConfig(7, KEM_X25519, X25519.public_bytes, ((1, 1),))
MESSAGE = bytes(range(256)) * 3


def receive(data: bytes, key=X25519, *, size: int | None = None, step: int = 100):
    receiver = RequestReceiver(len(data) if size is None else size, lambda _: key)
    for start in range(0, len(data), step):
        receiver.feed(data[start : start + step])
    return receiver, receiver.finish()


@pytest.mark.parametrize(("config", "key"), CASES)
@pytest.mark.parametrize("step", [1, 6, 7, 100, 5000])
def test_any_portions(config, key, step):
    sealed, context = seal_request(config, MESSAGE)
    receiver, (message, gateway) = receive(sealed, key, step=step)
    assert bytes(message) == MESSAGE
    assert receiver.header.key_id == 7
    assert receiver.enc == sealed[7 : 7 + len(receiver.enc)] != b""
    assert context.open(gateway.seal(b"answer")) == b"answer"


@pytest.mark.parametrize(("config", "key"), CASES)
def test_every_truncation_and_every_flip(config, key):
    sealed, _ = seal_request(config, b"message")
    step = 1 if len(sealed) < 200 else 37
    for end in range(0, len(sealed), step):
        with pytest.raises((EncapsulationError, DecryptionError)):
            receive(sealed[:end], key)
        with pytest.raises(EncapsulationError, match="too short"):
            receive(sealed[:end], key, size=len(sealed))
    for place in range(7, len(sealed), step):
        flipped = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(DecryptionError):
            receive(flipped, key)


def test_more_than_was_announced():
    sealed, _ = seal_request(CONFIG, MESSAGE)
    with pytest.raises(EncapsulationError, match="too long"):
        receive(sealed + b"x", size=len(sealed))


def test_a_key_that_is_not_there_is_told_at_once():
    def find(_):
        raise UnknownKeyError("no such key")

    receiver = RequestReceiver(1 << 40, find)
    receiver.feed(b"\x01\x00\x20\x00\x01\x00")
    with pytest.raises(UnknownKeyError):
        receiver.feed(b"\x01")


def test_a_suite_that_is_not_supported():
    receiver = RequestReceiver(1000, lambda _: X25519)
    with pytest.raises(EncapsulationError, match="unsupported suite"):
        receiver.feed(b"\x01\x00\x20\x00\x01\x00\x02" + bytes(100))


def test_memory_is_taken_when_the_head_is_there():
    tracemalloc.start()
    try:
        RequestReceiver(1 << 30, lambda _: X25519).feed(b"\x01")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_one_copy_is_alive():
    size = 8 << 20
    sealed, _ = seal_request(CONFIG, os.urandom(size))
    receiver = RequestReceiver(len(sealed), lambda _: X25519)
    view = memoryview(sealed)
    tracemalloc.start()
    try:
        for start in range(0, len(sealed), 1 << 16):
            receiver.feed(view[start : start + (1 << 16)])
        message, _ = receiver.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(message) == size
    assert peak < 1.1 * size


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=200), size=st.integers(0, 400))
def test_arbitrary_bytes_raise_our_errors_only(data, size):
    try:
        receive(data, size=size, step=50)
    except (EncapsulationError, DecryptionError):
        return
    raise AssertionError("garbage was opened")


@settings(deadline=None, max_examples=40)
@given(message=st.binary(max_size=500), step=st.integers(1, 600))
def test_as_in_one_piece(message, step):
    sealed, _ = seal_request(CONFIG, message)
    _, (streamed, _) = receive(sealed, step=step)
    assert bytes(streamed) == open_request(sealed, X25519)[0] == message


def test_a_context_opens_in_pieces_and_goes_on():
    suite = Suite(KEM_X25519, 1, 1)
    enc, sender = setup_sender(suite, X25519.public_bytes, b"info")
    first, second = sender.seal(b"first"), sender.seal(b"second")
    context = setup_receiver(suite, X25519, enc, b"info")
    buffer = bytearray(5)
    pieces = context.open_in_pieces()
    pieces.write(first[:2], memoryview(buffer))
    pieces.write(first[2:5], memoryview(buffer)[2:])
    pieces.finish(first[5:])
    assert (bytes(buffer), context.open(second)) == (b"first", b"second")


def test_kems_are_not_mixed_up():
    sealed, _ = seal_request(
        KeyConfig(7, KEM_XWING, XWING.public_bytes, ((1, 1),)), MESSAGE
    )
    with pytest.raises(DecryptionError):
        receive(sealed, X25519)
