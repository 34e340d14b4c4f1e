"""Checks as generators: one code for the first refusal and for the list of all.

A step yields a refusal for each check that fails, and returns what it verified.
`demand` stops at the first; `drain` makes every check that can still be made.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from models.bundle import Bundle, mldsa_file
from sealgate.errors import StatementError
from sealgate.protocol import dsse
from sealgate.protocol.statement import Statement
from security.admission.attest import subjects
from security.admission.rules import Policy, Requirement
from security.admission.timestamps import Stamp, Timed
from security.admission.trust import TrustRoot
from security.errors import AdmissionRefused

__all__ = [
    "Read",
    "Scene",
    "Signed",
    "Steps",
    "check_age",
    "check_stamps",
    "count_signers",
    "demand",
    "describe",
    "drain",
    "end_of",
    "needs_mldsa",
    "read_statement",
]

CLOCK_SKEW = timedelta(minutes=5)

_T = TypeVar("_T")
Steps = Generator[AdmissionRefused, None, _T]


@dataclass(frozen=True)
class Scene:
    """What the checks look at: the bytes, the rules, the keys and the time."""

    bundle: Bundle
    policy: Policy
    trust: TrustRoot
    now: datetime

    @property
    def required(self) -> tuple[Requirement, ...]:
        """What the policy requires of a model of this bundle's name."""
        return self.policy.required(self.bundle.manifest.name)


@dataclass(frozen=True)
class Signed:
    """A statement as it lies in files, one for each algorithm that signed it.

    Attributes:
        data: the Sigstore bundle that is signed with ECDSA P-256.
        mldsa: the one over the same payload that is signed with ML-DSA-65, if there is
            one.
    """

    data: bytes
    mldsa: bytes | None = None

    @classmethod
    def of(cls, files: Mapping[str, bytes], name: str) -> Signed:
        """The statement of a name in a bundle's files, which has it."""
        return cls(files[name], files.get(mldsa_file(name)))


