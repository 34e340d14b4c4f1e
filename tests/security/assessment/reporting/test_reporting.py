"""A scan's report as SARIF, JUnit and HTML, from the real command; and compared."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import jsonschema
import numpy as np
import pytest
import yaml

from sealgate.charts import interval_bar, line_chart
from security.assessment.reporting.comparison import compare
from security.assessment.reporting.taxonomies import TAXONOMIES, rule_tags
from security.assessment.results import intervals, rules
from security.assessment.results.rules import SCAN_RULES
from security.commands import build_parser, main
from security.inspection.findings import RULES
from tests.support.scanned import linear_onnx, save_npz
from tests.support.servers import ROOT

WEIGHTS = np.array([[4.0, -4.0], [2.0, -1.0], [-3.0, 3.0]])
EVERY_RULE = sorted({*SCAN_RULES, *RULES})


def scan(folder, weights=WEIGHTS, seed=0, name="model.onnx", *more):
    rng = np.random.default_rng(seed)
    x = rng.random((120, 3)).astype(np.float32)
    model = folder / name
    model.write_bytes(linear_onnx(weights))
    rows = save_npz(folder / f"rows{seed}.npz", x, np.argmax(x @ WEIGHTS, axis=1))
    out = folder / f"{name}-{seed}"
    code = main(
        [
            *("scan", str(model), "--data", str(rows), "--out", str(out)),
            *("--jobs", "1", "--check", "answers", *more),
        ]
    )
    return code, out


@pytest.fixture(scope="module")
def constant(tmp_path_factory):
    """The folder of a scan that found an error: one class for every row."""
    folder = tmp_path_factory.mktemp("constant")
    code, out = scan(folder, np.array([[0.0, 1.0]] * 3), 0, "model <&> 1.onnx")
    assert code == 0
    return out


@pytest.fixture(scope="module")
def report(constant):
    return json.loads((constant / "scan.json").read_text())


def parse_xml(text: str) -> ET.Element:
    return ET.fromstring(text.encode())  # noqa: S314  (our own)


def documents(report, folder, form, *more):
    folder.joinpath("scan.json").write_text(json.dumps(report))
    out = folder / "out"
    arguments = ("report", str(folder / "scan.json"), "--format", form)
    assert main([*arguments, "--out", str(out), *more]) == 0
    return out.read_text()


def test_sarif_is_valid(constant, shared_data):
    schema = shared_data / "spec-sarif" / "sarif-schema-2.1.0.json"
    sarif = json.loads((constant / "scan.sarif").read_text())
    jsonschema.Draft4Validator(json.loads(schema.read_text())).validate(sarif)


def test_sarif_of_every_rule_is_valid(report, tmp_path, shared_data):
    schema = shared_data / "spec-sarif" / "sarif-schema-2.1.0.json"
    finding = report["findings"][0]
    report = report | {
        "findings": [finding | {"rule": rule, "where": "a b/ü"} for rule in EVERY_RULE]
    }
    sarif = json.loads(documents(report, tmp_path, "sarif"))
    jsonschema.Draft4Validator(json.loads(schema.read_text())).validate(sarif)
    run = sarif["runs"][0]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == EVERY_RULE
    for result in run["results"]:
        assert EVERY_RULE[result["ruleIndex"]] == result["ruleId"]


def test_sarif_names_what_code_scanning_needs(constant):
    run = json.loads((constant / "scan.sarif").read_text())["runs"][0]
    (result,) = [r for r in run["results"] if r["ruleId"] == "answer-constant"]
    assert result["level"] == "error"
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "model%20%3C%26%3E%201.onnx"
    assert place["region"]["startLine"] == 1
    rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert float(rule["properties"]["security-severity"]) > 7
    assert re.fullmatch("[0-9a-f]{64}", run["artifacts"][0]["hashes"]["sha-256"])


def test_a_finding_keeps_its_fingerprint_when_its_numbers_change(report, tmp_path):
    finding = report["findings"][0]
    prints = []
    for message, where in (("one", "a"), ("two", "a"), ("one", "b")):
        changed = finding | {"message": message, "where": where}
        sarif = json.loads(
            documents(report | {"findings": [changed]}, tmp_path, "sarif")
        )
        prints.append(sarif["runs"][0]["results"][0]["partialFingerprints"])
    assert prints[0] == prints[1] != prints[2]


def scanned_places(folder, *more):
    out = folder.parent / f"{folder.name}-out"
    arguments = ("scan", str(folder / "model.onnx"), "--data", str(folder / "x.npz"))
    arguments += ("--jobs", "1", "--check", "answers", "--out", str(out), *more)
    assert main([*arguments]) == 0
    (run,) = json.loads((out / "scan.sarif").read_text())["runs"]
    (first, *_) = run["results"]
    place = first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    return place, first["partialFingerprints"], run["automationDetails"]["id"]


def test_two_models_of_one_name_are_told_apart(tmp_path, monkeypatch, capsys):
    x = np.random.default_rng(0).random((40, 2))
    for name, weight in (("a", 1.0), ("b", 2.0)):
        folder = tmp_path / "repo" / name
        folder.mkdir(parents=True)
        model = linear_onnx(np.full((2, 2), weight), [0.0, 1.0])
        (folder / "model.onnx").write_bytes(model)
        save_npz(folder / "x.npz", x, np.arange(40) % 2)
    folders = [tmp_path / "repo" / name for name in "ab"]
    # In a repository, below its top, wherever the command is run; or below --root.
    (tmp_path / "repo" / ".git").mkdir()
    found = [scanned_places(folder) for folder in folders]
    assert [place for place, *_ in found] == ["a/model.onnx", "b/model.onnx"]
    assert found[0][1] != found[1][1]
    assert [run for *_, run in found] == [
        f"sealgate-scan/{name}/model.onnx/quick" for name in "ab"
    ]
    rooted = scanned_places(folders[0], "--root", str(tmp_path))
    assert rooted[0] == "repo/a/model.onnx"
    # Elsewhere a name is all that can be said of the place.
    (tmp_path / "repo" / ".git").rmdir()
    loose = [scanned_places(folder) for folder in folders]
    assert [place for place, *_ in loose] == ["model.onnx"] * 2
    assert loose[0][1] != loose[1][1]
    assert loose[0][2] != loose[1][2]
    monkeypatch.chdir(tmp_path)
    assert scanned_places(folders[0])[0] == "repo/a/model.onnx"
    capsys.readouterr()
    rows = str(tmp_path / "rows.npz")
    np.savez(rows, x=np.zeros((2, 30), np.float32), y=[0, 1])
    arguments = ("scan", str(folders[0] / "model.onnx"), "--data", rows)
    assert main([*arguments, "--root", str(folders[1])]) == 2
    assert "--root: model.onnx is not below it" in capsys.readouterr().err


def test_tags_exist_in_atlas(shared_data):
    packed = (shared_data / "spec-atlas" / "ATLAS.yaml.gz").read_bytes()
    text = gzip.decompress(packed).decode()
    known = dict(re.findall(r"- id: (AML\.T[\d.]+)\n\s+name: (.+)", text))
    for tag, name in TAXONOMIES["atlas"].names.items():
        assert known[tag].strip("'\"") == name, tag


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_a_rule_has_tags_that_are_listed(rule):
    tags = vars(rule_tags(rule))
    for name, entries in tags.items():
        assert set(entries) <= set(TAXONOMIES[name].names)


def test_junit_fails_what_is_grave(constant):
    root = parse_xml((constant / "scan.junit.xml").read_text())
    assert root.tag == "testsuites"
    failed = [
        case.get("name")
        for case in root.iter("testcase")
        if case.find("failure") is not None
    ]
    assert failed == ["answer-constant"]
    assert root.get("failures") == "1"
    assert int(root.get("tests")) == len(list(root.iter("testcase")))


def test_junit_holds_text_that_xml_cannot(report, tmp_path):
    finding = report["findings"][0] | {"message": "a\x00\x1b]]>&<b"}
    text = documents(report | {"findings": [finding]}, tmp_path, "junit")
    (failure,) = parse_xml(text).iter("failure")
    assert failure.get("message") == "a\ufffd\ufffd]]>&<b"


def test_junit_takes_the_severity_that_fails(report, tmp_path):
    finding = report["findings"][0] | {"severity": "warning"}
    for bound, failures in (("error", "0"), ("warning", "1")):
        text = documents(
            report | {"findings": [finding]}, tmp_path, "junit", "--fail-on", bound
        )
        assert parse_xml(text).get("failures") == failures


def test_html_shows_curves_examples_and_confusion(attacked):
    page = (attacked / "scan.html").read_text()
    report = json.loads((attacked / "scan.json").read_text())
    (evasion,) = [r for r in report["results"] if r["check"] == "evasion"]
    head, _, rest = page.partition("<h2")
    # The first screen has the figures, each with its interval and n.
    assert "decides by: largest score; scores: probabilities of classes 0, 1" in head
    robust = evasion["metrics"]["robust_accuracy_linf"]
    assert f"<b>{robust['value']:.3f}</b>" in head
    assert f"{robust['low']:.3f} to {robust['high']:.3f} (95%), n=30" in head
    assert "Security curve, L\N{INFINITY}" in rest
    assert "Security curve, L2" in rest
    for norm in ("linf", "l2"):
        for point in evasion["details"]["norms"][norm]["curve"]:
            assert f"{point['value']:.3f} [{point['low']:.3f}" in rest
    # Pictures of the closest examples: before, after, and what changed.
    rows = [r for r in evasion["details"]["norms"]["linf"]["rows"] if r["distance"]]
    closest = min(rows, key=lambda row: row["distance"])
    name = report["target"]["classes"][closest["label"]]
    assert f"Row {closest['row']}: class {name} becomes" in rest
    assert rest.count('class="pixels"') == 3 * (6 + 3)
    assert "Confusion: true class by row" in head
    assert 'class="right m8"' in head


def test_sarif_of_a_real_attack_is_valid_and_stays(attacked, tmp_path, shared_data):
    schema = shared_data / "spec-sarif" / "sarif-schema-2.1.0.json"
    sarif = json.loads((attacked / "scan.sarif").read_text())
    jsonschema.Draft4Validator(json.loads(schema.read_text())).validate(sarif)
    results = sarif["runs"][0]["results"]
    assert {"evasion-broken", "evasion-weak"} & {r["ruleId"] for r in results}
    report = json.loads((attacked / "scan.json").read_text())
    again = json.loads(documents(report, tmp_path, "sarif"))["runs"][0]["results"]
    prints = [r["partialFingerprints"]["sealgateFinding/v2"] for r in results]
    assert prints == [r["partialFingerprints"]["sealgateFinding/v2"] for r in again]
    assert len(set(prints)) == len(prints)


def test_html_says_the_worst_first(constant):
    page = (constant / "scan.html").read_text()
    assert "should not be deployed" in page.split("<h2", 1)[0]
    assert "What was not tested" in page


def test_the_exit_code_follows_the_severity(tmp_path):
    weights = np.array([[0.0, 1.0]] * 3)
    assert scan(tmp_path, weights, 0, "a.onnx", "--fail-on", "error")[0] == 1
    assert scan(tmp_path, WEIGHTS, 0, "b.onnx", "--fail-on", "error")[0] == 0


@pytest.mark.parametrize(
    ("severity", "bound", "code"),
    [
        ("error", None, 0),
        ("error", "error", 1),
        ("warning", "error", 0),
        ("warning", "warning", 1),
        ("note", "warning", 0),
        ("note", "note", 1),
    ],
)
def test_each_severity_fails_as_it_was_told(
    severity, bound, code, tmp_path, monkeypatch
):
    grave = replace(SCAN_RULES["answer-constant"], severity=severity)
    monkeypatch.setitem(rules.SCAN_RULES, "answer-constant", grave)
    weights = np.array([[0.0, 1.0]] * 3)
    more = () if bound is None else ("--fail-on", bound)
    given, out = scan(tmp_path, weights, 0, "m.onnx", *more)
    found = json.loads((out / "scan.json").read_text())["findings"]
    assert severity in {item["severity"] for item in found}
    assert given == code


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a scan report"),
        (b'{"schema": "https://sealgate.dev/scan/v2"}', "expected"),
        (b'{"schema": "https://sealgate.dev/scan/v1"}', "target"),
        (b"\xff" * 10, "not a scan report"),
    ],
)
def test_what_is_no_report_is_refused(content, message, tmp_path, capsys):
    path = tmp_path / "scan.json"
    path.write_bytes(content)
    assert main(["report", str(path), "--format", "html"]) == 2
    assert main(["compare", str(path), str(path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert all(message in line for line in lines)


def test_a_report_with_a_malformed_finding_is_refused(report, tmp_path, capsys):
    for finding in ({}, report["findings"][0] | {"rule": "../x"}, []):
        path = tmp_path / "scan.json"
        path.write_text(json.dumps(report | {"findings": [finding]}))
        assert main(["report", str(path), "--format", "sarif"]) == 2
        assert "not a scan report" in capsys.readouterr().err


@pytest.mark.parametrize(
    "metric",
    [
        {"value": "1"},
        {"value": 1, "low": "0", "high": 1, "confidence": 0.95},
        {"value": 1, "low": 0},
        {"value": 1, "n": "many"},
        7,
    ],
)
def test_a_report_with_a_malformed_metric_is_refused(report, tmp_path, capsys, metric):
    path = tmp_path / "scan.json"
    broken = report["results"][0] | {"metrics": {"accuracy": metric}}
    path.write_text(json.dumps(report | {"results": [broken]}))
    assert main(["compare", str(path), str(path)]) == 2
    assert main(["report", str(path), "--format", "html"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_a_regression_is_found(tmp_path, capsys):
    _, good = scan(tmp_path, WEIGHTS, 0, "good.onnx")
    _, bad = scan(tmp_path, np.array([[0.0, 1.0]] * 3), 0, "bad.onnx")
    capsys.readouterr()
    pair = [str(good / "scan.json"), str(bad / "scan.json")]
    assert main(["compare", *pair]) == 1
    text = capsys.readouterr().out
    assert re.search(r"worse +answers\.clean_accuracy", text)
    assert re.search(r"appeared +error answer-constant", text)
    assert main(["compare", *pair[::-1]]) == 0
    assert re.search(r"better +answers\.clean_accuracy", capsys.readouterr().out)


def test_the_same_report_is_the_same(constant, capsys):
    path = str(constant / "scan.json")
    assert main(["compare", path, path, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert not result["worse"]
    assert {change["direction"] for change in result["changes"]} == {"same"}


def share(hits, n):
    return vars(intervals.proportion(hits, n))


def document(metrics, conditions=None, **more):
    result = {
        "check": "evasion",
        "status": "done",
        "reason": "",
        "reliable": True,
        "conditions": conditions or {},
        "metrics": metrics,
        "checks": [],
        "details": {},
    }
    return {"results": [result | more], "findings": []}


def rowwise(wrong, n=120):
    """A report that says of each row whether it was right; all of the same data."""
    metrics = {"accuracy": share(n - len(wrong), n)}
    details = {"asked_rows": list(range(n)), "wrong_rows": sorted(wrong)}
    return document(metrics, details=details) | {"data": {"sha256": "ab"}}


def test_the_same_rows_are_compared_one_by_one():
    before, after = rowwise(set(range(24))), rowwise(set(range(32)))
    (change,) = compare(before, after).changes
    # Eight rows lost, none won: 2 / 2^8. The two shares alone would be chance.
    assert (change.test, change.direction) == ("mcnemar", "worse")
    assert change.p == pytest.approx(2 / 2**8)
    other = after | {"data": {"sha256": "cd"}}
    (change,) = compare(before, other).changes
    assert (change.test, change.direction) == ("fisher", "same")
    # As many won as lost is no change, however many.
    (change,) = compare(before, rowwise(set(range(24, 48)))).changes
    assert (change.p, change.direction) == (1.0, "same")


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"asked_rows": list(range(120)), "wrong_rows": [1]},  # not what accuracy says
        {"asked_rows": list(range(100)), "wrong_rows": list(range(24))},
        {"asked_rows": "many", "wrong_rows": [[]]},
        {"asked_rows": None, "wrong_rows": 3},
    ],
)
def test_rows_that_do_not_give_the_figure_are_not_believed(details):
    before, after = rowwise(set(range(24))), rowwise(set(range(32)))
    after["results"][0]["details"] = details
    (change,) = compare(before, after).changes
    assert change.test == "fisher"


def test_attacks_on_the_same_rows_are_compared_one_by_one(attacked, tmp_path, capsys):
    report = json.loads((attacked / "scan.json").read_text())
    (evasion,) = [r for r in report["results"] if r["check"] == "evasion"]
    for row in evasion["details"]["norms"]["linf"]["rows"]:
        row["correct"] = False
    for name in ("robust_accuracy", "robust_accuracy_linf"):
        evasion["metrics"][name] |= {"value": 0.0, "low": 0.0, "high": 0.1}
    worse = tmp_path / "worse.json"
    worse.write_text(json.dumps(report))
    assert main(["compare", str(attacked / "scan.json"), str(worse)]) == 1
    text = capsys.readouterr().out
    assert re.search(r"worse +evasion\.robust_accuracy_linf .*\(mcnemar\)", text)


def test_chance_is_not_a_change():
    before = document({"robust_accuracy": share(80, 100)})
    after = document({"robust_accuracy": share(76, 100)})
    (change,) = compare(before, after).changes
    assert (change.direction, compare(before, after).worse) == ("same", False)


def test_many_metrics_are_corrected_together():
    names = [f"robust_accuracy/{i}" for i in range(40)]
    before = document({name: share(80, 100) for name in names})
    after = document(
        {name: share(67 if name == names[0] else 80, 100) for name in names}
    )
    alone = compare(
        document({names[0]: share(80, 100)}), document({names[0]: share(66, 100)})
    )
    assert alone.worse
    assert not compare(before, after).worse


def test_only_shares_are_compared_as_counts():
    # 85 of 100, and an area of 0.85 over 100 rows: their intervals tell them apart.
    area = {"value": 0.85, "n": 100, "low": 0.77, "high": 0.90, "confidence": 0.95}
    before = document({"auc": area, "accuracy": share(85, 100)})
    after = document({"auc": area | {"value": 0.84}, "accuracy": share(84, 100)})
    tests = {item.metric: item.test for item in compare(before, after).changes}
    assert tests == {"auc": "z", "accuracy": "fisher"}


def test_an_interval_without_width_proves_nothing():
    # As the first release wrote of rates at 0 and 1.
    none = {"value": 1.0, "n": 40, "low": 1.0, "high": 1.0, "confidence": 0.95}
    after = none | {"value": 0.0, "low": 0.0, "high": 0.0}
    name = "accuracy_difference/sex"
    (change,) = compare(document({name: none}), document({name: after})).changes
    assert (change.p, change.direction) == (None, "not comparable")


def test_how_intervals_are_made_does_not_part_reports():
    old = document({"accuracy": share(80, 100)}, {"interval": "percentile_bootstrap"})
    new = document({"accuracy": share(20, 100)}, {"interval": "wilson"})
    (change,) = compare(old, new).changes
    assert change.direction == "worse"


def test_other_conditions_are_not_compared():
    before = document({"robust_accuracy": share(80, 100)}, {"radius": 0.1})
    after = document({"robust_accuracy": share(10, 100)}, {"radius": 0.2})
    (change,) = compare(before, after).changes
    assert change.direction == "not comparable"
    assert "radius was 0.1, is 0.2" in change.reason


def test_a_check_that_is_gone_is_worse():
    before = document({"robust_accuracy": share(80, 100)})
    assert compare(before, document({}, status="skipped")).missing == ("evasion",)
    assert compare(before, document({}, status="skipped")).worse


def test_less_epsilon_is_better():
    before, after = (document({"epsilon": {"value": e}}) for e in (3.0, 2.0))
    (change,) = compare(before, after).changes
    assert change.direction == "better"


def test_a_chart_with_nothing_to_show():
    assert line_chart({"title": "t", "x": "x", "y": "y", "series": []}) == ""


def test_pictures_are_well_formed():
    chart = {
        "title": "t & <u>",
        "x": "x",
        "y": "y",
        "log_x": True,
        "log_y": True,
        "diagonal": True,
        "series": [
            {"name": "a", "points": [[0.0, 0.0], [0.001, 0.01], [1.0, 1.0]]},
            {"name": "b", "points": [[0.1, 0.2, 0.1, 0.3], [0.2, 0.3, 0.2, 0.4]]},
        ],
    }
    for text in (
        line_chart(chart).replace("<br>", "<br/>"),
        interval_bar(0.5, 0.4, 0.6),
    ):
        parse_xml(text)
        assert "nan" not in text


def test_the_workflow_in_the_docs_is_one():
    text = (ROOT / "docs" / "assessment.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    workflow = yaml.safe_load(block)
    assert {"push", "pull_request"} <= {*workflow[True]}  # YAML 1.1 reads "on" so
    (job,) = workflow["jobs"].values()
    assert job["permissions"]["security-events"] == "write"
    (scan,) = [s["run"] for s in job["steps"] if "toolkit scan" in s.get("run", "")]
    arguments = scan.partition("sealgate-toolkit ")[2].split()
    args = build_parser().parse_args(arguments)
    upload = job["steps"][-1]
    assert upload["uses"].startswith("github/codeql-action/upload-sarif@")
    # What is uploaded is what is written, also where the scan found something.
    assert upload["with"]["sarif_file"] == str(args.out / "scan.sarif")
    assert upload["if"] == "always()"
