"""The authorities of the web, read once by a process and not for each call."""

from __future__ import annotations

import os
import ssl
from functools import cache
from typing import Any

from httpx._transports import default

_make = default.create_ssl_context


@cache
def _made_once(*_: str | None) -> ssl.SSLContext:
    return _make()


def _make_context(
    verify: Any = True, cert: Any = None, trust_env: bool = True
) -> ssl.SSLContext:
    if verify is not True or cert is not None or not trust_env:
        return _make(verify, cert, trust_env)
    return _made_once(*map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR")))


def share_authorities() -> None:
    """Let httpx share its default context: each costs 30 ms of CPU, and nobody changes
    one. What a test verifies with another one stays its own.
    """
    default.create_ssl_context = _make_context  # type: ignore[attr-defined]
