"""Sources of model keys: asked after the verdict, bounded, and silent about the key."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.bundle import (
    SEALED_ATTESTATION_FILE,
    SEALED_FILE,
    VERDICT_FILE,
    BundleLimits,
    mldsa_file,
    read_bundle,
)
from models.files import write_atomic
from sealgate import Client
from sealgate.protocol import dsse
from sealgate.protocol.kem import KEM_X25519, KEM_XWING
from sealgate.protocol.sealedfile import key_hint, seal_chunks
from security.admission.attest import Signers
from security.admission.command_source import CommandSource
from security.admission.confidential import open_admission, seal_model
from security.admission.doors import verify_with
from security.admission.gate import Admission
from security.admission.model_keys import (
    SOURCES,
    FileSource,
    ModelKey,
    former_key_file,
    generate_model_key,
    key_source,
    load_model_key,
    load_model_public,
    model_public_pem,
    rotate_model_key,
)
from security.admission.trust import Revocation, TrustRoot
from security.admission.trust_store import load_trust
from security.commands.seal import _write
from security.errors import AdmissionRefused, KeyFileError, SettingsError
from security.hpke_keys import encode_hpke_key, fresh_hpke_key, parse_hpke_key
from security.key_files import PASSPHRASE_VARIABLE, write_private, write_secret
from security.settings.loading import load_settings
from tests.conftest import Command, check_security, mint, run_security, toy_settings
from tests.support.bundles import (
    NAME,
    POLICY,
    Keys,
    onnx_model,
    policy,
    rewrite_report,
    write_bundle,
)
from tests.support.patience import SpoiledError, in_time, once
from tests.support.servers import serve

with warnings.catch_warnings():
    # What BentoML imports warns about how BentoML uses it.
    warnings.simplefilter("ignore")
    # It makes its home at import: not in the developer's.
    os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp())
    from security.admission.hooks import open_tag

KEY = fresh_hpke_key(KEM_XWING)
PEM = encode_hpke_key(KEY)
KINDS = pytest.mark.parametrize("kem_id", [KEM_X25519, KEM_XWING], ids=["v1", "v2"])


def program(folder: Path, script: str, name: str = "fetch") -> Path:
    """A shell script that only this user can change."""
    path = folder / name
    write_atomic(path, f"#!/bin/sh\n{script}\n".encode(), mode=0o700)
    return path


@pytest.fixture
def fetch(tmp_path: Path) -> Path:
    """A program that writes the key, and counts how often it was asked."""
    write_secret(tmp_path / "kept.pem", PEM)
    return program(
        tmp_path, f"echo asked >> {tmp_path}/asked; exec cat {tmp_path}/kept.pem"
    )


def asked(tmp_path: Path) -> int:
    path = tmp_path / "asked"
    return len(path.read_text().splitlines()) if path.exists() else 0


def sealed(folder: Path, keys: Keys, *to: ModelKey) -> Path:
    """The bundle of a folder, sealed, beside it."""
    bundle, out = read_bundle(folder), folder.parent / "sealed"
    public = [key.public_bytes for key in to or (KEY,)]
    _write(out, bundle, seal_model(bundle, public, Signers(keys.release)))
    return out


@pytest.fixture
def sealed_folder(bundle_folder: Path, keys: Keys) -> Path:
    return sealed(bundle_folder, keys)


def verify(folder: Path, keys: Keys) -> Admission:
    return verify_with(read_bundle(folder), policy(), keys.trust, now=datetime.now(UTC))


@pytest.fixture
def admission(sealed_folder: Path, keys: Keys) -> Admission:
    return verify(sealed_folder, keys)


# A key is released by verdict.


def load(home: Path, folder: Path, source: Path, trust: TrustRoot) -> Admission:
    """What each door does that loads a model: read, verify, open."""
    write_atomic(home / "trust.json", trust.to_json())
    if not (home / "policy.toml").exists():
        write_atomic(home / "policy.toml", POLICY)
    environ = {
        "SEALGATE_HOME": str(home),
        "SEALGATE_SERVICE_MODELS": f"path:{folder}",
        "SEALGATE_ADMISSION_POLICY": str(home / "policy.toml"),
        "SEALGATE_ADMISSION_MODEL_KEY": f"exec:{source}",
    }
    return open_tag("toy:1.0.0", load_settings(environ))


def test_of_an_admitted_model_it_is_asked_once(
    tmp_path: Path, sealed_folder: Path, keys: Keys, fetch: Path
) -> None:
    admission = load(tmp_path / "home", sealed_folder, fetch, keys.trust)
    assert admission.bundle.model == onnx_model()
    assert asked(tmp_path) == 1


def test_of_a_plain_model_it_is_not_asked(
    tmp_path: Path, bundle_folder: Path, keys: Keys, fetch: Path
) -> None:
    load(tmp_path / "home", bundle_folder, fetch, keys.trust)
    assert asked(tmp_path) == 0


def _no_verdict(folder: Path, keys: Keys) -> None:
    (folder / VERDICT_FILE).unlink()


def _verdict_of_another_model(folder: Path, keys: Keys) -> None:
    other = write_bundle(folder.parent / "other", keys, version="2.0.0")
    shutil.copy(other / VERDICT_FILE, folder / VERDICT_FILE)


def _changed_report(folder: Path, keys: Keys) -> None:
    rewrite_report(folder, "quality", tools={"another": "1"})


def _changed_verdict(folder: Path, keys: Keys) -> None:
    envelope = json.loads((folder / VERDICT_FILE).read_bytes())
    signature = envelope["dsseEnvelope"]["signatures"][0]
    signature["sig"] = signature["sig"][::-1].lstrip("=") or "AAAA"
    write_atomic(folder / VERDICT_FILE, json.dumps(envelope).encode())


def _no_statement(folder: Path, keys: Keys) -> None:
    (folder / SEALED_ATTESTATION_FILE).unlink()


def _statement_of_another_role(folder: Path, keys: Keys) -> None:
    bundle = read_bundle(folder.parent / "bundle")
    files = seal_model(bundle, [KEY.public_bytes], Signers(keys.assessor))
    for name, data in files.items():
        write_atomic(folder / name, data)


def _changed_ciphertext(folder: Path, keys: Keys) -> None:
    data = bytearray((folder / SEALED_FILE).read_bytes())
    data[-1] ^= 1
    write_atomic(folder / SEALED_FILE, bytes(data))


def _another_model_sealed(folder: Path, keys: Keys) -> None:
    data = b"".join(seal_chunks(b"another model", [KEY.public_bytes]))
    write_atomic(folder / SEALED_FILE, data)


def _bad_model_signature(folder: Path, keys: Keys) -> None:
    shutil.copy(folder / VERDICT_FILE, folder / "model.sig")


FAULTS: dict[str, tuple[Callable[[Path, Keys], None], int]] = {
    "no verdict": (_no_verdict, 11),
    "verdict of another model": (_verdict_of_another_model, 12),
    "changed verdict": (_changed_verdict, 11),
    "changed report": (_changed_report, 4),
    "no statement of the ciphertext": (_no_statement, 24),
    "statement of another role": (_statement_of_another_role, 24),
    "changed ciphertext": (_changed_ciphertext, 24),
    "another model sealed": (_another_model_sealed, 3),
    "a model.sig of something else": (_bad_model_signature, 25),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_is_never_asked_before_every_check_passed(
    tmp_path: Path, sealed_folder: Path, keys: Keys, fetch: Path, fault: str
) -> None:
    spoil, check = FAULTS[fault]
    spoil(sealed_folder, keys)
    with pytest.raises(AdmissionRefused) as caught:
        load(tmp_path / "home", sealed_folder, fetch, keys.trust)
    assert caught.value.check == check
    assert asked(tmp_path) == 0


def test_nor_when_a_key_was_revoked_or_the_policy_is_another(
    tmp_path: Path, sealed_folder: Path, keys: Keys, fetch: Path
) -> None:
    hint = dsse.key_hint(keys.release.public_key())
    revoked = {hint: Revocation(hint, "2026-01-01T00:00:00Z", "lost")}
    trust = TrustRoot(keys.trust.roles, revoked)
    with pytest.raises(AdmissionRefused):
        load(tmp_path / "home", sealed_folder, fetch, trust)
    write_atomic(tmp_path / "home" / "policy.toml", POLICY + b"\n# stricter\n")
    with pytest.raises(AdmissionRefused, match="made under another policy"):
        load(tmp_path / "home", sealed_folder, fetch, keys.trust)
    assert asked(tmp_path) == 0


def test_a_batch_job_asks_nobody_for_a_refused_model(
    deployment: Path, tmp_path: Path, fetch: Path
) -> None:
    """The other door that opens models, as its command."""
    home, settings = deployment, toy_settings(deployment)
    public = tmp_path / "model.pub.pem"
    public.write_text(model_public_pem(KEY))
    arguments = ("seal", str(home / "bundle"), "--to", str(public), "--out")
    check_security(home, *arguments, str(tmp_path / "sealed"), **settings)
    (tmp_path / "rows.csv").write_text("features\n1\n")
    settings |= {"SEALGATE_ADMISSION_MODEL_KEY": f"exec:{fetch}"}
    verified = check_security(home, "verify", str(tmp_path / "sealed"), **settings)
    hint = key_hint(KEY.public_bytes)
    assert f"  sealed to X-Wing keys: {hint[:16]}\n" in verified
    for name, message in (
        (SEALED_ATTESTATION_FILE, "the ML-DSA-65 signature is missing beside it"),
        (VERDICT_FILE, "verdict is missing"),
    ):
        (tmp_path / "sealed" / mldsa_file(name)).unlink()
        if name == VERDICT_FILE:
            (tmp_path / "sealed" / name).unlink()
        result = run_security(
            home, "batch", str(tmp_path / "sealed"), "--input",
            str(tmp_path / "rows.csv"), "--out", str(tmp_path / "out.csv"),
            "--job", "j", **settings,
        )  # fmt: skip
        assert result.returncode == 1
        assert message in result.stderr
    assert asked(tmp_path) == 0


# Sixty-four deployments.


def test_a_header_of_sixty_four_keys_travels(pristine: Path, tmp_path: Path) -> None:
    """Every bound on the way follows: reading, a layout as image and as artifact."""
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    settings = toy_settings(home)
    keys = [fresh_hpke_key(KEM_XWING) for _ in range(63)] + [KEY]
    to: list[str] = []
    for number, key in enumerate(keys):
        public = tmp_path / f"{number}.pem"
        public.write_text(model_public_pem(key))
        to += ["--to", str(public)]
    folder = tmp_path / "sealed"
    check_security(
        home, "seal", str(home / "bundle"), *to, "--out", str(folder), **settings
    )
    assert (folder / SEALED_FILE).stat().st_size > 100_000
    # A model's own bound is not what keeps its header out.
    small = BundleLimits(max_model_bytes=len(onnx_model()))
    assert len(read_bundle(folder, limits=small).sealed_to) == 64
    write_secret(tmp_path / "kept.pem", PEM)
    for form in ("image", "modelpack"):
        layout, out = f"oci:{tmp_path}/{form}", tmp_path / f"{form}-out"
        check_security(
            home, "push", str(folder), layout, "--artifact", form, **settings
        )
        check_security(home, "pull", layout, "--out", str(out), **settings)
        trust = load_trust(home / "trust.json")
        now = datetime.now(UTC)
        admission = verify_with(read_bundle(out), policy(), trust, now=now)
        opened = open_admission(admission, tmp_path / "kept.pem")
        assert opened.bundle.model == onnx_model()


# Which source a setting names.


def test_a_setting_names_a_source(tmp_path: Path) -> None:
    assert key_source("keys/model.pem") == FileSource(Path("keys/model.pem"))
    assert key_source(tmp_path / "a.pem") == FileSource(tmp_path / "a.pem")
    source = key_source("exec:/bin/fetch --key 'a b'")
    assert source == CommandSource(("/bin/fetch", "--key", "a b"))
    assert "exec" in SOURCES


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("vault:secret/model", "vault: is no source of keys; a path, or exec:"),
        ("file:/keys/model.pem", "file: is no source of keys"),
        ("exec:", "name a program by its absolute path"),
        ("exec:fetch", "name a program by its absolute path"),
        ("exec:./fetch", "name a program by its absolute path"),
        ("exec:A=1", "name a program by its absolute path"),
        ("exec:ADMITTED_MODEL=x /bin/fetch", "name a program by its absolute path"),
        ("exec:'/bin/fetch", "No closing quotation"),
    ],
)
def test_a_setting_that_names_none(setting: str, message: str) -> None:
    with pytest.raises(KeyFileError, match=message):
        key_source(setting)


def test_a_source_that_is_none_refuses_sealed_models_only(
    admission: Admission, bundle_folder: Path, keys: Keys
) -> None:
    with pytest.raises(AdmissionRefused, match=r"no key opens it: .*\[check 24\]"):
        open_admission(admission, "vault:x")
    plain = verify(bundle_folder, keys)
    assert open_admission(plain, "vault:x") is plain


def test_the_settings_keep_a_uri_and_place_a_path(tmp_path: Path) -> None:
    def setting(value: str) -> Path | str:
        environ = {
            "SEALGATE_HOME": str(tmp_path),
            "SEALGATE_ADMISSION_MODEL_KEY": value,
        }
        return load_settings(environ).admission.model_key

    assert load_settings({"SEALGATE_HOME": str(tmp_path)}).admission.model_key == (
        tmp_path / "keys" / "model.pem"
    )
    assert setting("other/model.pem") == tmp_path / "other" / "model.pem"
    assert setting("/etc/model.pem") == Path("/etc/model.pem")
    assert setting("exec:/bin/fetch a") == "exec:/bin/fetch a"
    config = tmp_path / "service.toml"
    config.write_text("[admission]\nmodel_key = 5\n")
    with pytest.raises(SettingsError, match="expected a file or a source of keys"):
        load_settings({"SEALGATE_CONFIG": str(config)})


# Files.


@KINDS
def test_a_file_opens_what_is_sealed_to_it(
    bundle_folder: Path, keys: Keys, tmp_path: Path, kem_id: int
) -> None:
    path = tmp_path / "model.pem"
    generate_model_key(path, kem_id=kem_id)
    admission = verify(sealed(bundle_folder, keys, load_model_key(path)), keys)
    assert open_admission(admission, path).bundle.model == onnx_model()
    magic = admission.bundle.files[SEALED_FILE][:8]
    assert magic == b"SGSEAL\x00" + (b"\x01" if kem_id == KEM_X25519 else b"\x02")


@KINDS
def test_an_encrypted_file_needs_its_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kem_id: int
) -> None:
    path, passphrase = tmp_path / "model.pem", tmp_path / "passphrase"
    write_secret(passphrase, b"correct horse\n")
    generate_model_key(path, kem_id=kem_id, passphrase=b"correct horse")
    data = path.read_bytes()
    assert data.count(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") == (
        1 if kem_id == KEM_X25519 else 2
    )
    with pytest.raises(KeyFileError, match=f"is encrypted; .*{PASSPHRASE_VARIABLE}"):
        load_model_key(path)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(passphrase))
    assert load_model_key(path).kem_id == kem_id
    passphrase.unlink()
    write_secret(passphrase, b"battery staple")
    with pytest.raises(KeyFileError, match="another passphrase, or not PKCS#8"):
        load_model_key(path)


def blocks(data: bytes) -> list[bytes]:
    return re.findall(rb"-----BEGIN.+?-----END [A-Z ]+-----\n", data, re.DOTALL)


LATTICE, CURVE = blocks(PEM)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        LATTICE,
        CURVE + LATTICE,
        LATTICE + CURVE + CURVE,
        CURVE + CURVE,
        PEM.replace(b"PRIVATE", b"PUBLIC"),
        PEM[: len(PEM) // 4],
    ],
    ids=["empty", "nonsense", "half", "turned", "three", "two", "public", "cut"],
)
def test_a_file_that_holds_no_such_key(tmp_path: Path, data: bytes) -> None:
    write_secret(tmp_path / "model.pem", data)
    with pytest.raises(KeyFileError) as caught:
        load_model_key(tmp_path / "model.pem")
    assert "BEGIN" not in str(caught.value)


def test_half_of_it_encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_secret(tmp_path / "passphrase", b"p")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(tmp_path / "passphrase"))
    encrypted = blocks(encode_hpke_key(KEY, passphrase=b"p"))
    with pytest.raises(KeyFileError, match="another passphrase, or not PKCS#8"):
        parse_hpke_key(encrypted[0] + CURVE, "it")


def test_the_public_file(tmp_path: Path) -> None:
    path = tmp_path / "public.pem"
    path.write_text(model_public_pem(KEY))
    assert load_model_public(path) == KEY.public_bytes
    halves = blocks(path.read_bytes())
    for data in (halves[0], halves[1] + halves[0], b"".join(halves) + halves[1], PEM):
        path.write_bytes(data)
        with pytest.raises(KeyFileError):
            load_model_public(path)
    path.write_bytes(halves[1] * 40)
    with pytest.raises(KeyFileError, match=r"not a PEM public key: .* at most 4096"):
        load_model_public(path)


# Rotation.


def test_a_rotated_key_opens_what_was_sealed_to_it(
    bundle_folder: Path, keys: Keys, tmp_path: Path
) -> None:
    path = tmp_path / "keys" / "model.pem"
    generate_model_key(path, kem_id=KEM_X25519)
    old = load_model_key(path)
    before = verify(sealed(bundle_folder, keys, old), keys)
    aside = rotate_model_key(path)
    assert aside == former_key_file(path, key_hint(old.public_bytes))
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    fresh = load_model_key(path)
    assert fresh.kem_id == KEM_XWING
    assert load_model_key(aside).public_bytes == old.public_bytes
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(
        (path.name, aside.name)
    )
    assert open_admission(before, path).bundle.model == onnx_model()
    shutil.rmtree(tmp_path / "sealed")
    after = verify(sealed(bundle_folder, keys, fresh), keys)
    assert open_admission(after, path).bundle.model == onnx_model()
    aside.unlink()
    with pytest.raises(AdmissionRefused, match="sealed to X25519 keys, unlike this"):
        open_admission(before, path)


def test_a_rotation_that_stopped_half_way_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "model.pem"
    generate_model_key(path)
    old = key_hint(load_model_key(path).public_bytes)
    fresh = tmp_path / "model.next.pem"
    generate_model_key(fresh)
    meant = load_model_key(fresh).public_bytes
    os.link(path, former_key_file(path, old))
    rotate_model_key(path)
    assert load_model_key(path).public_bytes == meant
    assert not fresh.exists()


def test_a_link_that_lies_about_its_hint_opens_nothing(
    bundle_folder: Path, keys: Keys, tmp_path: Path
) -> None:
    path, other = tmp_path / "model.pem", fresh_hpke_key(KEM_XWING)
    generate_model_key(path)
    admission = verify(sealed(bundle_folder, keys, other), keys)
    generate_model_key(former_key_file(path, key_hint(other.public_bytes)))
    with pytest.raises(AdmissionRefused, match="sealed to other keys than this one"):
        open_admission(admission, path)


def test_the_commands_of_the_model_key(security: Command, tmp_path: Path) -> None:
    assert security("keygen").returncode == 0
    path = tmp_path / "home" / "keys" / "model.pem"
    old = key_hint(load_model_key(path).public_bytes)
    (line,) = security("keys", "list", "--role", "model").stdout.splitlines()
    assert re.split(r"  +", line) == [old, "model", "X-Wing, current"]
    public = security("keys", "public", "--model").stdout
    (tmp_path / "public.pem").write_text(public)
    assert hashlib.sha256(public.encode()).hexdigest() == old  # as sha256sum says
    assert load_model_public(tmp_path / "public.pem") == (
        load_model_key(path).public_bytes
    )
    result = security("keys", "rotate", "--role", "model")
    fresh = key_hint(load_model_key(path).public_bytes)
    assert result.stdout.splitlines()[0] == f"rotated   {path}  {fresh}"
    assert f"model.{old[:16]}.pem  opens what is sealed to it" in result.stdout
    lines = security("keys", "list", "--role", "model").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [fresh, old]
    assert lines[1].endswith("X-Wing, replaced, opens what is sealed to it")
    refused = security(
        "keys", "rotate", "--role", "model", "--passphrase-file", str(path)
    )
    assert refused.returncode == 2
    assert f"name the passphrase's file in {PASSPHRASE_VARIABLE}" in refused.stderr


def test_keygen_encrypts_it_under_what_a_server_finds(
    security: Command, tmp_path: Path
) -> None:
    write_secret(tmp_path / "passphrase", b"p")
    extra = {PASSPHRASE_VARIABLE: str(tmp_path / "passphrase")}
    assert security("keygen", **extra).returncode == 0
    path = tmp_path / "home" / "keys" / "model.pem"
    assert path.read_bytes().count(b"ENCRYPTED PRIVATE KEY-----\n") == 4
    result = security("keys", "rotate", "--role", "model", **extra)
    assert result.returncode == 0, result.stderr
    assert path.read_bytes().count(b"ENCRYPTED PRIVATE KEY-----\n") == 4
    public = security("keys", "public", "--model", **extra).stdout
    assert public.count("BEGIN PUBLIC KEY") == 2


def test_the_commands_ask_no_source(
    security: Command, tmp_path: Path, fetch: Path
) -> None:
    extra = {"SEALGATE_ADMISSION_MODEL_KEY": f"exec:T=hunter2 {fetch} --t hunter2"}
    assert security("keygen", **extra).returncode == 0
    assert not (tmp_path / "home" / "keys" / "model.pem").exists()
    (line,) = security("keys", "list", "--role", "model", **extra).stdout.splitlines()
    assert line.endswith("model            from exec:, asked when a model was admitted")
    for arguments in (("public", "--model"), ("rotate", "--role", "model")):
        result = security("keys", *arguments, **extra)
        assert result.returncode == 2
        assert "is asked for an admitted model only" in result.stderr
    config = security("config", **extra).stdout
    assert json.loads(config)["admission"]["model_key"] == "exec:***"
    assert asked(tmp_path) == 0


def test_seal_refuses_keys_of_two_kinds(
    security: Command, bundle_folder: Path, keys: Keys, tmp_path: Path
) -> None:
    write_private(tmp_path / "release.pem", keys.release)
    to: list[str] = []
    for kem_id in (KEM_X25519, KEM_XWING):
        path = tmp_path / f"{kem_id}.pem"
        path.write_text(model_public_pem(fresh_hpke_key(kem_id)))
        to += ["--to", str(path)]
    result = security(
        "seal", str(bundle_folder), *to, "--out", str(tmp_path / "out"),
        "--key", str(tmp_path / "release.pem"),
    )  # fmt: skip
    assert result.returncode == 2
    assert "as strong as its weakest recipient" in result.stderr
    assert not (tmp_path / "out").exists()
    for number, said in ((1, "does not withstand a quantum computer"), (3, "")):
        result = security(
            "seal", str(bundle_folder), "--to", to[number], "--out",
            str(tmp_path / f"out{number}"), "--key", str(tmp_path / "release.pem"),
        )  # fmt: skip
        assert result.stdout == "sealed toy:1.0.0 to deployments: 1\n"
        assert said in result.stderr
        assert bool(said) == bool(result.stderr)


# Programs.


def run(
    tmp_path: Path, admission: Admission, script: str, **changes: float
) -> ModelKey:
    source = CommandSource((str(program(tmp_path, script)),))
    return replace(source, **changes).key(admission)


def test_a_program_is_told_for_what_it_is_asked_and_no_more(
    tmp_path: Path, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEALGATE_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "secret")
    write_secret(tmp_path / "kept.pem", PEM)
    script = f"env > {tmp_path}/env; pwd > {tmp_path}/pwd; cat {tmp_path}/kept.pem"
    assert run(tmp_path, admission, script).public_bytes == KEY.public_bytes
    lines = (tmp_path / "env").read_text().splitlines()
    told = dict(line.split("=", 1) for line in lines)
    for name in ("PWD", "OLDPWD", "SHLVL", "_"):  # the shell's own
        told.pop(name, None)
    subject = admission.bundle.subject
    assert told == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": os.path.expanduser("~"),
        "LC_ALL": "C",
        "ADMITTED_MODEL": "toy:1.0.0",
        "ADMITTED_ROOT_SHA256": subject.root_sha256,
        "ADMITTED_VERDICT_SHA256": admission.verdict_sha256,
        "ADMITTED_KEY_HINTS": key_hint(KEY.public_bytes),
    }
    assert (tmp_path / "pwd").read_text() == "/\n"


def test_arguments_reach_the_program_and_no_shell(
    tmp_path: Path, admission: Admission
) -> None:
    write_secret(tmp_path / "kept.pem", PEM)
    path = program(
        tmp_path, f'printf "%s|" "$@" > {tmp_path}/given; cat {tmp_path}/kept.pem'
    )
    uri = f"exec:{path} $HOME '*; touch {tmp_path}/x' `id`"
    assert open_admission(admission, uri).bundle.model == onnx_model()
    given = (tmp_path / "given").read_text()
    assert given == f"$HOME|*; touch {tmp_path}/x|`id`|"
    assert not (tmp_path / "x").exists()


def test_what_it_needs_is_assigned(tmp_path: Path, admission: Admission) -> None:
    write_secret(tmp_path / "kept.pem", PEM)
    script = f'test "$REGION" = "eu west" && cat {tmp_path}/kept.pem'
    path = program(tmp_path, script)
    for uri in (
        f"exec:REGION='eu west' EMPTY= {path}",
        f"exec:/usr/bin/env REGION='eu west' {path}",
    ):
        assert open_admission(admission, uri).bundle.model == onnx_model()
    told = CommandSource.parse(f"A=1 B=2=3 {path} C=4")
    assert dict(told.variables) == {"A": "1", "B": "2=3"}
    assert told.arguments == (str(path), "C=4")


def test_its_key_may_be_encrypted(
    tmp_path: Path, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_secret(tmp_path / "passphrase", b"p")
    write_secret(tmp_path / "kept.pem", encode_hpke_key(KEY, passphrase=b"p"))
    script = f"cat {tmp_path}/kept.pem"
    with pytest.raises(KeyFileError, match="fetch: its output: is encrypted"):
        run(tmp_path, admission, script)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, str(tmp_path / "passphrase"))
    assert run(tmp_path, admission, script).public_bytes == KEY.public_bytes


SECRET = "hunter2"
BAD_PROGRAMS = {
    "refuses": (f"echo {SECRET} >&2; exit 3", "exit code 3; run it by hand"),
    "dies": (f"echo {SECRET} >&2; kill -9 $$", "exit code -9"),
    "says nothing": ("exit 0", "not an X25519 or X-Wing key|not PKCS#8"),
    "says something else": (f"echo {SECRET}", "not an X25519 or X-Wing key"),
    "gives a key and fails": ("cat KEPT; exit 1", "exit code 1"),
    "talks without end": ("exec yes " + SECRET, "more than 16384 bytes"),
    "hangs": ("exec sleep 60", "no key after 0.5 s"),
    "hangs with its output closed": ("exec >&-; exec sleep 60", "no key after 0.5 s"),
    "leaves a child that holds the pipe": ("cat KEPT; sleep 60 &", "no key after"),
}


@pytest.mark.parametrize("name", BAD_PROGRAMS)
def test_a_program_that_gives_no_key(
    tmp_path: Path, admission: Admission, name: str
) -> None:
    script, message = BAD_PROGRAMS[name]
    write_secret(tmp_path / "kept.pem", PEM)
    # Whether it is done in half a second is asked only of those who never are.
    timeout_s = 0.5 if message.startswith("no key after") else 60.0

    def scene() -> pytest.ExceptionInfo[KeyFileError]:
        started = time.monotonic()
        with pytest.raises(KeyFileError, match=message) as caught:
            run(
                tmp_path,
                admission,
                script.replace("KEPT", str(tmp_path / "kept.pem")),
                timeout_s=timeout_s,
            )
        in_time(started, 10)
        return caught

    caught = once(scene)
    assert SECRET not in str(caught.value)
    assert "BEGIN" not in str(caught.value)


def test_what_it_started_is_killed_with_it(
    tmp_path: Path, admission: Admission
) -> None:
    script = f"sleep 300 & echo $! > {tmp_path}/pid; sleep 300"

    def scene() -> int:
        with pytest.raises(KeyFileError, match="no key after"):
            run(tmp_path, admission, script, timeout_s=0.5)
        try:
            return int((tmp_path / "pid").read_text())
        except (FileNotFoundError, ValueError):  # it had not even begun
            raise SpoiledError from None

    pid = once(scene)
    state = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 60
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.02)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_program_that_others_can_change(
    tmp_path: Path, admission: Admission, mode: int
) -> None:
    path = program(tmp_path, "exit 0")
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="others can change this program"):
        CommandSource((str(path),)).key(admission)


def test_a_program_that_is_none(tmp_path: Path, admission: Admission) -> None:
    missing = tmp_path / "none"
    with pytest.raises(KeyFileError, match="No such file"):
        CommandSource((str(missing),)).key(admission)
    with pytest.raises(KeyFileError, match="not a program that this user may run"):
        CommandSource((str(tmp_path),)).key(admission)
    path = program(tmp_path, "exit 0")
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="not a program that this user may run"):
        CommandSource((str(path),)).key(admission)
    path.write_text("no interpreter is named here, and it is no binary\n")
    path.chmod(0o700)
    with pytest.raises(KeyFileError, match="Exec format error"):
        CommandSource((str(path),)).key(admission)


def test_a_key_of_another_deployment(
    bundle_folder: Path, keys: Keys, tmp_path: Path, fetch: Path
) -> None:
    admission = verify(sealed(bundle_folder, keys, fresh_hpke_key(KEM_XWING)), keys)
    with pytest.raises(AdmissionRefused, match="sealed to other keys than this one"):
        open_admission(admission, f"exec:{fetch}")


def test_neither_source_nor_key_shows_itself(tmp_path: Path, fetch: Path) -> None:
    shown = repr(key_source(f"exec:T={SECRET} {fetch} {SECRET}"))
    assert SECRET not in shown
    body = b"".join(PEM.splitlines()[1:-1]).decode()
    assert body[:24] not in repr(KEY)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_key_that_is_kept_encrypted_for_another_key(
    tmp_path: Path, admission: Admission
) -> None:
    """As with a KMS: at rest is a ciphertext, and a program has it decrypted."""
    openssl = shutil.which("openssl")
    assert openssl is not None

    def ssl(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], check=True, capture_output=True)

    oaep = ("-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256")
    kms, kept = tmp_path / "kms.pem", tmp_path / "kept.enc"
    ssl("genrsa", "-out", str(kms), "3072")
    write_secret(tmp_path / "plain.pem", PEM)
    ssl("pkeyutl", "-encrypt", "-inkey", str(kms), *oaep, "-in",
        str(tmp_path / "plain.pem"), "-out", str(kept))  # fmt: skip
    (tmp_path / "plain.pem").unlink()
    command = [openssl, "pkeyutl", "-decrypt", "-inkey", str(kms), *oaep,
               "-in", str(kept)]  # fmt: skip
    opened = open_admission(admission, "exec:" + shlex.join(command))
    assert opened.bundle.model == onnx_model()


TOKEN_LIBRARIES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/pkcs11/libsofthsm2.so"),
)


@pytest.mark.skipif(
    not (shutil.which("pkcs11-tool") and any(p.exists() for p in TOKEN_LIBRARIES)),
    reason="needs softhsm2 and opensc",
)
def test_a_key_that_a_hardware_module_decrypts(
    tmp_path: Path, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/confidential.md's script, with a token in software."""
    library = next(path for path in TOKEN_LIBRARIES if path.exists())
    (tmp_path / "tokens").mkdir()
    config = tmp_path / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tmp_path}/tokens\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(config))

    def done(*arguments: str) -> None:
        subprocess.run(arguments, check=True, capture_output=True)

    token = ("pkcs11-tool", "--module", str(library), "--token-label", "sealgate")
    label = ("--label", "sealgate", "--so-pin", "5678", "--pin", "1234")
    done("softhsm2-util", "--init-token", "--free", *label)
    pair = ("--keypairgen", "--key-type", "rsa:3072", "--id", "01")
    done(*token, "--login", "--pin", "1234", *pair)
    public, kept = tmp_path / "public.der", tmp_path / "model.enc"
    done(*token, "--read-object", "--type", "pubkey", "--id", "01", "-o", str(public))
    write_secret(tmp_path / "plain.pem", PEM)
    oaep = ("-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha1")
    done("openssl", "pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey",
         str(public), *oaep, "-in", str(tmp_path / "plain.pem"),
         "-out", str(kept))  # fmt: skip
    (tmp_path / "plain.pem").unlink()
    write_secret(tmp_path / "pin", b"1234")
    script = program(
        tmp_path,
        f"export SOFTHSM2_CONF={config}\n"
        f"export PIN=$(cat {tmp_path}/pin)\n"
        f"exec pkcs11-tool --module {library} --token-label sealgate --login \\\n"
        "  --pin env:PIN --decrypt --id 01 --mechanism RSA-PKCS-OAEP \\\n"
        f"  --hash-algorithm SHA-1 --mgf MGF1-SHA1 --input-file {kept}",
    )
    opened = open_admission(admission, f"exec:{script}")
    assert opened.bundle.model == onnx_model()
    (tmp_path / "pin").unlink()
    write_secret(tmp_path / "pin", b"4321")
    with pytest.raises(AdmissionRefused, match=r"no key opens it: exec: .*exit code 1"):
        open_admission(admission, f"exec:{script}")


@pytest.mark.slow
def test_a_server_fetches_its_key(pristine: Path, tmp_path: Path, fetch: Path) -> None:
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    (home / "keys" / "model.pem").unlink()
    shutil.rmtree(home / "bentoml" / "models")
    settings = toy_settings(home)
    public = tmp_path / "model.pub.pem"
    public.write_text(model_public_pem(KEY))
    check_security(
        home, "seal", str(home / "bundle"), "--to", str(public),
        "--out", str(home / "sealed"), **settings,
    )  # fmt: skip
    check_security(home, "store", str(home / "sealed"), **settings)
    settings |= {"SEALGATE_ADMISSION_MODEL_KEY": f"exec:{fetch}"}
    token = mint(home, f"infer:{NAME}")
    with serve("service.app:Sealgate", home, extra=settings, alone=True) as server:
        with Client(server.url, token=token) as client:
            answer = client.infer(NAME, {"features": [[1.0, 2.0, 3.0]]})
        assert answer["label"].tolist() == [1]
    assert asked(tmp_path) >= 1
