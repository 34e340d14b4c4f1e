"""Every store on real servers: with TLS and a minimal user, a cluster, Sentinels."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from security.access.quota_stores import RedisQuotaStore, Want
from security.access.revocation_stores import RedisStore
from security.errors import QuotaStoreError, ReplayStoreError, RevocationStoreError
from security.sealing.replay import check_replay_store
from security.stores.places import Reach
from tests.support.issuers import certify
from tests.support.redis_servers import (
    RedisServer,
    plain,
    redis_cluster,
    redis_sentinels,
    redis_server,
    wait_until,
)
from tests.support.redis_stores import (
    KEY,
    PASSWORD,
    are_answered,
    as_user,
    documented,
    exercise,
)
from tests.support.servers import free_port

OWNER = ("--user", "default", "on", ">admin", "~*", "&*", "+@all")


def used(port: int, **options: object) -> set[str]:
    """The commands that a server has carried out, connecting aside."""
    with closing(plain(port, **options)) as admin:
        stats = {name.removeprefix("cmdstat_") for name in admin.info("commandstats")}
    return stats - {"auth", "hello", "client|setinfo", "select"}


def denied(admin: Any) -> set[str]:
    """What the user was denied; the library offers its name to newer servers."""
    return {entry["object"] for entry in admin.acl_log()} - {"client|setinfo"}


# The Valkey that installs from a wheel was built without TLS.
needs_tls = pytest.mark.skipif(
    os.environ.get("REDIS_SERVER_TLS") == "no", reason="a server without TLS"
)


@needs_tls
@pytest.mark.parametrize("prefix", ["sealgate", "team-7"])
def test_tls_and_a_user_who_may_do_no_more(tmp_path: Path, prefix: str) -> None:
    """With a private authority, and the client's own certificate."""
    public, private = certify(tmp_path)
    rules = [rule.replace("~sealgate:", f"~{prefix}:") for rule in documented()]
    options = (
        *("--tls-cert-file", str(public), "--tls-key-file", str(private)),
        *("--tls-ca-cert-file", str(public), "--tls-auth-clients", "yes"),
        *as_user(rules),
        *OWNER,
    )
    reach = Reach(prefix=prefix, ca=public, certificate=public, key=private)
    admin = {
        "ssl": True,
        "ssl_ca_certs": str(public),
        "ssl_certfile": str(public),
        "ssl_keyfile": str(private),
        "password": "admin",
    }
    with redis_server(tmp_path, *options, tls=True) as server:
        url = f"rediss://sealgate:{PASSWORD}@127.0.0.1:{server.port}/0"
        exercise(url, reach)
        found = used(server.port, **admin)
        assert found == {rule[1:] for rule in rules if rule.startswith("+")}
        with closing(plain(server.port, **admin)) as owner:
            assert not denied(owner)
        login = {"username": "sealgate", "password": PASSWORD}
        with closing(plain(server.port, **(admin | login))) as user:
            for words in (
                ("KEYS", "*"),
                ("FLUSHALL",),
                ("CONFIG", "GET", "*"),
                ("ACL", "WHOAMI"),
                ("SCRIPT", "FLUSH"),
                ("PUBLISH", "x", "y"),
                ("SET", "other:x", "y"),
                ("GET", f"{prefix}x:y"),
                ("EVAL", "return redis.call('KEYS', '*')", "0"),
                ("EVAL", "return redis.call('GET', 'other:x')", "0"),
            ):
                with pytest.raises(Exception, match=r"permission|can.t (run|access)"):
                    user.execute_command(*words)
        for bad, reason in (
            (Reach(prefix=prefix, ca=public), "TLS: |ConnectionError"),
            (Reach(prefix, certificate=public, key=private), "CERTIFICATE_VERIFY"),
            (Reach("other", public, public, private), "NoPermissionError"),
        ):
            with closing(RedisStore(url, bad)) as store:
                with pytest.raises(RevocationStoreError, match=reason) as caught:
                    store.new_list()
                assert PASSWORD not in str(caught.value)


def test_a_cluster(tmp_path: Path) -> None:
    """Keys that are taken together lie together, and those of subjects apart."""
    rules = documented(cluster=True)
    with redis_cluster(tmp_path, *as_user(rules)) as servers:
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers[:2])
        url = f"redis+cluster://sealgate:{PASSWORD}@{hosts}"
        exercise(url, Reach())
        # So many that chance leaves none of three servers without.
        wait_until(lambda: are_answered(url, Reach(), subjects=64))
        sizes = []
        for server in servers:
            with closing(plain(server.port)) as admin:
                assert not denied(admin)
                sizes.append(admin.dbsize())
        assert min(sizes) > sum(sizes) / 8, sizes
        # A first request asks for its own part, not for all of them.
        assert scripts(servers, lambda: are_answered(url, Reach(), subjects=1)) < 16
        # What is wrong for good is said at the start, and not waited for.
        for wrong, reason in (
            (url.replace(PASSWORD, "x"), "redis: AuthenticationError"),
            (url.replace("+cluster", "").partition(",")[0], "redis\\+cluster:// names"),
        ):
            refused = pytest.raises(RevocationStoreError, match=reason)
            with closing(RedisStore(wrong, Reach())) as store, refused:
                store.start()
            with pytest.raises(ReplayStoreError, match=reason):
                check_replay_store(wrong, Reach())


