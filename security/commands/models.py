"""`models`: what a running server serves, changed without a failed request."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import BundleError
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.commands.options import Subparsers
from security.commands.stages import Stages
from security.errors import PlanError
from security.settings.loading import Settings, load_settings
from security.settings.service import is_path

if TYPE_CHECKING:
    from security.admission.lifecycle import Live
    from security.admission.plan import Plan, PlanFolder
    from security.commands.deciding import Decided

__all__ = [
    "Worker",
    "add_default",
    "add_parser",
    "current",
    "promote",
    "run",
    "running",
]

# A worker reports every two seconds; one that has not for so long is gone.
STALE_S = 10.0
MAX_REPORT_BYTES = 1 << 20


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "models",
        help="load, unload, try, switch and roll back models of a running server",
        description="Change what a running server serves, without a failed request. "
        "Every worker follows within a second or so: it verifies what is new, warms it "
        "up and switches; requests in work end on the version that they began with. "
        "What is not admitted is refused, and what runs stays. Exit code 1 if a worker "
        "refused something or did not follow in time.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, text, add in _ACTIONS:
        action = actions.add_parser(name, help=text, description=_sentence(text))
        action.set_defaults(run=run, action=name)
        add(action)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _nothing(parser: argparse.ArgumentParser) -> None:
    del parser


def _wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="for the running workers to follow (default: 60; 0 does not wait)",
    )


def _tag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tag", help="full tag, name:version")
    _wait(parser)


def add_default(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that makes a version the default."""
    _tag(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="let waivers of what the policy's [promotion] needs count, as `waive` "
        "signed them; the gate is never lifted",
    )


def _trial(parser: argparse.ArgumentParser) -> None:
    _tag(parser)
    parser.add_argument(
        "--percent",
        type=int,
        required=True,
        help="of the requests that name no version; 0 ends the trial",
    )


def _rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the model")
    parser.add_argument(
        "--to", type=int, metavar="GENERATION", help="as `history` says"
    )
    _wait(parser)


_ACTIONS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None]], ...] = (
    ("list", "list the plan, and what each running worker made of it", _nothing),
    ("history", "list the changes of the plan", _nothing),
    ("load", "serve a further version; requests may name it", _tag),
    ("reload", "read a version from the store again, and verify it again", _tag),
    ("unload", "serve a version no more", _tag),
    ("default", "let a version answer requests that name none: `promote`", add_default),
    ("canary", "let a version answer a share of those requests", _trial),
    ("shadow", "let a version run on a share of them, its answers unseen", _trial),
    ("rollback", "give a model back what it was before its last change", _rollback),
)


def run(args: argparse.Namespace) -> int:
    """Change or list; returns the exit code."""
    from security.admission.plan import PlanFolder  # noqa: PLC0415
    from security.audit.journal import record_operation  # noqa: PLC0415

    settings = load_settings()
    if args.action == "default":
        return promote(args.tag, settings, force=args.force, wait_s=args.wait)
    folder = PlanFolder(settings.deployment.directory)
    first = _first(folder, settings)
    if args.action == "list":
        return _list(folder, folder.read() or first)
    if args.action == "history":
        for plan in folder.history() or [first]:
            print(f"{plan.generation:>6}  {plan.time or '-':<20}  {plan.change}")
        return 0
    plan = folder.change(_change(args, folder, settings), first=first, note=_note(args))
    name = getattr(args, "tag", None) or args.name
    record_operation(settings.audit, [{"action": "deployment", "model": name}])
    return _follow(folder, plan, args.wait)


def promote(tag: str, settings: Settings, *, force: bool, wait_s: float) -> int:
    """Let a version answer by default, if the policy's requirements are met.

    Returns:
        The exit code: 1 if a worker refused something or did not follow.

    Raises:
        AdmissionRefused: a requirement does not hold; nothing is changed.
        PlanError: it is the default already, or the plan cannot be changed.
    """
    from security.admission import changes  # noqa: PLC0415
    from security.admission.plan import PlanFolder  # noqa: PLC0415
    from security.commands.deciding import decide_promotion  # noqa: PLC0415

    folder = PlanFolder(settings.deployment.directory)
    decided: list[Decided] = []

    def make(plan: Plan) -> Plan:
        after = changes.set_default(plan, tag)
        decided.append(decide_promotion(tag, plan, settings, force=force))
        print("\n".join(decided[0].lines()))
        decided[0].demand(settings)
        _check_running(folder, tag)
        return after

    note = f"default {tag}{' --force' if force else ''}"
    plan = folder.change(make, first=_first(folder, settings), note=note)
    record = decided[0].keep(settings.deployment.directory, plan.generation)
    print(f"{'record':<11}{record}")
    return _follow(folder, plan, wait_s)


def current(folder: PlanFolder, settings: Settings) -> Plan:
    """The plan in force, or what is served as long as there is none."""
    return folder.read() or _first(folder, settings)


def _first(folder: PlanFolder, settings: Settings) -> Plan:
    """What is served as long as there is no plan.

    A mounted folder may hold more by now than when the server started.
    """
    from security.admission.hooks import locked_tags  # noqa: PLC0415  (bentoml)
    from security.admission.plan import plan_of_tags  # noqa: PLC0415

    workers = running(folder) if any(map(is_path, settings.service.models)) else []
    if not workers:
        return plan_of_tags(locked_tags(settings))
    return plan_of_tags(
        f"{name}:{version}"
        for name, entry in workers[0].report["serving"].items()
        for version in dict.fromkeys([entry["default"], *entry["versions"]])
    )


def _note(args: argparse.Namespace) -> str:
    share = f" --percent {args.percent}" if "percent" in args else ""
    return f"{args.action} {getattr(args, 'tag', None) or args.name}{share}"


