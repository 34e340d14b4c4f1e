"""Models with several inputs, and of texts, through the real commands."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.sessions import make_session
from security.assessment.checks.edits import edited
from security.assessment.plan.options import PROFILES
from security.commands import main
from tests.conftest import check_security, toy_settings
from tests.support import zoo
from tests.support.servers import serve

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
CITIES = ("Bonn", "Kiel", "Ulm")
GOOD, BAD = ("good", "lovely", "superb"), ("bad", "awful", "poor")
PAIR = ["pair[1]", "count", "pair[0]", "label"]
WORDS = ("the", "film", "was", "a", "story", "with", "music")


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch):
    for name in ("quick", "assess"):
        effort = replace(
            PROFILES[name], square_queries=60, checked_rows=30, boundary_rows=10
        )
        monkeypatch.setitem(PROFILES, name, effort)


def built(nodes, stored, inputs, output=2) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, kind, ["n", *shape])
            for name, (kind, shape) in inputs.items()
        ],
        [helper.make_tensor_value_info("scores", FLOAT, ["n", output])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in stored.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return model.SerializeToString()


def table_model(*, number=False) -> bytes:
    """One column per input: a whole number, a fraction, and a text of three."""
    signs = np.float32([1.0, 1.0, -1.0, 0.0, 1.0])  # age, income, then the city
    columns = signs[:, None] if number else np.stack([-signs, signs], 1)
    nodes = [
        helper.make_node("Cast", ["age"], ["a"], to=FLOAT),
        helper.make_node("Div", ["a", "ten"], ["b"]),
        helper.make_node(
            "OneHotEncoder",
            ["city"],
            ["c3"],
            domain="ai.onnx.ml",
            cats_strings=list(CITIES),
            zeros=1,
        ),
        helper.make_node("Squeeze", ["c3", "one"], ["c"]),
        helper.make_node("Concat", ["b", "income", "c"], ["all"], axis=1),
        helper.make_node("Sub", ["all", "middle"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["scores"]),
    ]
    stored = {
        "ten": np.float32([10.0]),
        "one": np.int64([1]),
        "middle": np.float32([5.0, 5.0, 0.0, 0.0, 0.0]),
        "w": columns,
    }
    inputs = {"age": (INT64, [1]), "income": (FLOAT, [1]), "city": (STRING, [1])}
    return built(nodes, stored, inputs, 1 if number else 2)


def table_rows(n=120):
    random = np.random.default_rng(0)
    age, city = random.integers(20, 80, n), random.integers(0, 3, n)
    income = random.uniform(2, 8, n).round(3)
    value = age / 10 - 5 + income - 5 + np.array([-1.0, 0.0, 1.0])[city]
    return [
        {
            "city": CITIES[c],
            "age": int(a),
            "sex": "FM"[i % 2],
            "income": float(m),
            "v": v,
        }
        for i, (c, a, m, v) in enumerate(zip(city, age, income, value))
    ]


def text_model() -> bytes:
    """Counts words, and adds up what they say."""
    pool = [*GOOD, *BAD]
    nodes = [
        helper.make_node("StringSplit", ["review"], ["words", "k"], delimiter=" "),
        helper.make_node(
            "TfIdfVectorizer",
            ["words"],
            ["counts"],
            mode="TF",
            min_gram_length=1,
            max_gram_length=1,
            max_skip_count=0,
            ngram_counts=[0],
            ngram_indexes=list(range(len(pool))),
            pool_strings=pool,
        ),
        helper.make_node("MatMul", ["counts", "w"], ["told"]),
        helper.make_node("Add", ["told", "bias"], ["scores"]),
    ]
    signs = np.float32([1.0] * 3 + [-1.0] * 3)
    # A text that says nothing is of class 0.
    stored = {"w": np.stack([-signs, signs], 1), "bias": np.float32([0.1, -0.1])}
    return built(nodes, stored, {"review": (STRING, [])})


def text_rows(n=120, told=1):
    random = np.random.default_rng(0)
    rows = []
    for index in range(n):
        words = [*random.choice(WORDS, 6), *random.choice((BAD, GOOD)[index % 2], told)]
        random.shuffle(words)
        rows.append({"review": " ".join(words), "label": index % 2})
    return rows


def write(path, rows, names=None):
    names = names or list(rows[0])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def scan(tmp_path, capsys):
    def run(model, rows, config, *more, code=0, names=None):
        (tmp_path / "model.onnx").write_bytes(model)
        (tmp_path / "data.toml").write_text(config)
        write(tmp_path / "rows.csv", rows, names)
        given = [
            *("scan", str(tmp_path / "model.onnx"), "--jobs", "1"),
            *("--data", str(tmp_path / "rows.csv"), "--out", str(tmp_path / "out")),
            *("--data-config", str(tmp_path / "data.toml"), *more),
        ]
        assert main(given) == code
        if code == 2:
            return capsys.readouterr().err
        report = json.loads((tmp_path / "out" / "scan.json").read_text())
        return report, {item["check"]: item for item in report["results"]}

    return run


CONFIG = 'text = ["city"]\nsensitive = ["sex"]\nclasses = ["low", "high"]\n'
CHECKS = ("answers", "quality", "fairness", "evasion", "corruption")
ASKED = tuple(part for name in CHECKS for part in ("--check", name))


def labelled(rows):
    return [{**row, "label": "high" if row["v"] > 0 else "low"} for row in rows]


NAMES = ["city", "age", "sex", "income", "label"]


def test_one_column_per_input_is_found_by_name(scan):
    rows = labelled(table_rows())
    report, results = scan(table_model(), rows, CONFIG, *ASKED, names=NAMES)
    assert [item["name"] for item in report["target"]["input"]["parts"]] == [
        *("age", "income", "city")
    ]
    assert {results[name]["status"] for name in CHECKS} == {"done"}
    # Every answer is right: a column that went to another input would show.
    assert results["quality"]["metrics"]["accuracy"]["value"] == 1.0
    assert "selection_rate_ratio/sex" in results["fairness"]["metrics"]
    *_, slices = results["quality"]["details"]["tables"]
    assert {f"city={city}" for city in CITIES} < {row[0] for row in slices["rows"]}
    evasion = results["evasion"]
    assert evasion["conditions"]["access"] == "black_box"
    assert "several inputs" in evasion["details"]["why_no_gradient"]
    assert evasion["conditions"]["immutable_columns"] == "city"


def test_what_is_broken_by_several_inputs_is_confirmed(scan, tmp_path):
    rows = labelled(table_rows())
    more = ("--check", "evasion", "--radius-linf", "0.1")
    _, results = scan(table_model(), rows, CONFIG, *more, names=NAMES)
    found = results["evasion"]["details"]["norms"]["linf"]["rows"]
    # Of a sum the exact answer is known: both numbers move by a tenth of their range.
    ages, incomes = ([row[name] for row in rows] for name in ("age", "income"))
    reach = int(0.1 * (max(ages) - min(ages))) / 10 + 0.1 * (
        max(incomes) - min(incomes)
    )
    inside = sum(abs(row["v"]) < reach - 1e-3 for row in rows)
    broken = [item for item in found if item["distance"] and item["distance"] <= 0.1]
    assert 0.85 * inside <= len(broken) <= inside + 1
    made = np.load(tmp_path / "out" / "adversarial-linf.npy")
    session = make_session(table_model())
    for item in broken:
        row, own = made[item["row"]], rows[item["row"]]
        assert row[0] == round(row[0])  # a whole number stays one
        feeds = {
            "age": np.array([[row[0]]], np.int64),
            "income": np.array([[row[1]]], np.float32),
            "city": np.array([[own["city"]]], object),
        }
        (scores,) = session.run(None, feeds)
        assert (scores[0].argmax() == 1) != (own["label"] == "high")


def test_declared_categories_are_swapped_at_a_price(scan):
    rows = labelled(table_rows())
    config = CONFIG + "\n".join(
        [
            *('[[columns]]\nname = "age"\nchange = "never"',),
            *('[[columns]]\nname = "income"\nchange = "never"',),
            '[[columns]]\nname = "city"\ntexts = ["Bonn", "Kiel", "Ulm"]\ncost = 0.5',
        ]
    )
    more = ("--check", "evasion-cost", "--check", "edits")
    _, results = scan(table_model(), rows, config, *more, names=NAMES)
    cost = results["evasion-cost"]
    used = {item["column"] for item in cost["details"]["columns"]}
    assert used == {"city"}
    turned = [item for item in cost["details"]["rows"] if item["cost"]]
    assert {item["cost"] for item in turned} == {0.5}
    swapped = {text for item in turned for text in item["changes"][0].values()}
    assert swapped <= {"city", *CITIES}
    assert results["edits"]["reason"] == "no column is free text"


def test_a_number_is_predicted_from_several_inputs(scan):
    rows = [{**row, "label": row["v"] + 0.01} for row in table_rows()]
    config = CONFIG.replace('classes = ["low", "high"]\n', "")
    _, results = scan(table_model(number=True), rows, config, *ASKED, names=NAMES)
    quality = results["quality"]["metrics"]
    assert quality["mae"]["value"] == pytest.approx(0.01, abs=1e-4)
    change = results["evasion"]["metrics"]
    ages, incomes = ([row[name] for row in rows] for name in ("age", "income"))
    least = 0.02 * (max(incomes) - min(incomes)) + 0.1
    most = 0.02 * (max(ages) - min(ages)) / 10 + 0.02 * (max(incomes) - min(incomes))
    assert least - 0.02 <= change["largest_change"]["value"] <= most + 1e-3
    assert "mae_ratio/sex" in results["fairness"]["metrics"]


def test_texts_are_edited_within_a_budget(scan):
    config = 'text = ["review"]\nedits = 1\n'
    more = ("--check", "edits", "--check", "quality", "--check", "evasion")
    report, results = scan(text_model(), text_rows(), config, *more)
    assert results["quality"]["metrics"]["accuracy"]["value"] == 1.0
    assert results["evasion"]["reason"] == "no column may change within a radius"
    *_, slices = results["quality"]["details"]["tables"]
    assert slices["title"].startswith("Slices")
    assert not slices["rows"]
    edits = results["edits"]
    # One word tells of class 1: misspelt, it tells nothing. Nothing else turns a row.
    rows = edits["details"]["rows"]
    assert {item["edits"] for item in rows if item["row"] % 2} == {1.0}
    assert {item["edits"] for item in rows if not item["row"] % 2} == {None}
    share = sum(not item["row"] % 2 for item in rows) / 30
    assert edits["metrics"]["robust_accuracy_edits"]["value"] == share
    assert edits["metrics"]["robust_accuracy_edits"]["n"] == 30
    (found,) = [item for item in report["findings"] if item["check"] == "edits"]
    assert (found["rule"], found["severity"]) == ("evasion-edits", "warning")
    assert edits["conditions"]["meaning"] == "not claimed to stay"
    assert edits["details"]["examples"]
    for example in edits["details"]["examples"]:
        ((name, before, after),) = example["changes"]
        assert name == "review"
        assert before != after
        assert abs(len(before) - len(after)) <= 1
    assert not any(item["rule"] == "no-gradient" for item in report["findings"])


def test_as_many_edits_as_words_that_tell_and_two_processes_agree(scan):
    config = 'text = ["review"]\nedits = 2\n'
    rows = text_rows(told=2)
    found = [
        scan(text_model(), rows, config, "--check", "edits", "--jobs", jobs)[1]["edits"]
        for jobs in ("1", "2")
    ]
    assert found[0] == found[1]
    needed = [item["edits"] for item in found[0]["details"]["rows"] if item["row"] % 2]
    assert set(needed) == {2.0}
    rows = text_rows(told=3)
    _, results = scan(text_model(), rows, config, "--check", "edits")
    assert results["edits"]["metrics"]["robust_accuracy_edits"]["value"] == 1.0


@pytest.mark.parametrize(
    ("config", "names", "words"),
    [
        (CONFIG, ["city", "age", "sex", "label"], "no column 'income'"),
        (CONFIG.replace('text = ["city"]\n', ""), NAMES, "is not a number"),
        (CONFIG.replace('["city"]', '["city", "age"]'), NAMES, "'age' is not numbers"),
        (CONFIG + "edits = 0\n", NAMES, "edits: must be from 1 to 50"),
    ],
    ids=["missing", "text", "number", "budget"],
)
def test_columns_that_do_not_fit_the_inputs(scan, config, names, words):
    rows = labelled(table_rows())
    error = scan(table_model(), rows, config, names=names, code=2)
    assert words in error
    assert "Traceback" not in error


def test_an_imported_bundle_knows_which_inputs_are_texts(tmp_path, monkeypatch):
    (tmp_path / "policy.toml").write_text("")
    for name, value in toy_settings(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SEALGATE_HOME", str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(table_model())
    bundle = tmp_path / "bundle"
    made = [
        *("import", str(tmp_path / "model.onnx"), "--out", str(bundle)),
        *("--name", "toy", "--version", "1.0.0"),
    ]
    assert main(made) == 0
    write(tmp_path / "rows.csv", labelled(table_rows()), NAMES)
    (tmp_path / "data.toml").write_text(CONFIG.replace('text = ["city"]\n', ""))
    given = [
        *("assess", str(bundle), "--data", str(tmp_path / "rows.csv")),
        *("--data-config", str(tmp_path / "data.toml")),
    ]
    assert main(given) == 0
    report = json.loads((bundle / "evidence" / "quality.json").read_text())
    assert report["metrics"]["accuracy"]["value"] == 1.0
    assert (bundle / "evidence" / "robustness.json").exists()


def sum_model(*, number=False) -> bytes:
    """Two inputs of numbers, of different types and widths."""
    signs = np.float32([1.0, 1.0, -1.0])
    columns = signs[:, None] if number else np.stack([-signs, signs], 1)
    nodes = [
        helper.make_node("Cast", ["count"], ["c"], to=FLOAT),
        helper.make_node("Concat", ["c", "pair"], ["all"], axis=1),
        helper.make_node("MatMul", ["all", "w"], ["scores"]),
    ]
    inputs = {"count": (INT64, [1]), "pair": (FLOAT, [2])}
    return built(nodes, {"w": columns}, inputs, 1 if number else 2)


@pytest.mark.slow
def test_an_endpoint_with_several_inputs_is_scanned(tmp_path):
    home = tmp_path / "home"
    models = {"classes": sum_model(), "numbers": sum_model(number=True)}
    said = zoo.admit_all(home, models)
    assert {code for code, _ in said.values()} == {0}, said
    random = np.random.default_rng(0)
    rows = [
        {"pair[1]": b, "count": c, "pair[0]": a, "v": c + a - b}
        for c, a, b in zip(
            random.integers(-3, 4, 60), random.normal(size=60), random.normal(size=60)
        )
    ]
    write(tmp_path / "c.csv", [{**r, "label": int(r["v"] > 0)} for r in rows], PAIR)
    write(tmp_path / "n.csv", [{**r, "label": r["v"] + 0.5} for r in rows], PAIR)
    extra = zoo.settings(home, models)
    with serve("service.app:Sealgate", home, extra=extra, alone=True) as server:
        for name, file, metric in (
            ("classes", "c", "accuracy"),
            ("numbers", "n", "mae"),
        ):
            profile = tmp_path / f"{name}.json"
            check_security(
                home,
                *("profile", "--url", server.url, "--model", name),
                *("--out", str(profile), "--lifetime", "600"),
                **extra,
            )
            given = [
                *("scan", server.url, "--client-profile", str(profile)),
                *("--data", str(tmp_path / f"{file}.csv"), "--max-rows", "30"),
                *("--out", str(tmp_path / name), "--max-queries", "3000"),
                *("--decision", "number" if name == "numbers" else "scores"),
                *("--check", "quality", "--check", "evasion"),
            ]
            assert main(given) == 0
            report = json.loads((tmp_path / name / "scan.json").read_text())
            results = {item["check"]: item for item in report["results"]}
            wanted = 1.0 if metric == "accuracy" else 0.5
            found = results["quality"]["metrics"][metric]["value"]
            assert found == pytest.approx(wanted, abs=1e-5)
            assert results["evasion"]["status"] in ("done", "partial")
            assert report["times"]["queries"] <= 3000


def test_every_edit_is_one_edit():
    words = ["good", "film"]
    made = edited(words, [0, 1], np.random.default_rng(0))
    assert "ogod film" in made
    assert "film good" in made
    assert "good film" not in made
    for text in made:
        assert abs(len(text) - len("good film")) <= 1
