"""Scans of endpoints: sealed, within quotas, throttled, cut, killed, at random."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from models.conformal import Conformal
from models.manifest import Tensor
from models.output_policy import OutputPolicy
from models.release import Release
from sealgate.protocol.tensors import TensorSpec
from security.assessment.targets.journal import Journal
from security.assessment.targets.remote import RemoteLimits
from security.commands import main
from security.errors import AssessmentError
from tests.conftest import check_security, toy_settings
from tests.support.bundles import NAME, WEIGHTS
from tests.support.gateways import refusal
from tests.support.patience import clear_of_midnight
from tests.support.peers import Peer, listening
from tests.support.scanned import save_npz
from tests.support.servers import free_port, serve

EVASION = ("--check", "answers", "--check", "evasion")


def report(folder, out):
    return json.loads((folder / out / "scan.json").read_text())


def bytes_without_times(folder):
    """The report, without what differs by nature: times, and which endpoint it was."""
    data = (folder / "scan.json").read_bytes()
    return re.sub(rb'"times":\{[^{}]*\}|"id":"[0-9a-f]{64}"', b"", data)


def some_rows(folder, n=60):
    x = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    return save_npz(folder / "r.npz", x, np.argmax(x @ WEIGHTS, axis=1))


@pytest.fixture
def endpoint(server, deployment, tmp_path):
    """A profile of the running server, and rows with their classes."""
    check_security(
        deployment,
        *("profile", "--url", server.url, "--model", NAME),
        *("--out", str(tmp_path / "profile.json"), "--lifetime", "3600"),
        **toy_settings(deployment),
    )
    return server.url, str(tmp_path / "profile.json")


def remote(endpoint, folder, rows, *more):
    url, profile = endpoint
    return main(
        [
            *("scan", url, "--client-profile", str(profile), "--data", str(rows)),
            *("--out", str(folder / "out"), "--max-rows", "30", *EVASION, *more),
        ]
    )


def test_an_endpoint_is_attacked_sealed_and_within_its_budget(
    endpoint, tmp_path, capsys
):
    rows = some_rows(tmp_path)
    code = remote(endpoint, tmp_path, rows, "--max-queries", "4000")
    assert code == 0, capsys.readouterr()
    document = report(tmp_path, "out")
    assert document["target"]["kind"] == "remote"
    assert document["target"]["sha256"] is None
    results = {r["check"]: r for r in document["results"]}
    assert results["answers"]["metrics"]["clean_accuracy"]["value"] == 1.0
    evasion = results["evasion"]
    assert evasion["details"]["access"] == "black box"
    assert evasion["conditions"]["counted"] == "rechecked_on_endpoint"
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["token"] not in (tmp_path / "out" / "scan.json").read_text()


def test_too_few_queries_conclude_nothing(endpoint, tmp_path):
    rows = some_rows(tmp_path)
    assert remote(endpoint, tmp_path, rows, "--max-queries", "300") == 0
    results = {r["check"]: r for r in report(tmp_path, "out")["results"]}
    assert results["evasion"]["status"] in ("skipped", "partial")


def test_an_endpoint_that_is_not_there(endpoint, tmp_path, capsys):
    _, path = endpoint
    profile = json.loads(Path(path).read_text())
    rows = some_rows(tmp_path)
    assert remote(("https://other.example", path), tmp_path, rows) == 2
    assert "is for another URL" in capsys.readouterr().err
    profile["url"] = "http://127.0.0.1:9"
    (tmp_path / "dead.json").write_text(json.dumps(profile))
    dead = ("http://127.0.0.1:9", str(tmp_path / "dead.json"))
    assert remote(dead, tmp_path, rows) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "does not answer" in line
    assert "go on" in line
    assert not (tmp_path / "out" / "scan.json").exists()


def kill(pid):
    """Kill -9 a server and its workers, which are no group of processes."""
    parent = psutil.Process(pid)
    every = [parent, *parent.children(recursive=True)]
    for process in every:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(every[1:], timeout=60)


def test_a_server_that_dies_and_a_quota_that_ends(pristine, tmp_path, capsys):
    """One budget over two servers: killed in between, then throttled for the day."""
    clear_of_midnight()
    home = tmp_path / "home"
    shutil.copytree(pristine, home)
    quota = (
        "[default]\nrequests_per_minute = 'unlimited'\nrows_per_minute = 'unlimited'\n"
        "rows_per_day = 800\n"
    )
    (home / "table.toml").write_text(quota)
    extra = toy_settings(home) | {"SEALGATE_QUOTAS_TABLE": str(home / "table.toml")}
    port, rows = free_port(), some_rows(tmp_path)
    profile = tmp_path / "profile.json"
    with serve(
        "service.app:Sealgate", home, extra=extra, port=port, alone=True
    ) as server:
        check_security(
            home,
            *("profile", "--url", server.url, "--model", NAME),
            *("--out", str(profile), "--lifetime", "3600"),
            **extra,
        )
        keep, kept = Journal.keep, []

        def struck(journal, asked, outputs):
            keep(journal, asked, outputs)
            kept.append(len(asked))
            if len(kept) == 10:
                kill(server.pid)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "keep", struck)
            assert remote((server.url, profile), tmp_path, rows) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "does not answer" in line
    assert "run the same command again" in line
    assert not (tmp_path / "out" / "scan.json").exists()
    asked = json.loads((tmp_path / "out" / "work" / "asked.json").read_text())["rows"]
    assert asked >= sum(kept)
    with serve(
        "service.app:Sealgate", home, extra=extra, port=port, alone=True
    ) as server:
        assert remote((server.url, profile), tmp_path, rows) == 0
    text = capsys.readouterr().out
    assert "the endpoint takes no more queries now: toy: 429" in text
    assert "ended first" in text
    document = report(tmp_path, "out")
    # The second run went on until the day's quota ended. What the killed server had
    # reserved of it is lost; a request whose answer was lost counts beyond it.
    assert sum(kept) + 100 < document["times"]["queries"] <= 800 + 30
    results = {r["check"]: r for r in document["results"]}
    assert results["answers"]["status"] == "done"
    assert "429" in results["evasion"]["reason"]


PROBABILITIES = ({"name": "p", "datatype": "FP32", "shape": [-1, 2]},)
LABEL = ({"name": "label", "datatype": "INT64", "shape": [-1]},)


def soft(x):
    scores = np.exp(x @ WEIGHTS)
    return {"p": (scores / scores.sum(1, keepdims=True)).astype(np.float32)}


def scan_of(peer, folder, *more):
    """Scan a peer; several times into one folder, if wanted."""
    return main(
        [
            *("scan", peer.url, "--client-profile", str(peer.profile(folder))),
            *("--data", str(some_rows(folder)), "--out", str(folder / "out")),
            *("--max-rows", "30", "--max-queries", "2500", *EVASION, *more),
        ]
    )


@pytest.fixture
def scan_peer(tmp_path, monkeypatch):
    """A scan that asks again soon."""
    hasty = partial(RemoteLimits, pause_s=0.05)
    monkeypatch.setattr("security.assessment.plan.context.RemoteLimits", hasty)
    return lambda peer, *more: scan_of(peer, tmp_path, *more)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The report and the rows of a scan that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with listening(Peer(soft, PROBABILITIES)) as peer:
        assert scan_of(peer, folder) == 0
    return bytes_without_times(folder / "out"), peer.seen


def test_throttled_the_scan_waits_as_told_and_goes_on(tmp_path, scan_peer, undisturbed):
    def trouble(number):
        return refusal(429, retry_after="1") if number in (3, 9) else None

    with listening(Peer(soft, PROBABILITIES, trouble)) as peer:
        assert scan_peer(peer) == 0
    gaps = np.diff(peer.times)
    assert min(gaps[2], gaps[8]) >= 1.0
    expected, seen = undisturbed
    assert peer.seen == seen
    # The target's address is no part of a report: the peers differ in nothing else.
    assert bytes_without_times(tmp_path / "out") == expected


def test_an_answer_that_is_late_is_asked_for_again(
    tmp_path, scan_peer, undisturbed, monkeypatch
):
    hasty = partial(RemoteLimits, timeout_s=2.0, pause_s=0.05)
    monkeypatch.setattr("security.assessment.plan.context.RemoteLimits", hasty)

    def trouble(number):
        if number == 4:
            time.sleep(3)

    with listening(Peer(soft, PROBABILITIES, trouble)) as peer:
        assert scan_peer(peer) == 0
    assert bytes_without_times(tmp_path / "out") == undisturbed[0]


def test_no_question_is_asked_twice_after_a_death(
    tmp_path, scan_peer, undisturbed, capsys
):
    dead = [20, 70]  # inferences after which nothing is answered any more

    def trouble(number):
        if dead and number > dead[0]:
            raise ConnectionError

    expected, seen = undisturbed
    with listening(Peer(soft, PROBABILITIES, trouble)) as peer:
        lost = 0
        while dead:
            assert scan_peer(peer) == 2
            assert "run the same command again" in capsys.readouterr().err
            assert not (tmp_path / "out" / "scan.json").exists()
            dead.pop(0)
            lost += 1
        assert scan_peer(peer) == 0
    assert peer.seen == seen
    assert bytes_without_times(tmp_path / "out") == expected
    queries = report(tmp_path, "out")["times"]["queries"]
    # A request whose answer was lost may have been run, and counts.
    assert len(seen) < queries <= len(seen) + lost * 30


def test_a_budget_is_for_all_runs_together(tmp_path, scan_peer, capsys):
    budget = ("--max-queries", "400")
    died = []

    def trouble(number):
        if number > 8 and not died:
            raise ConnectionError

    with listening(Peer(soft, PROBABILITIES, trouble)) as peer:
        assert scan_peer(peer, *budget) == 2
        died.append(True)
        assert scan_peer(peer, *budget) == 0
        assert scan_peer(peer, *budget) == 0  # and again: nothing is left
        document = report(tmp_path, "out")
        assert 300 < document["times"]["queries"] <= 400
        assert len(peer.seen) <= 400
        before = len(peer.seen)
        # With more, it goes on where it was.
        assert scan_peer(peer, "--max-queries", "4000") == 0
    assert len(peer.seen) > before
    statuses = {r["check"]: r["status"] for r in report(tmp_path, "out")["results"]}
    assert statuses["evasion"] == "done"


def test_another_scans_answers_are_not_taken(tmp_path, scan_peer, capsys):
    with listening(Peer(soft, PROBABILITIES, lambda _: refusal(429))) as peer:
        assert scan_peer(peer) == 2
        assert scan_peer(peer, "--seed", "3") == 2
        assert "unfinished scan of another target" in capsys.readouterr().err


def test_an_endpoint_that_takes_few_rows_at_once(tmp_path, scan_peer, undisturbed):
    with listening(Peer(soft, PROBABILITIES, max_rows=7)) as peer:
        assert scan_peer(peer) == 0
    assert peer.seen == undisturbed[1]
    assert bytes_without_times(tmp_path / "out") == undisturbed[0]


def test_answers_that_change_are_found(tmp_path, scan_peer):
    random = np.random.default_rng(0)

    def noisy(x):
        p = soft(x + random.normal(size=x.shape) * 0.2)["p"]
        return {"p": p}

    with listening(Peer(noisy, PROBABILITIES)) as peer:
        assert scan_peer(peer) == 0
    document = report(tmp_path, "out")
    (found,) = [f for f in document["findings"] if f["rule"] == "answer-random"]
    assert "other scores when asked again" in found["message"]


def test_labels_are_all_that_is_given(tmp_path, scan_peer):
    def label(x):
        return {"label": np.argmax(x @ WEIGHTS, axis=1).astype(np.int64)}

    with listening(Peer(label, LABEL)) as peer:
        assert scan_peer(peer) == 0
    document = report(tmp_path, "out")
    assert document["target"]["answers"] == "labels"
    (evasion,) = [r for r in document["results"] if r["check"] == "evasion"]
    assert evasion["details"]["access"] == "black box"
    assert "hop-skip-jump" in evasion["conditions"]["attacks"]
    assert evasion["metrics"]["robust_accuracy_linf"]["value"] < 1


def test_a_damaged_journal_is_read_as_far_as_it_goes(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    journal = Journal(tmp_path, {"a": 1})
    journal.begin("unit")
    for start in (0, 2):
        part = rows[start : start + 2]
        journal.spend(2)
        journal.keep(part, {"p": part[:, :1], "t": np.array(["\u00fc", "b"])})
    (path,) = tmp_path.glob("*.journal")
    path.write_bytes(path.read_bytes()[:-5])
    again = Journal(tmp_path, {"a": 1})
    again.begin("unit")
    assert again.asked == 4
    known = again.take(rows)
    assert [None if k is None else str(k["t"]) for k in known] == [
        *("\u00fc", "b"),
        *(None, None),
    ]
    assert again.take(rows[:1]) == [None]  # each answer is used once
    again.keep(rows[2:], {"p": rows[2:, :1], "t": np.array(["c", "d"])})
    third = Journal(tmp_path, {"a": 1})
    third.begin("unit")
    assert [str(k["t"]) for k in third.take(rows)] == ["\u00fc", "b", "c", "d"]
    # Damage in the middle costs what follows it, and a damaged count everything.
    data = path.read_bytes()
    first = 8 + int.from_bytes(data[:8], "big")
    path.write_bytes(data[:8] + bytes(first - 8) + data[first:])
    third.begin("unit")
    assert third.take(rows) == [None] * 4
    (tmp_path / "asked.json").write_text("[]")
    with pytest.raises(AssessmentError, match="damaged"):
        Journal(tmp_path, {"a": 1})


# What conformal prediction adds to answers, and takes of them.

SURE = Conformal(
    "p", "probability", 0.9, 0.3, 99, "a" * 64, "0" * 32, 0.5, waiver="public"
)
SPEC, SAID = TensorSpec("p", "FP32", (-1, 2)), TensorSpec("label", "INT64", (-1,))


def abstaining(*, decides: bool, alone: bool = False) -> Peer:
    """Answers where one class has .7 or more; 0 and -1 elsewhere, as a server does.

    Alone, a class is all that leaves of an answer: no scores, and no set.
    """
    own = [Tensor(SPEC, labels=("0", "1")), *([Tensor(SAID)] if decides else [])]
    policy = OutputPolicy(abstain=True, label_only=alone)
    release = Release(policy, own, SURE)

    def model(x):
        scores = soft(x)["p"]
        given = {"p": scores, "label": scores.argmax(axis=1)}
        return dict(zip(release.names, release.answer(release.names, given)))

    told = [item.described() for item in own if item.spec.name in release.names]
    inside = Tensor(TensorSpec("p_set", "BOOL", (-1, 2)), labels=("0", "1")).described()
    inside["parameters"]["made_from"] = "p"
    outputs = (*told, *([inside] if release.added else []))
    return Peer(model, outputs, parameters={"output_policy": policy.to_object()})


@pytest.mark.parametrize(
    ("decides", "alone"), list(itertools.product((True, False), repeat=2))
)
def test_a_row_that_it_abstains_from_has_no_class(tmp_path, scan_peer, decides, alone):
    data = np.load(some_rows(tmp_path))
    scores = soft(data["x"])["p"].astype(np.float32)
    silent = ~(scores.max(axis=1) >= np.float32(0.7))
    assert 3 < silent.sum() < 30
    with listening(abstaining(decides=decides, alone=alone)) as peer:
        assert scan_peer(peer, "--max-rows", "60") == 0
    document = report(tmp_path, "out")
    results = {r["check"]: r for r in document["results"]}
    right = float((~silent).mean())  # every answer is right, and no other row is
    assert results["answers"]["metrics"]["clean_accuracy"]["value"] == right
    (found,) = [f for f in document["findings"] if f["rule"] == "answer-withheld"]
    assert f"abstains from {silent.sum()} of 60 rows" in found["message"]
    assert "answer-not-finite" not in {f["rule"] for f in document["findings"]}
    evasion = results["evasion"]
    assert evasion["conditions"]["abstentions"] == "not_turned"
    # A row that is no longer answered is not turned: another class must be said.
    listed = evasion["details"]["norms"]["linf"]["rows"]
    turned = [place for place, row in enumerate(listed) if row["distance"]]
    assert turned
    broken = np.load(tmp_path / "out" / "adversarial-linf.npy")[turned]
    again = dict(abstaining(decides=decides, alone=alone).model(broken))
    own = np.array([listed[place]["label"] for place in turned])
    if "p" in again:
        assert again["p"].any(axis=1).all()
        assert (again["p"].argmax(axis=1) != own).all()
    else:
        assert (again["label"] == 1 - own).all()


def test_an_endpoint_that_answers_nothing_is_named(tmp_path, scan_peer, capsys):
    peer = abstaining(decides=True)
    peer.model = lambda x: {
        "p": np.zeros((len(x), 2), np.float32),
        "label": np.full(len(x), -1),
        "p_set": np.ones((len(x), 2), np.bool_),
    }
    with listening(peer):
        assert scan_peer(peer) == 2
    assert (
        "the endpoint abstains: it answers none of 30 rows" in capsys.readouterr().err
    )


@pytest.mark.parametrize("other", ["p", "q", ["p"], 7])
def test_an_output_made_from_none_that_is_there_is_an_answer(
    tmp_path, scan_peer, other
):
    """An endpoint that says otherwise hides nothing, and stops no scan."""
    (stated,) = PROBABILITIES
    outputs = ({**stated, "parameters": {"made_from": other}},)
    with listening(Peer(soft, outputs)) as peer:
        assert scan_peer(peer, "--max-queries", "60") == 0
    assert report(tmp_path, "out")["target"]["output"] == "p"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda x: {"p_set": soft(x)["p"] > 0.3}, "not answer with its own outputs"),
        (lambda x: {"p": soft(x)["p"][1:]}, "not answer each of"),
        (lambda x: {"p" if len(x) > 5 else "q": soft(x)["p"]}, "its own outputs"),
    ],
    ids=["only what is made from it", "fewer rows", "another one later"],
)
def test_answers_that_are_not_what_it_says(tmp_path, scan_peer, capsys, model, words):
    made = Tensor(TensorSpec("p_set", "BOOL", (-1, 2))).described()
    made["parameters"] = {"made_from": "p"}
    with listening(Peer(model, (*PROBABILITIES, made), max_rows=8)) as peer:
        assert scan_peer(peer) == 2
    assert words in capsys.readouterr().err


def test_ends_of_an_interval_are_not_the_answer(tmp_path, scan_peer):
    """Of three numbers alike the last by name was taken: the upper end."""

    def model(x):
        middle = (x @ WEIGHTS)[:, :1].astype(np.float32)
        return {"y": middle, "y_lower": middle - 5, "y_upper": middle + 5}

    names = ("y", "y_lower", "y_upper")
    outputs = [Tensor(TensorSpec(n, "FP32", (-1, 1))).described() for n in names]
    for item in outputs[1:]:
        item["parameters"] = {"made_from": "y"}
    x = np.load(some_rows(tmp_path))["x"]
    rows = save_npz(tmp_path / "n.npz", x, (x @ WEIGHTS)[:, 0].astype(float))
    with listening(Peer(model, tuple(outputs))) as peer:
        assert scan_peer(peer, "--data", str(rows), "--decision", "number") == 0
    results = {r["check"]: r for r in report(tmp_path, "out")["results"]}
    assert results["evasion"]["metrics"]["clean_mae"]["value"] < 1e-6
