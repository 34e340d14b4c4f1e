"""Our statements before Sigstore's own libraries: what cosign demands of a bundle.

cosign itself is a program in Go, from no Python registry. Its steps are in
sigstore/verify.mjs; that needs node and npm with a package registry, else is skipped.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sigstore_models.bundle.v1 import Bundle as SigstoreBundle

from models.bundle import VERDICT_FILE, attestation_file
from sealgate.protocol.dsse import PAYLOAD_TYPE, public_pem
from sealgate.protocol.statement import TEST_RESULT_TYPE, VSA_TYPE
from tests.support.bundles import Keys
from tests.support.npm import install

HERE = Path(__file__).parent / "sigstore"
MODEL = "model.onnx"
QUALITY = attestation_file("quality")

Verify = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_python_models_read_every_field(bundle_folder: Path) -> None:
    for path in (bundle_folder / "attestations").iterdir():
        ours = json.loads(path.read_bytes())
        theirs = json.loads(SigstoreBundle.from_json(path.read_bytes()).to_json())
        assert theirs["dsseEnvelope"]["payloadType"] == PAYLOAD_TYPE
        assert theirs["mediaType"] == ours["mediaType"]
        for name in ("payload", "payloadType"):
            assert theirs["dsseEnvelope"][name] == ours["dsseEnvelope"][name]
        hint = ours["verificationMaterial"]["publicKey"]["hint"]
        assert theirs["verificationMaterial"]["publicKey"]["hint"] == hint


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(HERE, tmp_path_factory.mktemp("sigstore"))


@pytest.fixture
def verify(node: Path, bundle_folder: Path, keys: Keys, tmp_path: Path) -> Verify:
    """As `cosign verify-blob-attestation --key … --bundle … --type … BLOB`."""

    def run(
        bundle: str, role: str, blob: str, kind: str
    ) -> subprocess.CompletedProcess[str]:
        key = tmp_path / "key.pem"
        key.write_text(public_pem(getattr(keys, role).public_key()))
        files = (str(bundle_folder / bundle), str(key), str(bundle_folder / blob))
        return subprocess.run(
            ["node", "verify.mjs", *files, kind],
            cwd=node,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


@pytest.mark.slow
def test_accepts_our_statements(verify: Verify) -> None:
    for bundle, role, kind in (
        (QUALITY, "assessor", TEST_RESULT_TYPE),
        (attestation_file("privacy"), "trainer", TEST_RESULT_TYPE),
        (VERDICT_FILE, "release", VSA_TYPE),
    ):
        result = verify(bundle, role, MODEL, kind)
        assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "blob", "kind", "message"),
    [
        ("trainer", MODEL, TEST_RESULT_TYPE, "signature verification failed"),
        ("assessor", "manifest.json", TEST_RESULT_TYPE, "not met: subject"),
        ("assessor", MODEL, VSA_TYPE, "not met: predicateType"),
    ],
)
def test_refuses(verify: Verify, role: str, blob: str, kind: str, message: str) -> None:
    result = verify(QUALITY, role, blob, kind)
    assert result.returncode == 1
    assert message in result.stderr
