"""`python -m security access issuer`: what serves keys; and what `config` hides."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from security.access.issuer import DEVELOPMENT_ISSUER, load_issuer_key
from security.access.key_sources import UrlKeys
from security.commands import main
from security.commands.access_issuer import JWKS_PATH, make_server
from security.commands.token import mint_from_settings, proof_key
from security.errors import KeyFileError, SettingsError
from security.key_files import write_private
from security.settings.issuers import IssuerSettings
from security.settings.loading import Settings, load_settings
from tests.support.issuers import ED_KEY, certify


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A deployment with no more than the issuer's key."""
    write_private(tmp_path / "keys" / "issuer.pem", ED_KEY)
    return load_settings({"SEALGATE_HOME": str(tmp_path)})


@contextmanager
def answering(server: ThreadingHTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_it_serves_the_keys_and_nothing_else(settings: Settings) -> None:
    server = make_server(settings, port=0)
    assert server.server_address[0] == "127.0.0.1"
    with answering(server) as port:
        answer = httpx.get(f"http://127.0.0.1:{port}{JWKS_PATH}")
        document = answer.json()
        assert document["environment"] == "development"
        assert document["issuer"] == DEVELOPMENT_ISSUER
        assert '"d"' not in answer.text
        for path in ("/", "/issuer.pem", "/../keys/issuer.pem", JWKS_PATH + "x"):
            assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 404
        assert httpx.post(f"http://127.0.0.1:{port}{JWKS_PATH}").status_code == 501


def test_a_server_fetches_them_over_https(settings: Settings, tmp_path: Path) -> None:
    public, private = certify(tmp_path / "host")
    server = make_server(settings, port=0, certificate=public, private_key=private)
    with answering(server) as port:
        url = f"https://127.0.0.1:{port}{JWKS_PATH}"
        source = UrlKeys(url, IssuerSettings(jwks=url, jwks_ca=public))
        source.refresh()
        (key,) = source.current().values()
        assert key.jwk.key == load_issuer_key(settings.home).public_key()
        # Whoever does not shake hands holds up nobody.
        idle = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        idle.connect()
        source.refresh()
        assert len(source.current()) == 1
        idle.close()


def test_not_in_production_and_not_half(settings: Settings, tmp_path: Path) -> None:
    given = {
        "SEALGATE_HOME": str(tmp_path),
        "SEALGATE_SERVICE_ENVIRONMENT": "production",
    }
    with pytest.raises(SettingsError, match="refused in production"):
        make_server(load_settings(given), port=0)
    with pytest.raises(SettingsError, match="go together"):
        make_server(settings, port=0, certificate=tmp_path / "x")
    none = tmp_path / "none"
    with pytest.raises(KeyFileError, match="no certificate with its key"):
        make_server(settings, port=0, certificate=none, private_key=none)
    for port in (-1, 70000):
        with pytest.raises(SettingsError, match="port"):
            make_server(settings, port=port)


def test_a_key_to_bind_tokens_to_is_made_once(
    settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "proof.pem"
    first, second = proof_key(path), proof_key(path)
    assert first.thumbprint == second.thumbprint
    assert path.stat().st_mode & 0o777 == 0o600
    text = mint_from_settings(
        settings,
        scopes=["infer:toy"],
        subject="a",
        lifetime_s=60,
        confirmation=first.thumbprint,
    )
    assert text.count(".") == 2
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="let others in"):
        proof_key(path)


def test_config_hides_the_password_of_the_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "rediss://name:hunter2@cache:6379/0?password=hunter2"
    monkeypatch.setenv("SEALGATE_ACCESS_REVOCATION_STORE", url)
    assert main(["config"]) == 0
    text = capsys.readouterr().out
    assert "hunter2" not in text
    assert json.loads(text)["access"]["revocation_store"].startswith("rediss://***@")
