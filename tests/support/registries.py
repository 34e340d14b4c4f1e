"""A registry on the loopback that speaks the distribution specification, and may lie.

It keeps all in memory. What it does as it should is what docker-registry does, which
tests/interop/oci talks to; it also lists referrers and hands out tokens, which that one
does not, and does on demand what none should.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from security.registry.documents import Blob, Descriptor

LOGIN = "robot", "pass:word"
BASIC = "Basic " + base64.b64encode(":".join(LOGIN).encode()).decode()


@dataclass
class Memory:
    """A store of one image, whose writer is hostile: `security.registry.Store`."""

    data: bytes = b""
    blobs: dict[str, bytes] = field(default_factory=dict)

    def add(self, data: bytes, media_type: str, **changes: Any) -> dict[str, Any]:
        """Keep a blob; its descriptor, with whatever is changed in it."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)} | changes

    def manifest(self) -> bytes:
        return self.data

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        data = self.blobs[descriptor.digest]
        yield from (data[start : start + 1000] for start in range(0, len(data), 1000))

    def put_blob(self, blob: Blob) -> None:
        self.blobs[blob.descriptor.digest] = b"".join(blob.parts())

    def put_manifest(self, data: bytes, tag: str) -> None:
        self.data = data

    def put_referrer(self, data: bytes, subject: str) -> None:
        self.blobs[subject] = data


@dataclass
class Registry:
    """A running registry.

    Attributes:
        host: name and port.
        auth: "" for none, "basic", or "bearer".
        referrers: whether it lists them.
        away: where a GET of a blob is redirected to, if anywhere.
        realm: where its tokens are to be had; here, unless it says something else.
        location: where an upload is to go; here likewise.
        wrong: whether blobs come with one bit changed.
        ends: tokens that it takes no more, once a manifest is to be written.
        blobs: by digest.
        manifests: by repository and tag or digest: their type and bytes.
        seen: method, path and content of `authorization` of each request.
    """

    host: str = ""
    scheme: str = "http"
    auth: str = ""
    referrers: bool = True
    away: str = ""
    realm: str = ""
    location: str = ""
    wrong: bool = False
    ends: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    seen: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def do(self) -> None:
        registry, path = self.registry, urlsplit(self.path)
        sent = self.headers.get("authorization", "")
        registry.seen.append((self.command, self.path, sent))
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if path.path == "/token":
            self.token(sent, parse_qs(path.query))
        elif registry.auth == "basic" and sent != BASIC:
            self.say(401, {"www-authenticate": 'Basic realm="test"'})
        elif registry.auth == "bearer" and (
            not sent.startswith("Bearer for-")
            or (
                self.command == "PUT"
                and "/manifests/" in path.path
                and sent in registry.ends
            )
        ):
            registry.ends.discard(sent)
            realm = registry.realm or f"{registry.url}/token"
            scope = "repository:somebody/elses:*"
            self.say(401, {"www-authenticate": f'Basic realm="test", Bearer realm="{realm}",service="us",scope="{scope}", Digest realm="x"'})  # fmt: skip # noqa: E501
        else:
            name, kind, last = path.path.removeprefix("/v2/").rsplit("/", 2)
            getattr(self, kind)(name, last, body)

    do_GET = do_HEAD = do_POST = do_PUT = do  # noqa: N815

    def token(self, sent: str, query: dict[str, list[str]]) -> None:
        if sent != BASIC:
            self.say(401)
            return
        scope = query["scope"][0].replace("/", ".")
        self.say(200, body=json.dumps({"token": f"for-{scope}"}).encode())

    def blobs(self, name: str, last: str, body: bytes) -> None:
        registry = self.registry
        if last not in registry.blobs:
            self.say(404)
        elif self.command == "GET" and registry.away:
            self.say(307, {"location": registry.away + last})
        else:
            data = registry.blobs[last]
            if registry.wrong:
                data = bytes([data[0] ^ 1]) + data[1:]
            self.say(200, body=data)

    def uploads(self, name: str, last: str, body: bytes) -> None:
        registry = self.registry
        if self.command == "POST":
            where = registry.location or f"/v2/{name}/uploads/1?state=x"
            self.say(202, {"location": where})
            return
        (digest,) = parse_qs(urlsplit(self.path).query)["digest"]
        found = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if found == digest:
            registry.blobs[digest] = body
        self.say(201 if found == digest else 400)

    def manifests(self, name: str, last: str, body: bytes) -> None:
        manifests, headers = self.registry.manifests, {}
        if self.command == "PUT":
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            kind = self.headers["content-type"]
            manifests[name, last] = manifests[name, digest] = kind, body
            if self.registry.referrers and "subject" in json.loads(body):
                headers["oci-subject"] = json.loads(body)["subject"]["digest"]
            self.say(201, headers)
        elif (name, last) in manifests:
            kind, data = manifests[name, last]
            self.say(200, {"content-type": kind}, data)
        else:
            self.say(404)

    def say(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@contextmanager
def registry(
    *, certificate: tuple[Path, Path] | None = None, **options: Any
) -> Iterator[Registry]:
    """Run one until the block ends; with a certificate and its key, over TLS."""
    running = Registry(**options)
    handler = type("Handler", (_Handler,), {"registry": running})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        running.scheme = "https"
    running.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
