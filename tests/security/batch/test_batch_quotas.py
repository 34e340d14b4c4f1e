"""The table of jobs in quotas.toml: apart from callers', closed; none lets none run."""

from __future__ import annotations

import pytest

from security.access.quota_table import Limits, load_quotas, parse_quotas
from security.access.tokens import Principal
from security.errors import SettingsError
from tests.support.servers import ROOT


def principal(name: str) -> Principal:
    return Principal(name, name, "", frozenset(), 0)


def test_jobs_have_limits_of_their_own() -> None:
    table = parse_quotas(
        b"[default]\nrows_per_day = 5\n[[rule]]\nmodels = ['m']\nrows_per_day = 6\n"
        b"[batch.default]\nrows_per_day = 7\n"
        b"[[batch.rule]]\nsubjects = ['night-*']\nrows_per_day = 8\n",
        where="quotas.toml",
    )
    assert table.limits(principal("night-1"), "m").rows_per_day == 6
    assert table.batch is not None
    assert table.batch.limits(principal("night-1"), "m").rows_per_day == 8
    found = table.batch.limits(principal("day"), "m")
    assert found == Limits(None, None, None, 7, None)


def test_no_table_lets_no_job_run() -> None:
    assert parse_quotas(b"[default]\n", where="x").batch is None
    assert load_quotas(ROOT / "deploy" / "quotas.toml").batch is not None


@pytest.mark.parametrize(
    "text",
    [
        b"batch = 3",
        b"[batch]\nrows_per_day = 3",
        b"[batch.default]\nconcurrent_requests = 3",
        b"[batch.default]\nrow_per_day = 3",
        b"[[batch.rule]]\nclients = ['x']",
        b"[batch.batch.default]\nrows_per_day = 3",
    ],
)
def test_what_is_no_table_of_jobs(text: bytes) -> None:
    with pytest.raises(SettingsError, match="x: "):
        parse_quotas(text, where="x")
