"""security.admission.signers: a file, or whatever securesystemslib can reach."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, Signature

from models.bundle import attestation_file, read_bundle
from models.files import write_atomic
from sealgate.protocol import dsse
from sealgate.protocol.dsse import KeySigner, key_hint, public_pem
from security.admission.attest import sign_report
from security.admission.signers import LibrarySigner, load_signer
from security.commands.missing import needed
from security.errors import KeyFileError
from security.key_files import is_uri, write_private, write_secret
from tests.conftest import Command, toy_settings
from tests.support.bundles import Keys, evaluate, policy

KEY = ec.generate_private_key(ec.SECP256R1())
HINT = key_hint(KEY.public_key())


@pytest.fixture
def key_path(tmp_path: Path) -> Path:
    write_private(tmp_path / "key.pem", KEY)
    return tmp_path / "key.pem"


def never() -> ec.EllipticCurvePublicKey:
    raise AssertionError("a file holds its own public key")


def verified(signer: dsse.Signer) -> dsse.Verified:
    return dsse.verify(dsse.sign(b"payload", signer), {HINT: KEY.public_key()})


def test_a_file(key_path: Path) -> None:
    signer = load_signer(str(key_path), public_key=never)
    assert signer.hint == HINT
    assert verified(signer) == dsse.Verified(b"payload", HINT)


def test_a_key_in_memory_still_signs() -> None:
    bundle = dsse.sign(b"payload", KEY)
    assert dsse.verify(bundle, {HINT: KEY.public_key()}).hint == HINT


def test_the_library_signs_with_a_real_key(key_path: Path) -> None:
    signer = load_signer(f"file2:{key_path}", public_key=KEY.public_key)
    assert isinstance(signer, LibrarySigner)
    assert verified(signer) == dsse.Verified(b"payload", HINT)


def test_a_signer_hides_its_key(key_path: Path) -> None:
    library = load_signer(f"file2:{key_path}", public_key=KEY.public_key)
    for signer in (KeySigner(KEY), library):
        assert "rivate" not in repr(signer)


def test_a_report_signed_through_the_library_is_admitted(
    bundle_folder: Path, keys: Keys, tmp_path: Path
) -> None:
    write_private(tmp_path / "assessor.pem", keys.assessor)
    signer = load_signer(
        f"file2:{tmp_path / 'assessor.pem'}", public_key=keys.assessor.public_key
    )
    signed = sign_report(read_bundle(bundle_folder), "quality", signer)
    write_atomic(bundle_folder / attestation_file("quality"), signed)
    bundle = read_bundle(bundle_folder)
    evaluate(bundle, policy(), keys.trust, now=datetime.now(UTC))


def test_the_command_signs_through_the_library(
    security: Command, bundle_folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    write_atomic(home / "policy.toml", policy_bytes())
    assert security("keygen", **toy_settings(home)).returncode == 0
    key = f"file2:{home / 'keys' / 'assessor.pem'}"
    arguments = ("sign", str(bundle_folder), "--role", "assessor", "--key", key)
    result = security(*arguments, **toy_settings(home))
    assert result.returncode == 0, result.stderr
    assert "signed quality as assessor" in result.stdout


def policy_bytes() -> bytes:
    from tests.support.bundles import POLICY

    return POLICY


def test_the_command_finds_no_public_key(
    security: Command, bundle_folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    settings = toy_settings(home)
    home.mkdir()
    (home / "policy.toml").write_bytes(policy_bytes())
    security("keygen", **settings)
    security("keys", "rotate", "--role", "assessor", **settings)
    key = f"file2:{home / 'keys' / 'assessor.pem'}"
    arguments = ("sign", str(bundle_folder), "--role", "assessor", "--key", key)
    result = security(*arguments, **settings)
    assert result.returncode == 2
    assert "2 keys hold the role assessor; name one by --public" in result.stderr


def test_another_key_than_the_public_one(key_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(KeyFileError, match=r"file2 key: .*does not match"):
        load_signer(f"file2:{key_path}", public_key=other.public_key)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file2:/nowhere/key.pem", "file2 key: .*not found"),
        ("carrier-pigeon:coop", "carrier-pigeon key: Unsupported private key scheme"),
    ],
)
def test_a_key_that_cannot_be_had(uri: str, message: str) -> None:
    with pytest.raises(KeyFileError, match=message):
        load_signer(uri, public_key=KEY.public_key)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "securesystemslib.signer", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        load_signer("awskms:alias/release", public_key=KEY.public_key)
    install = 'pip install "sealgate-toolkit[assess]"'
    assert needed(caught.value, "sign") == f"needs securesystemslib: {install}"


def test_what_is_a_uri() -> None:
    assert is_uri("gcpkms:projects/p/locations/l")
    assert is_uri("hsm:2?label=x")
    for path in ("key.pem", "/keys/a:b.pem", "./awskms", "C:"):
        assert not is_uri(path)


class Remote:
    """A key service, as the library has them: a signature in hex, or an error."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey | None, secret: str = ""
    ) -> None:
        self.key, self.secret = key, secret

    @classmethod
    def from_priv_key_uri(cls, uri: str, public_key: object, handler) -> Remote:
        del uri, public_key
        return cls(KEY, handler("PIN"))

    def sign(self, data: bytes) -> Signature:
        if self.key is None:
            raise RuntimeError("access denied\nrequest id 7")
        signature = self.key.sign(data, ec.ECDSA(hashes.SHA256()))
        return Signature("id", signature.hex())


def test_a_service_that_signs_with_another_version_of_the_key() -> None:
    signer = LibrarySigner(KEY.public_key(), Remote(Keys.generate().release))
    with pytest.raises(KeyFileError, match="not as the public key that was named"):
        signer.sign(b"data")


def test_a_service_that_refuses() -> None:
    signer = LibrarySigner(KEY.public_key(), Remote(None))
    with pytest.raises(KeyFileError) as caught:
        signer.sign(b"data")
    assert str(caught.value) == "signing failed: access denied request id 7"


def test_a_pin_comes_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "vault-of-tests", Remote)
    write_secret(tmp_path / "pin", b"1234\n")
    signer = load_signer(
        "vault-of-tests:x", public_key=KEY.public_key, passphrase=tmp_path / "pin"
    )
    assert isinstance(signer, LibrarySigner)
    assert signer.signer.secret == "1234"
    assert verified(signer).hint == HINT
    with pytest.raises(KeyFileError, match="the key needs a PIN"):
        load_signer("vault-of-tests:x", public_key=KEY.public_key)


def test_the_public_key_in_pem_is_what_the_library_gets(key_path: Path) -> None:
    signer = load_signer(f"file2:{key_path}", public_key=KEY.public_key)
    assert isinstance(signer, LibrarySigner)
    wanted = public_pem(KEY.public_key())
    assert signer.signer.public_key.keyval["public"] == wanted
