"""A version that a worker serves, and the versions of one model with their parts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from datetime import datetime

from sealgate.protocol.tensors import TensorSpec
from security.admission.gate import Admission
from security.admission.lifecycle import (
    Canary,
    Default,
    Shadow,
    State,
    Withdrawn,
    find,
)
from security.admission.loaded import LoadedModel
from security.errors import AdmissionRefused
from service.inference.agreement import Trial
from service.inference.batching import Batcher
from service.inference.explaining import Explainer
from service.inference.layout import UnexplainableError

__all__ = ["Entry", "Served", "answers_now", "check_alike"]


class Served:
    """A model that a worker has loaded.

    Attributes:
        model: the session, and the manifest that requests are validated against.
        tag: name and version.
        input_specs: of that.
        output_names: of those that may leave.
        counted_sets: those of them that labels are held against.
        admission: what admitted it; renewed when it is verified again.
        expires_at: when that gets too old, Unix seconds; infinity for never.
        batcher: gathers and runs its requests.
        revision: of the plan's order to load it.
        explainer: of its answers, or why they cannot be explained.
    """

    def __init__(
        self,
        model: LoadedModel,
        batcher: Batcher,
        explainer: Explainer | UnexplainableError,
        *,
        revision: int = 0,
    ) -> None:
        self.explainer = explainer
        self.model = model
        self.manifest = model.manifest
        self.tag = model.manifest.tag
        self.input_specs = model.input_specs
        self.output_names = model.release.names
        self.counted_sets = [
            spec.name for spec in model.release.added if spec.datatype == "BOOL"
        ]
        self.renew(model.admission)
        self.batcher = batcher
        self.revision = revision

    def renew(self, admission: Admission) -> None:
        """It was verified again; what runs needs no second copy of its model."""
        self.admission = self.model.admission = admission.without_model()
        self.expires_at = _expiry(admission)

    def stand_until(self, limit: datetime | None) -> None:
        """Answer until the admission ends, or a time before that."""
        ends = math.inf if limit is None else limit.timestamp()
        self.expires_at = min(_expiry(self.admission), ends)


class _Share:
    """Lets exactly a share of calls through, spread evenly."""

    def __init__(self) -> None:
        self._sum = 0

    def next(self, percent: int) -> bool:
        self._sum += percent
        if self._sum < 100:
            return False
        self._sum -= 100
        return True


class Entry:
    """One model: its versions, each in its state. It does not change.

    Attributes:
        states: of every version that may be asked for.
        default: answers requests that name no version.
        canary: answers a share of them instead, unless it is withdrawn.
        shadow: runs on a share of them, too, unless it is withdrawn.
        trials: by "canary" and "shadow", those that there are.
    """

    def __init__(self, states: Mapping[str, State[Served]]) -> None:
        """Find who has which part.

        Args:
            states: by version; one of them is the default.
        """
        self.states = states
        self.default = states[find(states, Default) or ""]
        self.canary = next((s for s in states.values() if isinstance(s, Canary)), None)
        self.shadow = next((s for s in states.values() if isinstance(s, Shadow)), None)
        self.trials = {
            trial.kind: trial
            for trial in (
                *_trial("canary", self.default, self.canary),
                *_trial("shadow", self.default, self.shadow),
            )
        }
        self._canary_share = _Share()
        self._shadow_share = _Share()

    def choose(self) -> State[Served]:
        """Who answers a request that names no version.

        A canary that may not answer leaves its share to the default.
        """
        canary = self.canary
        if canary is None or not self._canary_share.next(canary.percent):
            return self.default
        return canary if answers_now(canary) else self.default

    def other(self, served: Served) -> tuple[str, Served] | None:
        """The kind of trial that a request is part of, and who else runs it."""
        if self.canary is not None and served is self.canary.content:
            if isinstance(self.default, Withdrawn):
                return None
            return "canary", self.default.content
        shadow = self.shadow
        if (
            shadow is not None
            and served is self.default.content
            and self._shadow_share.next(shadow.percent)
        ):
            return "shadow", shadow.content
        return None


def answers_now(state: State[Served]) -> bool:
    """Whether a version is admitted at this moment."""
    return not isinstance(state, Withdrawn) and time.time() < state.content.expires_at


def _expiry(admission: Admission) -> float:
    expires_at = admission.expires_at
    return math.inf if expires_at is None else expires_at.timestamp()


def _trial(
    kind: str, default: State[Served], trial: Canary[Served] | Shadow[Served] | None
) -> Iterator[Trial]:
    if trial is None:
        return
    ours, theirs = (item.content.admission.bundle.subject for item in (default, trial))
    yield Trial(
        kind=kind,
        model=ours.name,
        version=ours.version,
        tried=theirs.version,
        root_sha256=theirs.root_sha256,
        beside_sha256=ours.root_sha256,
    )


def check_alike(default: Served, trial: Served) -> None:
    """Refuse versions that cannot answer the same requests.

    Raises:
        AdmissionRefused: they take or give other tensors, or more may leave of the
            trial: nobody who asks for the default chose that.
    """
    ours, theirs = default.manifest, trial.manifest
    if _tensors(default) != _tensors(trial):
        raise AdmissionRefused(
            17,
            f"{theirs.tag} has other tensors than {ours.tag}, so that they cannot "
            "answer the same requests",
        )
    if theirs.output_policy.wider_than(ours.output_policy):
        raise AdmissionRefused(
            29,
            f"{theirs.tag} lets more leave ({theirs.output_policy}) than {ours.tag} "
            f"({ours.output_policy}), whose requests it would answer",
        )


def _tensors(served: Served) -> tuple[set[TensorSpec], set[TensorSpec]]:
    """What requests may hold, and answers."""
    return {*served.input_specs}, {tensor.spec for tensor in served.manifest.served}
