"""Documents for other people's shelves: valid where they go, true to the evidence."""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from markdown_it import MarkdownIt
from spdx_python_model import v3_0_1 as spdx

from models.bundle import Bundle, read_bundle
from models.errors import BundleError
from models.report import Report
from security.admission import gate
from security.admission.gate import Admission
from security.documents.annex_iv import annex_iv, annex_iv_json
from security.documents.bom import documents, ml_bom
from security.documents.dp_register import SECTORS, Curator, dp_register
from security.documents.sourced import Sourced, sourced
from security.documents.spdx import spdx_document
from tests.support import bundles, evidence
from tests.support.in_process import security_result

CURATOR = Curator("Example", "EU", ("A. Person",), "Technology")
MARKDOWN = MarkdownIt("commonmark").enable("table")
# What a page may consist of: no link, image or HTML.
HARMLESS = {
    *("paragraph", "heading", "inline", "bullet_list", "list_item", "table"),
    *("thead", "tbody", "tr", "th", "td"),
}
INLINE = {"text", "code_inline", "softbreak"}


@pytest.fixture
def rich(tmp_path, keys) -> Bundle:
    return evidence.write(tmp_path / "rich", keys)


def admitted(bundle: Bundle, keys) -> Sourced:
    policy = bundles.policy()
    return sourced(gate.verify(bundle, policy, keys.trust, now=evidence.NOW))


# CycloneDX


def test_cyclonedx_1_7_is_valid_and_says_who_measured(rich):
    document = ml_bom(rich, "1.7")
    assert (
        JsonStrictValidator(SchemaVersion.V1_7).validate_str(document.decode()) is None
    )
    parsed = json.loads(document)
    assert parsed["specVersion"] == "1.7"
    tools = {t["bom-ref"]: t for t in parsed["metadata"]["tools"]["components"]}
    metrics = parsed["components"][0]["modelCard"]["quantitativeAnalysis"]
    cited = set()
    for citation in parsed["citations"]:
        kind = citation["note"].split()[0]
        tool = tools[citation["attributedTo"]]
        assert rich.report(kind).tools[tool["name"]] == tool["version"]
        for pointer in citation["pointers"]:
            found: object = parsed
            for part in pointer.split("/")[1:]:
                found = found[int(part) if isinstance(found, list) else part]
            assert found["type"].startswith(f"{kind}: ")
            cited.add(pointer)
    assert len(cited) == len(metrics["performanceMetrics"])


def test_cyclonedx_1_6_is_what_it_was_and_another_document(rich):
    old, new = json.loads(ml_bom(rich)), json.loads(ml_bom(rich, "1.7"))
    assert ml_bom(rich) == ml_bom(rich, "1.6")
    assert "citations" not in old
    assert old["serialNumber"] != new["serialNumber"]


def test_cyclonedx_without_evidence_cites_nothing(tmp_path, keys):
    empty = bundles.write_bundle(tmp_path / "empty", keys, kinds=(), admit=False)
    document = ml_bom(read_bundle(empty), "1.7")
    assert (
        JsonStrictValidator(SchemaVersion.V1_7).validate_str(document.decode()) is None
    )
    assert "citations" not in json.loads(document)


# SPDX


def read_spdx(document: bytes) -> spdx.SHACLObjectSet:
    """Parsed and checked by SPDX's own model: types, numbers of values, words."""
    found = spdx.SHACLObjectSet()
    spdx.JSONLDDeserializer().read(io.BytesIO(document), found)
    assert not found.link(), "a reference leads nowhere"
    spdx.JSONLDSerializer().write(found, io.BytesIO())  # raises for what is missing
    return found


def test_spdx_is_valid_and_has_the_evidence(rich):
    found = read_spdx(spdx_document(rich, "Example"))
    (model,) = found.foreach_type(spdx.ai_AIPackage)
    assert model.name == rich.subject.name
    assert model.verifiedUsing[0].hashValue == rich.subject.onnx_sha256
    # The restrictions of the AI profile, which the document claims.
    assert model.suppliedBy.name == "Example"
    assert model.releaseTime
    assert model.software_downloadLocation
    assert model.software_packageVersion == rich.subject.version
    metrics = {item.key: item.value for item in model.ai_metric}
    assert metrics["privacy: epsilon"].startswith("2.99827064")
    assert "0.925" in metrics["quality: accuracy"]
    files = {f.name: f for f in found.foreach_type(spdx.software_File)}
    for kind in evidence.KINDS:
        name = f"evidence/{kind}.json"
        digest = hashlib.sha256(rich.files[name]).hexdigest()
        assert files[name].verifiedUsing[0].hashValue == digest
    relations = {
        r.relationshipType.rpartition("/")[2]: [t.name for t in r.to]
        for r in found.foreach_type(spdx.Relationship)
    }
    assert relations["trainedOn"] == ["toy (train)"]
    assert relations["testedOn"] == ["toy (holdout)"]
    assert len(relations["hasEvidence"]) == len(evidence.KINDS)


