"""Witnesses of the audit log: real ones, others that misbehave, and attacks on it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from sealgate.protocol.cosignatures import CosignatureVerifier, Cosigner
from sealgate.protocol.merkle import EMPTY_ROOT
from sealgate.protocol.notes import Checkpoint, Signer, open_checkpoint, split_note
from security.audit import checkpoints
from security.audit.asking import Asker, ask_latest
from security.audit.group import GroupLog
from security.audit.log import AuditLog, LogLimits
from security.audit.records import encode
from security.audit.tree_log import TreeLog
from security.audit.verify import LogReport, verify_log
from security.audit.verify_tree import Demand
from security.audit.witnesses import load_quorum, make_quorum, read_witnesses
from security.errors import AuditError, SettingsError
from security.key_files import write_private
from security.settings.audit import AuditSettings, WitnessAddress, WitnessSettings
from tests.support.certificates import certificate
from tests.support.witnesses import RunningWitness, witness

KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
ORIGINS = [f"sealgate.test/audit/{number}" for number in range(24)]
_unused = iter(ORIGINS)
_NOBODY = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def witnesses(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RunningWitness, RunningWitness]]:
    """Two, one for each kind of key, that know all the logs of this module."""
    folder = tmp_path_factory.mktemp("witnesses")
    logs = [Signer(origin, KEY).verifier for origin in ORIGINS]
    for name, key in (
        ("w1/ed25519", Ed25519PrivateKey.generate()),
        ("w2/ml-dsa-44", MLDSA44PrivateKey.generate()),
    ):
        write_private(folder / f"{name}.pem", key)
    options = ("--every", "0.01")
    with (
        witness(
            folder / "w1", logs, *options, name="one.test", algorithms=["ed25519"]
        ) as one,
        witness(
            folder / "w2", logs, *options, name="two.test", algorithms=["ml-dsa-44"]
        ) as two,
    ):
        yield one, two


@dataclass
class Deployment:
    """A log, its witnesses, and what is reported of them."""

    folder: Path
    settings: WitnessSettings
    origin: str = field(default_factory=lambda: next(_unused))
    outcomes: list[tuple[str, str]] = field(default_factory=list)
    now_s: float = field(default_factory=time.time)
    _writers: Iterator[int] = field(default_factory=count)

    @property
    def signer(self) -> Signer:
        return Signer(self.origin, KEY)

    @property
    def log(self) -> TreeLog:
        return TreeLog(self.folder, self.signer)

    def write(self, records: int = 1) -> None:
        """A writer's life, with one checkpoint."""
        limits = LogLimits(sync=False)
        name = f"w{next(self._writers)}"
        log = AuditLog(self.folder, writer=name, signer=self.signer, limits=limits)
        fields = {"time_us": int(self.now_s * 1e6), "request_id": "r"}
        log.write([encode(fields)] * records)
        log.close()

    def asker(self) -> Asker:
        settings = AuditSettings(directory=self.folder, witnesses=self.settings)
        return Asker(
            settings,
            self.log,
            report=lambda name, outcome: self.outcomes.append((name, outcome)),
            clock=lambda: self.now_s,
        )

    def ask(self) -> list[tuple[str, str]]:
        """One round of a new process; what became of it."""
        self.outcomes.clear()
        self.asker().round()
        return sorted(self.outcomes)

    def verify(self, *copies: bytes, later_s: float = 0) -> LogReport:
        quorum = load_quorum(self.settings)
        assert quorum is not None
        return verify_log(
            [self.folder],
            verifier=self.signer.verifier,
            copies=copies,
            demand=Demand(quorum, self.now_s + later_s, self.settings.grace_s),
        )

    def seen(self) -> list[bytes]:
        return ask_latest(self.settings, self.signer.verifier)


def settings_of(*running: RunningWitness, required: int) -> WitnessSettings:
    addresses = tuple(WitnessAddress(each.url, tuple(each.vkeys)) for each in running)
    return WitnessSettings(witness=addresses, required=required, timeout_s=5.0)


@pytest.fixture
def deployment(
    witnesses: tuple[RunningWitness, RunningWitness], tmp_path: Path
) -> Deployment:
    return Deployment(tmp_path / "audit", settings_of(*witnesses, required=2))


BOTH = [("one.test", "cosigned"), ("two.test", "cosigned")]


