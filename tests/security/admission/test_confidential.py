"""Confidential models: bound to their evidence, opened in memory, refused otherwise."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.bundle import (
    SEALED_ATTESTATION_FILE,
    SEALED_FILE,
    Bundle,
    read_bundle,
)
from models.errors import BundleError
from models.files import write_atomic
from sealgate import Client
from sealgate.protocol import dsse, sealedfile
from sealgate.protocol.hpke import PrivateKey
from sealgate.protocol.statement import Resource, Statement
from security.admission.attest import Signers, subjects
from security.admission.confidential import (
    SEALED_MODEL_TYPE,
    check_sealed,
    open_admission,
    open_bundle,
    seal_model,
)
from security.admission.doors import verify_with
from security.admission.gate import Admission
from security.admission.model_keys import (
    generate_model_key,
    load_model_key,
    load_model_public,
    model_public_pem,
)
from security.commands.seal import _write
from security.errors import AdmissionRefused, KeyFileError
from security.key_files import write_private
from tests.conftest import Command, check_security, mint, run_security, toy_settings
from tests.support.bundles import NAME, Keys, onnx_model, policy, scene_of
from tests.support.patience import in_time, once
from tests.support.servers import ROOT, bentoml, environment, serve

KEY = PrivateKey.generate()
TAG_BYTES = 16


@pytest.fixture
def sealed_folder(bundle_folder: Path, keys: Keys, tmp_path: Path) -> Path:
    bundle = read_bundle(bundle_folder)
    sealed = seal_model(bundle, [KEY.public_bytes], Signers(keys.release))
    _write(tmp_path / "sealed", bundle, sealed)
    return tmp_path / "sealed"


def verify(folder: Path, keys: Keys) -> Admission:
    return verify_with(read_bundle(folder), policy(), keys.trust, now=datetime.now(UTC))


def resign(folder: Path, keys: Keys, data: bytes) -> None:
    """Put another sealed file in its place, honestly signed."""
    write_atomic(folder / SEALED_FILE, data)
    subject = read_bundle(folder).subject
    resource = Resource(SEALED_FILE, hashlib.sha256(data).hexdigest())
    statement = Statement(
        subjects(subject), SEALED_MODEL_TYPE, {"sealed": resource.to_object()}
    )
    signed = dsse.sign(statement.to_json(), keys.release)
    write_atomic(folder / SEALED_ATTESTATION_FILE, signed)


def test_is_about_the_same_model(bundle_folder: Path, sealed_folder: Path) -> None:
    assert read_bundle(sealed_folder).subject == read_bundle(bundle_folder).subject


def test_evidence_and_verdict_stay_valid_without_the_key(
    sealed_folder: Path, keys: Keys
) -> None:
    assert verify(sealed_folder, keys).bundle.sealed


def test_opens_to_the_very_bytes(sealed_folder: Path, keys: Keys) -> None:
    opened = open_bundle(verify(sealed_folder, keys).bundle, KEY)
    assert opened.model == onnx_model()
    assert not opened.sealed
    assert SEALED_FILE not in opened.files  # the ciphertext is not kept beside it


def test_the_model_is_nowhere_in_the_folder(sealed_folder: Path) -> None:
    assert not (sealed_folder / "model.onnx").exists()
    weights = onnx_model()[-64:]
    for path in sealed_folder.rglob("*"):
        assert path.is_dir() or weights not in path.read_bytes()


def test_a_sealed_bundle_gives_no_model(sealed_folder: Path) -> None:
    with pytest.raises(BundleError, match=r"model.onnx.sealed must be opened first"):
        _ = read_bundle(sealed_folder).model


# Bundles that claim to be sealed.


def test_both_files(sealed_folder: Path) -> None:
    (sealed_folder / "model.onnx").write_bytes(onnx_model())
    with pytest.raises(BundleError, match="a bundle has one of them"):
        read_bundle(sealed_folder)


def test_a_sealed_statement_beside_a_plain_model(
    bundle_folder: Path, sealed_folder: Path
) -> None:
    shutil.copy(sealed_folder / SEALED_ATTESTATION_FILE, bundle_folder / "attestations")
    with pytest.raises(BundleError, match=r"to be sealed, and model.onnx is not"):
        read_bundle(bundle_folder)


def test_a_plain_model_under_the_sealed_name(sealed_folder: Path) -> None:
    (sealed_folder / SEALED_FILE).write_bytes(onnx_model())
    with pytest.raises(BundleError, match=r"claims to be sealed: .* begin like one"):
        read_bundle(sealed_folder)


def test_a_header_that_claims_another_model(sealed_folder: Path, keys: Keys) -> None:
    other = b"".join(sealedfile.seal_chunks(b"other", [KEY.public_bytes]))
    resign(sealed_folder, keys, other)
    with pytest.raises(AdmissionRefused, match=r"is about other bytes"):
        verify(sealed_folder, keys)


def lie(data: bytes, digest: str) -> bytes:
    """A well-formed file sealed to the right key, whose header claims a digest."""
    header, _ = sealedfile.parse_header(data)
    content_key = sealedfile._unwrap(header, KEY)
    core = replace(header, plaintext_sha256=digest, recipients=())
    wrapped = sealedfile._wrap(core, content_key, KEY.public_bytes)
    lying = replace(core, recipients=(wrapped,)).to_json()
    cipher, prefix = sealedfile._schedule(content_key, lying)
    content = cipher.encrypt(sealedfile._nonce(prefix, 0, last=True), b"other", None)
    return b"SGSEAL\x00\x01" + len(lying).to_bytes(4, "big") + lying + content


def test_a_lie_that_only_opening_can_find(sealed_folder: Path, keys: Keys) -> None:
    other = b"".join(sealedfile.seal_chunks(b"other", [KEY.public_bytes]))
    digest = hashlib.sha256(onnx_model()).hexdigest()
    resign(sealed_folder, keys, lie(other, digest))
    bundle = verify(sealed_folder, keys).bundle
    with pytest.raises(AdmissionRefused, match="opens to another model than it claims"):
        open_bundle(bundle, KEY)


def test_chunks_that_are_not_encrypted(sealed_folder: Path, keys: Keys) -> None:
    data = (sealed_folder / SEALED_FILE).read_bytes()
    _, start = sealedfile.parse_header(data)
    resign(sealed_folder, keys, data[:start] + onnx_model() + bytes(TAG_BYTES))
    with pytest.raises(AdmissionRefused, match="its chunks are not encrypted"):
        verify(sealed_folder, keys)


def test_a_bit_of_the_ciphertext(sealed_folder: Path, keys: Keys) -> None:
    data = bytearray((sealed_folder / SEALED_FILE).read_bytes())
    data[-1] ^= 1
    write_atomic(sealed_folder / SEALED_FILE, bytes(data))
    with pytest.raises(AdmissionRefused, match="changed after it was signed"):
        verify(sealed_folder, keys)
    resign(sealed_folder, keys, bytes(data))
    bundle = verify(sealed_folder, keys).bundle
    with pytest.raises(AdmissionRefused, match="chunk 1 of 1 does not authenticate"):
        open_bundle(bundle, KEY)


def test_no_statement(sealed_folder: Path, keys: Keys) -> None:
    (sealed_folder / SEALED_ATTESTATION_FILE).unlink()
    with pytest.raises(AdmissionRefused, match=r"not signed \[check 24\]"):
        verify(sealed_folder, keys)


@pytest.mark.parametrize("role", ["trainer", "assessor", "privacy_officer"])
def test_the_wrong_role_signed(sealed_folder: Path, keys: Keys, role: str) -> None:
    data = (sealed_folder / SEALED_FILE).read_bytes()
    resign(sealed_folder, replace(keys, release=getattr(keys, role)), data)
    with pytest.raises(AdmissionRefused, match="not trusted for it"):
        verify(sealed_folder, keys)


def statement_with(sealed_folder: Path, keys: Keys, **changes: object) -> Bundle:
    path = sealed_folder / SEALED_ATTESTATION_FILE
    statement = Statement.from_json(
        dsse.verify(path.read_bytes(), keys.trust.keys(("release",))).payload
    )
    changed = replace(statement, **changes)
    write_atomic(path, dsse.sign(changed.to_json(), keys.release))
    return read_bundle(sealed_folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predicate_type": "https://in-toto.io/other"}, "of another type"),
        ({"subjects": (Resource("x", "0" * 64),)}, "about other bytes"),
        ({"predicate": {}}, "changed after it was signed"),
        ({"predicate": {"sealed": {}}}, "changed after it was signed"),
    ],
)
def test_a_statement_with_one_fault(
    sealed_folder: Path, keys: Keys, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(AdmissionRefused, match=message):
        check_sealed(
            scene_of(statement_with(sealed_folder, keys, **changes), keys.trust)
        )


# Keys.


def test_another_key(sealed_folder: Path, keys: Keys) -> None:
    with pytest.raises(AdmissionRefused, match="sealed to other keys than this one"):
        open_bundle(verify(sealed_folder, keys).bundle, PrivateKey.generate())


def test_no_key(sealed_folder: Path, keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(AdmissionRefused) as caught:
        open_admission(verify(sealed_folder, keys), tmp_path / "model.pem")
    assert "the model is sealed, and no key opens it" in str(caught.value)
    assert "no such file" in str(caught.value)


def test_a_plain_model_needs_no_key(
    bundle_folder: Path, keys: Keys, tmp_path: Path
) -> None:
    admission = verify(bundle_folder, keys)
    assert open_admission(admission, tmp_path / "model.pem") is admission


def test_the_key_file(tmp_path: Path, keys: Keys) -> None:
    generate_model_key(tmp_path / "model.pem")
    key = load_model_key(tmp_path / "model.pem")
    (tmp_path / "public.pem").write_text(model_public_pem(key))
    assert load_model_public(tmp_path / "public.pem") == key.public_bytes
    assert (tmp_path / "model.pem").stat().st_mode & 0o777 == 0o600
    write_private(tmp_path / "release.pem", keys.release)
    with pytest.raises(KeyFileError, match="not an X25519 or X-Wing key"):
        load_model_key(tmp_path / "release.pem")


def test_a_public_key_of_another_kind(tmp_path: Path, keys: Keys) -> None:
    from sealgate.protocol.dsse import public_pem

    (tmp_path / "a.pem").write_text(public_pem(keys.release.public_key()))
    with pytest.raises(KeyFileError, match="not an X25519 or X-Wing public key"):
        load_model_public(tmp_path / "a.pem")
    (tmp_path / "b.pem").write_text("nonsense")
    with pytest.raises(KeyFileError, match="not a PEM public key"):
        load_model_public(tmp_path / "b.pem")


def test_a_sealed_bundle_is_not_sealed_again(sealed_folder: Path, keys: Keys) -> None:
    with pytest.raises(BundleError, match="must be opened first"):
        seal_model(
            read_bundle(sealed_folder), [KEY.public_bytes], Signers(keys.release)
        )


# Size.


def test_opening_takes_two_copies_and_no_more(sealed_folder: Path) -> None:
    size = 16 << 20
    plain = bytes(size)
    data = b"".join(sealedfile.seal_chunks(plain, [KEY.public_bytes]))
    bundle = read_bundle(sealed_folder)
    digest = hashlib.sha256(plain).hexdigest()
    subject = replace(bundle.subject, onnx_sha256=digest)
    large = replace(bundle, files={SEALED_FILE: data}, subject=subject)
    del plain

    def scene() -> None:
        tracemalloc.start()
        started = time.monotonic()
        opened = open_bundle(large, KEY)
        elapsed = time.monotonic() - started
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(opened.model) == size
        # Beside the ciphertext, which is not counted: one plaintext, a chunk, and slack
        # of the growing buffer.
        assert peak < 1.3 * size
        # Benchmarks measure; this only finds what went quadratic.
        in_time(0.0, 5, now=elapsed)

    once(scene)


# Commands, build and server.


@pytest.fixture(scope="module")
def deployment_with_sealed(
    pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of the deployment whose store holds the toy model sealed."""
    home = tmp_path_factory.mktemp("sealed") / "home"
    shutil.copytree(pristine, home)
    shutil.rmtree(home / "bentoml" / "models")
    settings = toy_settings(home)
    public = home / "model.pub.pem"
    public.write_text(check_security(home, "keys", "public", "--model", **settings))
    out = check_security(
        home, "seal", str(home / "bundle"), "--to", str(public),
        "--out", str(home / "sealed"), **settings,
    )  # fmt: skip
    assert out == "sealed toy:1.0.0 to deployments: 1\n"
    check_security(home, "store", str(home / "sealed"), **settings)
    return home


