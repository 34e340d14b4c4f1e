"""The model card: every number a report's, every hostile text only text."""

from __future__ import annotations

import base64
import json
import math
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from models.bundle import (
    VERDICT_FILE,
    Bundle,
    attestation_file,
    read_bundle,
    report_file,
)
from models.errors import BundleError
from models.files import write_atomic
from models.report import KINDS, Metric
from sealgate.protocol import dsse
from sealgate.protocol.dsse import key_hint
from sealgate.protocol.statement import WAIVER_TYPE, Statement, Waiver
from security.admission.attest import sign_report, sign_waiver, waiver_file
from security.documents.facts import read_facts
from security.documents.limitations import limitations
from security.documents.markup import code, number, prose, yaml_number, yaml_text
from security.documents.model_card import model_card
from tests.support import bundles, evidence
from tests.support.bundles import Keys

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
# All that a card is made of.
BLOCKS = {
    *("heading", "paragraph", "inline", "bullet_list", "list_item", "blockquote"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
SECTIONS = 16
INLINE = {"text", "code_inline", "strong_open", "strong_close"}


def parts(bundle: Bundle) -> tuple[dict, str]:
    """The front matter, decoded, and the Markdown after it."""
    text = model_card(bundle).decode()
    start, front, body = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front), body


def shown(text: str) -> str:
    """What a reader sees of a text that was escaped."""
    (inline,) = (t for t in MARKDOWN.parse(f"x {text}") if t.type == "inline")
    assert {child.type for child in inline.children} <= {"text", "code_inline"}
    content = "".join(child.content for child in inline.children)
    return content.removeprefix("x ").replace("\u2060", "")


def one_line(text: str) -> str:
    invisible = ("Cc", "Cf", "Cn", "Co")
    return "".join(
        "\ufffd" if unicodedata.category(char) in invisible else char
        for char in " ".join(text.split()) or "(empty)"
    )


def tables(body: str) -> list[list[list[str]]]:
    """Every table, as rows of what cells show."""
    found: list[list[list[str]]] = []
    for token in MARKDOWN.parse(body):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level > 3:
            cell = "".join(child.content for child in token.children)
            found[-1][-1].append(cell.replace("\u2060", ""))
    return found


def metric_rows(body: str, title: str) -> list[dict[str, str]]:
    section = body.split(f"\n## {title}\n")[1].split("\n## ", maxsplit=1)[0]
    (rows,) = (table for table in tables(section) if table[0][0] == "Metric")
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


@pytest.fixture
def rich(tmp_path: Path, keys: Keys) -> Bundle:
    return evidence.write(tmp_path / "rich", keys)


TITLES = {
    "fairness": "Fairness by group",
    "membership": "Membership inference",
    "parity": "Parity with the trained model",
    "privacy": "Privacy",
    "quality": "Performance",
    "robustness": "Robustness",
    "structure": "Structure of the file",
}


@pytest.mark.parametrize("kind", TITLES)
def test_every_number_is_the_reports(rich, kind):
    rows = metric_rows(parts(rich)[1], TITLES[kind])
    metrics = rich.report(kind).metrics
    assert len(rows) == len(metrics)
    for row, (name, metric) in zip(rows, metrics.items(), strict=True):
        group = row.get("Group", "-").replace("-", "")
        assert name == row["Metric"] + (f"/{group}" if group else "")
        assert math.isclose(float(row["Value"]), metric.value, rel_tol=1e-3)
        assert row.get("n", "-") == ("-" if metric.n is None else str(metric.n))
        if metric.low is not None:
            low, high = re.fullmatch(r"(\S+) to (\S+) at 95%", row["Interval"]).groups()
            assert float(low) <= metric.low
            assert float(high) >= metric.high
            assert math.isclose(float(low), metric.low, rel_tol=1e-3)
            assert math.isclose(float(high), metric.high, rel_tol=1e-3)
        if name in ("epsilon", "delta"):
            assert float(row["Value"]) >= metric.value


def test_epsilon_carries_every_assumption(rich):
    body = parts(rich)[1]
    assert "**Epsilon is 2.999 at delta 0.0012**" in body
    assert "e^epsilon = 20.06" in body.replace("\\^", "^")
    (table,) = (t for t in tables(body) if t[0][0] == "Assumption")
    stated = {row[0]: row[1] for row in table[1:]}
    conditions = rich.report("privacy").conditions
    assert stated.keys() == conditions.keys()
    assert stated["covers_holdout"] == "no"
    assert float(stated["sample_rate"]) == conditions["sample_rate"]
    assert "Epsilon covers the training rows alone." in body


def test_the_curve_and_the_groups(rich):
    body = parts(rich)[1]
    (curve,) = (t for t in tables(body) if t[0][0] == "Radius")
    assert curve[1:] == [["0.02", "0.8656", "134"], ["0.1", "0.1716", "134"]]
    groups = {row["Group"] for row in metric_rows(body, "Fairness by group")}
    assert groups == {"age 50 and over", "age below 50", "-"}


def test_data_columns_labels_and_digests(rich):
    body = parts(rich)[1]
    rows = {tuple(row) for table in tables(body) for row in table}
    for dataset in (evidence.TRAIN, evidence.HOLDOUT):
        found = [row for row in rows if dataset.sha256 in row]
        assert found
        assert found[0][:3] == (dataset.name, dataset.role, str(dataset.rows))
    assert {("a", "-10", "10"), ("b", "-10", "10")} <= rows
    assert ("probabilities", "FP32", "(-1, 2)", "no, yes") in rows
    assert ("model.onnx", rich.subject.onnx_sha256) in rows
    assert any(rich.subject.root_sha256 in row for row in rows)


def test_signers(rich, keys):
    (table,) = (t for t in tables(parts(rich)[1]) if t[0][0] == "Evidence")
    assert [row[0] for row in table[1:]] == list(KINDS)
    for kind, result, when, hint in table[1:]:
        assert (result, when) == ("PASSED", "2026-03-04T05:06:07Z")
        assert hint == key_hint(keys.signer(kind).public_key())
    # The verdict binds the card, so the card cannot name it.
    assert key_hint(keys.release.public_key()) not in parts(rich)[1]


def test_a_verdict_changes_nothing(rich):
    files = {name: data for name, data in rich.files.items() if name != VERDICT_FILE}
    assert model_card(replace(rich, files=files)) == model_card(rich)


def test_front_matter(rich):
    front, body = parts(rich)
    assert front["license"] == "apache-2.0"
    assert front["tags"] == ["onnx", "sealgate", "differential-privacy"]
    assert front["pipeline_tag"] == "tabular-classification"
    (result,) = front["model-index"][0]["results"]
    assert result["dataset"] == {"name": "toy", "type": "toy", "split": "holdout"}
    stated = {item["type"]: item["value"] for item in result["metrics"]}
    metrics = rich.report("quality").metrics
    assert stated == {name: metric.value for name, metric in metrics.items()}
    for text in evidence.USE.values():
        assert f"> {text}" in body


def test_a_bundle_with_little_evidence(bundle_folder):
    front, body = parts(read_bundle(bundle_folder))
    assert "license" not in front
    assert front["tags"] == ["onnx", "sealgate"]
    assert "states no intended use" in body
    for kind in ("fairness", "membership", "parity", "provenance", "robustness"):
        assert f"There is no {kind} report" in body


def test_without_evidence(tmp_path, keys):
    folder = bundles.write_bundle(tmp_path / "b", keys, kinds=(), admit=False)
    front, body = parts(read_bundle(folder))
    assert "model-index" not in front
    assert "No report names a data set." in body


def test_it_is_deterministic(rich, tmp_path, keys):
    assert model_card(rich) == model_card(read_bundle(tmp_path / "rich"))
    # Its own presence changes nothing.
    write_atomic(tmp_path / "rich" / "MODEL_CARD.md", model_card(rich))
    assert model_card(read_bundle(tmp_path / "rich")) == model_card(rich)


@pytest.mark.parametrize("attack", evidence.ATTACKS, ids=ascii)
def test_attacks_stay_text(tmp_path, keys, attack):
    bundle = evidence.hostile(tmp_path / "b", keys, attack)
    front, body = parts(bundle)
    assert set(front) <= {
        *("license", "license_name", "library_name", "pipeline_tag", "tags"),
        "model-index",
    }
    assert attack in (front.get("license"), front.get("license_name"))
    tokens = MARKDOWN.parse(body)
    kinds = {
        token.type.removesuffix("_open").removesuffix("_close") for token in tokens
    }
    assert kinds <= BLOCKS
    inline = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inline} <= INLINE
    assert sum(token.type == "heading_open" for token in tokens) == 1 + SECTIONS
    assert {len({len(row) for row in table}) for table in tables(body)} == {1}
    seen = "\n".join(child.content for child in inline).replace("\u2060", "")
    assert one_line(attack) in seen
    # Also for what finds links in the text after escapes are undone.
    texts = [child.content for child in inline if child.type == "text"]
    assert not re.search(r"https?://evil|www\.evil|me@evil", "\n".join(texts))
    # And for generators of sites that read the file before Markdown does.
    assert not re.search(r"<(script|img|b)|\{\{|\{%|\$\{", body)


