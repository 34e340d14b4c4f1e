"""Asks witnesses to cosign the log's checkpoint (C2SP tlog-witness).

Never while a request waits: in a thread, and of all processes of a deployment in the
one that holds a lock; when it ends, the next one takes over. What fails is asked again,
after longer and longer pauses.

A witness that has seen a longer log than ours, or one that ours does not continue,
disagrees: either the log was put back to an earlier day, or its key signs a second one.
No checkpoint is made to please it. That is logged as an error, and counted.
"""

from __future__ import annotations

import fcntl
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sealgate.errors import NoteError, SealgateError
from sealgate.protocol.cosignatures import CosignatureVerifier, verify_cosignatures
from sealgate.protocol.notes import (
    MAX_NOTE_BYTES,
    Checkpoint,
    NoteKey,
    SignatureLine,
    open_checkpoint,
    parse_checkpoint,
    parse_signature_lines,
    split_note,
)
from sealgate.protocol.tlog_witness import AddCheckpoint, checkpoint_path, parse_size
from security.audit.tree_log import TreeLog
from security.audit.witnesses import load_quorum, make_quorum
from security.bounded_fetch import Answer, Exchanges, trusting
from security.errors import AuditError, DisagreementError, KeyFileError
from security.settings.audit import AuditSettings, WitnessSettings
from security.settings.issuers import https_url

__all__ = ["OUTCOMES", "Asker", "Witness", "ask_latest", "load_witnesses"]

_log = logging.getLogger(__name__)

OUTCOMES = ("cosigned", "disagrees", "refused", "unreachable")
MAX_PAUSE_S = 300.0
# At the end of a process, for all of them together.
LAST_ROUND_S = 3.0
_HEARD_S = 0.5
_MAX_SIZE_BYTES = 32
_TRIES = 3
_TYPE = (b"content-type", b"text/plain; charset=utf-8")

Report = Callable[[str, str], None]


@dataclass(frozen=True)
class Witness:
    """A witness that can be asked.

    Attributes:
        name: of its keys.
        url: its submission prefix, with no slash at its end.
        monitoring_url: its monitoring prefix, likewise.
        keys: that its cosignatures are verified with.
    """

    name: str
    url: str
    monitoring_url: str
    keys: tuple[CosignatureVerifier, ...]

    def cosign(
        self, log: TreeLog, note: bytes, old_size: int, exchanges: Exchanges
    ) -> list[SignatureLine]:
        """Have it cosign a checkpoint.

        Args:
            log: whose checkpoint it is.
            note: the checkpoint; what others cosigned of it is not sent.
            old_size: of the last one that it cosigned, as far as is known.
            exchanges: what it is asked over.

        Returns:
            Lines of its keys, which verified: at least one.

        Raises:
            DisagreementError: it has seen another log, or more of this one.
            AuditError: it refuses.
            KeyFileError: it does not answer.
        """
        size, own = _parsed(note).size, _own(note, log.origin)
        for _ in range(_TRIES):
            proof = log.consistency(old_size, size)
            body = AddCheckpoint(old_size, proof, own).encode()
            fields = [_TYPE, (b"content-length", b"%d" % len(body))]
            with exchanges.send(
                "POST", f"{self.url}/add-checkpoint", headers=fields, content=body
            ) as answer:
                if answer.status != 409:
                    return self._lines(note, answer)
                old_size = _size(answer)
            if old_size > log.size:
                raise DisagreementError(
                    f"{self.name}: has seen {old_size} leaves, and the log has {size}"
                )
            if old_size > size:
                raise AuditError(f"{self.name}: has cosigned a newer one")
        raise AuditError(f"{self.name}: what it has seen changes all the time")

    def latest(self, log: NoteKey, exchanges: Exchanges) -> bytes | None:
        """The newest checkpoint that it cosigned, in which its own lines verify.

        Args:
            log: the log's key, which must have signed, named as its origin.
            exchanges: what it is asked over.

        Returns:
            None where it has cosigned none.

        Raises:
            AuditError: what it answers is not that.
            KeyFileError: it does not answer.
        """
        url = f"{self.monitoring_url}/{checkpoint_path(log.name)}"
        with exchanges.send("GET", url) as answer:
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise AuditError(f"{self.name}: answered {answer.status}")
            note = answer.read(MAX_NOTE_BYTES)
        try:
            found = verify_cosignatures(note, self.keys)
            origin = open_checkpoint(note, [log]).origin if found else log.name
        except NoteError as error:
            raise AuditError(f"{self.name}: {error}") from None
        if not found:
            raise AuditError(f"{self.name}: shows a checkpoint without its cosignature")
        if origin != log.name:
            raise AuditError(f"{self.name}: shows a checkpoint of another log")
        return note

    def _lines(self, note: bytes, answer: Answer) -> list[SignatureLine]:
        if answer.status == 422:
            raise DisagreementError(
                f"{self.name}: what it has seen is not how this log begins"
            )
        if answer.status != 200:
            raise AuditError(f"{self.name}: answered {answer.status}")
        body = answer.read(MAX_NOTE_BYTES)
        known = {(key.name, key.key_id) for key in self.keys}
        try:
            # It may not be asked to vouch for others.
            lines = [
                line
                for line in parse_signature_lines(body)
                if (line.name, line.key_id) in known
            ]
            text = split_note(note)[0]
            found = lines and verify_cosignatures(_note(text, lines), self.keys)
        except NoteError as error:
            raise AuditError(f"{self.name}: {error}") from None
        if not found:
            raise AuditError(f"{self.name}: answers without a signature of its keys")
        return lines


