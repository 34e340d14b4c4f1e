"""What a witness checks before it cosigns (C2SP tlog-witness, add-checkpoint).

Steps, and what each refuses with:

1. the request is an old size, a proof and a checkpoint: 400;
2. the checkpoint's origin is that of a log the witness knows: 404;
3. a key of this log signed it, and no line under the name and id of one is false: 403;
4. the old size is not above the checkpoint's: 400;
5. the old size is that of the latest checkpoint that was cosigned, 0 if none was: 409,
   with the latest size;
6. the empty tree has the empty tree's root, and the proof proves that the checkpoint
   follows from the latest one: 422;
7. the log has not had too much cosigned lately: 429.

What passes is written to the state before it is answered. A checkpoint of a size that
was cosigned with another root is a fork, whatever it is refused with: it is kept, since
with the one that was cosigned it convicts the log.

A checkpoint that was cosigned less than a minute ago is answered with the same lines
again: anyone can send it, and must not make the witness work, nor the log wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sealgate.errors import MerkleError, NoteError, SealgateError
from sealgate.protocol.cosignatures import Cosigner
from sealgate.protocol.merkle import EMPTY_ROOT, verify_consistency
from sealgate.protocol.notes import (
    MAX_NOTE_BYTES,
    Checkpoint,
    NoteKey,
    SignatureLine,
    parse_checkpoint,
    split_note,
    verify_signatures,
)
from sealgate.protocol.tlog_witness import SIZE_MEDIA_TYPE, AddCheckpoint
from security.errors import WitnessError
from security.witness.rates import Rate, Rates
from security.witness.state import Cosigned, State

__all__ = ["TEXT", "Rate", "Refused", "Witness", "known_logs"]

REPEAT_S = 60
MAX_BACKWARD_S = 60
MAX_ORIGIN_BYTES = 255
# A line of either kind of key, with a name of 255 bytes: 3.6 KB and 0.4 KB.
MAX_COSIGNATURES_BYTES = 4 << 10
TEXT = "text/plain; charset=utf-8"


class Refused(SealgateError):  # noqa: N818  (it is an answer, not a mishap)
    """A checkpoint that is not cosigned.

    Attributes:
        status: to answer with.
        detail: the body.
        media_type: of the body.
        retry_after_s: when to come back, if that helps.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        media_type: str = TEXT,
        retry_after_s: int | None = None,
    ) -> None:
        self.status = status
        self.detail = detail
        self.media_type = media_type
        self.retry_after_s = retry_after_s
        super().__init__(f"{status} {detail}")


@dataclass(frozen=True)
class _Request:
    """A request whose log is known, and signed the checkpoint."""

    old_size: int
    proof: Sequence[bytes]
    checkpoint: Checkpoint
    text: bytes
    signatures: tuple[SignatureLine, ...]


def known_logs(keys: Iterable[NoteKey]) -> dict[str, list[NoteKey]]:
    """The keys of logs by their origins.

    A log's key is named as its origin, as tlog-checkpoint recommends. Any of several
    keys of one name may sign, so that a log can change its key.

    Raises:
        WitnessError: an origin that ML-DSA-44 cosignatures cannot name.
    """
    logs: dict[str, list[NoteKey]] = {}
    for key in keys:
        if len(key.name.encode()) > MAX_ORIGIN_BYTES:
            raise WitnessError(f"an origin of more than {MAX_ORIGIN_BYTES} bytes")
        logs.setdefault(key.name, []).append(key)
    return logs


