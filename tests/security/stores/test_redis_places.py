"""security.stores.places: what a URL of the settings means, and what it may not."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from security.errors import QuotaStoreError, SettingsError
from security.settings.loading import load_settings
from security.stores.clients import client_maker
from security.stores.places import Reach, parse_place
from security.stores.shared import Redis


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service"),
    [
        ("redis://a", "server", (("a", 6379),), ""),
        ("rediss://u:p@a:1/3", "server", (("a", 1),), ""),
        ("redis://[::1]:1/0", "server", (("::1", 1),), ""),
        ("redis://u:p@w/x@a:1", "server", (("a", 1),), ""),
        ("redis+sentinel://a,b:1/m", "sentinel", (("a", 26379), ("b", 1)), "m"),
        ("rediss+sentinel://u:p@a/m.1/2", "sentinel", (("a", 26379),), "m.1"),
        ("redis+cluster://a,b:1", "cluster", (("a", 6379), ("b", 1)), ""),
        ("rediss+cluster://u:p@a", "cluster", (("a", 6379),), ""),
    ],
)
def test_read(
    url: str, kind: str, hosts: tuple[tuple[str, int], ...], service: str
) -> None:
    place = parse_place(url)
    assert (place.kind, place.hosts, place.service) == (kind, hosts, service)
    assert "p@" not in repr(place)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("sqlite://x", "local, or a redis:// URL"),
        ("redis:/a", "local, or a redis:// URL"),
        ("redis+x://a", "local, or a redis:// URL"),
        ("unix:///x", "local, or a redis:// URL"),
        ("redis://", "HOST or HOST:PORT"),
        ("redis://hunter2:x", "HOST or HOST:PORT"),
        ("redis://a:0", "1 to 65535"),
        ("redis://a:65536", "1 to 65535"),
        ("redis+cluster://a,,b", "HOST or HOST:PORT"),
        ("redis://a,b", "several hosts need"),
        ("redis://a/hunter2", "a database is a number"),
        ("redis://u:hunter#2@a", "percent-encoded"),
        ("redis+sentinel://a", "Sentinels need /NAME"),
        ("redis+sentinel://a/m/x", "a database is a number"),
        ("redis+cluster://a/0", "no databases"),
        ("rediss://a?ssl_cert_reqs=none", "options: client_name, "),
        ("rediss://a?ssl_check_hostname=false", "options: client_name, "),
        ("redis://a?ssl_ca_certs=/hunter2", "options: client_name, "),
        ("redis://a?sentinel_password=hunter2", "options: client_name, "),
        ("redis://a?password=hunter2&password=b", "twice"),
        ("redis://a?" + "x" * 5000, "4096 characters"),
        ("redis+cluster://" + ",".join(["a"] * 65), "64 hosts"),
    ],
)
def test_refused_without_a_part_of_it(url: str, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        parse_place(url)
    assert "hunter" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"quotas\.store: "):
        load_settings({"SEALGATE_QUOTAS_STORE": url})


@pytest.mark.parametrize("password", ["a/b", "a@b", "ü:%", "a,b"])
def test_passwords_of_any_kind(password: str) -> None:
    """Sentinels' own options are theirs; user and password are the master's."""
    pytest.importorskip("redis", reason="the redis package is not installed")
    for url in (
        f"redis+sentinel://user:{quote(password, safe='')}@a,b/main/3",
        "redis+sentinel://user@a,b/main/3?password=" + quote(password, safe=""),
    ):
        place = parse_place(f"{url}{'&' if '?' in url else '?'}sentinel_username=s")
        client = client_maker(place, Reach(), asynchronous=False, timeout_s=1)()
        known = client.connection_pool.connection_kwargs
        assert (known["username"], known["password"]) == ("user", password)
        assert known["db"] == 3
        (first, _) = client.connection_pool.sentinel_manager.sentinels
        assert first.connection_pool.connection_kwargs["username"] == "s"
        assert not first.connection_pool.connection_kwargs["password"]


@pytest.mark.parametrize("prefix", ["", "a:b", "a*", "{a}", "a b", "x" * 65, "ä"])
def test_prefixes(prefix: str) -> None:
    with pytest.raises(SettingsError, match=r"redis\.prefix: 1 to 64"):
        load_settings({"SEALGATE_REDIS_PREFIX": prefix})


def test_certificates_come_in_pairs_and_are_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="both, or neither"):
        load_settings({"SEALGATE_REDIS_KEY": "x.pem"})
    settings = load_settings({"SEALGATE_REDIS_CA": str(tmp_path / "ca.pem")})
    pytest.importorskip("redis", reason="the redis package is not installed")
    with pytest.raises(QuotaStoreError, match=r"ca\.pem: no such file, which \[redis"):
        Redis(
            "rediss://a",
            settings.quotas.redis,
            setting="quotas.store",
            refusal=QuotaStoreError,
            timeout_s=1,
        )
