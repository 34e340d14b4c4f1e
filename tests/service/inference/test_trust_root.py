"""A running server and the trust root that changes under it."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from security.admission.lifecycle import Withdrawn
from security.admission.trust import Revocation, TrustRoot
from security.admission.trust_chain import TrustDocument
from security.admission.trust_store import put
from security.errors import TrustRefused
from security.settings.admission import AdmissionSettings
from security.settings.deployment import DeploymentSettings
from security.settings.loading import Settings
from security.settings.service import ServiceSettings
from service.inference.lineup import Lineup
from service.inference.served import answers_now
from service.telemetry.metrics import Metrics
from tests.support.bundles import POLICY, Keys, write_bundle
from tests.support.roots import hint, p256, version

with warnings.catch_warnings():
    # What BentoML imports warns about how BentoML uses it.
    warnings.simplefilter("ignore")
    # It makes its home at import: not in the developer's.
    os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp())
    from service.inference.follower import Follower

A, B = p256("a"), p256("b")
NOW = datetime.now(UTC).replace(microsecond=0)
LATER = NOW + timedelta(days=300)


@dataclass
class Scene:
    """A worker, and the trust root that it looks at."""

    home: Path
    keys: Keys
    metrics: Metrics
    lineup: Lineup

    @property
    def trust(self) -> Path:
        return self.home / "trust.json"

    def version(
        self,
        number: int,
        roots: Sequence[object] = (A,),
        *,
        expires: datetime = LATER,
        base: TrustRoot | None = None,
        signers: Sequence[object] | None = None,
    ) -> TrustDocument:
        return version(
            number,
            roots,  # type: ignore[arg-type]
            expires=expires,
            base=base or self.keys.trust,
            signers=signers,  # type: ignore[arg-type]
        )

    def follower(self, lineup: Lineup | None = None) -> Follower:
        """A start of the server."""
        settings = Settings(
            home=self.home,
            service=ServiceSettings(models=(f"path:{self.home / 'bundle'}",)),
            admission=AdmissionSettings(
                trust=self.trust, policy=self.home / "policy.toml"
            ),
            deployment=DeploymentSettings(directory=self.home / "plan"),
        )
        made = Follower(settings, lineup or self.lineup, metrics=self.metrics)
        made.load_first()
        return made

    @property
    def answers(self) -> bool:
        return answers_now(self.lineup.table["toy"].default)

    @property
    def why_not(self) -> str:
        state = self.lineup.table["toy"].default
        assert isinstance(state, Withdrawn)
        return state.reason

    def gauge(self, name: str) -> float:
        return self.metrics.cell(f"sealgate_trust_root_{name}")[0]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    keys = Keys.generate()
    write_bundle(tmp_path / "bundle", keys, now=NOW)
    (tmp_path / "policy.toml").write_bytes(POLICY)
    return Scene(tmp_path, keys, Metrics(), Lineup(timeout_s=10))


def place(scene: Scene, document: TrustDocument) -> None:
    scene.trust.write_bytes(document.to_json())


def test_it_follows_a_new_version(scene: Scene) -> None:
    place(scene, scene.version(1))
    follower = scene.follower()
    assert scene.answers
    assert scene.gauge("version") == 1
    assert scene.gauge("expires_seconds") == LATER.timestamp()
    place(scene, scene.version(2, [B], signers=[A, B]))
    follower.look()
    assert scene.answers
    assert scene.gauge("version") == 2


def test_what_a_new_version_revokes_answers_no_more(scene: Scene) -> None:
    place(scene, scene.version(1))
    follower = scene.follower()
    release = hint(scene.keys.release)
    revoked = {release: Revocation(release, "2026-01-01T00:00:00Z", "lost")}
    base = replace(scene.keys.trust, revoked=revoked)
    place(scene, scene.version(2, base=base))
    follower.look()
    assert not scene.answers
    assert "verdict" in scene.why_not


@pytest.mark.parametrize("attack", ["rollback", "fork", "gap", "unsigned", "strangers"])
def test_one_that_is_refused_takes_all_out_of_service(
    scene: Scene, attack: str
) -> None:
    """As one that cannot be read does; the right one brings it back."""
    second = scene.version(2)
    place(scene, scene.version(1))
    follower = scene.follower()
    place(scene, second)
    follower.look()
    evil = p256("evil")
    tried, words = {
        "rollback": (scene.version(1), "a rollback"),
        "fork": (scene.version(2, [A, B], signers=[A, B]), "a fork"),
        "gap": (scene.version(4), "the versions between are missing"),
        "unsigned": (TrustDocument(scene.keys.trust), "is not signed"),
        "strangers": (scene.version(3, [evil]), "keys of the root of version 2"),
    }[attack]
    place(scene, tried)
    follower.look()
    assert not scene.answers
    assert words in scene.why_not
    # Nor does a restart help.
    with pytest.raises(TrustRefused, match=words):
        scene.follower(Lineup(timeout_s=10))
    put(scene.trust, second)
    follower.look()
    assert scene.answers


def test_its_models_end_with_it(scene: Scene) -> None:
    """Nobody keeps a server at an old version for ever by withholding newer ones."""
    soon = (datetime.now(UTC) + timedelta(seconds=5)).replace(microsecond=0)
    place(scene, scene.version(1, expires=soon))
    follower = scene.follower()
    served = scene.lineup.table["toy"].default.content
    assert served.expires_at == soon.timestamp()
    assert scene.answers
    time.sleep(max(0.0, soon.timestamp() - time.time()) + 0.01)
    assert not scene.answers
    with pytest.raises(TrustRefused, match="expired"):
        scene.follower(Lineup(timeout_s=10))
    # The next one is followed all the same, without a restart.
    put(scene.trust, scene.version(2))
    follower.look()
    assert scene.answers


def test_it_warns_of_the_end(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    place(scene, scene.version(1, expires=NOW + timedelta(days=31)))
    follower = scene.follower()
    assert "expires" not in caplog.text
    place(scene, scene.version(2, expires=NOW + timedelta(days=29)))
    follower.look()
    assert caplog.text.count("the trust root expires at") == 1
    follower.look()
    assert caplog.text.count("the trust root expires at") == 1


def test_a_bare_one_has_no_version_and_no_end(scene: Scene) -> None:
    scene.trust.write_bytes(scene.keys.trust.to_json())
    scene.follower()
    assert scene.answers
    assert (scene.gauge("version"), scene.gauge("expires_seconds")) == (0, 0)
