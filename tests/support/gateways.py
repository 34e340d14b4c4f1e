"""A gateway without sockets: real keys, real sealing, answers from a function."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from sealgate.exchange import GATEWAY_PATH, OHTTP_KEY_PROBLEM, Answer
from sealgate.protocol import bhttp, dsse, keyconfig, ohttp, signedkeys
from sealgate.protocol.bhttp import Request, Response
from sealgate.protocol.drafts import chunked
from sealgate.protocol.hpke import KEM_X25519, KEM_XWING, HybridPrivateKey, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig
from sealgate.steps import AskToken, Fetch, Wait

URL = "https://models.example"
PROBLEM = "application/problem+json"
METADATA = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
}


def json_response(document: Any, status: int = 200) -> Response:
    kind = b"application/json" if status == 200 else PROBLEM.encode()
    return Response(status, ((b"content-type", kind),), json.dumps(document).encode())


def refusal(status: int, *, kind: str = "about:blank", **headers: str) -> Response:
    response = json_response({"type": kind, "title": "no"}, status)
    extra = tuple(
        (name.replace("_", "-").encode(), value.encode())
        for name, value in headers.items()
    )
    return Response(status, response.headers + extra, response.body)


def unsealed(response: Response) -> Answer:
    headers = {n.decode(): v.decode() for n, v in response.headers}
    return Answer(response.status, headers, bytes(response.body))


@dataclass
class Gateway:
    """Answers steps as a server would.

    Attributes:
        handle: gives the inner response to an inner request.
        identity: signs the key configurations.
        identities: sign them in the second version, which is not offered without.
        attest: makes evidence over a nonce, for the second version.
        outer: answers in the open instead, where it gives something.
        takes_chunks: whether chunked requests are understood.
    """

    handle: Callable[[Request], Response] = lambda _: json_response({})
    identity: ec.EllipticCurvePrivateKey | None = None
    outer: Callable[[Fetch], Answer | None] = lambda _: None
    identities: tuple[dsse.PrivateKey, ...] = ()
    attest: Callable[[bytes], Mapping[str, Any]] | None = None
    takes_chunks: bool = True
    post_quantum: bool = True
    cache_control: str = "max-age=3600"
    now: float = 1_000_000_000.0
    requests: list[Request] = field(default_factory=list)
    fetched: list[tuple[str, str]] = field(default_factory=list)
    sealed: list[bytes] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rotate()

    def rotate(self) -> None:
        """Replace the keys."""
        self._keys: Mapping[int, Any] = {
            KEM_X25519: PrivateKey.generate(),
            KEM_XWING: HybridPrivateKey.generate(),
        }

    @property
    def document(self) -> bytes:
        configs = [KeyConfig(1, KEM_X25519, self._keys[KEM_X25519].public_bytes)]
        if self.post_quantum:
            key = self._keys[KEM_XWING].public_bytes
            configs.append(KeyConfig(2, KEM_XWING, key))
        return keyconfig.encode_list(configs)

    def run(self, steps, tokens=("token",)) -> Any:
        """Do what an operation's steps ask for, and give its result."""
        tokens = list(tokens)
        reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as stop:
                return stop.value
            match step:
                case Fetch():
                    reply = self._fetch(step)
                case Wait():
                    self.waits.append(step.seconds)
                    reply = None
                case AskToken():
                    reply = tokens.pop(0) if len(tokens) > 1 else tokens[0]

    def _fetch(self, step: Fetch) -> Answer:
        self.fetched.append((step.method, step.url))
        answer = self.outer(step)
        if answer is not None:
            return answer
        if step.method == "GET":
            return self._publish(step.url)
        content = step.content
        body = content if isinstance(content, bytes) else b"".join(content or ())
        self.sealed.append(body)
        if step.headers["content-type"] == chunked.CHUNKED_REQUEST_MEDIA_TYPE:
            return self._answer_chunks(body)
        key = self._keys[ohttp.parse_header(body).kem_id]
        try:
            message, context = ohttp.open_request(body, key)
        except ohttp.DecryptionError:
            return unsealed(refusal(422, kind=OHTTP_KEY_PROBLEM))
        inner = bhttp.encode_response(self._inner(message))
        headers = {"content-type": ohttp.RESPONSE_MEDIA_TYPE}
        return Answer(200, headers, context.seal(inner))

    def _answer_chunks(self, body: bytes) -> Answer:
        if not self.takes_chunks:
            return unsealed(refusal(415))
        opener = chunked.RequestOpener(lambda header: self._keys[header.kem_id])
        message = b"".join([*opener.feed(body), opener.finish()])
        sealer = opener.seal_response()
        inner = bhttp.encode_response(self._inner(message))
        pieces = [sealer.head, sealer.seal(inner[:1]), sealer.finish(inner[1:])]
        headers = {"content-type": chunked.CHUNKED_RESPONSE_MEDIA_TYPE}
        return Answer(200, headers, b"".join(pieces))

    def _inner(self, message: bytes) -> Response:
        request = bhttp.decode_request(message)
        self.requests.append(request)
        return self.handle(request)

    def _publish(self, url: str) -> Answer:
        headers = {"cache-control": self.cache_control}
        if url == URL + GATEWAY_PATH:
            headers["content-type"] = keyconfig.KEYS_MEDIA_TYPE
            return Answer(200, headers, self.document)
        window = {"not_before": int(self.now) - 10, "not_after": int(self.now) + 1000}
        headers["content-type"] = signedkeys.SIGNED_KEYS_MEDIA_TYPE
        if url == URL + signedkeys.SIGNED_KEYS_PATH and self.identity is not None:
            envelope = signedkeys.sign_keys(self.document, self.identity, **window)
            return Answer(200, headers, envelope)
        if url == URL + signedkeys.SIGNED_KEYS_V2_PATH and self.identities:
            nonce = signedkeys.attestation_nonce(self.document, **window)
            envelope = signedkeys.sign_keys_v2(
                self.document,
                self.identities,
                attestation=None if self.attest is None else self.attest(nonce),
                **window,
            )
            return Answer(200, headers, envelope)
        return Answer(404, {}, b"")
