"""model.sig: what the OpenSSF's command accepts, and what the doors demand of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.bundle import MODEL_SIGNATURE_FILE, read_bundle
from models.files import write_atomic
from sealgate.protocol import dsse
from sealgate.protocol.dsse import public_pem
from sealgate.protocol.statement import Resource, Statement
from security.admission.doors import verify_with
from security.admission.model_signature import _statement, check_signature, sign_model
from security.admission.trust import TrustRoot
from security.errors import AdmissionRefused
from security.key_files import write_private
from tests.conftest import Command
from tests.support.bundles import Keys, policy, scene_of

# Beside this interpreter, or wherever it is.
MODEL_SIGNING = shutil.which(
    "model_signing",
    path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
)


@pytest.fixture
def signed_folder(bundle_folder: Path, keys: Keys) -> Path:
    signature = sign_model(read_bundle(bundle_folder), keys.release)
    write_atomic(bundle_folder / MODEL_SIGNATURE_FILE, signature)
    return bundle_folder


def verify_key(folder: Path, public: Path) -> subprocess.CompletedProcess[str]:
    if MODEL_SIGNING is None:
        pytest.skip("model_signing is not installed")
    return subprocess.run(
        [
            *(MODEL_SIGNING, "verify", "key", str(folder)),
            *("--signature", str(folder / MODEL_SIGNATURE_FILE)),
            *("--public_key", str(public)),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def public(tmp_path: Path, keys: Keys) -> Path:
    path = tmp_path / "release.pub.pem"
    path.write_text(public_pem(keys.release.public_key()))
    return path


@pytest.mark.slow
def test_the_real_command_accepts_what_ours_writes(
    security: Command, bundle_folder: Path, tmp_path: Path, keys: Keys, public: Path
) -> None:
    write_private(tmp_path / "release.pem", keys.release)
    result = security(
        "sign", str(bundle_folder), "--model-signature", "--role", "release",
        "--key", str(tmp_path / "release.pem"),
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "signed model.sig as release\n")
    verified = verify_key(bundle_folder, public)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    with (bundle_folder / "model.onnx").open("ab") as model:
        model.write(b"\x00")
    assert verify_key(bundle_folder, public).returncode != 0


@pytest.mark.slow
def test_the_real_command_ignores_what_comes_after(
    signed_folder: Path, public: Path
) -> None:
    for name in ("MODEL_CARD.md", "bom.cdx.json", "model.yaml"):
        (signed_folder / name).write_text("x")
    assert verify_key(signed_folder, public).returncode == 0


def test_its_subject_is_our_root_digest(signed_folder: Path, keys: Keys) -> None:
    bundle = read_bundle(signed_folder)
    signature = bundle.files[MODEL_SIGNATURE_FILE]
    payload = dsse.verify(signature, keys.trust.keys(("release",))).payload
    statement = json.loads(payload)
    assert statement["subject"] == [
        {"name": "toy:1.0.0", "digest": {"sha256": bundle.subject.root_sha256}}
    ]
    names = [item["name"] for item in statement["predicate"]["resources"]]
    assert names == sorted(names) == ["manifest.json", "model.onnx"]


def test_it_belongs_in_a_bundle_and_changes_nothing(
    signed_folder: Path, keys: Keys
) -> None:
    admission = verify_with(
        read_bundle(signed_folder), policy(), keys.trust, now=datetime.now(UTC)
    )
    (signed_folder / MODEL_SIGNATURE_FILE).unlink()
    assert read_bundle(signed_folder).subject == admission.bundle.subject


def test_any_role_may_sign_it(bundle_folder: Path, keys: Keys) -> None:
    signature = sign_model(read_bundle(bundle_folder), keys.trainer)
    write_atomic(bundle_folder / MODEL_SIGNATURE_FILE, signature)
    check_signature(scene_of(read_bundle(bundle_folder), keys.trust))


def test_a_stranger_may_not(bundle_folder: Path, keys: Keys) -> None:
    signature = sign_model(read_bundle(bundle_folder), Keys.generate().release)
    write_atomic(bundle_folder / MODEL_SIGNATURE_FILE, signature)
    with pytest.raises(AdmissionRefused, match=r"model.sig: .* not trusted.*check 25"):
        check_signature(scene_of(read_bundle(bundle_folder), keys.trust))


def test_nor_a_key_that_is_no_longer_trusted(signed_folder: Path, keys: Keys) -> None:
    roles = {role: held for role, held in keys.trust.roles.items() if role != "release"}
    with pytest.raises(AdmissionRefused, match="not trusted"):
        check_signature(scene_of(read_bundle(signed_folder), TrustRoot(roles)))


@pytest.mark.parametrize(
    "changes",
    [
        {"predicate_type": "https://model_signing/Digests/v0.1"},
        {"subjects": (Resource("toy:1.0.0", "0" * 64),)},
        {"predicate": {"resources": []}},
        {"predicate": {}},
    ],
)
def test_about_other_files(
    bundle_folder: Path, keys: Keys, changes: dict[str, object]
) -> None:
    bundle = read_bundle(bundle_folder)
    statement: Statement = replace(_statement(bundle), **changes)
    signed = dsse.sign(statement.to_json(), keys.release)
    write_atomic(bundle_folder / MODEL_SIGNATURE_FILE, signed)
    with pytest.raises(AdmissionRefused, match=r"model.sig is about other files"):
        check_signature(scene_of(read_bundle(bundle_folder), keys.trust))


def test_no_json(bundle_folder: Path, keys: Keys) -> None:
    (bundle_folder / MODEL_SIGNATURE_FILE).write_bytes(b"x")
    with pytest.raises(AdmissionRefused, match=r"model.sig: bundle: not JSON"):
        check_signature(scene_of(read_bundle(bundle_folder), keys.trust))