LINES = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40)
MARKS = st.text(alphabet="ab1 .,-+=#*_`~[]()!<>&|\\{}$:/@^\n", max_size=30)


@given(st.one_of(LINES, MARKS))
@settings(max_examples=300, deadline=None)
def test_any_text_is_shown_as_it_is(text):
    for escape in (prose, code):
        line = escape(text)
        assert "\n" not in line
        visible = shown(line)
        assert visible == one_line(text)
        for block in (f"> {line}", f"- {line}", line):
            types = {t.type for t in MARKDOWN.parse(block)}
            assert types <= {
                *("inline", "paragraph_open", "paragraph_close", "blockquote_open"),
                *("blockquote_close", "list_item_open", "list_item_close"),
                *("bullet_list_open", "bullet_list_close"),
            }
        (table,) = tables(f"| a | b |\n| --- | --- |\n| {line} | x |")
        assert table[1] == [visible.strip(), "x"]


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",))))
@settings(max_examples=200, deadline=None)
def test_yaml_text(text):
    assert yaml.safe_load(yaml_text(text)) == text


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=200, deadline=None)
def test_numbers(value):
    assert yaml.safe_load(yaml_number(value)) == value
    assert isinstance(yaml.safe_load(yaml_number(value)), float)
    assert float(number(value, "down")) <= value
    assert value <= float(number(value, "up"))
    assert math.isclose(float(number(value)), value, rel_tol=1e-3) or abs(value) > 1e307


