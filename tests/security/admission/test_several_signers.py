"""Two assessors through the real commands: one of them alone is not enough."""

from __future__ import annotations

import shutil
from pathlib import Path

from sealgate.protocol.dsse import ECDSA_P256, ML_DSA_65
from tests.conftest import check_security, run_security, toy_settings
from tests.support.bundles import POLICY, Keys, write_bundle

TWO = POLICY.replace(
    b'[require.quality]\nsigners = ["assessor"]\n',
    b'[require.quality]\nsigners = ["assessor"]\nmin_signers = 2\n',
)


def test_two_assessors(tmp_path: Path) -> None:
    assert b"min_signers" in TWO
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    (home / "policy.toml").write_bytes(TWO)
    settings = toy_settings(home)
    check_security(home, "keygen", **settings)
    check_security(other, "keygen")
    for algorithm in (ECDSA_P256, ML_DSA_65):
        second = tmp_path / f"{algorithm}.pem"
        public = ("keys", "public", "--role", "assessor", "--algorithm", algorithm)
        second.write_text(check_security(other, *public))
        add = ("keys", "add", str(second), "--role", "assessor")
        check_security(home, *add, **settings)
    folder = str(write_bundle(home / "bundle", Keys.generate(), admit=False))
    shutil.rmtree(home / "bundle" / "attestations")  # by keys that nobody trusts
    for role in ("trainer", "assessor"):
        check_security(home, "sign", folder, "--role", role, **settings)
    alone = run_security(home, "admit", folder, **settings)
    assert alone.returncode == 1
    assert "quality" in alone.stderr
    assert "needs 2 signers, has 1" in alone.stderr
    key = str(other / "keys" / "assessor.pem")
    sign = ("sign", folder, "--role", "assessor", "--kind", "quality")
    check_security(home, *sign, "--key", key, **settings)
    for name in ("quality.2.sigstore.json", "quality.2.mldsa.sigstore.json"):
        assert (home / "bundle" / "attestations" / name).exists()
    check_security(home, "admit", folder, **settings)
    assert "verified" in check_security(home, "verify", folder, **settings)