@pytest.mark.slow
def test_a_server_opens_it_in_memory(deployment_with_sealed: Path) -> None:
    home = deployment_with_sealed
    token = mint(home, f"infer:{NAME}")
    with serve(
        "service.app:Sealgate", home, extra=toy_settings(home), alone=True
    ) as server:
        with Client(server.url, token=token) as client:
            answer = client.infer(NAME, {"features": [[1.0, 2.0, 3.0]]})
        assert answer["label"].tolist() == [1]
        weights = onnx_model()[-64:]
        for path in (home / "bentoml").rglob("*"):
            assert path.is_dir() or weights not in path.read_bytes()


@pytest.mark.slow
def test_build_needs_no_key_and_serve_does(
    deployment_with_sealed: Path, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(deployment_with_sealed, tmp_path / "home"))
    (home / "keys" / "model.pem").unlink()
    assert _bentoml(home, "build").returncode == 0
    for key in (None, home / "keys" / "model.pem"):
        if key is not None:
            generate_model_key(key)
        result = _bentoml(home, "serve", "service.app:Sealgate", "--port", "0")
        assert result.returncode == 1
        (line,) = result.stderr.strip().splitlines()
        wanted = "no key opens it" if key is None else "sealed to other keys"
        assert re.search(rf"toy:1.0.0 refused: .*{wanted}.*\[check 24\]", line)