def test_witnesses_follow_the_log(deployment: Deployment) -> None:
    deployment.write()
    with pytest.raises(AuditError, match="no witness has cosigned the log, 2 are"):
        deployment.verify()
    assert deployment.ask() == BOTH
    report = deployment.verify()
    assert report.tree is not None
    assert (report.tree.size, report.tree.cosigned_size) == (1, 1)
    assert abs(report.tree.witnessed_s - time.time()) < 60
    # Any reader of notes reads it: no line of ours, two more signatures.
    note = deployment.log.checkpoint()
    assert open_checkpoint(note, [deployment.signer.verifier]).size == 1
    assert len(split_note(note)[1]) == 3
    # What is cosigned is not asked for again, until it is old.
    assert deployment.ask() == []
    for size in (2, 3, 9):
        while deployment.log.size < size:
            deployment.write()
        assert deployment.ask() == BOTH
        assert deployment.verify(*deployment.seen()).tree.cosigned_size == size
    deployment.now_s = time.time() + deployment.settings.refresh_s + 1
    assert deployment.ask() == BOTH


def test_what_witnesses_have_seen_is_found_out(deployment: Deployment) -> None:
    """Nothing is known of it here: they say it (409)."""
    for _ in range(3):
        deployment.write()
    assert deployment.ask() == BOTH
    (deployment.folder / "log.cosigned").unlink()
    deployment.write()
    assert deployment.ask() == BOTH
    assert deployment.verify().tree.cosigned_size == 4


def test_an_empty_log_is_shown_to_nobody(deployment: Deployment) -> None:
    assert deployment.ask() == []


def test_one_witness_short(deployment: Deployment) -> None:
    deployment.write()
    one, two = deployment.settings.witness
    away = replace(two, url=_NOBODY)
    deployment.settings = replace(deployment.settings, witness=(one, away))
    assert deployment.ask() == [BOTH[0], ("two.test", "unreachable")]
    with pytest.raises(AuditError, match="2 witnesses are required, and 1 cosigned"):
        deployment.verify()
    with pytest.raises(AuditError, match="2 witnesses must say what they saw, and 1"):
        deployment.seen()
    enough = replace(deployment.settings, required=1)
    deployment.settings = enough
    assert deployment.verify(*deployment.seen()).tree.cosigned_size == 1
    # Both are asked again, and one cosignature does not displace two.
    deployment.settings = replace(enough, witness=(one, two), required=2)
    assert deployment.ask() == [BOTH[1]]
    deployment.write()
    deployment.settings = replace(deployment.settings, witness=(one, away))
    deployment.ask()
    assert deployment.verify().tree.cosigned_size == 1


def test_a_checkpoint_that_nobody_has_seen(deployment: Deployment) -> None:
    deployment.write()
    deployment.ask()
    deployment.write()
    assert deployment.verify(later_s=299).tree.cosigned_size == 1
    with pytest.raises(AuditError, match="w1: no witness has seen its checkpoint over"):
        deployment.verify(later_s=301)


# Whoever owns the host.