def test_a_report_about_another_model(tmp_path, keys):
    bundle = evidence.write(tmp_path / "b", keys)
    subject = replace(bundle.subject, onnx_sha256="0" * 64)
    data = evidence.report("quality", subject).to_json()
    write_atomic(tmp_path / "b" / report_file("quality"), data)
    with pytest.raises(BundleError, match="quality report is about another model"):
        model_card(read_bundle(tmp_path / "b"))


def test_a_report_changed_after_signing(tmp_path, keys):
    evidence.write(tmp_path / "b", keys)
    bundles.rewrite_report(tmp_path / "b", "quality", metrics={"accuracy": Metric(1.0)})
    body = parts(read_bundle(tmp_path / "b"))[1]
    assert "An attestation for the quality report binds other bytes" in body
    (table,) = (t for t in tables(body) if t[0][0] == "Evidence")
    assert [row[1] for row in table if row[0] == "quality"] == ["for other bytes"]


def test_an_unsigned_report_and_a_failed_check(tmp_path, keys):
    change = {"checks": (evidence.Check("sound", False, "it is not"),)}
    evidence.write(tmp_path / "b", keys, change=lambda item: replace(item, **change))
    (tmp_path / "b" / attestation_file("parity")).unlink()
    body = parts(read_bundle(tmp_path / "b"))[1]
    assert "The parity report is not signed" in body
    assert "An attestation for the quality report says FAILED." in body
    assert "`sound` **failed**: it is not" in body