def test_spdx_claims_no_dataset_profile(rich):
    (document,) = read_spdx(spdx_document(rich, "Example")).foreach_type(
        spdx.SpdxDocument
    )
    words = {item.rpartition("/")[2] for item in document.profileConformance}
    assert words == {"core", "software", "ai"}


def test_the_spdx_model_refuses(rich):
    wrong = json.loads(spdx_document(rich, "Example"))
    for item in wrong["@graph"]:
        if item["type"] == "SpdxDocument":
            item["profileConformance"] = ["everything"]
    with pytest.raises(ValueError, match="everything"):
        read_spdx(json.dumps(wrong).encode())


def test_spdx_without_evidence_has_no_time(tmp_path, keys):
    empty = bundles.write_bundle(tmp_path / "empty", keys, kinds=(), admit=False)
    with pytest.raises(BundleError, match="no time"):
        spdx_document(read_bundle(empty), "Example")


# Annex IV


def test_every_sentence_names_a_file_that_is_in_the_bundle(rich, keys):
    document = json.loads(annex_iv_json(admitted(rich, keys)))
    digests = {hashlib.sha256(data).hexdigest() for data in rich.files.values()}
    shown = [item for point in document["points"] for item in point["shown"]]
    assert len(shown) >= 20
    for item in shown:
        assert item["sha256"]
        assert set(item["sha256"]) <= digests, item["text"]
    points = [point["point"] for point in document["points"]]
    assert points == [*"123456789", "Article 15"]
    assert all(p["shown"] or p["not_shown"] for p in document["points"])


def test_only_verified_reports_are_sources(rich, keys):
    """The tests' policy asks for three kinds; the other reports' keys prove nothing."""
    bundle = admitted(rich, keys)
    assert tuple(bundle.facts.reports) == ("privacy", "quality", "structure")
    document = json.loads(annex_iv_json(bundle))
    files = {item["file"]: item for item in document["sources"]}
    assert "evidence/robustness.json" not in files
    assert all(len(files[f"evidence/{k}.json"]["keys"]) == 1 for k in bundles.KINDS)
    gaps = " ".join(g for p in document["points"] for g in p["not_shown"])
    for kind in ("fairness", "membership", "parity", "provenance", "robustness"):
        assert f"The {kind} report in the bundle" in gaps
    page = annex_iv(bundle).decode()
    assert "0.8656" not in page, "a figure of an unverified report"
    assert "There is no robustness report" not in page
    assert "There is no verified robustness evidence" in page


def test_a_graph_from_elsewhere_is_not_said_to_clip(tmp_path, keys):
    """Only training here puts that into the graph; `import` leaves it as it came."""

    def imported(item: Report) -> Report:
        kept = {k: v for k, v in item.conditions.items() if k != "preprocessing"}
        more = {"imported": True} if item.kind == "provenance" else {}
        return replace(item, conditions=kept | more)

    here = evidence.write(tmp_path / "here", keys)
    there = evidence.write(tmp_path / "there", keys, change=imported)
    for bundle, clips in ((here, True), (there, False)):
        pages = annex_iv(admitted(bundle, keys)), documents(bundle)["MODEL_CARD.md"]
        assert [b"clipped" in page for page in pages] == [clips, clips]


def test_a_use_that_nobody_vouches_for_is_not_stated(rich, keys):
    """It stands in the provenance report, of which that policy asks nothing."""
    bundle = admitted(rich, keys)
    assert "Teaching" not in annex_iv(bundle).decode()
    assert "(a) The intended purpose." in annex_iv(bundle).decode()
    entry = yaml.safe_load(dp_register(bundle, CURATOR))
    stated = entry["deployment"]["basic"]["intended_use"]
    assert stated == "Not stated by the trainer."


def test_the_numbers_are_the_reports(rich, keys):
    page = annex_iv(admitted(rich, keys)).decode()
    privacy = hashlib.sha256(rich.files["evidence/privacy.json"]).hexdigest()
    (line,) = [
        x for x in page.splitlines() if "Privacy (epsilon): 2.999" in x and "(5)" in x
    ]
    assert line.endswith(f"[`privacy:{privacy[:12]}`]")
    assert f"`{privacy}`" in page  # in full, in the table of sources


def test_the_provider_is_nobodys_evidence(rich, keys):
    bundle = admitted(rich, keys)
    assert "The provider's name." in annex_iv(bundle).decode()
    assert "\ufffd" in annex_iv(bundle, "\udcff").decode()  # an argument, no UTF-8
    named = annex_iv(bundle, "Example [x](https://evil.example)").decode()
    shown, _, gaps = named.partition("## What is not shown")
    assert "Example" not in shown
    assert "Example" in gaps


