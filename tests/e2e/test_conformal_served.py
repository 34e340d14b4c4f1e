"""A model that abstains, as callers meet it: gRPC, files, labels that come later."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.restriction import restrict
from sealgate import Client
from security.monitoring.answers import BINS
from security.monitoring.cohorts import open_cohorts
from security.monitoring.monitor import Counted
from security.monitoring.windows import Jumps
from security.settings.loading import load_settings
from tests.conftest import check_security
from tests.e2e.test_conformal_chain import (
    NAMES,
    SETTINGS,
    chain_of,
    clouds,
    manifest,
    network,
    rows_of,
    token_of,
    write,
)
from tests.support.chains import Chain
from tests.support.proxies import grpc_proxy
from tests.support.servers import Server, sealgate, serve

CLASSES = ("red", "green", "blue")
COUNTING = SETTINGS | {
    "SEALGATE_MONITORING_WINDOW": "daily",
    "SEALGATE_MONITORING_FLUSH_S": "0.2",
    "SEALGATE_MONITORING_MAX_LABELS_PER_SUBJECT": "1000",
}
SCOPES = "infer:clouds", "feedback:clouds", "metadata:clouds"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """An admitted model of three named classes that abstains."""
    home = tmp_path_factory.mktemp("served") / "home"
    chain = chain_of(home, "clouds", network(0), NAMES)
    scores = manifest(chain).outputs[1]
    restrict(home / "bundle", answer=replace(scores, labels=CLASSES))
    x, y = clouds(2000, 2)
    write(home / "rows.csv", NAMES, x, np.array(CLASSES)[y])
    (home / "d.toml").write_text(f'label = "truth"\nclasses = {json.dumps(CLASSES)}\n')
    private = "--not-private", "drawn by a generator", "--abstain"
    assert chain.command("calibrate", *rows_of(chain, *private)) == 0
    assert chain.command("assess", *rows_of(chain)) == 0
    chain.admit(home / "bundle", "assessor")
    return chain


@pytest.fixture(scope="module")
def server(chain: Chain) -> Iterator[Server]:
    bundle, extra = str(chain.home / "bundle"), chain.settings | COUNTING
    with serve(bundle, chain.home, extra=extra, own=()) as it:
        yield it


@pytest.fixture(scope="module")
def client(chain: Chain, server: Server) -> Iterator[Client]:
    with Client(server.url, token=token_of(chain, *SCOPES)) as client:
        yield client


def test_by_grpc(chain: Chain, server: Server, client: Client) -> None:
    pytest.importorskip("grpc", reason="grpcio is not installed")
    triton = pytest.importorskip("tritonclient.grpc")
    x, _ = clouds(200, 3)
    told = client.infer("clouds", {"x": x})
    silent = told["probabilities_set"].sum(axis=1) != 1
    assert 0.05 < silent.mean() < 0.95
    tensor = triton.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    with (
        grpc_proxy(server.url, token=token_of(chain, *SCOPES)) as address,
        triton.InferenceServerClient(address) as asker,
    ):
        found = asker.infer("clouds", [tensor])
        described = asker.get_model_metadata("clouds")
        names = ["label", "probabilities_set", "label"]
        some = [triton.InferRequestedOutput(name) for name in names[:2]]
        few = asker.infer("clouds", [tensor], outputs=some)
    assert [o.name for o in described.outputs] == list(told)
    assert described.outputs[2].datatype == "BOOL"
    for name, array in told.items():
        got = found.as_numpy(name)
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
    np.testing.assert_array_equal(few.as_numpy("label")[silent], -1)
    assert few.as_numpy("probabilities") is None


def answered(told: dict[str, str]) -> bool:
    inside = [told[f"{name}_set"] == "True" for name in CLASSES]
    scores = [float(told[name]) for name in CLASSES]
    if sum(inside) != 1:
        assert told["label"] == "-1"
        assert scores == [0.0] * 3
        return False
    assert told["label"] == CLASSES[inside.index(True)] == CLASSES[np.argmax(scores)]
    return True


def test_in_batch_jobs(chain: Chain) -> None:
    """Classes and their sets have columns of their own; decisions are named."""
    out = chain.home / "out.csv"
    given = chain.home / "bundle", "--input", chain.home / "rows.csv"
    assert chain.command("batch", *given, "--out", out, "--keep", "truth") == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sets = [f"{name}_set" for name in CLASSES]
    assert list(rows[0]) == ["truth", "label", *CLASSES, *sets]
    told = [answered(row) for row in rows]
    assert len(told) == 2000
    assert 0.05 < np.mean(told) < 0.95


def test_on_the_command_line(chain: Chain, server: Server, tmp_path: Path) -> None:
    """The table that people read has scores and sets beside each other."""
    profile = tmp_path / "profile.json"
    token = token_of(chain, *SCOPES)
    value = {"url": server.url, "token": token, "model": "clouds"}
    profile.write_text(json.dumps(value))
    profile.chmod(0o600)
    rows = tmp_path / "rows.csv"
    rows.write_text("first,second\n0,0\n0,4\n")
    asked = sealgate("infer", "--profile", profile, "--input", rows)
    assert asked.returncode == 0, asked.stderr
    head, unsure, sure = (line.split() for line in asked.stdout.splitlines())
    sets = [f"{name}_set" for name in CLASSES]
    assert head == ["row", "label", *CLASSES, *sets]
    assert unsure[1:5] == ["-1", "0.0000", "0.0000", "0.0000"]
    assert sure[5:] == ["True", "False", "False"]
    assert float(sure[2]) > 0.9


def test_labels_of_rows_with_and_without_an_answer(
    within_a_day: None,
    chain: Chain,
    server: Server,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each row has a ticket, whose label counts as inside its set or not."""
    x, y = clouds(400, 5)
    told = client.infer("clouds", {"x": x})["probabilities_set"]
    silent, inside = told.sum(axis=1) != 1, told[np.arange(400), y]
    kinds = [(quiet, hit) for quiet in (False, True) for hit in (False, True)]
    # Of a subject one event a window is counted: each row is asked about by another.
    for at, (quiet, hit) in enumerate(kinds):
        (row, *_) = np.flatnonzero((silent == quiet) & (inside == hit))
        label_of(chain, server, f"subject {at}", x[row], CLASSES[y[row]])
    cells = counted(chain, monkeypatch).sum(axis=1)
    assert cells[:3].sum(axis=0).tolist() == [0, 1, 1]
    assert cells[3].tolist() == [0, 1, 1]


