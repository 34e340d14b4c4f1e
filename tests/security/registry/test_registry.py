"""security.registry: references, logins, layouts, and a registry that may lie."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.bundle import read_bundle
from models.errors import BundleError
from security.errors import KeyFileError, RegistryError, SettingsError
from security.registry.credentials import find_login, login_file
from security.registry.references import (
    LayoutReference,
    RegistryReference,
    is_reference,
    parse_reference,
)
from security.registry.transfer import open_store, pull, push
from tests.support.issuers import certify
from tests.support.registries import BASIC, LOGIN, Registry, registry

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("oci:a/b", LayoutReference(Path("a/b"))),
        ("oci:/a/b:1.0.0", LayoutReference(Path("/a/b"), "1.0.0")),
        ("oci:a:b/c:d", LayoutReference(Path("a:b/c"), "d")),
        ("oci:a:b/c", LayoutReference(Path("a:b/c"))),
        (f"oci:a@{DIGEST}", LayoutReference(Path("a"), "", DIGEST)),
        ("ghcr.io/a/b:1", RegistryReference("ghcr.io", "a/b", "1")),
        ("localhost/a:1", RegistryReference("localhost", "a", "1")),
        ("reg:5000/a:1", RegistryReference("reg:5000", "a", "1")),
        ("[::1]:5000/a:1", RegistryReference("[::1]:5000", "a", "1")),
        (f"a.b/c@{DIGEST}", RegistryReference("a.b", "c", "", DIGEST)),
        (f"a.b/c:1@{DIGEST}", RegistryReference("a.b", "c", "1", DIGEST)),
    ],
)
def test_references(text: str, reference: Any) -> None:
    assert parse_reference(text) == reference
    assert is_reference(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "oci:",
            "credit:1.0.0",
            "library/credit:1",
            "a.b/c",
            "a.b/C:1",
            "./a/b:1",
        ),
        *("a.b/c:1@sha256:00", "https://a.b/c:1", "u:p@a.b/c:1", "a.b/c/../d:1"),
        *("a.b/c:1\n", "a.b/c:" + "x" * 129, "a.b/" + "x" * 256 + ":1", "a.b//c:1"),
        *("a.b/c?x:1", "a.b:99x/c:1", "-a.b/c:1"),
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(SettingsError):
        parse_reference(text)


@pytest.fixture
def logins(tmp_path: Path) -> Path:
    path = tmp_path / "auth.json"
    auth = base64.b64encode(":".join(LOGIN).encode()).decode()
    path.write_text(json.dumps({"auths": {"127.0.0.1:1": {"auth": auth}}}))
    return path


def log_in(path: Path, server: Registry) -> dict[str, str]:
    path.write_text(path.read_text().replace("127.0.0.1:1", server.host))
    return {"REGISTRY_AUTH_FILE": str(path)}


def test_where_logins_are(tmp_path: Path, logins: Path) -> None:
    assert login_file({}) is None
    assert login_file({"HOME": str(tmp_path)}) is None
    docker = tmp_path / ".docker" / "config.json"
    docker.parent.mkdir()
    docker.write_text("{}")
    assert login_file({"HOME": str(tmp_path)}) == docker
    assert login_file({"HOME": "/", "DOCKER_CONFIG": str(docker.parent)}) == docker
    named = {"HOME": str(tmp_path), "REGISTRY_AUTH_FILE": str(logins)}
    assert login_file(named) == logins
    with pytest.raises(KeyFileError, match="no such file"):
        login_file({"REGISTRY_AUTH_FILE": str(tmp_path / "x")})


def test_the_closest_login_counts(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    keys = ("a.b", "a.b/c", "a.b/c/d", "https://e.f/v1/", "https://index.docker.io/v1/")
    auths = {
        key: {"auth": base64.b64encode(f"{key}:x".encode()).decode()} for key in keys
    }
    path.write_text(json.dumps({"auths": auths, "credsStore": "keychain"}))
    for host, name, key in (
        ("a.b", "c/d", "a.b/c/d"),
        ("a.b", "c/x", "a.b/c"),
        ("a.b", "x", "a.b"),
        ("e.f", "x", "https://e.f/v1/"),
        ("docker.io", "x", "https://index.docker.io/v1/"),
    ):
        login = find_login(path, host, name)
        assert login is not None
        assert login.authorization == b"Basic " + auths[key]["auth"].encode()
        assert auths[key]["auth"] not in repr(login)
    with pytest.raises(KeyFileError, match="kept by another program, which is not run"):
        find_login(path, "other.example", "x")
    for text in ("[]", "{", '{"auths": {"a.b": {"auth": "??"}}}'):
        path.write_text(text)
        with pytest.raises(KeyFileError, match=r"not a file of logins|no login"):
            find_login(path, "a.b", "x")
    path.write_text('{"auths": {"a.b": {}}}')
    assert find_login(path, "a.b", "x") is None


def test_tags_in_a_layout(tmp_path: Path, bundle_folder: Path) -> None:
    bundle, source = read_bundle(bundle_folder), f"oci:{tmp_path}/layout"

    def store(reference: str) -> Any:
        return open_store(f"{source}{reference}", environ={})

    for form in ("modelpack", "image", "image"):
        with store("") as layout:
            digest = push(bundle, layout, form=form, tag="1")
    index = json.loads((tmp_path / "layout" / "index.json").read_bytes())
    names = [item.get("annotations", {}) for item in index["manifests"]]
    assert [n["org.opencontainers.image.ref.name"] for n in names if len(n) == 1] == [
        "1"
    ]
    assert len(names) == 5  # the attestations of the artifact that had the tag
    for number, name in enumerate(("", ":1", f"@{digest}")):
        (tmp_path / str(number)).mkdir()
        with store(name) as layout:
            assert pull(layout, tmp_path / str(number)) == digest
    with store("") as layout:
        push(bundle, layout, form="image", tag="2")
    with store("") as layout:  # of one image both are names
        assert layout.manifest()
        push(bundle, layout, form="modelpack", tag="3")
    with store("") as layout, pytest.raises(RegistryError, match=r"2 images.*1, 2, 3"):
        layout.manifest()
    with store(":4") as layout, pytest.raises(RegistryError, match=": 4, where one"):
        layout.manifest()
    with (
        open_store(f"oci:{tmp_path}", environ={}) as layout,
        pytest.raises(RegistryError, match="no OCI layout"),
    ):
        layout.manifest()


def test_layouts_that_do_harm(tmp_path: Path, bundle_folder: Path) -> None:
    folder = tmp_path / "layout"
    with open_store(f"oci:{folder}", environ={}) as store:
        digest = push(read_bundle(bundle_folder), store, form="image", tag="1")
        manifest = folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
        data = manifest.read_bytes()
        manifest.write_bytes(data.replace(b"toy", b"tox"))
        with pytest.raises(BundleError, match="other bytes than its digest"):
            store.manifest()
        manifest.unlink()
        with pytest.raises(RegistryError, match="No such file"):
            store.manifest()
        manifest.symlink_to("/etc/passwd")
        with pytest.raises(RegistryError, match="symbolic links"):
            store.manifest()
        manifest.unlink()
        os.mkfifo(manifest)
        with pytest.raises(BundleError, match="not a regular file"):
            store.manifest()
        manifest.unlink()
        manifest.write_bytes(data)
        index = (folder / "index.json").read_text()
        (folder / "index.json").write_text(
            re.sub('"size":[0-9]+', '"size":9999999', index)
        )
        with pytest.raises(BundleError, match="a manifest of more than"):
            store.manifest()


@pytest.fixture(params=["", "basic", "bearer"])
def server(request: pytest.FixtureRequest) -> Iterator[Registry]:
    with registry(auth=request.param) as running:
        yield running


@pytest.mark.parametrize("form", ["image", "modelpack"])
def test_there_and_back(
    server: Registry, form: str, bundle_folder: Path, tmp_path: Path, logins: Path
) -> None:
    bundle, environ = read_bundle(bundle_folder), log_in(logins, server)
    name = f"{server.host}/org/toy"
    with open_store(f"{name}:1", environ=environ, plain_http=True) as store:
        digest = push(bundle, store, form=form, tag="1")
    for number, source in enumerate((f"{name}:1", f"{name}@{digest}")):
        to = tmp_path / str(number)
        to.mkdir()
        with open_store(source, environ=environ, plain_http=True) as store:
            assert pull(store, to) == digest
        assert read_bundle(to) == bundle
    scopes = {
        path.partition("scope=")[2] for _, path, _ in server.seen if "token" in path
    }
    if server.auth == "bearer":  # what is asked for is ours, never the challenge's
        assert scopes == {
            f"repository%3Aorg%2Ftoy%3A{actions}&service=us"
            for actions in ("pull", "pull%2Cpush")
        }
        sent = {sent for _, path, sent in server.seen if not path.startswith("/token")}
        assert BASIC not in sent


@pytest.mark.parametrize("lists", [True, False])
def test_referrers_are_listed_by_it_or_under_a_tag(
    lists: bool, bundle_folder: Path
) -> None:
    bundle = read_bundle(bundle_folder)
    with registry(referrers=lists) as server:
        for _ in range(2):  # twice the same adds nothing
            with open_store(
                f"{server.host}/toy:1", environ={}, plain_http=True
            ) as store:
                digest = push(bundle, store, form="modelpack", tag="1")
        kind, data = server.manifests.get(
            ("toy", digest.replace(":", "-")), ("", b'{"manifests":[]}')
        )
        found = json.loads(data)["manifests"]
    assert len(found) == (0 if lists else 4)
    assert kind == ("" if lists else "application/vnd.oci.image.index.v1+json")
    for item in found:
        assert item["artifactType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
        assert item["annotations"]["dev.sigstore.bundle.content"] == "dsse-envelope"


def failing(
    server: Registry, error: type[Exception], message: str, **options: Any
) -> None:
    to = options.pop("to")
    source = options.pop("source", f"{server.host}/toy:1")
    with (
        pytest.raises(error, match=message) as caught,
        open_store(source, plain_http=True, **{"environ": {}, **options}) as store,
    ):
        pull(store, to)
    for secret in (LOGIN[1], BASIC.partition(" ")[2]):
        assert secret not in str(caught.value)


def test_a_registry_that_lies(
    bundle_folder: Path, tmp_path: Path, logins: Path
) -> None:
    bundle = read_bundle(bundle_folder)
    with registry() as server, registry() as other:
        environ = log_in(logins, server)
        source = f"{server.host}/toy:1"
        with open_store(source, environ=environ, plain_http=True) as store:
            digest = push(bundle, store, form="image", tag="1")
        server.wrong = True
        failing(server, BundleError, "other bytes than its digest says", to=tmp_path)
        server.wrong = False
        # Another manifest than the digest that was asked for.
        kind, data = server.manifests["toy", digest]
        server.manifests["toy", digest] = kind, data.replace(b"toy", b"tox")
        named = f"{server.host}/toy@{digest}"
        failing(server, BundleError, "other bytes", to=tmp_path, source=named)
        server.manifests["toy", "1"] = kind, b" " * (2 << 20)
        failing(server, KeyFileError, "over 1048576 bytes", to=tmp_path)
        server.manifests["toy", "1"] = kind, data
        failing(
            server, RegistryError, "toy:2: not there", to=tmp_path,
            source=f"{server.host}/toy:2",
        )  # fmt: skip
        # Elsewhere a login is not shown; nor is http to another machine followed.
        server.auth, other.blobs = "basic", server.blobs
        server.away = f"{other.url}/v2/toy/blobs/"
        with open_store(source, environ=environ, plain_http=True) as store:
            place = tmp_path / "place"
            place.mkdir()
            pull(store, place)
        assert {sent for _, _, sent in other.seen} == {""}
        for away in (
            "http://169.254.169.254/",
            "file:///etc/",
            "http://u:p@127.0.0.1/",
        ):
            server.away = away
            failing(
                server, RegistryError, "names a URL: only https", to=tmp_path,
                environ=environ,
            )  # fmt: skip
        server.away = f"{server.url}/v2/toy/blobs/"
        failing(server, RegistryError, "5 redirects", to=tmp_path, environ=environ)


@pytest.mark.parametrize("status", [0, 404])
def test_the_secret_of_a_signed_address_is_not_told(
    status: int, bundle_folder: Path, tmp_path: Path
) -> None:
    """Where blobs are kept elsewhere, a query with a signature opens that address."""
    with registry() as server, registry() as other:
        with open_store(f"{server.host}/toy:1", environ={}, plain_http=True) as store:
            push(read_bundle(bundle_folder), store, form="image", tag="1")
        url = other.url if status else "http://127.0.0.1:1"
        server.away = f"{url}/v2/toy/blobs/x?Signature=a/{LOGIN[1]}&of="
        error, message = (
            (RegistryError, "x: not there")
            if status
            else (KeyFileError, "ConnectError")
        )
        failing(server, error, message, to=tmp_path)


def test_a_token_that_ends_during_the_uploads(
    bundle_folder: Path, tmp_path: Path, logins: Path
) -> None:
    """Registries' tokens live for minutes; large models take longer."""
    with registry(auth="bearer") as server:
        environ = log_in(logins, server)
        server.ends = {"Bearer for-repository:toy:pull,push"}
        with open_store(
            f"{server.host}/toy:1", environ=environ, plain_http=True
        ) as store:
            push(read_bundle(bundle_folder), store, form="image", tag="1")
        assert server.ends == set()
        with open_store(
            f"{server.host}/toy:1", environ=environ, plain_http=True
        ) as store:
            (tmp_path / "to").mkdir()
            pull(store, tmp_path / "to")
    assert read_bundle(tmp_path / "to") == read_bundle(bundle_folder)