def scripts(servers: list[RedisServer], work: Callable[[], bool]) -> int:
    """How many scripts servers run for some work."""
    with ExitStack() as stack:
        admins = [
            stack.enter_context(closing(plain(server.port))) for server in servers
        ]
        for admin in admins:
            admin.config_resetstat()
        wait_until(work)
        stats = [admin.info("commandstats") for admin in admins]
    return sum(one.get("cmdstat_evalsha", {"calls": 0})["calls"] for one in stats)


@contextmanager
def watched(folder: Path) -> Iterator[tuple[str, Reach, list[RedisServer], list[int]]]:
    """A master and its replica behind a Sentinel, all with TLS and users."""
    public, private = certify(folder)
    files = ("tls-cert-file", public), ("tls-key-file", private)
    files = (*files, ("tls-ca-cert-file", public))
    tls = [word for name, path in files for word in (f"--{name}", str(path))]
    tls += ["--tls-auth-clients", "no", "--tls-replication", "yes"]
    tls += [*as_user(documented()), *OWNER, "--masterauth", "admin"]
    lines = [f"{name} {path}" for name, path in files]
    lines += ["tls-auth-clients no", "tls-replication yes", "requirepass door"]
    lines += ["sentinel auth-pass main admin"]
    for name in ("one", "two"):
        (folder / name).mkdir()
    with redis_server(folder / "one", *tls, tls=True) as one:
        behind = ("--replicaof", "127.0.0.1", str(one.port))
        with (
            redis_server(folder / "two", *tls, *behind, tls=True) as two,
            redis_sentinels(folder, one, *lines, tls=True) as ports,
        ):
            hosts = f"127.0.0.1:{free_port()},127.0.0.1:{ports[0]}"
            login = f"sealgate:{PASSWORD}"
            url = f"rediss+sentinel://{login}@{hosts}/main/0?sentinel_password=door"
            yield url, Reach(ca=public), [one, two], ports


@needs_tls
def test_sentinels_say_who_the_master_is(tmp_path: Path) -> None:
    """One of the two named Sentinels is away, and then the master changes."""
    with watched(tmp_path) as (url, reach, servers, ports):
        admin = {"ssl": True, "ssl_ca_certs": str(reach.ca)}
        exercise(url, reach)
        with (
            closing(plain(ports[0], password="door", **admin)) as sentinel,
            closing(plain(servers[1].port, password="admin", **admin)) as second,
        ):
            wait_until(lambda: len(sentinel.sentinel_slaves("main")) == 1)
            wait_until(lambda: second.info()["master_link_status"] == "up")
            store = RedisStore(url, reach)
            with closing(store):
                before = store.version()
                assert sentinel.execute_command("SENTINEL FAILOVER", "main")
                wait_until(lambda: second.info("replication")["role"] == "master")
                wait_until(lambda: _reads(store) == before)
                wait_until(lambda: are_answered(url, reach, subjects=1))
        with closing(RedisStore(url.replace("door", "x"), reach)) as store:
            with pytest.raises(RevocationStoreError, match="redis: ") as caught:
                store.version()
            assert PASSWORD not in str(caught.value)


def _reads(store: RedisStore) -> object:
    try:
        return store.version()
    except RevocationStoreError:
        return None


def test_two_deployments_of_one_redis(tmp_path: Path) -> None:
    """Each has a prefix: neither counts, remembers or revokes for the other."""
    with redis_server(tmp_path) as server:
        for prefix, key in (("sealgate", KEY), ("blue", b"another")):
            exercise(server.url, Reach(prefix))

            async def count(prefix: str, key: bytes) -> None:
                store = RedisQuotaStore(server.url, Reach(prefix), key=key)
                want = Want(secrets.token_bytes(18), 1, int(time.time()) + 9, 1, 1, 1)
                try:
                    await store.take([want])
                finally:
                    await store.close()

            asyncio.run(count(prefix, KEY))
            if key != KEY:
                with pytest.raises(QuotaStoreError, match="another key"):
                    asyncio.run(count(prefix, key))
        with closing(plain(server.port)) as admin:
            names = {name.split(b":")[0] for name in admin.keys("*")}
        assert names == {b"sealgate", b"blue"}