@pytest.mark.parametrize("attack", evidence.ATTACKS, ids=ascii)
def test_attacks_stay_text(tmp_path, keys, attack):
    """As if a gate had let it in, failed checks and all."""
    bundle = evidence.hostile(tmp_path / "b", keys, attack)
    reports = {kind: bundle.report(kind) for kind in evidence.KINDS}
    let_in = Admission(bundle=bundle, verdict_sha256="0" * 64, reports=reports)
    page = annex_iv(sourced(let_in), attack).decode()
    tokens = MARKDOWN.parse(page)
    kinds = {t.type.removesuffix("_open").removesuffix("_close") for t in tokens}
    assert kinds <= HARMLESS
    inline = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inline} <= INLINE
    assert not re.search(r"<(script|img|b)|\{\{|\{%|\$\{", page)
    entry = yaml.safe_load(dp_register(sourced(let_in), CURATOR))
    assert set(entry) == {"url_slug", "status", "tier", "deployment"}
    read_spdx(spdx_document(bundle, attack))


# The register


def test_the_register_entry_is_the_evidence(rich, keys):
    entry = yaml.safe_load(dp_register(admitted(rich, keys), CURATOR))
    assert set(entry) == {"url_slug", "status", "tier", "deployment"}
    assert entry["url_slug"] == "toy-1-0-0"
    assert entry["status"] == "Draft"
    assert entry["tier"] == 3
    deployment = entry["deployment"]
    basic = deployment["basic"]
    # What the registry's schema requires of every entry.
    assert set(basic) >= {
        *("name", "data_curators", "description", "intended_use"),
        *("data_product_type", "data_product_region", "publication_date"),
    }
    assert basic["publication_date"] == f"{evidence.NOW:%Y-%m-%d}"
    assert basic["data_product_type"] == "Machine learning model"
    assert basic["data_product_sector"] in SECTORS
    parameters = deployment["privacy_loss"]["privacy_parameters"]
    report = rich.report("privacy")
    assert parameters == {n: report.metrics[n].value for n in ("epsilon", "delta")}
    assert deployment["privacy_loss"]["privacy_unit"] == "row"
    assert deployment["dp_variant"]["variant_name"] == "Approximate DP"
    digest = hashlib.sha256(rich.files["evidence/privacy.json"]).hexdigest()
    assert digest in deployment["administrative"]["notes"]
    assert deployment["administrative"]["registry_authors"] == ["A. Person"]
    unnamed = Curator("\udcff", "EU", ())  # an argument that is no UTF-8
    torn = yaml.safe_load(dp_register(admitted(rich, keys), unnamed))
    assert torn["deployment"]["basic"]["data_curators"] == ["\ufffd"]


def test_the_register_takes_no_model_without_privacy(tmp_path, keys):
    text = bundles.POLICY.partition(b"[require.privacy]")[0]
    policy = bundles.policy(text)
    folder = bundles.write_bundle(
        tmp_path / "b",
        keys,
        kinds=("structure", "quality"),
        policy_bytes=text,
        now=evidence.NOW,
    )
    bundle = gate.verify(read_bundle(folder), policy, keys.trust, now=evidence.NOW)
    with pytest.raises(BundleError, match="nothing to list"):
        dp_register(sourced(bundle), CURATOR)


# As a person runs them


def test_the_command(pristine: Path, tmp_path):
    def run(*arguments):
        bundle = str(pristine / "bundle")
        settings = {"SEALGATE_ADMISSION_POLICY": str(pristine / "policy.toml")}
        done = security_result(
            pristine, "documents", bundle, *arguments, extra=settings
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    out = tmp_path / "annex.md"
    assert run("--annex-iv", "--out", str(out)) == ""
    assert out.read_text().startswith("# Technical documentation: ")
    read_spdx(run("--spdx", "--provider", "E").encode())
    assert json.loads(run("--cyclonedx", "1.7"))["specVersion"] == "1.7"
    who = ("--provider", "E", "--region", "EU", "--author", "A. Person")
    assert yaml.safe_load(run("--dp-register", *who))["url_slug"] == "toy-1-0-0"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--spdx",), "--spdx needs --provider"),
        (("--dp-register", "--provider", "E"), "needs --region, --author"),
        (("--json",), "--json is about --annex-iv"),
        (("--out", "x"), "name which"),
    ],
    ids=["spdx", "register", "json", "out"],
)
def test_what_is_missing_is_named(pristine: Path, arguments, expected):
    bundle = str(pristine / "bundle")
    done = security_result(pristine, "documents", bundle, *arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unadmitted_bundle_gets_no_annex(pristine: Path, tmp_path):
    folder = tmp_path / "b"
    evidence.write(folder, bundles.Keys.generate())
    out = tmp_path / "annex.md"
    done = security_result(
        pristine, "documents", str(folder), "--annex-iv", "--out", str(out)
    )
    assert done.returncode == 1
    assert "refused" in done.stderr
    assert not out.exists()
