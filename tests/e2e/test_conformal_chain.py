"""Intervals and abstention, the whole way: import, calibrate, assess, sign, serve."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression

from models.bundle import read_bundle
from models.manifest import Manifest
from models.report import Report
from models.restriction import restrict
from models.sessions import make_session
from sealgate import Client, Ticketed
from sealgate.protocol import binary_tensors
from tests.conftest import check_security
from tests.support import bikes
from tests.support.chains import Chain, policy
from tests.support.servers import Server, serve

COVERAGE = 'metrics.coverage = { min = 0.8, min_n = 100, bound = "interval" }'
SETTINGS = {
    "SEALGATE_SEALING_REQUIRE_SEALED": "false",
    "SEALGATE_MONITORING_ENABLED": "true",
    "SEALGATE_MONITORING_MIN_SUBJECTS": "1",
    "SEALGATE_MONITORING_EPSILON": "100",
}


def chain_of(home: Path, name: str, model: bytes, columns: list[str]) -> Chain:
    """A deployment with an imported model; its data is described in ``d.toml``."""
    home.mkdir(parents=True)
    (home / "policy.toml").write_text(policy(structure=(), quality=(COVERAGE,)))
    (home / "model.onnx").write_bytes(model)
    (home / "d.toml").write_text('label = "truth"\n')
    ranges = [{"name": item, "low": -5.0, "high": 5.0} for item in columns]
    (home / "columns.json").write_text(json.dumps(ranges))
    chain = Chain(home, home / "policy.toml")
    out = "--out", home / "bundle", "--name", name, "--version", "1.0.0"
    given = home / "model.onnx", "--columns", home / "columns.json"
    assert chain.command("import", *given, *out) == 0
    return chain


def write(path: Path, names: list[str], x: np.ndarray, y: np.ndarray) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "truth"])
        writer.writerows([*map(float, row), t] for row, t in zip(x, y.tolist()))


def rows_of(chain: Chain, *more: str) -> list[Any]:
    files = "--data", chain.home / "rows.csv", "--data-config", chain.home / "d.toml"
    return [chain.home / "bundle", *files, *more]


def manifest(chain: Chain) -> Manifest:
    return read_bundle(chain.home / "bundle").manifest


def quality(chain: Chain) -> Report:
    return read_bundle(chain.home / "bundle").report("quality")


# A number: the hours of 2011.


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    x, y, years = bikes.hours()
    x, y = x[years == 0], y[years == 0]
    home = tmp_path_factory.mktemp("conformal") / "numbers"
    model, names = bikes.model(x[:4000], y[:4000]), list(bikes.NAMES)
    chain = chain_of(home, "bikes", model, names)
    write(home / "rows.csv", names, x[4000:], y[4000:])
    private = "--not-private", "hours of a town, no persons", "--scale", "sqrt"
    more = "--range", "0", "1000", "--decision", "number"
    assert chain.command("calibrate", *rows_of(chain, *private, *more)) == 0
    assert chain.command("assess", *rows_of(chain, "--decision", "number")) == 0
    chain.admit(home / "bundle", "assessor")
    return chain


def test_the_evidence_says_what_was_measured_on_other_rows(numbers: Chain) -> None:
    own, report = manifest(numbers).conformal, quality(numbers)
    assert own is not None
    covered = report.metrics["coverage"]
    # 4645 rows, halved: five deviations of both samples.
    assert covered.value == pytest.approx(0.9, abs=5 * (0.09 * 2 / 2200) ** 0.5)
    assert (covered.n or 0) + own.rows == 4645
    assert report.metrics["interval_width_scaled"].value <= 2 * own.quantile + 1e-6
    assert report.conditions["coverage_rows_sha256"] != own.rows_sha256
    assert report.conditions["calibration_waiver"] == "hours of a town, no persons"
    card = (numbers.home / "bundle" / "MODEL_CARD.md").read_text()
    assert "hours of a town" in card
    assert "lent_lower" in card


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rows", "measured on the rows that it was found on"),
        ("quantile", "of another quantile than the manifest's"),
        ("stated", "another coverage is stated"),
        ("private", "of the calibration's privacy"),
        ("dataset", "rests on the very rows"),
    ],
)
def test_evidence_of_something_else_is_refused(
    numbers: Chain, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = manifest(numbers).conformal
    assert own is not None
    path = numbers.home / "bundle" / "evidence" / "quality.json"
    before = path.read_bytes()
    value = json.loads(before)
    told = value["conditions"]
    match name:
        case "rows":
            told["coverage_rows_sha256"] = own.rows_sha256
        case "quantile":
            told["conformal_sha256"] = "0" * 64
        case "stated":
            told["coverage_stated"] = 0.8
        case "private":
            told["calibration_private"] = True
        case "dataset":
            value["datasets"][0]["sha256"] = own.rows_sha256
    bundle = numbers.home / "bundle"
    path.write_bytes(Report.from_json(json.dumps(value).encode()).to_json())
    assert numbers.command("sign", bundle, "--role", "assessor") == 0
    capsys.readouterr()
    assert numbers.command("admit", bundle) == 1
    assert words in capsys.readouterr().err
    path.write_bytes(before)
    numbers.admit(bundle, "assessor")


@pytest.fixture(scope="module")
def bikes_served(numbers: Chain) -> Iterator[Server]:
    extra = numbers.settings | SETTINGS
    with serve(str(numbers.home / "bundle"), numbers.home, extra=extra, own=()) as it:
        yield it


def plain(
    server: Server, token: str, name: str, row: np.ndarray, **more: Any
) -> httpx.Response:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(row)]}
    return httpx.post(
        f"{server.url}/v2/models/{name}/infer",
        json={"inputs": [{**tensor, "data": row.tolist()}], **more},
        headers={"authorization": f"Bearer {token}"},
        timeout=60,
    )


def token_of(chain: Chain, *scopes: str) -> str:
    given = [part for scope in scopes for part in ("--scope", scope)]
    more = "--lifetime", "3600"
    return check_security(chain.home, "token", *given, *more, **chain.settings).strip()


def test_intervals_are_served_on_every_way(
    numbers: Chain, bikes_served: Server
) -> None:
    x, y, years = bikes.hours()
    token = token_of(numbers, "infer:bikes", "metadata:bikes")
    rows, truth = x[years == 0][4000:5000], y[years == 0][4000:5000]
    with Client.from_profile(numbers.home / "profile.json") as client:
        told = client.metadata("bikes")
        sealed = client.infer("bikes", {"x": rows})
        ticketed = client.infer("bikes", {"x": rows[:3]}, tickets=True)
    names = ["lent", "lent_lower", "lent_upper"]
    assert [item["name"] for item in told["outputs"]] == names
    made_from = [
        item.get("parameters", {}).get("made_from") for item in told["outputs"]
    ]
    assert made_from == [None, "lent", "lent"]
    assert list(sealed) == names
    low, middle, high = (sealed[name] for name in ("lent_lower", "lent", "lent_upper"))
    assert low.dtype == np.float32
    assert (low >= 0).all()
    assert (high <= 1000).all()
    assert ((low <= middle) & (middle <= high)).all()
    # Of 1000 rows some calibrated, none was trained on: six deviations.
    inside = (low[:, 0] <= truth) & (truth <= high[:, 0])
    assert inside.mean() == pytest.approx(0.9, abs=0.07)
    assert isinstance(ticketed, Ticketed)
    assert len(ticketed.tickets) == 3
    answer = plain(bikes_served, token, "bikes", rows[0]).json()["outputs"]
    assert [item["name"] for item in answer] == names
    assert answer[1]["data"] == pytest.approx(low[0].tolist())
    one = plain(bikes_served, token, "bikes", rows[0], outputs=[{"name": "lent_upper"}])
    assert [item["name"] for item in one.json()["outputs"]] == ["lent_upper"]
    asked = {"parameters": {"binary_data_output": True}}
    binary = plain(bikes_served, token, "bikes", rows[0], **asked)
    length = binary.headers["inference-header-content-length"].encode()
    head, tail = binary_tensors.split(binary.content, [length])
    decoded = binary_tensors.decode_response(json.loads(bytes(head)), tail)
    assert decoded["lent_upper"][0, 0] == high[0, 0]
    url = f"{bikes_served.url}/v2/models/bikes/config"
    config = httpx.get(url, headers={"authorization": f"Bearer {token}"}).json()
    assert [item["name"] for item in config["output"]] == names


# Classes: three clouds that overlap, as a linear classifier decides.

NAMES = ["first", "second"]


def clouds(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, count)
    centres = np.array([[0.0, 1.0], [1.0, -0.6], [-1.0, -0.6]])
    return (centres[y] + random.normal(0, 0.9, (count, 2))).astype(np.float32), y


def network(first: int) -> bytes:
    """The same without names of classes; its decisions count them from a number."""
    x, y = clouds(600, 1)
    fitted = LogisticRegression().fit(x, y)
    made = [
        helper.make_node("Gemm", ["x", "w", "b"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["place"], axis=1, keepdims=0),
        helper.make_node("Add", ["place", "first"], ["label"]),
    ]
    values = {
        "w": fitted.coef_.T.astype(np.float32),
        "b": fitted.intercept_.astype(np.float32),
        "first": np.array(first),
    }
    return whole(made, [numpy_helper.from_array(v, k) for k, v in values.items()])


def classifier() -> bytes:
    x, y = clouds(600, 1)
    fitted = LogisticRegression().fit(x, y)
    made = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        coefficients=fitted.coef_.ravel().tolist(),
        intercepts=fitted.intercept_.tolist(),
        classlabels_ints=[0, 1, 2],
        multi_class=1,
        post_transform="SOFTMAX",
    )
    return whole([made], [])


def whole(nodes: list[Any], values: list[Any]) -> bytes:
    made_of = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "clouds",
        [made_of("x", TensorProto.FLOAT, ["n", 2])],
        [
            made_of("label", TensorProto.INT64, ["n"]),
            made_of("probabilities", TensorProto.FLOAT, ["n", 3]),
        ],
        values,
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=8)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    home = tmp_path_factory.mktemp("conformal") / "classes"
    chain = chain_of(home, "clouds", classifier(), NAMES)
    write(home / "rows.csv", NAMES, *clouds(2000, 2))
    private = "--not-private", "drawn by a generator", "--abstain"
    assert chain.command("calibrate", *rows_of(chain, *private)) == 0
    assert chain.command("assess", *rows_of(chain)) == 0
    chain.admit(home / "bundle", "assessor")
    return chain


def test_a_model_that_abstains_says_how_often(classes: Chain) -> None:
    metrics = quality(classes).metrics
    assert metrics["coverage"].value == pytest.approx(0.9, abs=0.06)
    assert 0.05 < metrics["abstention"].value < 0.9
    assert metrics["answered_accuracy"].value > metrics["accuracy"].value
    assert 1.0 < metrics["set_size"].value < 3.0


def test_it_answers_where_one_class_is_left(classes: Chain) -> None:
    x, y = clouds(3000, 3)
    own = manifest(classes).conformal
    assert own is not None
    extra = classes.settings | SETTINGS
    with serve(str(classes.home / "bundle"), classes.home, extra=extra, own=()) as it:
        with Client.from_profile(classes.home / "profile.json") as client:
            told = client.infer("clouds", {"x": x})
        token = token_of(classes, "infer:clouds", "explain:clouds", "metadata:clouds")
        one = plain(it, token, "clouds", x[0], outputs=[{"name": "label"}]).json()
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.0, 0.0]}
        explained = httpx.post(
            f"{it.url}/v2/models/clouds/explain",
            json={"inputs": [tensor]},
            headers={"authorization": f"Bearer {token}"},
        )
        profile = classes.home / "profile.json"
        asked = it.url, "--client-profile", profile, "--check", "quality"
        out = classes.home / "scanned"
        given = rows_of(classes, "--max-rows", "600", "--out", out)[1:]
        assert classes.command("scan", *asked, *given) == 0
    assert list(told) == ["label", "probabilities", "probabilities_set"]
    inside, scores = told["probabilities_set"], told["probabilities"]
    silent = inside.sum(axis=1) != 1
    assert 0.05 < silent.mean() < 0.9
    assert not scores[silent].any()
    assert (told["label"][silent] == -1).all()
    assert (told["label"][~silent] == inside[~silent].argmax(axis=1)).all()
    assert (scores[~silent].max(axis=1) >= 1 - own.quantile).all()
    assert inside[np.arange(3000), y].mean() == pytest.approx(0.9, abs=0.06)
    assert [item["data"] for item in one["outputs"]] == [[int(told["label"][0])]]
    # A scan of the endpoint finds what the evidence states, of other rows.
    results = json.loads((out / "scan.json").read_text())["results"]
    (found,) = [item["metrics"] for item in results if item["check"] == "quality"]
    for name in ("abstention", "answered_accuracy"):
        stated = quality(classes).metrics[name].value
        assert found[name]["value"] == pytest.approx(stated, abs=0.12)
    # Attributions add up to a score, which does not leave.
    assert explained.status_code in (403, 404, 409, 422), explained.text
    assert "attributions" not in explained.text


def name_classes(chain: Chain, *names: str) -> None:
    scores = next(o for o in manifest(chain).outputs if o.spec.name == "probabilities")
    restrict(chain.home / "bundle", answer=replace(scores, labels=names))


# What is refused, by the commands.


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "calibration rows are private, too"),
        (["--epsilon", "0"], "--epsilon: expected a number above 0"),
        (["--epsilon", "nan"], "--epsilon: expected a number above 0"),
        (["--not-private", "x", "--coverage", "1"], "--coverage: expected"),
        (["--not-private", "x", "--coverage", "0.9999"], "too few for a coverage of"),
        (["--epsilon", "0.05"], "too few for a coverage of"),
        (["--not-private", "x", "--share", "0"], "--share: expected"),
        (["--not-private", ""], "a reason of 1 to 200 characters"),
        (["--not-private", "x", "--scale", "log"], "--scale: of classes"),
        (["--not-private", "x", "--range", "0", "1"], "--range is for a number"),
        (["--not-private", "x", "--range", "1", "0"], "the low end is below"),
        (["--not-private", "x", "--output", "nothing"], "nothing"),
    ],
)
def test_what_cannot_be_calibrated(
    classes: Chain, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (classes.home / "bundle" / "manifest.json").read_bytes()
    assert classes.command("calibrate", *rows_of(classes, *more)) in (1, 2)
    assert words in capsys.readouterr().err
    assert (classes.home / "bundle" / "manifest.json").read_bytes() == before


def test_a_private_quantile_is_booked_and_no_smaller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = chain_of(tmp_path / "home", "clouds", classifier(), NAMES)
    write(chain.home / "rows.csv", NAMES, *clouds(4000, 4))
    bundle = chain.home / "bundle"
    assert chain.command("calibrate", *rows_of(chain, "--not-private", "x")) == 0
    exact = manifest(chain).conformal
    assert chain.command("calibrate", *rows_of(chain, "--epsilon", "1")) == 0
    private = manifest(chain).conformal
    assert exact is not None
    assert private is not None
    # Another half of the rows calibrated: less a tenth would be ten deviations.
    assert private.quantile > exact.quantile - 0.1
    assert (private.epsilon, private.waiver) == (1.0, None)
    capsys.readouterr()
    assert chain.command("ledger", "show") == 0
    assert "epsilon 1" in capsys.readouterr().out
    # What abstains without sets is no model.
    assert chain.command("outputs", bundle, "--decimals", "2", "--abstain") == 1
    assert "calibrate" in capsys.readouterr().err
    assert chain.command("outputs", bundle, "--decimals", "2") == 0
    assert "calibrate on answers of these decimals" in capsys.readouterr().out
    assert manifest(chain).conformal is None
    assert chain.command("outputs", bundle, "--no-explanations") == 0
    abstaining = "--epsilon", "2", "--abstain"
    assert chain.command("calibrate", *rows_of(chain, *abstaining)) == 0
    assert manifest(chain).output_policy.abstain
    assert chain.command("calibrate", bundle, "--remove") == 0
    assert manifest(chain).conformal is None
    assert not manifest(chain).output_policy.abstain
    # What was forbidden before is not allowed by taking sets back.
    assert not manifest(chain).output_policy.explains


def test_nothing_is_booked_for_what_could_not_be_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y, years = bikes.hours()
    x, y = x[years == 0], y[years == 0]
    model, names = bikes.model(x[:500], y[:500]), list(bikes.NAMES)
    chain = chain_of(tmp_path / "home", "bikes", model, names)
    write(chain.home / "rows.csv", names, x[500:1500], y[500:1500])
    private = "--epsilon", "2", "--range", "0", "1000", "--decision", "number"
    before = (chain.home / "bundle" / "manifest.json").read_bytes()
    assert chain.command("calibrate", *rows_of(chain, *private, "--abstain")) == 1
    assert "no `conformal` for classes" in capsys.readouterr().err
    assert (chain.home / "bundle" / "manifest.json").read_bytes() == before
    assert chain.command("ledger", "show") == 0
    assert "epsilon" not in capsys.readouterr().out
    report = chain.home / "bundle" / "evidence" / "provenance.json"
    own = report.read_bytes()
    report.write_bytes(own.replace(b'"version":"1.0.0"', b'"version":"1.0.1"'))
    assert chain.command("calibrate", *rows_of(chain, *private)) == 1
    assert "about another model" in capsys.readouterr().err
    report.write_bytes(own)
    assert chain.command("ledger", "show") == 0
    assert "epsilon" not in capsys.readouterr().out
    assert chain.command("calibrate", *rows_of(chain, *private)) == 0
    capsys.readouterr()
    assert chain.command("ledger", "show") == 0
    assert "epsilon 2" in capsys.readouterr().out


def test_decisions_may_count_classes_that_have_numbers_for_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = chain_of(tmp_path / "home", "clouds", network(0), NAMES)
    x, y = clouds(1000, 4)
    write(chain.home / "rows.csv", NAMES, x, y + 1)
    name_classes(chain, "1", "2", "3")
    classes = 'label = "truth"\nclasses = ["1", "2", "3"]\n'
    (chain.home / "d.toml").write_text(classes)
    read = "--decision", "scores"
    more = *read, "--not-private", "drawn by a generator", "--abstain"
    assert chain.command("calibrate", *rows_of(chain, *more)) == 0
    own = manifest(chain).conformal
    assert own is not None
    assert own.decisions == "places"
    session = make_session((chain.home / "bundle" / "model.onnx").read_bytes())
    release = manifest(chain).release
    sources = release.sources(release.names)
    given = dict(zip(sources, session.run(sources, {"x": x})))
    told = dict(zip(release.names, release.answer(release.names, given)))
    answered = told["probabilities_set"].sum(axis=1) == 1
    assert 0.1 < answered.mean() < 0.95
    assert (told["label"] == np.where(answered, given["label"], -1)).all()
    # What is stated is what is served.
    assert chain.command("assess", *rows_of(chain, *read)) == 0
    stated = quality(chain).metrics["abstention"].value
    assert stated == pytest.approx(1 - answered.mean(), abs=0.1)


def test_a_decision_that_is_never_the_best_class_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = chain_of(tmp_path / "home", "clouds", network(7), NAMES)
    write(chain.home / "rows.csv", NAMES, *clouds(1000, 4))
    (chain.home / "d.toml").write_text('label = "truth"\nclasses = ["0", "1", "2"]\n')
    name_classes(chain, "0", "1", "2")
    path = chain.home / "bundle" / "manifest.json"
    before = path.read_bytes()
    more = "--decision", "scores", "--epsilon", "1", "--abstain"
    assert chain.command("calibrate", *rows_of(chain, *more)) == 2
    assert "no row would be answered" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_calibration_undoes_what_was_signed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = chain_of(tmp_path / "home", "clouds", classifier(), NAMES)
    (chain.home / "policy.toml").write_text(policy(structure=(), quality=()))
    write(chain.home / "rows.csv", NAMES, *clouds(1000, 4))
    bundle = chain.home / "bundle"
    assert chain.command("assess", *rows_of(chain)) == 0
    chain.admit(bundle, "assessor")
    capsys.readouterr()
    assert chain.command("calibrate", *rows_of(chain, "--not-private", "x")) == 0
    told = capsys.readouterr().out
    assert "assess and sign again" in told
    assert not list(bundle.glob("attestations/*"))
    assert chain.command("verify", bundle, "--policy", chain.policy) == 1
    assert chain.command("admit", bundle) == 1
