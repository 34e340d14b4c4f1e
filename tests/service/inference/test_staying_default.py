"""A default version answers only while it is monitored, where the policy says so."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from models.bundle import read_bundle
from security.admission import changes
from security.admission.attest import Signers
from security.admission.lifecycle import Default, Warm, Withdrawn
from security.admission.observations import write_observation
from security.admission.plan import Plan, PlanFolder, plan_of_tags
from security.settings.admission import AdmissionSettings
from security.settings.deployment import DeploymentSettings
from security.settings.loading import Settings
from security.settings.service import ServiceSettings
from service.inference.lineup import Lineup
from service.inference.served import Entry, answers_now
from tests.support.bundles import Keys, write_bundle
from tests.support.promotions import ASKING, monitoring

with warnings.catch_warnings():
    # What BentoML imports warns about how BentoML uses it.
    warnings.simplefilter("ignore")
    # It makes its home at import: not in the developer's.
    os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp())
    from service.inference.follower import Follower

STAYS = ASKING.replace(b"[promotion]\n", b"[promotion]\nstays_monitored = true\n")
OLD = timedelta(days=20)


@dataclass(frozen=True)
class Scene:
    """A worker's follower over two versions, of which the first is the default."""

    folder: Path
    keys: Keys
    follower: Follower
    lineup: Lineup

    @property
    def entry(self) -> Entry:
        return self.lineup.table["toy"]

    def sign(self, version: str, *, key: str = "monitor", age: timedelta = OLD) -> None:
        subject = read_bundle(self.folder / "bundles" / version).subject
        report = monitoring(subject, age=age)
        write_observation(
            self.folder / "plan", report, Signers(getattr(self.keys, key))
        )

    def change(self, make: Callable[[Plan], Plan]) -> None:
        first = plan_of_tags(["toy:1.0.0", "toy:2.0.0"])
        PlanFolder(self.folder / "plan").change(make, first=first, note="test")

    def looked(self) -> Entry:
        self.follower.look()
        return self.entry


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Scene]:
    """Assessed so long ago, under this policy."""

    def made(*, assessed: timedelta = OLD, text: bytes = STAYS) -> Scene:
        keys, now = Keys.generate(), datetime.now(UTC)
        for version in ("2.0.0", "1.0.0"):
            write_bundle(
                tmp_path / "bundles" / version,
                keys,
                version=version,
                policy_bytes=text,
                now=now - assessed,
            )
        (tmp_path / "policy.toml").write_bytes(text)
        (tmp_path / "trust.json").write_bytes(keys.trust.to_json())
        places = [f"path:{tmp_path / 'bundles' / v}" for v in ("1.0.0", "2.0.0")]
        settings = Settings(
            home=tmp_path,
            service=ServiceSettings(models=tuple(places)),
            admission=AdmissionSettings(
                trust=tmp_path / "trust.json", policy=tmp_path / "policy.toml"
            ),
            deployment=DeploymentSettings(directory=tmp_path / "plan"),
        )
        lineup = Lineup(timeout_s=10)
        follower = Follower(settings, lineup)
        follower.load_first()
        return Scene(tmp_path, keys, follower, lineup)

    return made


def test_a_policy_that_does_not_ask_leaves_it(make: Callable[..., Scene]) -> None:
    scene = make(text=ASKING)
    assert isinstance(scene.entry.default, Default)


def test_without_a_report_it_answers_503_until_there_is_one(
    make: Callable[..., Scene],
) -> None:
    scene = make()
    default = scene.entry.default
    assert isinstance(default, Withdrawn)
    assert (default.cause, "no report" in default.reason) == ("monitoring", True)
    # Others who are named answer; so they are not asked for it.
    assert isinstance(scene.entry.states["2.0.0"], Warm)

    for version, key, age in (
        ("2.0.0", "monitor", timedelta(0)),
        ("1.0.0", "trainer", timedelta(0)),
        ("1.0.0", "monitor", timedelta(days=15)),
    ):
        scene.sign(version, key=key, age=age)
        assert isinstance(scene.looked().default, Withdrawn)
    scene.sign("1.0.0", age=timedelta(days=13))
    default = scene.looked().default
    assert isinstance(default, Default)
    # It ends by itself, a day from now.
    left = default.content.expires_at - datetime.now(UTC).timestamp()
    assert left == pytest.approx(86400, abs=60)
    report = json.loads(next((scene.folder / "plan/workers").iterdir()).read_bytes())
    assert report["withdrawn"] == {}


def test_a_new_default_has_time_for_its_first_report(
    make: Callable[..., Scene],
) -> None:
    scene = make()
    scene.change(lambda plan: changes.set_default(plan, "toy:2.0.0"))
    entry = scene.looked()
    assert isinstance(entry.default, Default)
    assert entry.default.content.tag == "toy:2.0.0"
    assert answers_now(entry.default)
    # The former one is the default no more: it is not asked.
    former = entry.states["1.0.0"]
    assert isinstance(former, Warm)
    assert answers_now(former)


def test_so_has_one_that_was_just_assessed(make: Callable[..., Scene]) -> None:
    scene = make(assessed=timedelta(days=1))
    default = scene.entry.default
    left = default.content.expires_at - datetime.now(UTC).timestamp()
    assert left == pytest.approx(13 * 86400, abs=60)


def test_a_report_that_is_taken_away_is_noticed(make: Callable[..., Scene]) -> None:
    scene = make()
    scene.sign("1.0.0", age=timedelta(0))
    assert isinstance(scene.looked().default, Default)
    for path in (scene.folder / "plan" / "observations").rglob("*.json"):
        path.unlink()
    assert isinstance(scene.looked().default, Withdrawn)
