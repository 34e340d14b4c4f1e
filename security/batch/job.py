"""A whole batch job.

1. the gate has admitted the model (`security.admission.doors`), and it is opened;
2. the input is looked at, and divided into parts;
3. the folder is locked: a job begins, or goes on with the very same one;
4. the audit log says that it begins;
5. of each part: the rows are booked with the job's quotas before it is begun, and what
   its answers tell once they are there; it is recorded; it gets its place;
6. parts are joined, the job's record is written, the audit log says how it ended.

Whatever of 5 cannot be done, ends the job: what is done stays. What monitoring counts
is what callers asked; rows of a job are none of that.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealgate.errors import SealgateError
from sealgate.protocol import strict_json
from security.access.quotas import Ticket, load_quota_counters
from security.access.tokens import Principal
from security.admission.gate import Admission
from security.audit.journal import recording
from security.audit.records import Scalar
from security.batch.journal import Journal, check_list, open_journal
from security.batch.plan import Part, Plan, make_plan
from security.batch.running import Where, run_parts
from security.batch.work import Done, Task, describe
from security.errors import (
    AdmissionRefused,
    BatchError,
    ExtractionBudgetError,
    QuotaError,
)
from security.key_files import read_secret
from security.settings.loading import Settings

__all__ = ["Job", "Progress", "Summary", "run_job"]

# No token has this issuer: a job's budgets are nobody else's.
_ISSUER = "command:batch"
_EXPIRED = 15  # the gate's check of freshness

Record = Callable[[Iterable[Mapping[str, Scalar]]], None]
# Told of the rows that are done, of how many, and those of this run.
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        admission: the model, opened, and what admitted it.
        policy_sha256: of the policy that it was admitted under.
        source: a file of rows, or a folder of them.
        out: a file by its suffix, or a folder of Parquet files.
        kind: of `writing.KINDS`.
        name: whose quotas are charged.
        keep: columns that go with the answers.
        skip_bad: where rows that are refused are listed; without it one ends the job.
        part_rows: of a part.
        resume: go on with a job that was begun.
    """

    admission: Admission
    policy_sha256: str
    source: Path
    out: Path
    kind: str
    name: str
    keep: tuple[str, ...] = ()
    skip_bad: Path | None = None
    part_rows: int = 250_000
    resume: bool = False

    def about(self, plan: Plan) -> dict[str, Any]:
        """What must be the same for a job that goes on."""
        subject = self.admission.bundle.subject
        return {
            "model": f"{subject.name}:{subject.version}",
            "root_sha256": subject.root_sha256,
            "policy_sha256": self.policy_sha256,
            "inputs": [source.to_object() for source in plan.sources],
            "keep": list(self.keep),
            "kind": self.kind,
            "part_rows": self.part_rows,
            "skips": self.skip_bad is not None,
        }


@dataclass(frozen=True)
class Summary:
    """What came of a job.

    Attributes:
        record: as it is written.
        begun: rows that were done before this run.
        seconds: that this run took.
        ignored: columns that were not read.
    """

    record: Mapping[str, Any]
    begun: int
    seconds: float
    ignored: tuple[str, ...]


def run_job(
    job: Job, settings: Settings, where: Where, tell: Progress = lambda *_: None
) -> Summary:
    """Do a job, or the rest of it.

    Raises:
        BatchError: it cannot be done, or goes on with another one's.
        QuotaError: the job's quotas are spent; what is done stays.
        SealgateError: quotas cannot be counted, or the log cannot be written.
    """
    clock = time.monotonic()
    if job.skip_bad is not None:
        check_list(job.skip_bad, job.out, resume=job.resume)
    plan = make_plan(
        job.source, describe(job.admission), keep=job.keep, part_rows=job.part_rows
    )
    about = job.about(plan)
    name = hashlib.sha256(strict_json.dumps(about)).hexdigest()
    with open_journal(job.out, about, resume=job.resume) as journal:
        begun = sum(entry.rows + entry.skipped for entry in journal.done.values())
        record = journal.record
        if record is None:
            run = _Run(job, settings, plan, journal, name)
            record = run.all(where, lambda done: tell(begun + done, plan.rows, done))
    return Summary(record, begun, time.monotonic() - clock, plan.ignored)


