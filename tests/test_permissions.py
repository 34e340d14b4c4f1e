"""security.access.permissions: what scopes allow, and that nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from security.access.claims import Principal
from security.access.permissions import (
    authorize_metrics,
    authorize_model,
    model_scope,
)
from security.errors import ScopeError


def principal(*scopes: str) -> Principal:
    return Principal("alice", "app", "1", frozenset(scopes), 0)


@pytest.mark.parametrize("scopes", [("infer:toy",), ("infer:*",), ("x", "infer:toy")])
def test_allows_a_model(scopes: tuple[str, ...]) -> None:
    authorize_model(principal(*scopes), "toy")


@pytest.mark.parametrize(
    "scope",
    [
        "infer:other",
        "infer:toy2",
        "infer:to",
        "infer:TOY",
        "infer:",
        "infer",
        "infer:**",
        "infer:t*",
        "*",
        "toy",
        "metrics",
        "",
    ],
)
def test_refuses_a_model(scope: str) -> None:
    with pytest.raises(ScopeError, match=r"^infer:toy$"):
        authorize_model(principal(scope), "toy")
    with pytest.raises(ScopeError):
        authorize_model(principal(), "toy")


def test_a_model_called_star_is_no_wildcard() -> None:
    # The manifest refuses such a name; the check does not depend on that.
    with pytest.raises(ScopeError):
        authorize_model(principal("infer:toy"), "*")


def test_metrics_need_their_own_scope() -> None:
    authorize_metrics(principal("metrics"))
    for scope in ("infer:*", "infer:metrics", "metrics:read", "METRICS"):
        with pytest.raises(ScopeError, match=r"^metrics$"):
            authorize_metrics(principal(scope))


@given(
    scopes=st.sets(st.text()), model=st.from_regex(r"[a-z0-9-]{1,9}", fullmatch=True)
)
def test_only_the_two_scopes_grant(scopes: set[str], model: str) -> None:
    granted = bool(scopes & {model_scope(model), "infer:*"})
    try:
        authorize_model(principal(*scopes), model)
    except ScopeError:
        assert not granted
    else:
        assert granted