def label_of(
    chain: Chain, server: Server, who: str, row: np.ndarray, label: str
) -> None:
    """Ask for the decision alone, and tell the truth: a set is kept, and not sent."""
    scopes = [part for scope in SCOPES for part in ("--scope", scope)]
    given = "token", *scopes, "--subject", who, "--lifetime", "3600"
    token = check_security(chain.home, *given, **chain.settings).strip()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": row.tolist()}
    asked = {"inputs": [tensor], "outputs": [{"name": "label"}]}
    with Client(server.url, token=token) as client:
        answer = client.forward(
            "POST",
            "/v2/models/clouds/infer",
            headers=((b"content-type", b"application/json"),),
            body=json.dumps({**asked, "parameters": {"tickets": True}}).encode(),
        )
        told = json.loads(bytes(answer.body))
        assert [item["name"] for item in told["outputs"]] == ["label"]
        (ticket,) = told["parameters"]["tickets"]
        assert client.feedback("clouds", [(ticket, label)]) == ["accepted"]
        assert client.feedback("clouds", [(ticket, label)]) == ["spent"]


def counted(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What is counted of today's coverage, before noise, once no label may come."""
    for name, value in (chain.settings | COUNTING).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEALGATE_HOME", str(chain.home))
    cohorts = open_cohorts(load_settings().monitoring, versions=list)
    assert cohorts is not None
    now = time.time()
    later = Jumps(lambda: now + 40 * 86_400, lambda: now + 40 * 86_400)
    monkeypatch.setattr(cohorts, "_clock", later._clock)
    monkeypatch.setattr(cohorts, "_jumps", later)
    found: list[Counted] = []
    count = cohorts._counted

    def seen(*given: Any) -> Counted:
        found.append(count(*given))
        return found[-1]

    monkeypatch.setattr(cohorts, "_counted", seen)
    time.sleep(0.5)
    cohorts.look()
    (own,) = found
    return np.asarray(own.counts["coverage"]).reshape(len(CLASSES) + 1, BINS, 3)