@dataclass(frozen=True)
class Read:
    """A statement whose signatures verified.

    Attributes:
        statement: what was signed.
        hint: of the P-256 key.
        mldsa: of the ML-DSA-65 key; None where no such signature was checked.
        stamps: by when each of the signatures existed, as far as a trusted authority
            of time says so.
    """

    statement: Statement
    hint: str
    mldsa: str | None = None
    stamps: tuple[Stamp, ...] = ()

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Those whose signatures were checked."""
        if self.mldsa is None:
            return (dsse.ECDSA_P256,)
        return (dsse.ECDSA_P256, dsse.ML_DSA_65)


def demand(steps: Steps[_T]) -> _T:
    """What the steps verified.

    Raises:
        AdmissionRefused: the first check that failed; none after it was made.
    """
    try:
        refusal = next(steps)
    except StopIteration as end:
        verified: _T = end.value
        return verified
    raise refusal


def drain(steps: Steps[_T]) -> tuple[list[AdmissionRefused], _T]:
    """Every check that failed, and what was verified by the others."""
    found: list[AdmissionRefused] = []
    while True:
        try:
            found.append(next(steps))
        except StopIteration as end:
            return found, end.value


def describe(stem: str, file: str) -> str:
    """What refusals call a statement, further ones by their number.

    >>> describe("verdict", "attestations/verdict.2.sigstore.json")
    'verdict 2'
    """
    number = file.removesuffix(".sigstore.json").partition(".")[2]
    return f"{stem} {number}".rstrip()


def end_of(start: datetime, lasts: timedelta) -> datetime:
    """When what began at a time and lasts so long is over."""
    try:
        return start + lasts
    except OverflowError:  # in the year 10000: refused as from the future already
        return start


def read_statement(
    signed: Signed,
    scene: Scene,
    *,
    signers: tuple[str, ...],
    mode: str | None,
    timestamps: bool,
    what: str,
    checks: tuple[int, int],
) -> Steps[Read | None]:
    """Signatures, role and time stamps (first check), then subjects (second).

    1. the P-256 signature, by a key of one of the roles;
    2. the ML-DSA-65 signature, where one is needed: by a key of the same role;
    3. both are over the same payload;
    4. each has a time stamp, where one is needed: a stamp is of one signature, and says
       nothing of the other;
    5. the payload is a statement about this bundle.

    Args:
        signed: the statement's files, possibly hostile.
        scene: whose keys count, and the bundle that it must be about.
        signers: roles that may sign it.
        mode: which signatures it needs, of `rules.SIGNATURES`; None for both where the
            trust root gives the role of the P-256 key an ML-DSA-65 key.
        timestamps: whether each signature needs a trusted time stamp.
        what: the statement, as refusals call it.
        checks: numbers of the two checks.

    Returns:
        None if it was refused.
    """
    try:
        verified = scene.trust.verify(signed.data, signers)
        mldsa = _second(signed, verified, scene.trust, mode)
        stamps = _stamps(verified, mldsa, needed=timestamps)
    except StatementError as error:
        yield AdmissionRefused(checks[0], f"{what}: {error}")
        return None
    try:
        statement = Statement.from_json(verified.payload)
    except StatementError as error:
        yield AdmissionRefused(checks[1], f"{what}: {error}")
        return None
    if statement.subjects != subjects(scene.bundle.subject):
        yield AdmissionRefused(checks[1], f"{what} is about other bytes")
        return None
    second = None if mldsa is None else mldsa.hint
    return Read(statement, verified.hint, second, stamps)


def _stamps(first: Timed, second: Timed | None, *, needed: bool) -> tuple[Stamp, ...]:
    """The time stamps of the signatures that were checked.

    Raises:
        StatementError: one has none, and needs it.
    """
    checked = [("", first), *([("ML-DSA-65: ", second)] if second else [])]
    for whose, signature in checked:
        if needed and signature.stamp is None:
            raise StatementError(
                f"{whose}{signature.unstamped}; the policy demands a trusted one"
            )
    return tuple(item.stamp for _, item in checked if item.stamp is not None)


def needs_mldsa(trust: TrustRoot, role: str, mode: str | None) -> bool:
    """Whether what a role signs needs an ML-DSA-65 signature too.

    Args:
        trust: says whether the role has such a key.
        role: of the P-256 key.
        mode: of `rules.SIGNATURES`, or None.
    """
    return mode == "both" or (mode is None and trust.has(role, dsse.ML_DSA_65))


def _second(
    signed: Signed, first: dsse.Verified, trust: TrustRoot, mode: str | None
) -> Timed | None:
    """The ML-DSA-65 signature, if it is to be checked.

    Raises:
        StatementError: it is missing, does not verify, or is over something else.
    """
    role = trust.role_of(first.hint) or ""
    known = trust.has(role, dsse.ML_DSA_65)
    needed = needs_mldsa(trust, role, mode)
    if not needed and not (mode == "any" and known and signed.mldsa is not None):
        return None
    if not known:
        raise StatementError(f"the trust root gives {role} no ML-DSA-65 key")
    if signed.mldsa is None:
        raise StatementError("the ML-DSA-65 signature is missing beside it")
    try:
        second = trust.verify(signed.mldsa, (role,), algorithm=dsse.ML_DSA_65)
    except StatementError as error:
        raise StatementError(f"ML-DSA-65: {error}") from None
    if second.payload != first.payload:
        raise StatementError("ML-DSA-65: signs another payload than P-256 does")
    return second


def check_stamps(
    stated: datetime,
    stamps: Iterable[Stamp],
    *,
    now: datetime,
    check: int,
    what: str,
) -> Steps[datetime]:
    """Hold the time that a statement gives itself to its time stamps.

    A stamp proves by when a signature existed, never since when. So a stated time after
    it is a wrong clock or a lie, and a stated time long before it may be true: who
    stamps late gains nothing, since age counts from the earlier of the two.

    Args:
        stated: by whoever signed.
        stamps: of each signature under it.
        now: the time.
        check: number of the check.
        what: to call it.

    Returns:
        What age counts from.
    """
    times = [stamp.time for stamp in stamps]
    if any(time > now + CLOCK_SKEW for time in times):
        yield AdmissionRefused(check, f"{what} has a time stamp from the future")
    if any(stated > time + CLOCK_SKEW for time in times):
        yield AdmissionRefused(check, f"{what} says that it is newer than its stamp")
    return min([stated, *times])


def count_signers(found: Collection[Read]) -> int:
    """How many people signed: no key of either algorithm counts twice.

    Where both algorithms were checked it is the smaller number of different keys.
    """
    first = {read.hint for read in found}
    second = {read.mldsa or read.hint for read in found}
    return min(len(first), len(second))


def check_age(
    moment: datetime, max_age: timedelta, *, now: datetime, check: int, what: str
) -> Steps[None]:
    """Fresh, and not from the future."""
    if moment > now + CLOCK_SKEW:
        yield AdmissionRefused(check, f"{what} is from the future")
    if now - moment > max_age:
        yield AdmissionRefused(check, f"{what} expired: older than {max_age.days} days")