def _change(
    args: argparse.Namespace, folder: PlanFolder, settings: Settings
) -> Callable[[Plan], Plan]:
    """From the plan in force to the next; what shall answer more is verified first."""
    from security.admission import changes  # noqa: PLC0415
    from security.admission.hooks import open_tag  # noqa: PLC0415  (bentoml)
    from security.admission.lifecycle import Warm  # noqa: PLC0415

    def make(plan: Plan) -> Plan:
        match args.action:
            case "canary":
                after = changes.set_canary(plan, args.tag, args.percent)
            case "shadow":
                after = changes.set_shadow(plan, args.tag, args.percent)
            case "rollback":
                history = folder.history()
                after = changes.rollback(plan, history, args.name, args.to)
            case _:
                after = getattr(changes, args.action)(plan, args.tag)
        if after == plan:
            raise PlanError(f"{_note(args)}: that is so already")
        running = _states(plan)
        for tag in _risen(plan, after):
            open_tag(tag, settings)
            if _states(after)[tag].content == running.get(tag, Warm(-1)).content:
                _check_running(folder, tag)
        return after

    return make


def _check_running(folder: PlanFolder, tag: str) -> None:
    """Refuse what a worker has withdrawn and would not read again.

    Raises:
        PlanError: one has.
    """
    for worker in running(folder):
        if tag in worker.report["withdrawn"]:
            why = worker.report["withdrawn"][tag]
            raise PlanError(f"{tag} is withdrawn in worker {worker.name}: {why}")


def _risen(before: Plan, after: Plan) -> list[str]:
    """Tags that workers will read from the store, or that shall answer more than now.

    These must be admitted today, whatever they were when they were loaded.
    """
    from security.admission.lifecycle import Warm  # noqa: PLC0415

    states = _states(before)
    return [
        tag
        for tag, state in _states(after).items()
        if tag not in states
        or state.content != states[tag].content
        or (state != states[tag] and not isinstance(state, Warm))
    ]


def _states(plan: Plan) -> dict[str, Live[int]]:
    return {
        f"{name}:{version}": state
        for name, model in plan.models.items()
        for version, state in model.versions.items()
    }


@dataclass(frozen=True)
class Worker:
    """What a worker reported."""

    name: str
    report: dict[str, Any]

    @property
    def lines(self) -> list[str]:
        """Everything that is not as planned."""
        report = self.report
        problem = report.get("problem")
        return [
            *([f"the plan is not followed: {problem}"] if problem else []),
            *(f"{tag} refused: {why}" for tag, why in report["refused"].items()),
            *(f"{tag} withdrawn: {why}" for tag, why in report["withdrawn"].items()),
        ]


def _list(folder: PlanFolder, plan: Plan) -> int:
    from security.admission.lifecycle import Canary, Shadow  # noqa: PLC0415

    print(f"plan      generation {plan.generation}: {plan.change}")
    for name, model in plan.models.items():
        others = [v for v in model.versions if v != model.default]
        trials = [
            f"{type(state).__name__.lower()} {version} {state.percent}%"
            for version, state in model.versions.items()
            if isinstance(state, Canary | Shadow)
        ]
        loaded = [f"also {', '.join(others)}"] if others else []
        print(f"{name:<24}  default {'; '.join([model.default, *loaded, *trials])}")
    workers = running(folder)
    for worker in workers:
        serving = worker.report["serving"]
        models = ", ".join(f"{n} {e['default']}" for n, e in serving.items())
        generation = worker.report["generation"]
        print(f"worker    {worker.name}  generation {generation}: {models}")
        for line in worker.lines:
            print(f"          {line}")
    if not workers:
        print("worker    none is running")
    return int(any(worker.lines for worker in workers))


def _follow(folder: PlanFolder, plan: Plan, wait_s: float) -> int:
    """Wait until every running worker made something of the plan; say what."""
    print(f"generation {plan.generation}: {plan.change}")
    deadline = time.monotonic() + wait_s
    with Stages() as stages:
        while True:
            workers = running(folder)
            behind = [w for w in workers if w.report["generation"] < plan.generation]
            left_s = deadline - time.monotonic()
            if not behind or left_s <= 0:
                break
            followed = f"{len(workers) - len(behind)} of {len(workers)} workers follow"
            stages("waiting", 0.0, "", followed, left_s)
            time.sleep(0.1)
    if not workers:
        print("no worker is running: it holds from the next start on")
        return 0
    late = {worker.name for worker in behind} if wait_s else set()
    for worker in workers:
        if worker not in behind:
            print(f"worker {worker.name} follows")
        elif wait_s:
            print(f"worker {worker.name} did not follow in time")
        for line in worker.lines:
            print(f"  {line}")
    return int(bool(late) or any(worker.lines for worker in workers))


def running(folder: PlanFolder) -> list[Worker]:
    """The running workers, by their reports."""
    found = []
    now = time.time()
    for path in sorted(folder.workers_directory.glob("*.json")):
        try:
            if now - path.stat().st_mtime > STALE_S:
                continue
            found.append(Worker(path.stem, _read_report(path)))
        except (OSError, BundleError, JsonError):
            continue
    return found


def _read_report(path: Path) -> dict[str, Any]:
    from models.files import read_regular  # noqa: PLC0415

    data = read_regular(path, max_bytes=MAX_REPORT_BYTES)
    report: dict[str, Any] = strict_json.loads_object(data, max_bytes=MAX_REPORT_BYTES)
    tables = (report.get(name) for name in ("serving", "refused", "withdrawn"))
    if type(report.get("generation")) is not int or not all(
        isinstance(table, dict) for table in tables
    ):
        raise JsonError(f"{path.name}: not a report")
    return report