def _bentoml(home: Path, *arguments: str):
    import subprocess

    return subprocess.run(
        bentoml(*arguments),
        cwd=ROOT,
        env=environment(home, toy_settings(home)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_command_leaves_nothing_behind_when_it_refuses(
    security: Command, bundle_folder: Path, tmp_path: Path
) -> None:
    public = tmp_path / "public.pem"
    public.write_text(model_public_pem(KEY))
    arguments = ("seal", str(bundle_folder), "--to", str(public), "--out")
    result = security(*arguments, str(tmp_path / "out"))
    assert result.returncode == 2
    assert "release.pem: no such file" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_never_overwrites(
    security: Command, bundle_folder: Path, tmp_path: Path, keys: Keys
) -> None:
    public = tmp_path / "public.pem"
    public.write_text(model_public_pem(KEY))
    write_private(tmp_path / "release.pem", keys.release)
    (tmp_path / "out").mkdir()
    result = security(
        "seal", str(bundle_folder), "--to", str(public), "--out",
        str(tmp_path / "out"), "--key", str(tmp_path / "release.pem"),
    )  # fmt: skip
    assert result.returncode == 1
    assert "exists already" in result.stderr


def test_run_security_is_what_the_readme_says(tmp_path: Path) -> None:
    result = run_security(tmp_path / "home", "seal", "--help")
    assert result.returncode == 0
    assert "--to PUBLIC_KEY.pem" in result.stdout