def load_witnesses(settings: WitnessSettings) -> list[Witness]:
    """The witnesses that are set.

    Raises:
        AuditError: a key of one is none.
        SettingsError: a URL of one is none.
    """
    result = []
    for each in settings.witness:
        keys = make_quorum(each.vkeys, 1).keys
        url = each.url.rstrip("/")
        https_url(url, f"{keys[0].name}: url", or_here=True)
        shown = (each.monitoring_url or each.url).rstrip("/")
        result.append(Witness(keys[0].name, url, shown, keys))
    return result


def ask_latest(settings: WitnessSettings, log: NoteKey) -> list[bytes]:
    """What witnesses cosigned last of a log; as many answer as are required.

    Args:
        settings: who they are, with their URLs.
        log: its key, named as its origin.

    Raises:
        AuditError: too few answered.
        KeyFileError: there is no such file of authorities.
    """
    context, found, failed = trusting(settings.ca), [], []
    for witness in load_witnesses(settings):
        with Exchanges(context=context, timeout_s=settings.timeout_s) as exchanges:
            try:
                note = witness.latest(log, exchanges)
            except (AuditError, KeyFileError) as error:
                # One that answers nonsense says no more than one that is away.
                failed.append(str(error))
                continue
        if note is None:
            failed.append(f"{witness.name} has seen nothing of it")
        else:
            found.append(note)
    if len(found) < settings.required:
        raise AuditError(
            f"{settings.required} witnesses must say what they saw, and {len(found)} "
            f"do: {'; '.join(failed) or 'no more are named'}"
        )
    return found