class Witness:
    """Cosigns checkpoints of the logs that it knows. One thread at a time."""

    def __init__(
        self,
        cosigners: Sequence[Cosigner],
        logs: Mapping[str, Sequence[NoteKey]],
        state: State,
        *,
        rate: Rate = Rate(),
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Make one.

        Args:
            cosigners: its keys; each cosigns.
            logs: keys of each known log, by its origin.
            state: what it has seen.
            rate: how often a log may have something cosigned.
            tell: gets a line for each change of the state.
        """
        self._cosigners = cosigners
        self._logs = logs
        self._state = state
        self._rates = Rates(rate)
        self._tell = tell

    def add_checkpoint(self, body: bytes, *, now_s: float) -> bytes:
        """Check and cosign what ``POST /add-checkpoint`` brought.

        Args:
            body: from anyone.
            now_s: seconds since 1970.

        Returns:
            The witness's signature lines.

        Raises:
            Refused: any of the module's steps did.
            WitnessError: the state cannot be read or written: nothing was cosigned.
        """
        request = self._read(body)
        origin, checkpoint = request.checkpoint.origin, request.checkpoint
        self._look_for_fork(request, int(now_s))
        if request.old_size > checkpoint.size:
            raise Refused(400, "the old size is above the checkpoint's\n")
        outcome: list[Refused | tuple[SignatureLine, ...]] = []

        def decide(latest: Cosigned | None) -> Cosigned | None:
            try:
                lines, kept = self._decide(request, latest, now_s)
            except Refused as refused:
                outcome.append(refused)
                return None
            except NoteError as error:  # as with a clock before 1970
                outcome.append(Refused(503, f"{error}\n"))
                return None
            outcome.append(lines)
            return kept

        self._state.advance(origin, decide)
        [result] = outcome
        if isinstance(result, Refused):
            raise result
        return "".join(map(str, result)).encode()

    def _read(self, body: bytes) -> _Request:
        """Steps 1 to 3."""
        try:
            request = AddCheckpoint.parse(body)
            text, lines = split_note(request.note)
            checkpoint = parse_checkpoint(text)
        except NoteError as error:
            raise Refused(400, f"{error}\n") from None
        keys = self._logs.get(checkpoint.origin)
        if keys is None:
            raise Refused(404, "a log that this witness does not know\n")
        try:
            # Twice the same line is no more work than once.
            signed = verify_signatures(text, dict.fromkeys(lines), keys)
        except NoteError:
            raise Refused(403, "a signature of the log does not verify\n") from None
        if not signed:
            raise Refused(403, "no key of the log signed the checkpoint\n")
        ids = {(key.name, key.key_id) for key in signed}
        kept = [line for line in lines if (line.name, line.key_id) in ids]
        return _Request(
            request.old_size,
            request.proof,
            checkpoint,
            text,
            tuple(dict.fromkeys(kept)),
        )

    def _look_for_fork(self, request: _Request, now_s: int) -> None:
        checkpoint = request.checkpoint
        seen = self._state.at(checkpoint.origin, checkpoint.size)
        if seen is None or seen.root == checkpoint.root:
            return
        note = _note(request.text, request.signatures)
        fork = Cosigned(checkpoint.size, checkpoint.root, now_s, note)
        if self._state.keep_fork(checkpoint.origin, fork):
            self._tell(
                f"FORK: {checkpoint.origin} signed two trees of {checkpoint.size}"
            )

    def _decide(
        self, request: _Request, latest: Cosigned | None, now_s: float
    ) -> tuple[tuple[SignatureLine, ...], Cosigned | None]:
        """Steps 5 to 7, and the cosignatures; what to keep, if anything is new."""
        checkpoint = request.checkpoint
        size, root = (latest.size, latest.root) if latest else (0, EMPTY_ROOT)
        if request.old_size != size:
            raise Refused(409, f"{size}\n", media_type=SIZE_MEDIA_TYPE)
        try:
            if checkpoint.size == 0 and checkpoint.root != EMPTY_ROOT:
                raise MerkleError("the empty tree has another root")
            verify_consistency(
                request.proof,
                old=size,
                new=checkpoint.size,
                old_root=root,
                new_root=checkpoint.root,
            )
        except MerkleError as error:
            raise Refused(422, f"{error}\n") from None
        if latest is not None and (again := self._again(request, latest, now_s)):
            return again, None
        room = MAX_NOTE_BYTES - len(_note(request.text, request.signatures))
        if room < MAX_COSIGNATURES_BYTES:
            raise Refused(400, "a checkpoint that leaves no room for cosignatures\n")
        time_s = self._time(latest, now_s)
        wait_s = self._rates.wait_s(checkpoint.origin, now_s)
        if wait_s:
            detail = "too many checkpoints of this log\n"
            raise Refused(429, detail, retry_after_s=math.ceil(wait_s))
        self._rates.take(checkpoint.origin, now_s)
        lines = tuple(
            cosigner.cosign(request.text, time_s=time_s) for cosigner in self._cosigners
        )
        note = _note(request.text, (*request.signatures, *lines))
        self._tell(f"cosigns {checkpoint.origin} {checkpoint.size}")
        return lines, Cosigned(checkpoint.size, checkpoint.root, time_s, note)

    def _again(
        self, request: _Request, latest: Cosigned, now_s: float
    ) -> tuple[SignatureLine, ...]:
        """The lines of the latest checkpoint, if this is it, and they are fresh."""
        if not 0 <= now_s - latest.time_s < REPEAT_S:
            return ()
        text, lines = split_note(latest.note)
        known = {(line.name, line.key_id): line for line in lines}
        found = [
            known.get((cosigner.verifier.name, cosigner.verifier.key_id))
            for cosigner in self._cosigners
        ]
        if text != request.text or None in found:
            return ()
        return tuple(line for line in found if line is not None)

    def _time(self, latest: Cosigned | None, now_s: float) -> int:
        """The time to state: none before an earlier one, when the log was smaller."""
        if latest is None or now_s >= latest.time_s:
            return int(now_s)
        if latest.time_s - now_s > MAX_BACKWARD_S:
            raise Refused(503, "the clock of this witness was put back\n")
        return latest.time_s


def _note(text: bytes, lines: Iterable[SignatureLine]) -> bytes:
    return text + b"\n" + "".join(map(str, lines)).encode()