class _Run:
    """One run of a job, in its folder."""

    def __init__(
        self, job: Job, settings: Settings, plan: Plan, journal: Journal, name: str
    ) -> None:
        self._job, self._settings, self._plan = job, settings, plan
        self._journal, self._name = journal, name
        self._fields: dict[str, Scalar] = {
            "model": job.admission.bundle.manifest.tag,
            "model_sha256": job.admission.bundle.subject.root_sha256,
            "request_id": name[:16],
        }

    def all(self, where: Where, tell: Callable[[int], None]) -> dict[str, Any]:
        """Steps 4 to 6."""
        with recording(self._settings.audit, self._job.name) as write:
            size = sum(source.size for source in self._plan.sources)
            begin = {"rows": self._plan.rows, "request_bytes": size}
            write([{**self._fields, **begin, "action": "batch", "reason": self._name}])
            try:
                with asyncio.Runner() as runner:
                    self._parts(where, tell, write, runner)
                record = self._journal.finish(
                    self._job.skip_bad,
                    {"verdict_sha256": self._job.admission.verdict_sha256},
                )
            except BaseException as error:
                self._end(write, outcome="refuse", reason=_reason(error))
                raise
            digest = hashlib.sha256(strict_json.dumps(record)).hexdigest()
            self._end(write, rows=record["rows"], reason=digest)
            return record

    def _end(self, write: Record, **fields: Scalar) -> None:
        write([{**self._fields, "action": "batch-end", **fields}])

    def _parts(
        self,
        where: Where,
        tell: Callable[[int], None],
        write: Record,
        runner: asyncio.Runner,
    ) -> None:
        """Step 5."""
        settings, job = self._settings, self._job
        quotas = load_quota_counters(
            settings.quotas, key=read_secret(settings.audit.pseudonym_key), batch=True
        )
        try:
            ticket = runner.run(quotas.enter(_principal(job), self._model))
            left = [p for p in self._plan.parts if p.number not in self._journal.done]
            task = self._task(ticket)
            count = 0

            def book(part: Part) -> None:
                _check_expiry(job.admission)
                runner.run(ticket.charge_rows(part.place.rows))

            for done in run_parts(task, left, where, book):
                runner.run(ticket.charge_bits(done.bits))
                write([self._told(done)])
                self._journal.commit(done)
                count += done.rows + done.skipped
                tell(count)
        finally:
            runner.run(quotas.close())

    @property
    def _model(self) -> str:
        return self._job.admission.bundle.manifest.name

    def _task(self, ticket: Ticket) -> Task:
        job = self._job
        return Task(
            name=self._name,
            admission=job.admission,
            runtime=self._settings.runtime,
            folder=self._journal.folder.absolute(),
            kind=job.kind,
            columns=self._plan.columns,
            keep=job.keep,
            skip=job.skip_bad is not None,
            bits=ticket.counts_bits,
        )

    def _told(self, done: Done) -> dict[str, Scalar]:
        return {
            **self._fields,
            "action": "batch-part",
            "rows": done.rows,
            "response_bytes": done.size,
            "latency_us": int(done.seconds * 1e6),
            "reason": done.sha256 or None,
        }


def _principal(job: Job) -> Principal:
    return Principal(
        subject=job.name,
        client_id=job.name,
        token_id="",
        scopes=frozenset(),
        expires_at=0,
        issuer=_ISSUER,
    )


def _check_expiry(admission: Admission) -> None:
    ends = admission.expires_at
    if ends is not None and time.time() >= ends.timestamp():
        raise AdmissionRefused(_EXPIRED, "the model is not admitted any longer")


def _reason(error: BaseException) -> str:
    """Why a job ended: as the server's refusals are called, or the error's kind."""
    if isinstance(error, ExtractionBudgetError):
        return "extraction-budget"
    if isinstance(error, QuotaError):
        return "quota-exceeded"
    if isinstance(error, AdmissionRefused):
        return f"check-{error.check}"
    if isinstance(error, BatchError):
        return "invalid-request"
    return type(error).__name__ if isinstance(error, SealgateError) else "interrupted"
