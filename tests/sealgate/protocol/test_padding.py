"""Buckets: how much a length still says, and at what price."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealgate.protocol.bhttp import Request, decode_request, encode_request
from sealgate.protocol.padding import MIN_PADDED_BYTES, pad, padded_size


@given(st.integers(0, 1 << 40))
def test_a_bucket_holds_its_message_at_a_bounded_price(size):
    padded = padded_size(size)
    assert padded >= max(size, MIN_PADDED_BYTES)
    assert padded <= max(MIN_PADDED_BYTES, size * 1.12)
    assert padded_size(padded) == padded


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_buckets_keep_the_order(one, other):
    assert (padded_size(one) <= padded_size(other)) or one > other


@pytest.mark.parametrize(("low", "high"), [(0, 1024), (1025, 1088), (1089, 1152)])
def test_a_bucket_is_one_length(low, high):
    assert {padded_size(size) for size in range(low, high + 1)} == {high}


def test_few_buckets_up_to_a_megabyte():
    assert len({padded_size(size) for size in range(1 << 20)}) == 225


def test_a_padded_message_is_the_message():
    request = Request(b"POST", b"https", b"h", b"/", (), b"body", ((b"a", b"b"),))
    padded = pad(encode_request(request))
    assert len(padded) == 1024
    assert decode_request(padded) == request