def test_waivers_show(tmp_path, keys):
    bundle = evidence.write(tmp_path / "b", keys)
    waiver = Waiver(
        kind="fairness",
        reason="<b>no</b> groups",
        created="2026-04-01T00:00:00Z",
        expires="2026-05-01",
    )
    data = sign_waiver(bundle, waiver, keys.privacy_officer)
    write_atomic(tmp_path / "b" / waiver_file("fairness"), data)
    body = parts(read_bundle(tmp_path / "b"))[1]
    assert ["Waivers", "1", "listed under Signers"] in tables(body)[0]
    text = "fairness waived until 2026-05-01: &lt;b&gt;no&lt;/b&gt; groups"
    assert f"\n- {text}\n" in body
    assert f"A requirement was waived: {text}" in body


@pytest.mark.parametrize(
    "data", [b"{}", b"no json", b'{"verificationMaterial":{"publicKey":{"hint":"x"}}}']
)
def test_a_malformed_attestation(tmp_path, keys, data):
    evidence.write(tmp_path / "b", keys)
    write_atomic(tmp_path / "b" / attestation_file("quality"), data)
    with pytest.raises(BundleError, match=r"attestations/quality\.sigstore\.json"):
        model_card(read_bundle(tmp_path / "b"))


def test_numbers_beyond_doubles_do_not_break_it(tmp_path, keys):
    huge = 10**400
    row = replace(evidence.TRAIN, rows=huge)
    details = {
        "curve": [{"n": huge, "radius": huge, "robust_accuracy": 1}, 3, {"n": 1}],
        "learned": {"others": huge},
        "config": {"use": {"intended": 3}},
    }
    metric = Metric(1e308, n=huge, low=-1e308, high=1.7e308, confidence=1e308)
    change = {"datasets": (row,), "details": details}
    bundle = evidence.write(
        tmp_path / "b",
        keys,
        change=lambda item: replace(
            item, **change, metrics={**item.metrics, "epsilon": metric, "delta": metric}
        ),
    )
    assert "states no intended use" in parts(bundle)[1]


def test_limitations_of_small_samples(rich):
    found = " ".join(limitations(read_facts(rich)))
    assert "134 rows for a number in the quality report" in found
    assert "needs 100 non-members or more; an attack was judged on 67" in found
    assert "Delta times the number of rows is 0.522" in found
    assert "There is no" not in found


def test_every_signer_and_waiver_file_shows(tmp_path, keys):
    bundle = evidence.write(tmp_path / "b", keys)
    second = Keys.generate()
    attestations = tmp_path / "b" / "attestations"
    again = sign_report(bundle, "quality", second.assessor)
    write_atomic(attestations / "quality.2.sigstore.json", again)
    waiver = Waiver("fairness", "no | groups", "2026-03-01", "2026-05-01")
    subjects = Statement.from_json(
        base64.b64decode(json.loads(again)["dsseEnvelope"]["payload"])
    ).subjects
    statement = Statement(subjects, WAIVER_TYPE, waiver.to_predicate())
    signed = dsse.sign(statement.to_json(), second.release)
    write_atomic(attestations / "waiver-fairness.sigstore.json", signed)
    body = parts(read_bundle(tmp_path / "b"))[1]
    (table,) = (t for t in tables(body) if t[0][0] == "Evidence")
    hints = [row[3] for row in table if row[0] == "quality"]
    assert hints == [key_hint(k.assessor.public_key()) for k in (keys, second)]
    assert "quality.2.sigstore.json" in body
    assert "- fairness waived until 2026-05-01: no &#124; groups" in body