def test_where_a_login_is_not_taken(tmp_path: Path, logins: Path) -> None:
    with registry(auth="basic") as server:
        failing(server, RegistryError, "asks for a login; none is in", to=tmp_path)
        environ = log_in(logins, server)
        auth = base64.b64encode(b"robot:wrong").decode()
        logins.write_text(json.dumps({"auths": {server.host: {"auth": auth}}}))
        failing(
            server, RegistryError, r"not be read.*401", to=tmp_path, environ=environ
        )
        server.auth = "bearer"
        failing(server, RegistryError, "login is refused", to=tmp_path, environ=environ)
        failing(server, RegistryError, "a stranger", to=tmp_path)
        for realm in ("http://tokens.example/", "ftp://x", "x", f"{server.url}/v2/x"):
            server.realm = realm
            server.seen.clear()
            message = "only https|is refused|gave none"
            failing(server, RegistryError, message, to=tmp_path, environ=environ)


def test_an_upload_goes_nowhere_else(bundle_folder: Path, logins: Path) -> None:
    bundle = read_bundle(bundle_folder)
    with registry(auth="basic") as server, registry() as other:
        environ = log_in(logins, server)
        for location in ("http://example.org/", f"{other.url}/v2/toy/blobs/uploads/1"):
            server.location = location
            with open_store(
                f"{server.host}/toy:1", environ=environ, plain_http=True
            ) as store:
                if location.startswith(other.url):
                    push(bundle, store, form="image", tag="1")
                else:
                    with pytest.raises(RegistryError, match="only https"):
                        push(bundle, store, form="image", tag="1")
        assert {sent for _, _, sent in other.seen} == {""}


def test_over_tls(bundle_folder: Path, tmp_path: Path) -> None:
    public, private = certify(tmp_path)
    bundle = read_bundle(bundle_folder)
    with registry(certificate=(public, private)) as server:
        source = f"{server.host}/toy:1"
        with open_store(source, environ={}, authorities=public) as store:
            push(bundle, store, form="image", tag="1")
            assert store.manifest()
        with (
            pytest.raises(KeyFileError, match="TLS: self-signed certificate"),
            open_store(source, environ={}) as store,
        ):
            store.manifest()
    with (
        pytest.raises(SettingsError, match="not on this machine: only https"),
        open_store("registry.example/toy:1", environ={}, plain_http=True),
    ):
        pass
    with (
        pytest.raises(KeyFileError, match="ConnectError"),
        open_store(source, environ={}, authorities=public) as store,
    ):
        store.manifest()