class Asker:
    """Has the newest checkpoint of a log cosigned, over and over."""

    def __init__(
        self,
        settings: AuditSettings,
        log: TreeLog,
        *,
        report: Report = lambda witness, outcome: None,
        witnessed: Callable[[int], None] = lambda time_s: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nobody is asked yet.

        Args:
            settings: whom to ask, and how often.
            log: whose checkpoints.
            report: told what became of asking a witness, of `OUTCOMES`.
            witnessed: told since when enough witnesses have the newest checkpoint that
                enough have, Unix time.
            clock: Unix seconds.

        Raises:
            AuditError, KeyFileError: the settings cannot be used.
        """
        self._settings = settings.witnesses
        self._lock = settings.directory / f"{log.name}.asking"
        self._context: ssl.SSLContext = trusting(settings.witnesses.ca)
        self._witnesses = load_witnesses(settings.witnesses)
        self._quorum = load_quorum(settings.witnesses)
        self._tree = log
        self._report, self._witnessed, self._clock = report, witnessed, clock
        self._sizes: dict[str, int] = {}
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._held = -1
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to ask, in a thread; nothing where no witness is set."""
        if self._witnesses:
            self._thread = threading.Thread(
                target=self._run, name="audit witnesses", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Ask a last time, for a moment, and end."""
        if self._thread is None:
            return
        self._ending.set()
        self._thread.join(LAST_ROUND_S + 1.0)
        self._thread = None

    def round(self, *, timeout_s: float | None = None) -> int | None:
        """Ask the witnesses that have not cosigned the newest checkpoint.

        Args:
            timeout_s: for each; by default as the settings say.

        Returns:
            Since when enough witnesses have what enough have seen, Unix time; None if
            there is no such checkpoint yet.

        Raises:
            AuditError: the log cannot be read, or written.
        """
        if self._quorum is None:
            return None
        note, kept = self._tree.checkpoint(), self._tree.cosigned()
        checkpoint, now = _parsed(note), self._clock()
        fresh = {
            name
            for name, time_s in self._quorum.times(note).items()
            if time_s > now - self._settings.refresh_s
        }
        asked = [
            witness
            for witness in self._witnesses
            if witness.name not in fresh
            and self._not_before.get(witness.name, 0) <= now
        ]
        if asked and checkpoint.size:
            bound_s = self._settings.timeout_s if timeout_s is None else timeout_s
            kept = self._keep(note, kept, self._ask_all(asked, note, kept, bound_s))
        since = None if kept is None else self._quorum.witnessed_at(kept)
        if since is not None:
            self._witnessed(since)
        return since

    def _ask_all(
        self,
        asked: Sequence[Witness],
        note: bytes,
        kept: bytes | None,
        bound_s: float,
    ) -> list[SignatureLine]:
        """All at once. Who is not heard in time, as resolving a name can take, is heard
        another time.
        """
        found: list[SignatureLine] = []

        def ask(witness: Witness) -> None:
            found.extend(self._ask(witness, note, kept, bound_s))

        threads = [
            threading.Thread(target=ask, args=(witness,), daemon=True)
            for witness in asked
        ]
        deadline = time.monotonic() + bound_s + _HEARD_S
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [*found]

    def _ask(
        self, witness: Witness, note: bytes, kept: bytes | None, bound_s: float
    ) -> Sequence[SignatureLine]:
        """Its lines; none if it did not sign. Which, is reported."""
        name, size = witness.name, _parsed(note).size
        old = self._sizes.get(name)
        if old is None or old > size:
            old = self._known_size(name, kept)
        try:
            with Exchanges(context=self._context, timeout_s=bound_s) as exchanges:
                lines = witness.cosign(self._tree, note, old, exchanges)
        except DisagreementError as error:
            return self._failed(name, "disagrees", error)
        except (AuditError, NoteError) as error:
            return self._failed(name, "refused", error)
        except KeyFileError as error:
            return self._failed(name, "unreachable", error)
        if self._failures.pop(name, 0):
            _log.info("witness %s cosigns again", name)
        self._not_before.pop(name, None)
        self._sizes[name] = size
        self._report(name, "cosigned")
        return lines

    def _failed(self, name: str, outcome: str, error: Exception) -> tuple[()]:
        count = self._failures[name] = self._failures.get(name, 0) + 1
        pause_s = self._settings.interval_s * 2 ** min(count - 1, 16)
        self._not_before[name] = self._clock() + min(pause_s, MAX_PAUSE_S)
        self._sizes.pop(name, None)
        if count == 1:
            level = logging.ERROR if outcome == "disagrees" else logging.WARNING
            _log.log(level, "no cosignature of the audit log: %s", error)
        self._report(name, outcome)
        return ()

    def _known_size(self, name: str, kept: bytes | None) -> int:
        """What a witness has seen at least, by what it cosigned of ours."""
        if kept is None or self._quorum is None or name not in self._quorum.times(kept):
            return 0
        return _parsed(kept).size

    def _keep(
        self, note: bytes, kept: bytes | None, lines: Sequence[SignatureLine]
    ) -> bytes | None:
        """Keep the note with its lines, unless what is kept has enough and this not."""
        if not lines or self._quorum is None:
            return kept
        text, before = split_note(note)
        new = {(line.name, line.key_id): line for line in [*before, *lines]}
        cosigned = _note(text, list(new.values()))
        if (
            kept is not None
            and self._quorum.witnessed_at(kept) is not None
            and self._quorum.witnessed_at(cosigned) is None
        ):
            return kept
        self._tree.put_cosigned(cosigned)
        return cosigned

    def _run(self) -> None:
        said = ""
        while True:
            last = self._ending.wait(self._settings.interval_s)
            try:
                if self._holds():
                    self.round(timeout_s=LAST_ROUND_S if last else None)
                said = ""
            except (SealgateError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    _log.warning("witnesses are not asked: %s", said)
            if last:
                self._release()
                return

    def _holds(self) -> bool:
        """Whether this process is the one that asks."""
        if self._held >= 0:
            return True
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self._lock, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._held = descriptor
        return True

    def _release(self) -> None:
        if self._held >= 0:
            with suppress(OSError):
                os.close(self._held)
            self._held = -1


def _size(answer: Answer) -> int:
    try:
        return parse_size(answer.read(_MAX_SIZE_BYTES))
    except NoteError as error:
        raise AuditError(f"a witness answered 409: {error}") from None


def _own(note: bytes, origin: str) -> bytes:
    """A note with the log's signatures alone: witnesses may take 16 KiB at most."""
    text, lines = split_note(note)
    return _note(text, [line for line in lines if line.name == origin])


def _parsed(note: bytes) -> Checkpoint:
    return parse_checkpoint(split_note(note)[0])


def _note(text: bytes, lines: Sequence[SignatureLine]) -> bytes:
    return text + b"\n" + "".join(map(str, lines)).encode()