def put_back(folder: Path, earlier: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(earlier, folder)


def test_the_end_is_cut_off(deployment: Deployment, tmp_path: Path) -> None:
    """What is left verifies by itself, and the witnesses know better."""
    deployment.write()
    deployment.ask()
    shutil.copytree(deployment.folder, tmp_path / "earlier")
    deployment.write()
    deployment.ask()
    kept = (deployment.folder / "log.cosigned").read_bytes()
    put_back(deployment.folder, tmp_path / "earlier")
    assert deployment.verify().records == {"w0": 1}
    for copies in ([kept], deployment.seen()):
        with pytest.raises(AuditError, match="the log was cut off"):
            deployment.verify(*copies)
    disagreed = [("one.test", "disagrees"), ("two.test", "disagrees")]
    # While it is short, and when it has grown again into another one.
    deployment.now_s = time.time() + deployment.settings.refresh_s + 1
    assert deployment.ask() == disagreed
    deployment.write(records=2)
    assert deployment.ask() == disagreed
    deployment.write()
    assert deployment.ask() == disagreed
    for copies in ([kept], deployment.seen()):
        with pytest.raises(AuditError, match="of another tree"):
            deployment.verify(*copies)


def test_a_new_log_in_place_of_the_old_one(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.write()
    deployment.write()
    deployment.ask()
    kept = deployment.log.cosigned()
    shutil.rmtree(deployment.folder)
    for _ in range(2):
        deployment.write(records=3)
    with caplog.at_level(logging.ERROR):
        assert {outcome for _, outcome in deployment.ask()} == {"disagrees"}
    assert "no cosignature of the audit log: one.test: what it has seen" in caplog.text
    with pytest.raises(AuditError, match="is signed, and of another tree: the log"):
        deployment.verify(kept)
    with pytest.raises(AuditError, match="no witness has cosigned the log"):
        deployment.verify()


def test_checkpoints_are_cut_off_but_not_the_log(deployment: Deployment) -> None:
    deployment.write()
    size = (deployment.folder / checkpoints.FILE_NAME).stat().st_size
    deployment.write()
    for name in ("w1.000001.jsonl", "w1.hashes"):
        (deployment.folder / name).unlink()
    with (deployment.folder / checkpoints.FILE_NAME).open("r+b") as file:
        file.truncate(size)
    with pytest.raises(AuditError, match="1 checkpoints were cut off, of which the"):
        deployment.verify()
    # Nor does a server go on as if nothing had been there.
    deployment.write()
    assert deployment.log.size == 2


def test_the_log_is_taken_away(deployment: Deployment) -> None:
    deployment.write()
    deployment.ask()
    for path in deployment.folder.glob("log.*"):
        path.unlink()
    with pytest.raises(AuditError, match="there is no log of checkpoints"):
        deployment.verify()
    # By itself it is what an earlier release left.
    verifier = deployment.signer.verifier
    assert verify_log([deployment.folder], verifier=verifier).tree is None


def test_a_damaged_log_is_made_anew(deployment: Deployment) -> None:
    """From the writers' checkpoints, as the page says; witnesses go on with it."""
    for _ in range(3):
        deployment.write()
    deployment.ask()
    (deployment.folder / "log.hashes").write_bytes(b"")
    deployment.write()
    assert deployment.log.size == 3  # it is not gone on with
    for kind in ("leaves", "ends", "hashes", "checkpoint"):
        (deployment.folder / f"log.{kind}").unlink()
    deployment.write()
    assert deployment.log.size == 5
    assert deployment.ask() == BOTH
    assert deployment.verify(*deployment.seen()).tree.cosigned_size == 5
    # Where checkpoints were cut off meanwhile, it is another one.
    for name in ("leaves", "ends", "hashes", "checkpoint"):
        (deployment.folder / f"log.{name}").unlink()
    for path in deployment.folder.glob("w4.*"):
        path.unlink()
    notes = checkpoints.split_notes((deployment.folder / "checkpoints").read_bytes())
    kept = b"".join(note + b"\n" for note in notes[:4])
    (deployment.folder / "checkpoints").write_bytes(kept)
    deployment.write()
    disagreed = [("one.test", "disagrees"), ("two.test", "disagrees")]
    assert deployment.ask() == disagreed
    with pytest.raises(AuditError, match="of another tree"):
        deployment.verify(*deployment.seen())


def test_another_leaf(deployment: Deployment) -> None:
    deployment.write()
    deployment.write()
    path = deployment.folder / "log.leaves"
    path.write_bytes(path.read_bytes().replace(b"/w1\n1\n", b"/w1\n2\n"))
    with pytest.raises(AuditError, match="leaf 2: is not the text of that note"):
        deployment.verify()


@pytest.mark.parametrize("kind", ["leaves", "ends", "hashes"])
def test_a_part_of_the_log_is_cut_off(deployment: Deployment, kind: str) -> None:
    deployment.settings = replace(deployment.settings, witness=(), required=0)
    deployment.write()
    path = deployment.folder / f"log.{kind}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AuditError, match="missing"):
        verify_log([deployment.folder], verifier=deployment.signer.verifier)
    path.unlink()
    with pytest.raises(AuditError, match=r"No such file|missing"):
        verify_log([deployment.folder], verifier=deployment.signer.verifier)


def test_cosignatures_of_others(deployment: Deployment, tmp_path: Path) -> None:
    deployment.write()
    note = deployment.log.checkpoint()
    text = split_note(note)[0]
    stranger = Cosigner("one.test", Ed25519PrivateKey.generate())
    line = str(stranger.cosign(text, time_s=int(deployment.now_s))).encode()
    deployment.log.put_cosigned(note + line)
    with pytest.raises(AuditError, match="and 0 cosigned the log: none"):
        deployment.verify()
    # Of the right witnesses, for another log: the line does not verify here.
    other = Deployment(tmp_path / "other", deployment.settings)
    other.write()
    other.ask()
    lines = split_note(other.log.cosigned() or b"")[1][1:]
    deployment.log.put_cosigned(note + "".join(map(str, lines)).encode())
    with pytest.raises(AuditError, match="the cosignature does not verify"):
        deployment.verify()


# Crashes, and several processes.


def test_a_crash_between_checkpoint_and_leaf(deployment: Deployment) -> None:
    deployment.write()
    deployment.ask()
    crashed = AuditLog(deployment.folder, writer="crashed", signer=deployment.signer)
    crashed.write([encode({"time_us": int(deployment.now_s * 1e6)})])
    due = crashed.prepare_checkpoint()
    checkpoints.append_note(
        deployment.folder,
        lambda after: deployment.signer.sign(replace(due.checkpoint, after=after)),
    )
    report = deployment.verify()
    assert report.notices == ["checkpoints: the last 1 are not in the log yet"]
    with pytest.raises(AuditError, match="crashed: no witness has seen its checkpoint"):
        deployment.verify(later_s=301)
    deployment.write()
    assert deployment.log.size == 3
    deployment.ask()
    assert deployment.verify(later_s=301).notices == []


def test_a_leaf_that_could_not_be_added_is_tried_again(deployment: Deployment) -> None:
    """The log's folder cannot take it, the checkpoints can."""
    log = AuditLog(deployment.folder, writer="w", signer=deployment.signer)
    log.write([encode({})])
    log.sign_checkpoint()
    whole = (deployment.folder / "log.checkpoint").read_bytes()
    (deployment.folder / "log.checkpoint").write_bytes(b"torn")
    log.write([encode({})])
    log.sign_checkpoint()
    assert not log.is_signed
    (deployment.folder / "log.checkpoint").write_bytes(whole)
    log.sign_checkpoint()
    assert log.is_signed
    assert deployment.log.size == 2
    assert len((deployment.folder / checkpoints.FILE_NAME).read_bytes().split(b"\n\n"))


def test_one_process_asks(deployment: Deployment) -> None:
    deployment.settings = replace(deployment.settings, interval_s=0.02)
    deployment.write()
    first, second = deployment.asker(), deployment.asker()
    first.start()
    wait_for(lambda: sorted(deployment.outcomes) == BOTH)
    second.start()
    deployment.write()
    wait_for(lambda: sorted(deployment.outcomes) == sorted(2 * BOTH))
    first.stop()
    deployment.write()
    wait_for(lambda: sorted(deployment.outcomes) == sorted(3 * BOTH))
    # The end of a process is cosigned, too.
    deployment.write()
    second.stop()
    assert sorted(deployment.outcomes) == sorted(4 * BOTH)
    assert deployment.verify().tree.cosigned_size == 4


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Witnesses that misbehave.

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def say(status: int, body: bytes) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, request: bytes) -> None:
        handler.send_response(status)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def always_more(handler: BaseHTTPRequestHandler, request: bytes) -> None:
    """A size that is another one each time."""
    say(409, b"1\n" if request.startswith(b"old 0\n") else b"0\n")(handler, request)


def never(handler: BaseHTTPRequestHandler, request: bytes) -> None:
    """A byte now and then."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(30):
        handler.wfile.write(b"x")
        time.sleep(0.1)


MALLORY = Cosigner("mallory.test", Ed25519PrivateKey.generate())
STRANGER = Cosigner("stranger.test", Ed25519PrivateKey.generate())


def cosigned_by(cosigner: Cosigner, *, origin: str | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, request: bytes) -> None:
        text = split_note(request.partition(b"\n\n")[2])[0]
        if origin is not None:
            text = origin.encode() + text[text.index(b"\n") :]
        say(200, str(cosigner.cosign(text, time_s=1)).encode())(handler, request)

    return answer


@contextmanager
def misbehaving(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                answer(self, body)
            except OSError:
                self.close_connection = True

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        scheme = "http" if context is None else "https"
        yield f"{scheme}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("answer", "outcome", "message"),
    [
        (say(409, b"2\n"), "disagrees", "has seen 2 leaves, and the log has 1"),
        (say(422, b""), "disagrees", "is not how this log begins"),
        (say(409, b"two\n"), "refused", "not the size of a tree"),
        (say(409, b"1" * 99), "unreachable", "over 32 bytes"),
        (always_more, "refused", "changes all the time"),
        (say(404, b""), "refused", "answered 404"),
        (say(500, b"x" * 99_999), "refused", "answered 500"),
        (say(302, b""), "refused", "answered 302"),
        (say(200, b""), "refused", "no signatures"),
        (say(200, b"x" * 99_999), "unreachable", "over 65536 bytes"),
        (say(200, b"<html>"), "refused", "not a checkpoint"),
        (cosigned_by(STRANGER), "refused", "without a signature of its keys"),
        (
            cosigned_by(MALLORY, origin="sealgate.test/other"),
            "refused",
            "does not verify",
        ),
        (never, "unreachable", "Timeout"),
    ],
)
def test_a_witness_that_misbehaves(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    answer: Answer,
    outcome: str,
    message: str,
) -> None:
    with misbehaving(answer) as url:
        address = WitnessAddress(url, (str(MALLORY.verifier),))
        settings = WitnessSettings(witness=(address,), required=1, timeout_s=0.5)
        deployment = Deployment(tmp_path, settings, origin="sealgate.test/audit")
        deployment.write()
        asker = deployment.asker()
        with caplog.at_level(logging.WARNING):
            assert asker.round() is None
        assert deployment.outcomes == [("mallory.test", outcome)]
        assert message in caplog.text
        # It is asked again after a pause, and not before.
        asker.round()
        assert len(deployment.outcomes) == 1
        deployment.now_s += settings.interval_s + 1
        asker.round()
        assert len(deployment.outcomes) == 2
    assert deployment.log.cosigned() is None


def of_mallory(folder: Path, url: str, ca: Path | None = None) -> Deployment:
    address = WitnessAddress(url, (str(MALLORY.verifier),))
    settings = WitnessSettings(
        witness=(address,), required=1, timeout_s=5.0, interval_s=0.01, ca=ca
    )
    return Deployment(folder, settings, origin="sealgate.test/audit")


def test_a_witness_over_tls(tmp_path: Path) -> None:
    """Whom the settings trust, or whom the system does; nobody else."""
    certificate(tmp_path, "own")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.pem", tmp_path / "own.key")
    with misbehaving(cosigned_by(MALLORY), context) as url:
        trusted = of_mallory(tmp_path / "audit", url, tmp_path / "own.pem")
        trusted.write()
        stranger = Deployment(
            trusted.folder, replace(trusted.settings, ca=None), origin=trusted.origin
        )
        assert stranger.ask() == [("mallory.test", "unreachable")]
        assert trusted.ask() == [("mallory.test", "cosigned")]


def test_no_record_waits_for_a_witness(tmp_path: Path) -> None:
    asked, done = threading.Event(), threading.Event()

    def late(handler: BaseHTTPRequestHandler, request: bytes) -> None:
        asked.set()
        done.wait(20)
        cosigned_by(MALLORY)(handler, request)

    with misbehaving(late) as url:
        deployment = of_mallory(tmp_path / "audit", url)
        deployment.write()
        limits = LogLimits(checkpoint_interval_s=0.01)
        log = AuditLog(
            deployment.folder, writer="w", signer=deployment.signer, limits=limits
        )
        group = GroupLog(log)
        asker = deployment.asker()
        asker.start()
        assert asked.wait(20)
        for number in range(20):
            assert asyncio.run(group.append({"rows": number})) == number
        group.close()
        assert deployment.outcomes == []
        assert deployment.log.size >= 2
        done.set()
        wait_for(lambda: deployment.log.cosigned() is not None)
        asker.stop()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (say(404, b""), "mallory.test has seen nothing of it"),
        (say(500, b""), "answered 500"),
        (say(200, b"no note"), "no signatures"),
        (
            lambda handler, body: say(200, _note_of(handler))(handler, body),
            "shows a checkpoint without its cosignature",
        ),
    ],
)
def test_a_witness_that_says_nothing_of_use(answer: Answer, message: str) -> None:
    with misbehaving(answer) as url:
        address = WitnessAddress(url, (str(MALLORY.verifier),))
        settings = WitnessSettings(witness=(address,), required=1, timeout_s=2.0)
        with pytest.raises(AuditError, match=message):
            ask_latest(settings, Signer("sealgate.test/audit", KEY).verifier)


def _note_of(_: BaseHTTPRequestHandler) -> bytes:
    origin = "sealgate.test/audit"
    return Signer(origin, KEY).sign(Checkpoint(origin, 0, EMPTY_ROOT))


@pytest.mark.parametrize(
    "shown",
    [
        Signer("sealgate.test/audit", Ed25519PrivateKey.generate()),
        Signer("sealgate.test/other", KEY),
    ],
)
def test_one_that_shows_another_log_hides_no_others(
    deployment: Deployment, shown: Signer
) -> None:
    """Of three, two say what is there: the third can neither spoil nor count."""
    deployment.write()
    deployment.ask()

    def answer(handler: BaseHTTPRequestHandler, request: bytes) -> None:
        note = shown.sign(Checkpoint(shown.name, 9, EMPTY_ROOT))
        line = str(MALLORY.cosign(split_note(note)[0], time_s=1)).encode()
        say(200, note + line)(handler, request)

    with misbehaving(answer) as url:
        third = WitnessAddress(url, (str(MALLORY.verifier),))
        witnesses = (third, *deployment.settings.witness)
        deployment.settings = replace(deployment.settings, witness=witnesses)
        assert len(deployment.seen()) == 2
        assert deployment.verify(*deployment.seen()).tree.cosigned_size == 1
        deployment.settings = replace(deployment.settings, required=3)
        with pytest.raises(AuditError, match="3 witnesses must say what they saw, and"):
            deployment.seen()


def test_a_witness_is_sent_the_logs_own_signatures(deployment: Deployment) -> None:
    """Not those of others, for which its bound on requests may have no room."""
    deployment.write()
    deployment.ask()
    assert len(split_note(deployment.log.checkpoint())[1]) == 3
    sent: list[bytes] = []

    def answer(handler: BaseHTTPRequestHandler, request: bytes) -> None:
        sent.append(request)
        cosigned_by(MALLORY)(handler, request)

    with misbehaving(answer) as url:
        third = WitnessAddress(url, (str(MALLORY.verifier),))
        witnesses = (third, *deployment.settings.witness)
        deployment.settings = replace(deployment.settings, witness=witnesses)
        assert ("mallory.test", "cosigned") in deployment.ask()
    ((_, note),) = [request.split(b"\n\n", 1) for request in sent]
    assert [line.name for line in split_note(note)[1]] == [deployment.origin]
    # What the others had signed is kept beside it.
    assert len(split_note(deployment.log.checkpoint())[1]) == 4


# Who they are.

VKEY, OTHER_VKEY = str(MALLORY.verifier), str(STRANGER.verifier)


def test_a_file_of_witnesses(tmp_path: Path) -> None:
    path = tmp_path / "witnesses"
    second = Cosigner("mallory.test", MLDSA44PrivateKey.generate()).verifier
    path.write_text(
        f"# who sees our log\n\n{VKEY}\n"
        f"witness S {OTHER_VKEY} https://stranger.example/w\n  {second}\n"
    )
    found = read_witnesses(path)
    assert found == (
        WitnessAddress("", (VKEY, str(second))),
        WitnessAddress("https://stranger.example/w", (OTHER_VKEY,)),
    )
    quorum = load_quorum(WitnessSettings(witness=found, required=2))
    assert quorum is not None
    # A witness with two keys counts once.
    assert quorum.names == {"mallory.test", "stranger.test"}
    with pytest.raises(SettingsError, match=r"mallory\.test: url"):
        ask_latest(
            WitnessSettings(witness=found, required=1), Signer("origin", KEY).verifier
        )
    for content, message in ((b"\xff", "not UTF-8"), (None, "No such file")):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(AuditError, match=message):
            read_witnesses(path)


@pytest.mark.parametrize(
    ("vkeys", "required", "message"),
    [
        (["nonsense"], 1, "not a verifier key"),
        ([str(Signer("log", KEY).verifier)], 1, "not a cosigner's verifier key"),
        ([VKEY, VKEY], 1, "the same key twice"),
        ([VKEY, OTHER_VKEY], 3, "3 are required, of 2"),
        ([VKEY], 0, "0 are required, of 1"),
        ([], 1, "1 are required, of 0"),
        ([VKEY, str(CosignatureVerifier("x", MALLORY.verifier._key))], 2, "same key"),
    ],
)
def test_witnesses_that_make_no_quorum(
    vkeys: list[str], required: int, message: str
) -> None:
    with pytest.raises(AuditError, match=message):
        make_quorum(vkeys, required)
