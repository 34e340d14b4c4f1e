"""The synchronous client.

Every request but `health` is sealed: who terminates TLS, relays or logs in between sees
neither the path, the token, the payload nor the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpcore

from sealgate.attestation import Attested
from sealgate.core import Core
from sealgate.direct import Connections
from sealgate.errors import ClientError, TransportError
from sealgate.exchange import Answer
from sealgate.explanation import Explanation, question_for
from sealgate.feedback import Label
from sealgate.offers import OfferedLog
from sealgate.options import Options, options_of
from sealgate.passport import Passport
from sealgate.profile import Profile
from sealgate.protocol.bhttp import Headers, Response
from sealgate.protocol.receipts import Proven
from sealgate.receipt_numbers import Answers, ReceiptNumber
from sealgate.receipts import check_receipt, fetch_receipt
from sealgate.steps import AskToken, Fetch, Steps, Wait
from sealgate.transport import (
    FAILURES,
    Direct,
    Pools,
    failed,
    head_of,
    received_fields,
    sent_fields,
)

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """Talks to one Sealgate server. Reuses its connections; close it, or use ``with``.

    Threads may share a client.

    >>> client = Client("https://models.example", token="…")  # doctest: +SKIP
    >>> client.infer("m", {"x": np.zeros((1, 3))})["label"]  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | Callable[[], str],
        options: Options = Options(),
        timeout_s: float = 30.0,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: base URL; https, or http on this machine.
            token: access token, or a callable that gives a fresh one per request.
            options: what to trust, what to allow.
            timeout_s: for connecting, and for each read and write.

        Raises:
            ProfileError: the URL is not allowed, or the certificate cannot be used.
            TransportError: pinned key configurations are malformed.
        """
        self._core = Core(url, options)
        self._token = token
        self._pools = Pools(httpcore.ConnectionPool, timeout_s, options)
        self._direct = Direct(Connections, self._pools)

    def __repr__(self) -> str:
        return f"<Client {self._core.url}>"

    @property
    def url(self) -> str:
        """The server's base URL."""
        return self._core.url

    @classmethod
    def from_profile(
        cls, profile: Profile | Path | str, *, timeout_s: float = 30.0
    ) -> Self:
        """A client for the server of a profile, or of a profile's file.

        Raises:
            ProfileError: the profile cannot be used.
        """
        if not isinstance(profile, Profile):
            profile = Profile.load(profile)
        return cls(
            profile.url,
            token=profile.token,
            options=options_of(profile),
            timeout_s=timeout_s,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        for pool in self._pools.all():
            pool.close()
        for direct in self._direct.all():
            direct.close()

    def health(self) -> bool:
        """Whether the server is ready. Asked in the open, without the token."""
        try:
            return self._run(self._core.health())
        except ClientError:
            return False

    def ready(self, model: str) -> bool:
        """Whether a model is loaded.

        Raises:
            ServerRefusedError: no right to it.
            TransportError: no usable answer.
        """
        return self._run(self._core.ready(model))

    def server_metadata(self) -> dict[str, Any]:
        """The server's name, version and the protocol extensions it has.

        Raises:
            ServerRefusedError: no valid token.
            TransportError: no usable answer.
        """
        return self._run(self._core.server_metadata())

    def metadata(self, model: str) -> dict[str, Any]:
        """The model's v2 metadata: tensors, and its columns and labels.

        Raises:
            ServerRefusedError: no such model, or no right to it.
            PassportError: as `infer`.
            TransportError: no usable answer.
        """
        return self._run(self._core.metadata(model))

    def infer(
        self,
        model: str,
        inputs: Any,
        *,
        traceparent: str | None = None,
        batched: bool = True,
        progress: Callable[[int, int], None] | None = None,
        tickets: bool = False,
    ) -> Answers:
        """Run a model.

        Values are converted to the model's dtypes where none changes beyond float
        rounding; the model's metadata is fetched once for that. More rows than the
        model takes in a request are sent in several, one after the other.

        Args:
            model: its name.
            inputs: arrays, lists or data frames by tensor name; or a data frame, whose
                columns are matched by name with the model's. Further columns are not
                sent.
            traceparent: the W3C trace that this request belongs to; sent inside the
                seal. Without it, what `Options.traceparent` gives.
            batched: send too many rows in several requests; each is charged to quotas,
                and answered by whichever version answers then.
            progress: told after each of several requests how many rows are answered,
                and of how many.
            tickets: have the server add a ticket for each row, by which a label can be
                sent later: the answer is a `Ticketed`. Takes a server that counts.

        Returns:
            Arrays by output name, and in ``receipts`` what receipts are fetched by.

        Raises:
            ProfileError: the ``traceparent`` is none.
            TensorError: an input cannot be sent as the model's dtype.
            ServerRefusedError: the server's problem details, for instance which tensor
                it expected otherwise.
            PassportError: one is required, and does not verify.
            TransportError: no usable answer.
        """
        return self._run(
            self._core.infer(
                model,
                inputs,
                traceparent=traceparent,
                batched=batched,
                progress=progress,
                tickets=tickets,
            )
        )

    def explain(
        self,
        model: str,
        inputs: Any,
        *,
        of: str | int | None = None,
        method: str = "shapley",
        pairs: int | None = None,
        samples: int | None = None,
        version: str | None = None,
        traceparent: str | None = None,
    ) -> Explanation:
        """Run a model, and ask why it answers so. Takes the scope ``explain:MODEL``.

        Each row costs as many rows of a quota as it takes evaluations. All rows are
        sent in one request.

        Args:
            model: its name.
            inputs: as for `infer`.
            of: the class to explain, by name or number; without it, the one answered.
            method: "shapley", or "local": a linear model of what is answered nearby.
            pairs: antithetic pairs of permutations, where they are needed; more take
                longer, and make errors smaller. The server's default is 10.
            samples: rows near each that "local" asks about; the default is 1000.
            version: which answers; the default one without it.
            traceparent: as for `infer`.

        Raises:
            TensorError: an input cannot be sent as the model's dtype; no such method.
            ServerRefusedError: for instance that this model is not explained.
            ProfileError, PassportError, TransportError: as `infer`.
        """
        question = question_for(method, of, pairs, samples)
        return self._run(
            self._core.explain(
                model, inputs, question, version=version, traceparent=traceparent
            )
        )

    def feedback(self, model: str, labels: Iterable[Label]) -> list[str]:
        """Send labels of earlier answers. Takes the scope ``feedback:MODEL``.

        Each ticket is taken once. After a lost answer the same labels can be sent
        again: "spent" then says that they had arrived.

        Args:
            model: its name.
            labels: mappings of ``ticket``, ``label`` and perhaps ``group``, or tuples
                in this order. A label is a class's name or index, or a number.

        Returns:
            What became of each: "accepted", "spent", "expired", "full", "no such
            label", "no such group", or "refused" for a ticket that is none.

        Raises:
            TensorError: one of them is no ticket with a label.
            ServerRefusedError: no right to it, or labels cannot be kept now.
            TransportError: no usable answer.
        """
        return self._run(self._core.feedback(model, labels))

    def passport(self, model: str) -> Passport:
        """Fetch the model's verdict and evidence, and verify them.

        Raises:
            PassportError: they do not verify, or no trusted key was given.
            ServerRefusedError: no such model, or no right to it.
            TransportError: no usable answer.
        """
        return self._run(self._core.passport(model))

    def receipt(self, number: ReceiptNumber | str) -> bytes:
        """The receipt for an answer: proof that its record is in the audit log.

        Args:
            number: of the answer's ``receipts``, or its number.

        Raises:
            OverloadedError: no checkpoint covers the request yet; it says when to
                come back, and is repeated within the bounds of ``Options.retry``.
            NotFoundError: no such number, or another caller's.
            ReceiptError: that is no number, or what came no receipt.
            TransportError: no usable answer.
        """
        return self._run(fetch_receipt(self._core.call, number))

    def verify_receipt(
        self,
        receipt: bytes,
        number: ReceiptNumber | None,
        *,
        model_sha256: str | None = None,
    ) -> Proven:
        """Verify a receipt by `Options.log_keys` and witnesses. Nothing is sent.

        Args:
            receipt: what `receipt` gave, now or years ago.
            number: of the answer it must be about; None takes any answer, and then
                the caller compares what is returned.
            model_sha256: root digest of the bundle that must have answered, as
                `Passport.model_sha256` has it; None takes any.

        Raises:
            ReceiptError: it does not verify, or is about another request.
            ProfileError: no key of a log is named, or one is none.
        """
        return check_receipt(
            receipt, self._core.options, number, model_sha256=model_sha256
        )

    def offers(self) -> list[dict[str, Any]]:
        """All of the deployment's public log of offers, in its order, verified.

        Read in the open, without the token: for whoever watches it.

        Raises:
            ProfileError: no key of a log is named.
            NotOfferedError: the log does not verify.
            TransportError: there is none.
        """
        return self._run(OfferedLog(self._core.url, self._core.options).entries())

    def monitoring(self, model: str, version: str | None = None) -> dict[str, Any]:
        """What monitoring found of a version. Takes the scope ``monitoring:MODEL``.

        Of every window that was released: noisy figures, which columns drifted,
        accuracy by labels that came later and without them, and what it has cost. The
        fields are described in docs/monitoring.md.

        Args:
            model: its name.
            version: which; the default one without it.

        Raises:
            ServerRefusedError: no right to it, or the server does not monitor.
            PassportError, TransportError: as `infer`.
        """
        return self._run(self._core.monitoring(model, version))

    @property
    def attested(self) -> Attested | None:
        """What is attested of the machine behind the keys that were fetched last.

        None without a policy, and without evidence where the policy can do so.
        """
        return self._core.key_source.attested

    def keys(self) -> bytes:
        """The ``application/ohttp-keys`` document that the server offers now.

        Raises:
            TransportError: there is none.
        """
        return self._run(self._core.keys())

    def forward(
        self,
        method: str,
        path: str,
        *,
        headers: Headers = (),
        body: bytes = b"",
        own_token: bool = True,
        own_certificate: bool = True,
    ) -> Response:
        """Send any request sealed, and give its answer, whatever its status.

        Args:
            method: of the request.
            path: with query.
            headers: lower-case names; Date is added, and Authorization if asked.
            body: content.
            own_token: add this client's token.
            own_certificate: show its certificate, if it has one.

        Raises:
            ServerRefusedError: refused before the gateway could open it.
            TransportError: no usable answer.
        """
        return self._run(
            self._core.forward(
                method,
                path,
                headers,
                body,
                own_token=own_token,
                own_certificate=own_certificate,
            )
        )

    def _run(self, steps: Steps[T]) -> T:
        reply: Answer | str | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as stop:
                result: T = stop.value
                return result
            reply = self._perform(step)

    def _perform(self, step: Fetch | Wait | AskToken) -> Answer | str | None:
        match step:
            case Fetch():
                return self._fetch(step)
            case AskToken():
                return self._token() if callable(self._token) else self._token
            case Wait():
                time.sleep(step.seconds)
        return None

    def _fetch(self, step: Fetch) -> Answer:
        content = step.content
        try:
            if isinstance(content, bytes | None) and (to := self._direct.to(step)):
                return to.fetch(head_of(step), content, step.max_bytes)
            return self._by_pool(step)
        except FAILURES as error:
            raise failed(self.url, error) from None

    def _by_pool(self, step: Fetch) -> Answer:
        chunks: list[bytes] = []
        size = 0
        with self._pools.to(step.url, certified=step.certified).stream(
            step.method,
            step.url,
            headers=sent_fields(step.headers),
            content=step.content,
            extensions=self._pools.extensions,
        ) as response:
            for chunk in response.iter_stream():
                size += len(chunk)
                if size > step.max_bytes:
                    raise TransportError("the answer is too long")
                chunks.append(chunk)
        return Answer(response.status, received_fields(response), b"".join(chunks))
