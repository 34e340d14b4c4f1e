"""The life of a served version: one state machine, for the plan and for every worker.

=========  =============================================  ===========================
state      what holds                                     what may follow, and why
=========  =============================================  ===========================
planned    it is to be loaded; none of it was read yet    admitted: by the gate
admitted   the gate let in the bytes that are held        warm: loaded, and has run
warm       answers requests that name it                  default, canary, shadow,
                                                          withdrawn, gone
default    answers requests that name no version          warm: another is the default;
                                                          withdrawn
canary     answers a share of the default's requests      default, warm, withdrawn, gone
shadow     runs on a share of them, its answers unseen    default, warm, withdrawn, gone
withdrawn  answers 503: the gate refuses it, it ended     what it was, when the reason
           workers again and again, or a default is not   is over; gone
           monitored as the policy asks
=========  =============================================  ===========================

Each state is a class, and each state that may follow it a method. From warm on, a state
holds what its side knows of the version: a worker the loaded model, a plan the revision
that is to be loaded. A **plan** says in which state each version shall be, so its
changes are such steps. A **worker** takes what is planned through the gate, warms it up
and brings it where the plan has it (`arrange`); only a worker withdraws.

>>> trial = Warm("1.1.0").try_as_canary(5)
>>> trial.promote()
Default(content='1.1.0')
>>> trial.withdraw("the verdict is too old").restore() == trial
True
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from security.admission.gate import Admission

__all__ = [
    "Admitted",
    "Canary",
    "Default",
    "Live",
    "Planned",
    "Shadow",
    "State",
    "Warm",
    "Withdrawn",
    "arrange",
    "find",
]

V = TypeVar("V")
Cause = Literal["admission", "casualties", "monitoring"]


@dataclass(frozen=True)
class Planned:
    """To be loaded.

    Attributes:
        revision: how often it was ordered to be loaded again.
    """

    revision: int

    def admit(self, admission: Admission) -> Admitted:
        """The gate let it in."""
        return Admitted(self.revision, admission)


@dataclass(frozen=True)
class Admitted:
    """Verified; not loaded yet."""

    revision: int
    admission: Admission

    def warm_up(self, content: V) -> Warm[V]:
        """It is loaded, and has run for the first time."""
        return Warm(content)


@dataclass(frozen=True)
class _Living(Generic[V]):
    """What warm, default, canary and shadow have in common.

    Attributes:
        content: what a plan or a worker knows of the version.
    """

    content: V

    def withdraw(self, reason: str, *, cause: Cause = "admission") -> Withdrawn[V]:
        """It answers no more, until the reason is over."""
        # None but the four classes below is made.
        return Withdrawn(self, reason, cause)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Warm(_Living[V]):
    """Answers requests that name it."""

    def promote(self) -> Default[V]:
        """Requests that name no version are its own from now on."""
        return Default(self.content)

    def try_as_canary(self, percent: int) -> Canary[V]:
        """It answers so many in a hundred of the default's requests, 1 to 100."""
        return Canary(self.content, percent)

    def try_as_shadow(self, percent: int) -> Shadow[V]:
        """It runs on so many in a hundred of the default's requests, 1 to 100."""
        return Shadow(self.content, percent)


@dataclass(frozen=True)
class Default(_Living[V]):
    """Answers requests that name no version."""

    def retire(self) -> Warm[V]:
        """Another one is the default from now on."""
        return Warm(self.content)


@dataclass(frozen=True)
class _OnTrial(_Living[V]):
    percent: int

    def promote(self) -> Default[V]:
        """The trial ends well."""
        return Default(self.content)

    def retire(self) -> Warm[V]:
        """The trial ends."""
        return Warm(self.content)


@dataclass(frozen=True)
class Canary(_OnTrial[V]):
    """Answers a share of the default's requests."""


@dataclass(frozen=True)
class Shadow(_OnTrial[V]):
    """Runs on a share of the default's requests; nobody sees its answers."""


Live: TypeAlias = Warm[V] | Default[V] | Canary[V] | Shadow[V]


@dataclass(frozen=True)
class Withdrawn(Generic[V]):
    """Answers 503.

    Attributes:
        was: what it is again when the reason is over.
        reason: for the operator.
        cause: the gate refuses it, it ended workers again and again, or a default is
            not monitored as the policy asks.
    """

    was: Live[V]
    reason: str
    cause: Cause = "admission"

    @property
    def content(self) -> V:
        """Of what it was."""
        return self.was.content

    def withdraw(self, reason: str, *, cause: Cause = "admission") -> Withdrawn[V]:
        """For another reason."""
        return Withdrawn(self.was, reason, cause)

    def restore(self) -> Live[V]:
        """The reason is over."""
        return self.was


State: TypeAlias = Live[V] | Withdrawn[V]


def arrange(state: State[V], plan: Live[Any]) -> State[V]:
    """Bring a version where a plan has it; one that is withdrawn stays that, too."""
    if isinstance(state, Withdrawn):
        return replace(state, was=_arranged(state.was, plan))
    return _arranged(state, plan)


def _arranged(state: Live[V], plan: Live[Any]) -> Live[V]:
    warm = state if isinstance(state, Warm) else state.retire()
    match plan:
        case Default():
            return warm.promote()
        case Canary(percent=percent):
            return warm.try_as_canary(percent)
        case Shadow(percent=percent):
            return warm.try_as_shadow(percent)
        case _:
            return warm


def find(
    states: Mapping[str, State[V]], kind: type[Default[V] | Canary[V] | Shadow[V]]
) -> str | None:
    """Which version of a model is the default, the canary or the shadow, if any.

    One that is withdrawn is still what it was.
    """
    for version, state in states.items():
        was = state.was if isinstance(state, Withdrawn) else state
        if isinstance(was, kind):
            return version
    return None
