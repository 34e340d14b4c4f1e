"""A waived model through the real chain: commands, server, passport, metrics, card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sealgate import Client
from tests.conftest import check_security, mint, run_security, toy_settings
from tests.support.bundles import NAME, POLICY, Keys, write_bundle
from tests.support.servers import Server, serve

WAIVABLE = (
    POLICY
    + b"""
[waivers]
signers = ["privacy-officer"]
max_days = 30
kinds = ["quality"]
"""
)
REASON = "the hold-out arrives on Monday"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment whose model has no quality report, and a waiver instead."""
    home = tmp_path_factory.mktemp("waived") / "home"
    home.mkdir()
    (home / "policy.toml").write_bytes(WAIVABLE)
    settings = toy_settings(home)
    check_security(home, "keygen", **settings)
    folder = str(home / "bundle")
    write_bundle(
        home / "bundle", Keys.generate(), kinds=("structure", "privacy"), admit=False
    )
    sign = ("sign", folder)
    check_security(home, *sign, "--role", "trainer", **settings)
    check_security(home, *sign, "--role", "assessor", "--kind", "structure", **settings)
    refused = run_security(home, "admit", folder, **settings)
    assert refused.returncode == 1
    assert "quality report is missing" in refused.stderr
    arguments = ("--kind", "quality", "--reason", REASON, "--days", "7")
    check_security(
        home, "waive", folder, *arguments, "--role", "privacy-officer", **settings
    )
    assert "waiver" in check_security(home, "admit", folder, **settings)
    check_security(home, "documents", folder, **settings)
    check_security(home, "store", folder, **settings)
    return home


@pytest.fixture(scope="module")
def waived(home: Path) -> Iterator[Server]:
    with serve(
        "service.app:Sealgate", home, extra=toy_settings(home), alone=True
    ) as server:
        settings = toy_settings(home)
        check_security(
            home, "profile", "--url", server.url, "--model", NAME, **settings
        )
        yield server


def test_the_passport_shows_it(waived: Server, home: Path) -> None:
    with Client.from_profile(home / "profile.json") as client:
        passport = client.passport(NAME)
    assert set(passport.waivers) == {"quality"}
    assert passport.waivers["quality"].reason == REASON
    assert set(passport.reports) == {"structure", "privacy"}


def test_the_metrics_show_it(waived: Server, home: Path) -> None:
    headers = {"authorization": f"Bearer {mint(home, 'metrics')}"}
    text = httpx.get(waived.url + "/metrics", headers=headers).text
    assert 'waived="quality"' in text


def test_the_card_and_verify_show_it(home: Path) -> None:
    assert REASON in (home / "bundle" / "MODEL_CARD.md").read_text()
    shown = check_security(home, "verify", str(home / "bundle"), **toy_settings(home))
    assert "waiver" in shown
    assert "holds until" in shown


def test_without_the_waiver_nothing_is_left(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in (home / "bundle").rglob("*"):
        if path.is_file() and not path.name.startswith("waiver-"):
            target = copy / path.relative_to(home / "bundle")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    refused = run_security(home, "verify", str(copy), **toy_settings(home))
    assert refused.returncode == 1
    assert "quality report is missing" in refused.stderr
