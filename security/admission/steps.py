"""Checks as generators: one code for the first refusal and for the list of all.

A step yields a refusal for each check that fails, and returns what it verified.
`demand` stops at the first; `drain` makes every check that can still be made.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from models.bundle import Bundle
from sealgate.errors import StatementError
from sealgate.protocol import dsse
from sealgate.protocol.statement import Statement
from security.admission.attest import subjects
from security.admission.rules import Policy, Requirement
from security.admission.trust import PublicKeys, TrustRoot
from security.errors import AdmissionRefused

__all__ = [
    "Scene",
    "Steps",
    "check_age",
    "demand",
    "describe",
    "drain",
    "end_of",
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
    data: bytes, keys: PublicKeys, bundle: Bundle, what: str, checks: tuple[int, int]
) -> Steps[tuple[str, Statement] | None]:
    """Signature and role (first check), then subjects (second).

    Returns:
        The hint of the key that signed, and the statement; None if refused.
    """
    try:
        verified = dsse.verify(data, keys)
    except StatementError as error:
        yield AdmissionRefused(checks[0], f"{what}: {error}")
        return None
    try:
        statement = Statement.from_json(verified.payload)
    except StatementError as error:
        yield AdmissionRefused(checks[1], f"{what}: {error}")
        return None
    if statement.subjects != subjects(bundle.subject):
        yield AdmissionRefused(checks[1], f"{what} is about other bytes")
        return None
    return verified.hint, statement


def check_age(
    moment: datetime, max_age: timedelta, *, now: datetime, check: int, what: str
) -> Steps[None]:
    """Fresh, and not from the future."""
    if moment > now + CLOCK_SKEW:
        yield AdmissionRefused(check, f"{what} is from the future")
    if now - moment > max_age:
        yield AdmissionRefused(check, f"{what} expired: older than {max_age.days} days")
