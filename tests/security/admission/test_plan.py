"""security.admission.plan and changes: what is served, as a file that can go back."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from security.admission import changes
from security.admission.lifecycle import Canary, Default, Shadow, Warm
from security.admission.plan import ModelPlan, Plan, PlanFolder, plan_of_tags
from security.commands import main
from security.errors import PlanError
from security.settings.loading import load_settings

with warnings.catch_warnings():
    # What BentoML imports warns about how BentoML uses it.
    warnings.simplefilter("ignore")
    # It makes its home at import: not in the developer's.
    os.environ.setdefault("BENTOML_HOME", tempfile.mkdtemp())
    from security.admission.hooks import current_plan

FIRST = plan_of_tags(["toy:1.0.0", "toy:1.1.0", "other:3"])


def test_names_that_are_equal_but_for_case_are_refused() -> None:
    plan = plan_of_tags(["Toy:1", "toy:2"])
    with pytest.raises(PlanError, match="two names are equal but for case"):
        Plan.from_json(plan.to_json())


def test_the_first_version_is_the_default() -> None:
    assert FIRST.models["toy"] == ModelPlan({"1.0.0": Default(0), "1.1.0": Warm(0)})
    assert FIRST.tags == ("toy:1.0.0", "toy:1.1.0", "other:3")


def test_a_plan_survives_its_file() -> None:
    plan = changes.set_shadow(changes.set_canary(FIRST, "toy:2", 5), "toy:1.1.0", 100)
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.models["toy"].versions == {
        "1.0.0": Default(0),
        "1.1.0": Shadow(0, 100),
        "2": Canary(0, 5),
    }


def test_nobody_else_writes_to_its_folders(tmp_path: Path) -> None:
    folder = PlanFolder(tmp_path / "deployment")
    before = os.umask(0)
    try:
        folder.change(lambda plan: plan, first=FIRST, note="test")
    finally:
        os.umask(before)
    for path in (folder.path.parent, folder.history_directory):
        assert path.stat().st_mode & 0o777 == 0o755


def test_a_trial_ends_when_it_is_the_default_or_unloaded() -> None:
    tried = changes.set_shadow(changes.set_canary(FIRST, "toy:2", 5), "toy:1.1.0", 9)
    switched = changes.set_default(tried, "toy:2").models["toy"].versions
    assert switched == {"1.0.0": Warm(0), "1.1.0": Shadow(0, 9), "2": Default(0)}
    assert "2" not in changes.unload(tried, "toy:2").models["toy"].versions
    ended = changes.set_canary(tried, "toy:2", 0).models["toy"].versions
    assert ended == {"1.0.0": Default(0), "1.1.0": Shadow(0, 9), "2": Warm(0)}


def test_a_trial_takes_the_place_of_another() -> None:
    plan = changes.set_canary(FIRST, "toy:2", 5)
    plan = changes.set_canary(plan, "toy:1.1.0", 6)
    versions = {"1.0.0": Default(0), "1.1.0": Canary(0, 6), "2": Warm(0)}
    assert plan.models["toy"].versions == versions
    plan = changes.set_shadow(plan, "toy:1.1.0", 7)
    assert plan.models["toy"].versions == versions | {"1.1.0": Shadow(0, 7)}


def test_a_plan_of_before_with_two_trials_of_one_version() -> None:
    document = json.loads(changes.set_canary(FIRST, "toy:1.1.0", 5).to_json())
    document["models"]["toy"]["shadow"] = {"version": "1.1.0", "percent": 9}
    plan = Plan.from_json(json.dumps(document).encode())
    assert plan.models["toy"].versions["1.1.0"] == Canary(0, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: changes.load(FIRST, "toy"), "'toy' is not a full tag"),
        (lambda: changes.load(FIRST, "toy:latest"), "is not a full tag"),
        (lambda: changes.unload(FIRST, "toy:1.0.0"), "make another version that first"),
        (lambda: changes.unload(FIRST, "toy:9"), "toy:9 is not loaded"),
        (lambda: changes.reload(FIRST, "toy:9"), "toy:9 is not loaded"),
        (lambda: changes.set_canary(FIRST, "toy:1.0.0", 5), "is the default already"),
        (lambda: changes.set_canary(FIRST, "toy:2", 101), "101 is no percentage"),
        (lambda: changes.set_canary(FIRST, "toy:2", -1), "-1 is no percentage"),
        (lambda: changes.set_shadow(FIRST, "new:2", 5), "no default version to try"),
        (lambda: changes.unload(plan_of_tags(["a:1"]), "a:1"), "all that is served"),
        (lambda: changes.rollback(FIRST, [], "toy"), "no other state of it is kept"),
    ],
)
def test_changes_that_make_no_sense(change: Callable[[], Plan], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        change()


def _steps(folder: PlanFolder, *steps: Callable[[Plan], Plan]) -> Plan:
    plan = FIRST
    for step in steps:
        plan = folder.change(step, first=FIRST, note="step")
    return plan


def test_back_and_forth(tmp_path: Path) -> None:
    folder = PlanFolder(tmp_path)

    def back(plan: Plan) -> Plan:
        return changes.rollback(plan, folder.history(), "toy")

    _steps(folder, lambda p: changes.set_default(p, "toy:2"))
    # Another model's change in between is left alone.
    _steps(folder, lambda p: changes.load(p, "other:4"))
    after = _steps(folder, back)
    assert after.models["toy"].default == "1.0.0"
    assert "4" in after.models["other"].versions
    assert _steps(folder, back).models["toy"].default == "2"
    to_first = _steps(
        folder, lambda p: changes.rollback(p, folder.history(), "toy", generation=0)
    )
    assert to_first.models["toy"] == FIRST.models["toy"]
    assert to_first.generation == 5
    assert [plan.generation for plan in folder.history()] == [0, 1, 2, 3, 4, 5]


def test_the_history_is_bounded(tmp_path: Path) -> None:
    folder = PlanFolder(tmp_path)
    for _ in range(60):
        _steps(folder, lambda p: changes.reload(p, "toy:1.0.0"))
    assert len(folder.history()) == 50
    plan = folder.read()
    assert plan is not None
    assert plan.models["toy"].versions["1.0.0"] == Default(60)


def test_writers_do_not_overtake_each_other(tmp_path: Path) -> None:
    folder = PlanFolder(tmp_path)
    threads = [
        threading.Thread(
            target=lambda: [
                _steps(folder, lambda p: changes.reload(p, "toy:1.0.0"))
                for _ in range(5)
            ]
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    plan = folder.read()
    assert plan is not None
    assert (plan.generation, plan.models["toy"].versions["1.0.0"]) == (20, Default(20))


GOOD = json.loads(changes.set_canary(FIRST, "toy:1.1.0", 5).to_json())


def broken(**changed: object) -> bytes:
    return json.dumps({**GOOD, **changed}).encode()


def broken_model(**changed: object) -> bytes:
    return broken(models={"toy": {**GOOD["models"]["toy"], **changed}})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"schema":1,"schema":2}',
        broken(extra=1),
        broken(schema="v2"),
        broken(generation=-1),
        broken(generation=True),
        broken(generation=1e3),
        broken(models={}),
        broken(models=[]),
        broken(change=None),
        broken_model(default="9"),
        broken_model(versions={}),
        broken_model(versions={"1.0.0": "0", "1.1.0": 0}),
        broken_model(canary={"version": "9", "percent": 5}),
        broken_model(canary={"version": "1.1.0", "percent": 0}),
        broken_model(canary={"version": "1.1.0", "percent": 5.0}),
        broken_model(canary={"version": "1.0.0", "percent": 5}),
        broken_model(canary=[]),
        broken_model(more=1),
    ],
)
def test_malformed_plans(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(PlanError, match="the plan"):
        Plan.from_json(data)
    folder = PlanFolder(tmp_path)
    folder.path.write_bytes(data)
    with pytest.raises(PlanError):
        folder.read()
    with pytest.raises(PlanError):
        folder.change(lambda p: p, first=FIRST, note="")
    assert folder.path.read_bytes() == data


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_plan_or_refused(data: bytes) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(data)


def test_a_plan_that_others_may_write(tmp_path: Path) -> None:
    folder = PlanFolder(tmp_path)
    _steps(folder, lambda p: changes.load(p, "toy:2"))
    folder.path.chmod(0o666)
    with pytest.raises(PlanError, match="others than its owner may write"):
        folder.read()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path))
    monkeypatch.setenv("SEALGATE_SERVICE_MODELS", "toy:1.0.0")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unload", "toy:1.0.0"], "error: toy:1.0.0 is all that is served"),
        (["load", "toy:1.0.0"], "error: load toy:1.0.0: that is so already"),
        (["load", "toy"], "error: 'toy' is not a full tag like name:1.0.0"),
        (["canary", "toy:2", "--percent", "500"], "error: 500 is no percentage"),
        (["rollback", "toy"], "error: toy: no other state of it is kept"),
        (["rollback", "toy", "--to", "7"], "error: toy: no other state of it is kept"),
    ],
)
def test_the_command_refuses_in_one_line(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["models", *arguments]) == 2
    assert capsys.readouterr().err == message + "\n"
    assert not (home / "deployment" / "plan.json").exists()


def test_the_command_lists_without_a_server(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = home / "deployment" / "workers"
    reports.mkdir(parents=True)
    (reports / "1.json").write_text("{}")
    assert main(["models", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "plan      generation 0: service.toml",
        "toy                       default 1.0.0",
        "worker    none is running",
    ]
    assert main(["models", "history"]) == 0
    assert "service.toml" in capsys.readouterr().out


def test_the_plan_is_served_in_the_place_of_the_settings(home: Path) -> None:
    assert current_plan(load_settings()).tags == ("toy:1.0.0",)
    folder = PlanFolder(home / "deployment")
    folder.change(lambda p: changes.load(p, "b:1"), first=FIRST, note="")
    tags = ("toy:1.0.0", "toy:1.1.0", "other:3", "b:1")
    assert set(current_plan(load_settings()).tags) == set(tags)
