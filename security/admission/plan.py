"""What a running server serves: a plan in a file, that every worker follows.

The operator's command changes it; each worker reads it again and again, loads what is
new through the gate, and switches. A plan is not signed, since it grants nothing: a
version that it names is verified by each worker like any other, and whoever can write
here could write the trust root beside it.

::

    deployment/plan.json            the plan in force
    deployment/history/000007.json  every plan that was, the newest fifty
    deployment/workers/*.json       what each worker made of it

Without a file the plan is the one of service.toml.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from models.errors import BundleError
from models.files import read_regular, write_atomic
from models.names import names_that_clash
from models.report import format_time
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from sealgate.protocol.versions import unread
from security.admission.lifecycle import Canary, Default, Live, Shadow, Warm, find
from security.errors import PlanError

__all__ = ["ModelPlan", "Plan", "PlanFolder", "default_since", "plan_of_tags"]

SCHEMA = "https://sealgate.dev/deployment/v1"
MAX_BYTES = 1 << 20
MAX_MODELS = 256
MAX_VERSIONS = 32
KEPT = 50


Versions: TypeAlias = Mapping[str, Live[int]]


@dataclass(frozen=True)
class ModelPlan:
    """What is served of one model.

    Attributes:
        versions: the state in which each version shall be, and in it how often it was
            ordered to be loaded again. One is the default, one at most the canary, one
            at most the shadow.
    """

    versions: Versions

    @property
    def default(self) -> str:
        """The version that answers requests which name none."""
        return find(self.versions, Default) or ""

    def change(self, **states: Live[int]) -> ModelPlan:
        """With some versions in other states, or new."""
        return ModelPlan({**self.versions, **states})


@dataclass(frozen=True)
class Plan:
    """What is served.

    Attributes:
        generation: counts the changes; 0 is service.toml's.
        models: by name.
        change: the change that made it, for the history.
        time: of that change, RFC 3339.
    """

    generation: int = 0
    models: Mapping[str, ModelPlan] = field(default_factory=dict)
    change: str = "service.toml"
    time: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        """Every version to load, a model's default first."""
        return tuple(
            f"{name}:{version}"
            for name, model in self.models.items()
            for version in sorted(model.versions, key=lambda v: v != model.default)
        )

    def to_json(self) -> bytes:
        """The bytes of the file; `from_json` gives the plan back."""
        models = {name: _model_object(model) for name, model in self.models.items()}
        return strict_json.dumps(
            {
                "schema": SCHEMA,
                "generation": self.generation,
                "change": self.change,
                "time": self.time,
                "models": models,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> Plan:
        """Parse and validate.

        Raises:
            PlanError: malformed, or a trial of what is not loaded.
        """
        try:
            value = strict_json.loads_object(data, max_bytes=MAX_BYTES)
        except JsonError as error:
            raise PlanError(f"the plan: {error}") from None
        schema = value.get("schema")
        _expect(schema == SCHEMA, unread(schema, SCHEMA))
        _expect(value.keys() == {"schema", "generation", "change", "time", "models"})
        generation = value["generation"]
        _expect(type(generation) is int and 0 <= generation < 1 << 53)
        _expect(isinstance(value["change"], str) and isinstance(value["time"], str))
        models = value["models"]
        _expect(isinstance(models, dict) and 0 < len(models) <= MAX_MODELS)
        _expect(names_that_clash(models) is None, "two names are equal but for case")
        parsed = {name: _model(item) for name, item in models.items()}
        return cls(generation, parsed, value["change"], value["time"])


def plan_of_tags(tags: Iterable[str]) -> Plan:
    """The plan that serves these; of several versions of a model the first by default.

    >>> plan_of_tags(["a:2", "b:1", "a:1"]).models["a"].default
    '2'
    """
    models: dict[str, ModelPlan] = {}
    for tag in tags:
        name, _, version = tag.partition(":")
        model = models.get(name)
        state = Warm(0).promote() if model is None else Warm(0)
        models[name] = (model or ModelPlan({})).change(**{version: state})
    return Plan(models=models)


class PlanFolder:
    """The files of a deployment's plan."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "plan.json"
        self.history_directory = directory / "history"
        self.workers_directory = directory / "workers"
        self._directory = directory

    def read(self) -> Plan | None:
        """The plan in force; None if it is service.toml's.

        Raises:
            PlanError: it cannot be read, others may write to it, or it is malformed.
        """
        if not self.path.exists():
            return None
        return _read(self.path)

    def stamp(self) -> tuple[int, int, int] | None:
        """What tells one state of the file from another; None without a file."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def make(self) -> None:
        """Make the folders that are missing; nobody else writes there, whatever umask.

        What is in them decides what is served. Others may read it: an operator need not
        be the server's user.

        Raises:
            OSError: they cannot be made.
        """
        for folder in (self._directory, self.history_directory, self.workers_directory):
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)

    def change(self, make: Callable[[Plan], Plan], *, first: Plan, note: str) -> Plan:
        """Replace the plan, one writer after another.

        Args:
            make: from the plan in force to the next one.
            first: in force if there is no file.
            note: what is done, for the history.

        Raises:
            PlanError: as `read`, and what ``make`` raises; nothing is changed then.
        """
        with self._locked():
            before = self.read() or first
            after = replace(
                make(before),
                generation=before.generation + 1,
                change=note,
                time=format_time(datetime.now(UTC)),
            )
            if Plan.from_json(after.to_json()) != after:
                raise PlanError("the plan: cannot be written")
            if not before.generation:
                self._keep(before)
            self._keep(after)
            write_atomic(self.path, after.to_json())
        return after

    def history(self) -> list[Plan]:
        """Every plan that is kept, the oldest first; damaged ones are left out."""
        plans = []
        for path in sorted(self.history_directory.glob("*.json")):
            try:
                plans.append(_read(path))
            except PlanError:
                continue
        return sorted(plans, key=lambda plan: plan.generation)

    def _keep(self, plan: Plan) -> None:
        write_atomic(
            self.history_directory / f"{plan.generation:06}.json", plan.to_json()
        )
        for path in sorted(self.history_directory.glob("*.json"))[:-KEPT]:
            path.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.make()
            descriptor = os.open(
                self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise PlanError(f"{self._directory}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def default_since(history: Iterable[Plan], tag: str) -> str:
    """When a version became the default that it is in the last of some plans.

    Args:
        history: plans, the oldest first.
        tag: name and version.

    Returns:
        RFC 3339; empty where no plan that is kept says so, or it is not the default.
    """
    name, _, version = tag.partition(":")
    since = ""
    for plan in reversed([*history]):
        model = plan.models.get(name)
        if model is None or model.default != version:
            break
        since = plan.time
    return since


def _read(path: Path) -> Plan:
    try:
        if os.stat(path).st_mode & 0o022:
            raise PlanError(f"{path}: others than its owner may write to it")
        # A mounted configuration is a symbolic link in Kubernetes.
        data = read_regular(path, max_bytes=MAX_BYTES, follow_links=True)
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from None
    except BundleError as error:
        raise PlanError(str(error)) from None
    return Plan.from_json(data)


def _model_object(model: ModelPlan) -> dict[str, Any]:
    result: dict[str, Any] = {
        "default": model.default,
        "versions": {v: state.content for v, state in model.versions.items()},
    }
    for version, state in model.versions.items():
        if isinstance(state, Canary | Shadow):
            share = {"version": version, "percent": state.percent}
            result["canary" if isinstance(state, Canary) else "shadow"] = share
    return result


def _model(value: Any) -> ModelPlan:
    _expect(isinstance(value, dict))
    _expect({"default", "versions"} <= value.keys())
    _expect(value.keys() <= {"default", "versions", "canary", "shadow"})
    revisions = value["versions"]
    _expect(isinstance(revisions, dict) and 0 < len(revisions) <= MAX_VERSIONS)
    _expect(all(type(n) is int and 0 <= n < 1 << 53 for n in revisions.values()))
    default = value["default"]
    _expect(isinstance(default, str) and default in revisions, "its default is missing")
    warm = {version: Warm(revision) for version, revision in revisions.items()}
    versions: dict[str, Live[int]] = {**warm, default: warm[default].promote()}
    # A version was both in plans of before: of those it is the canary.
    for name in ("shadow", "canary"):
        if value.get(name) is not None:
            version, percent = _share(value[name], warm)
            _expect(version != default, "its default is on trial")
            state = warm[version]
            versions[version] = (
                state.try_as_canary(percent)
                if name == "canary"
                else state.try_as_shadow(percent)
            )
    return ModelPlan(versions)


def _share(value: Any, versions: Collection[str]) -> tuple[str, int]:
    """The version on trial, and its share of requests in percent."""
    _expect(isinstance(value, dict) and value.keys() == {"version", "percent"})
    version, percent = value["version"], value["percent"]
    _expect(isinstance(version, str) and version in versions, "a trial is not loaded")
    _expect(type(percent) is int and 1 <= percent <= 100, "a share is no percentage")
    return version, percent


def _expect(holds: bool, otherwise: str = "is malformed") -> None:
    if not holds:
        raise PlanError(f"the plan: {otherwise}")
