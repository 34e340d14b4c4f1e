"""What both clients do, without I/O: each operation is a generator of steps.

A step says what has to be done outside: move bytes, wait, ask for a token. The
synchronous and the asynchronous client do these things, each in its way, and send the
results back in; all decisions are made here, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from sealgate.batches import Progress, in_parts, joined
from sealgate.content import JSON, decode_answer, encode_arrays, max_rows_of, rows_of
from sealgate.convert import to_arrays
from sealgate.errors import (
    AuthenticationError,
    ClockError,
    InvalidInputError,
    KeyRefusedError,
    NotFoundError,
    OverloadedError,
    PassportError,
    PermissionDeniedError,
    ProfileError,
    ProofNonceError,
    ServerRefusedError,
    TransportError,
)
from sealgate.exchange import (
    GATEWAY_PATH,
    ChunkedExchange,
    Exchange,
    build_request,
    check_token,
    check_url,
    expired_since,
    json_of,
    model_path,
    parse_metadata,
    refusal_of,
    trace_headers,
)
from sealgate.explanation import Explanation, read_explanation
from sealgate.feedback import (
    MAX_TICKETS,
    Label,
    Ticketed,
    feedback_bodies,
    outcomes_of,
    tickets_of,
)
from sealgate.key_source import KeySource
from sealgate.options import Options
from sealgate.passport import Passport, verify_passport
from sealgate.protocol import binary_tensors
from sealgate.protocol.bhttp import Body, Headers, Response
from sealgate.protocol.tensors import Array
from sealgate.receipt_numbers import Answers
from sealgate.retry import Attempts
from sealgate.steps import AskToken, Fetch, Message, Steps, Wait
from sealgate.streams import StreamExchange

__all__ = ["Core"]

_OVERHEAD = 64 << 10
# A nonce of a server is good for at least five minutes; of another one perhaps less.
_NONCE_FRESH_S = 60.0
_IN_TOUCH_S = 30.0


class Core:
    """The state and the decisions of a client of one server."""

    def __init__(
        self, url: str, options: Options, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Nothing is asked yet.

        Raises:
            ProfileError: a URL or an identity key is not allowed.
            TransportError: the pinned key configurations are malformed.
        """
        self.url = check_url(url)
        if options.client_certificate is not None and self.url.lower().startswith(
            "http:"
        ):
            raise ProfileError("client_certificate: only an https server can see it")
        self.options = options
        relay = options.relay_url
        self._gateway = self.url + GATEWAY_PATH if relay is None else check_url(relay)
        self._clock = clock
        self._clock_offset = 0.0
        self._nonce: str | None = None
        self._nonce_since = float("-inf")
        self.key_source = KeySource(self.url, options, now=clock)
        self._metadata: dict[str, dict[str, Any]] = {}
        self._passports: dict[str, tuple[float, Passport]] = {}
        self._binary: bool | None = None
        self._speaks_chunked = True
        self._answered_at = float("-inf")

    # What callers ask for

    def health(self) -> Steps[bool]:
        """Whether the server is ready. Asked in the open, without the token."""
        answer = yield Fetch("GET", f"{self.url}/v2/health/ready", 1 << 16)
        return bool(answer.status == 200)

    def ready(self, model: str) -> Steps[bool]:
        """Whether a model is loaded, for a caller who may know."""
        try:
            yield from self.call("GET", model, "/ready")
        except (NotFoundError, OverloadedError):
            return False
        return True

    def server_metadata(self) -> Steps[dict[str, Any]]:
        """The server's name, version and extensions."""
        value = json_of((yield from self.call("GET")).body)
        if not isinstance(value, dict) or not isinstance(value.get("extensions"), list):
            raise TransportError("the server's metadata is malformed")
        return value

    def metadata(self, model: str) -> Steps[dict[str, Any]]:
        """The model's v2 metadata."""
        yield from self._check_passport(model)
        response = yield from self.call("GET", model)
        value = parse_metadata(json_of(response.body))
        self._metadata[model] = value
        return value

    def infer(
        self,
        model: str,
        inputs: Any,
        *,
        traceparent: str | None = None,
        batched: bool = True,
        progress: Progress | None = None,
        tickets: bool = False,
    ) -> Steps[Answers]:
        """Run a model, by as many requests as its rows take."""
        trace = trace_headers(traceparent)
        arrays, metadata = yield from self._prepared(model, inputs)
        rows, most = rows_of(arrays, metadata), max_rows_of(metadata)
        most = min(most, MAX_TICKETS) if tickets else most
        if not batched or rows <= most:
            return (yield from self._infer(model, arrays, trace, tickets))

        def ask(part: Mapping[str, Array]) -> Steps[Answers]:
            return self._infer(model, part, trace, tickets)

        answers = yield from in_parts(ask, arrays, rows, most, progress)
        whole = joined(answers)
        return Ticketed.joined(whole, answers) if tickets else whole

    def explain(
        self,
        model: str,
        inputs: Any,
        question: Mapping[str, Any],
        *,
        version: str | None = None,
        traceparent: str | None = None,
    ) -> Steps[Explanation]:
        """Run a model, and ask why it answers so."""
        trace = trace_headers(traceparent)
        arrays, _ = yield from self._prepared(model, inputs)
        action = "/explain" if version is None else f"/versions/{version}/explain"
        return read_explanation(
            *(yield from self._ask(model, action, arrays, trace, question))
        )

    def _infer(
        self, model: str, arrays: Mapping[str, Array], trace: Headers, tickets: bool
    ) -> Steps[Answers]:
        asked = {"tickets": True} if tickets else {}
        answer = yield from self._ask(model, "/infer", arrays, trace, asked)
        outputs, parameters = answer
        return Ticketed(outputs, tickets_of(parameters)) if tickets else outputs

    def feedback(self, model: str, labels: Iterable[Label]) -> Steps[list[str]]:
        """Send labels, by as many requests as it takes; what became of each."""
        outcomes: list[str] = []
        for count, body in feedback_bodies(labels):
            response = yield from self.call("POST", model, "/feedback", JSON, body)
            outcomes += outcomes_of(json_of(response.body), count)
        return outcomes

    def _prepared(
        self, model: str, inputs: Any
    ) -> Steps[tuple[dict[str, Array], dict[str, Any]]]:
        yield from self._check_passport(model)
        metadata = self._metadata.get(model)
        if metadata is None:
            metadata = yield from self.metadata(model)
        return to_arrays(inputs, metadata), metadata

    def _ask(
        self,
        model: str,
        action: str,
        arrays: Mapping[str, Array],
        trace: Headers,
        parameters: Mapping[str, Any] = {},
    ) -> Steps[tuple[Answers, dict[str, Any]]]:
        binary = yield from self._speaks_binary()
        headers, body = encode_arrays(arrays, binary=binary, parameters=parameters)
        headers = (*headers, *trace)
        try:
            response = yield from self.call("POST", model, action, headers, body)
        except InvalidInputError:
            # Perhaps the model is another one by now: ask again, next time.
            self._metadata.pop(model, None)
            raise
        return decode_answer(response, model)

    def passport(self, model: str) -> Steps[Passport]:
        """Fetch the model's verdict and evidence, and verify them."""
        trusted = self.options.trusted_keys
        if not trusted:
            raise PassportError("no trusted key: give trusted_keys to check a passport")
        response = yield from self.call("GET", model, "/attestations")
        document = json_of(response.body)
        passport = verify_passport(document, model=model, trusted_keys=trusted)
        yield from self.key_source.offered.check(passport.offer, f"passport of {model}")
        self._passports[model] = (self._clock(), passport)
        return passport

    def monitoring(self, model: str, version: str | None) -> Steps[dict[str, Any]]:
        """What monitoring found of a version."""
        yield from self._check_passport(model)
        action = "/monitoring" if version is None else f"/versions/{version}/monitoring"
        value = json_of((yield from self.call("GET", model, action)).body)
        if not isinstance(value, dict) or not isinstance(value.get("windows"), list):
            raise TransportError("what the server tells of monitoring is malformed")
        return value

    def keys(self) -> Steps[bytes]:
        """The key configurations that the server offers now; verified, if pinned so."""
        return (yield from self.key_source.fetch())[0]

    def forward(
        self,
        method: str,
        path: str,
        headers: Headers,
        body: Body,
        *,
        own_token: bool,
        own_certificate: bool = True,
    ) -> Steps[Response]:
        """Send any request sealed, and give its answer, whatever its status.

        Args:
            method: of the request.
            path: with query.
            headers: to send; no Date, and no Authorization if ``own_token``.
            body: content.
            own_token: add the client's own token.
            own_certificate: show the client's certificate, if it has one.

        Raises:
            ServerRefusedError: refused before the gateway could open it.
            TransportError: no usable answer.
        """
        attempts = Attempts(self.options.retry)
        token = (yield from _token()) if own_token else None
        message = Message(method, path, token, headers, body, own_certificate)
        return (yield from self._exchange(message, attempts))

    # One request as a stream: who holds the connection decides what is repeated

    def begin_stream(
        self,
        method: str,
        path: str,
        headers: Headers,
        *,
        token: str | None,
        length: int | None,
    ) -> Steps[StreamExchange]:
        """A fresh exchange for a request whose content will be sent as it comes.

        Args:
            method: of the request.
            path: with query.
            headers: to send; no Date.
            token: to send; None where the headers have one.
            length: of the content; None if unknown.

        Raises:
            TransportError: the server offers no usable keys.
        """
        message = Message(method, path, token)
        if self._proves(message) and self._clock() - self._nonce_since > _NONCE_FRESH_S:
            # The content can be sent once: a nonce is asked for before that.
            attempts = Attempts(self.options.retry)
            yield from self._exchange(Message("GET", "/v2", token), attempts)
        config = yield from self.key_source.choose()
        request = build_request(
            method,
            path,
            url=self.url,
            token=token,
            now=self._now(),
            headers=headers,
            proof=self._proof(message),
        )
        return StreamExchange(config, request, length=length)

    @property
    def gateway(self) -> str:
        """Where sealed requests go."""
        return self._gateway

    @property
    def speaks_chunked(self) -> bool:
        """False once the gateway has refused a chunked request."""
        return self._speaks_chunked

    @property
    def in_touch(self) -> bool:
        """Whether a request was answered a moment ago: keys and clock are right."""
        return self._clock() - self._answered_at < _IN_TOUCH_S

    def answered(self) -> None:
        """Say that a chunked request was answered."""
        self._answered_at = self._clock()

    def refused_chunks(self) -> None:
        """Say that the gateway takes no chunked requests."""
        self._speaks_chunked = False

    def recover(self, error: KeyRefusedError | ClockError, attempts: Attempts) -> bool:
        """Put right what a refusal tells, if that may help and was not tried yet."""
        self._answered_at = float("-inf")
        if isinstance(error, KeyRefusedError):
            if self.key_source.pinned or not attempts.recover_once(error):
                return False
            self.key_source.forget()
            return True
        now = error.server_time
        if not error.sealed or now is None or not attempts.recover_once(error):
            return False
        self._clock_offset = now - self._clock()
        return True

    # One sealed request, and what may be repeated

    def call(
        self,
        method: str,
        model: str | None = None,
        action: str = "",
        headers: Headers = (),
        body: Body = b"",
    ) -> Steps[Response]:
        """A successful answer of a model or the server, or the error it stands for.

        The error's text names the model, and since when the token is expired.
        """
        attempts = Attempts(self.options.retry)
        headers = self._traced(headers)
        path = f"/v2{action}" if model is None else model_path(model, action)
        message = Message(method, path, (yield from _token()), headers, body)
        try:
            return (yield from self._answered(message, attempts))
        except ServerRefusedError as error:
            expired = ""
            if isinstance(error, AuthenticationError):
                expired = expired_since(message.token or "", now=self._now())
            about = f"{model}: ".encode(errors="replace").decode() if model else ""
            error.args = (f"{about}{error}{expired}",)
            raise

    def _answered(self, message: Message, attempts: Attempts) -> Steps[Response]:
        while True:
            try:
                response = yield from self._exchange(message, attempts)
                error = refusal_of(response)
                if error is None:
                    return response
                raise error
            except OverloadedError as error:
                wait = attempts.wait_s(error)
                if wait is None:
                    raise
                yield Wait(wait)
            except AuthenticationError as error:
                token = yield from _token()
                if token == message.token or not attempts.recover_once(error):
                    raise
                message = replace(message, token=token)

    def _traced(self, headers: Headers) -> Headers:
        current = self.options.traceparent
        if current is None or any(name == b"traceparent" for name, _ in headers):
            return headers
        return (*headers, *trace_headers(current()))

    def _exchange(self, message: Message, attempts: Attempts) -> Steps[Response]:
        """The inner response, after recovering from a stale key or a wrong clock."""
        while True:
            try:
                response = yield from self._attempt(message)
                if response.status == 400:
                    error = refusal_of(response)
                    if isinstance(error, ClockError):
                        raise error
                if response.status == 401 and self._proves(message):
                    error = refusal_of(response)
                    if isinstance(error, ProofNonceError):
                        raise error
                return response
            except ProofNonceError as error:
                if not attempts.recover_once(error):
                    raise
                self._nonce, self._nonce_since = error.nonce, self._clock()
            except (KeyRefusedError, ClockError) as error:
                if not self.recover(error, attempts):
                    raise

    def _attempt(self, message: Message) -> Steps[Response]:
        config = yield from self.key_source.choose()
        request = build_request(
            message.method,
            message.path,
            url=self.url,
            token=message.token,
            now=self._now(),
            headers=message.headers,
            body=message.body,
            proof=self._proof(message),
        )
        limit = self.options.max_response_bytes
        kind = self._kind(len(message.body))
        exchange = kind(config, request, max_response_bytes=limit)
        # Padding and framing come on top of the content.
        answer = yield Fetch(
            "POST",
            self._gateway,
            2 * limit + _OVERHEAD,
            {"content-type": exchange.media_type},
            exchange.content,
            certified=message.certified,
        )
        if answer.status == 415 and kind is ChunkedExchange:
            # A gateway without chunks. The content's type is all that it could see.
            self._speaks_chunked = False
            return (yield from self._attempt(message))
        return exchange.finish(answer)

    def _proves(self, message: Message) -> bool:
        return self.options.proof_key is not None and message.token is not None

    def _proof(self, message: Message) -> str | None:
        key = self.options.proof_key
        if key is None or message.token is None:
            return None
        return key.prove(
            message.method,
            self.url + message.path,
            token=message.token,
            now=self._now(),
            nonce=self._nonce,
        )

    def _kind(self, size: int) -> type[Exchange]:
        threshold = self.options.chunked_above_bytes
        if not self._speaks_chunked or threshold is None or size <= threshold:
            return Exchange
        return ChunkedExchange

    def _now(self) -> float:
        return self._clock() + self._clock_offset

    def _check_passport(self, model: str) -> Steps[None]:
        if not self.options.require_passport:
            return
        checked_at, _ = self._passports.get(model, (float("-inf"), None))
        if self._clock() - checked_at > self.options.passport_max_age_s:
            yield from self.passport(model)

    def _speaks_binary(self) -> Steps[bool]:
        if self._binary is None:
            try:
                extensions = (yield from self.server_metadata())["extensions"]
            except (NotFoundError, PermissionDeniedError):
                extensions = []
            self._binary = binary_tensors.EXTENSION in extensions
        return self._binary


def _token() -> Steps[str]:
    return check_token((yield AskToken()))
