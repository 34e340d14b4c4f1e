"""The passport: every check, by tampering with a real one."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from models.bundle import (
    VERDICT_FILE,
    attestation_file,
    mldsa_file,
    read_bundle,
    report_file,
)
from sealgate.errors import PassportError
from sealgate.passport import Passport, verify_passport
from sealgate.protocol import dsse
from sealgate.protocol.dsse import public_pem
from sealgate.protocol.statement import (
    TEST_RESULT_TYPE,
    VSA_TYPE,
    Statement,
    TestResult,
    VerificationSummary,
)
from tests.support.bundles import KINDS, NAME, Keys, write_bundle

KEYS = Keys.generate()
TRUSTED = (public_pem(KEYS.release.public_key()),)


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    """What the server answers with, made of a bundle's files."""
    folder = write_bundle(tmp_path_factory.mktemp("passport") / "bundle", KEYS)
    files = read_bundle(folder).files
    return {
        "verdict": files[VERDICT_FILE].decode(),
        "evidence": {
            kind: {
                "attestation": files[attestation_file(kind)].decode(),
                "report": files[report_file(kind)].decode(),
            }
            for kind in KINDS
        },
    }


@pytest.fixture
def document(genuine):
    return copy.deepcopy(genuine)


def check(document, *, model=NAME, trusted=TRUSTED) -> Passport:
    return verify_passport(document, model=model, trusted_keys=trusted)


def refused(document, message, **options) -> None:
    with pytest.raises(PassportError) as caught:
        check(document, **options)
    assert message in str(caught.value)


def payload(bundle: str) -> Statement:
    envelope = json.loads(bundle)["dsseEnvelope"]
    return Statement.from_json(base64.b64decode(envelope["payload"]))


def resign(statement: Statement, key: ec.EllipticCurvePrivateKey) -> str:
    return dsse.sign(statement.to_json(), key).decode()


def reissue(document, **changes) -> None:
    """The verdict with other fields, signed again by its rightful key."""
    statement = payload(document["verdict"])
    summary = replace(VerificationSummary.from_statement(statement), **changes)
    statement = Statement(statement.subjects, VSA_TYPE, summary.to_predicate())
    document["verdict"] = resign(statement, KEYS.release)


def rest_on(document) -> None:
    """Reissue the verdict so that it rests on the attestations that are there now."""
    digests = {
        kind: digest(item["attestation"]) for kind, item in document["evidence"].items()
    }
    summary = VerificationSummary.from_statement(payload(document["verdict"]))
    by_kind = {item.name.split("/")[1].split(".")[0]: item for item in summary.inputs}
    reissue(
        document,
        inputs=tuple(
            replace(by_kind[kind], sha256=sha256) for kind, sha256 in digests.items()
        ),
    )


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_genuine(document):
    passport = check(document)
    assert passport.model == "toy:1.0.0"
    assert set(passport.reports) == set(KINDS)
    assert passport.verdict_sha256 == digest(document["verdict"])
    assert passport.metric("privacy", "epsilon") == 2.5
    assert passport.metric("quality", "accuracy") == 0.95


@pytest.mark.parametrize(
    ("kind", "name"), [("privacy", "accuracy"), ("robustness", "epsilon"), ("", "")]
)
def test_metrics_that_are_not_stated(document, kind, name):
    with pytest.raises(PassportError, match=f"the evidence states no {kind} {name}"):
        check(document).metric(kind, name)


# 1. the verdict is signed by a key the client trusts, and passed


def test_verdict_of_an_untrusted_key(document):
    other = public_pem(Keys.generate().release.public_key())
    refused(document, "signed by a key that is not trusted", trusted=[other])
    refused(document, "signed by a key that is not trusted", trusted=[])


def test_verdict_of_the_assessor(document):
    document["verdict"] = resign(payload(document["verdict"]), KEYS.assessor)
    refused(document, "passport of toy: signed by a key that is not trusted for it")


def test_verdict_with_another_payload(document):
    bundle = json.loads(document["verdict"])
    text = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b"toy", b"tox")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(text).decode()
    document["verdict"] = json.dumps(bundle)
    refused(document, "passport of tox: signature does not verify", model="tox")


def test_verdict_that_failed(document):
    reissue(document, passed=False)
    refused(document, "passport of toy: the verdict is for toy:1.0.0")


def test_an_attestation_is_no_verdict(document):
    statement = payload(document["evidence"]["quality"]["attestation"])
    document["verdict"] = resign(statement, KEYS.release)
    refused(document, "not a verification summary v1")


# 2. it is about the model that was asked for


@pytest.mark.parametrize("model", ["tox", "to", "toy:1.0.0", "", "toy:"])
def test_verdict_about_another_model(document, model):
    refused(document, "the verdict is for toy:1.0.0", model=model)


# 3. each attestation it rests on is present, byte for byte


@pytest.mark.parametrize("kind", KINDS)
def test_missing_evidence(document, kind):
    del document["evidence"][kind]
    refused(document, "passport of toy: evidence is missing")


def test_no_evidence(document):
    document["evidence"] = {}
    refused(document, "evidence is missing")
    del document["evidence"]
    refused(document, "there is no evidence")


@pytest.mark.parametrize("kind", KINDS)
def test_attestation_that_was_signed_again(document, kind):
    item = document["evidence"][kind]
    item["attestation"] = resign(payload(item["attestation"]), KEYS.signer(kind))
    refused(document, f"{kind}: the verdict does not rest on this attestation")


def test_attestation_with_one_more_space(document):
    document["evidence"]["quality"]["attestation"] += " "
    refused(document, "quality: the verdict does not rest on this attestation")


def test_evidence_the_verdict_does_not_rest_on(document):
    item = copy.deepcopy(document["evidence"]["quality"])
    document["evidence"]["robustness"] = item
    refused(document, "robustness: the attestation is about something else")
    item["attestation"] += " "
    refused(document, "robustness: the verdict does not rest on this attestation")


# 4. each attestation is about the same files as the verdict


def test_attestation_of_another_model(document):
    item = document["evidence"]["quality"]
    statement = payload(item["attestation"])
    subjects = (replace(statement.subjects[0], sha256="0" * 64), statement.subjects[1])
    item["attestation"] = resign(replace(statement, subjects=subjects), KEYS.assessor)
    rest_on(document)
    refused(document, "quality: the attestation is about something else")


def test_attestations_of_each_others_kind(document):
    evidence = document["evidence"]
    evidence["quality"], evidence["privacy"] = evidence["privacy"], evidence["quality"]
    refused(document, "the attestation is about something else")


def test_a_verdict_among_the_evidence(document):
    statement = payload(document["verdict"])
    document["evidence"]["quality"]["attestation"] = resign(statement, KEYS.assessor)
    rest_on(document)
    refused(document, "not a test result v0.1")


# 5. each attestation binds the report that came with it, byte for byte


@pytest.mark.parametrize("kind", KINDS)
def test_changed_reports(document, kind):
    item = document["evidence"][kind]
    item["report"] = item["report"].replace(":", ": ", 1)
    refused(document, f"{kind}: the report is not the one that was signed")


def test_a_better_epsilon(document):
    item = document["evidence"]["privacy"]
    assert "2.5" in item["report"]
    item["report"] = item["report"].replace("2.5", "0.1")
    refused(document, "privacy: the report is not the one that was signed")


def test_a_failed_test_result(document):
    item = document["evidence"]["quality"]
    statement = payload(item["attestation"])
    result = replace(TestResult.from_statement(statement), passed=False)
    statement = Statement(statement.subjects, TEST_RESULT_TYPE, result.to_predicate())
    item["attestation"] = resign(statement, KEYS.assessor)
    rest_on(document)
    refused(document, "quality: the report is not the one that was signed")


# Documents of another form


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "the passport has no verdict"),
        ([], "the passport has no verdict"),
        ({}, "the passport has no verdict"),
        ({"verdict": 1}, "the passport has no verdict"),
        ({"verdict": ""}, "bundle: not JSON"),
        ({"verdict": "\ud800"}, "bundle: not JSON"),
    ],
)
def test_malformed_documents(document, message):
    refused(document, message)


def test_malformed_evidence(document):
    for item, message in (
        (None, "the passport has no attestation"),
        ({}, "the passport has no attestation"),
        ({"attestation": document["evidence"]["quality"]["attestation"]}, "no report"),
        ({"attestation": "\ud800", "report": ""}, "does not rest on this attestation"),
    ):
        document["evidence"]["quality"] = item
        refused(document, message)


@pytest.mark.parametrize(
    "attestation", ["{}", '{"dsseEnvelope": {"payload": "\u00e9"}}', '{"a": 1}', "1"]
)
def test_malformed_attestations_that_a_verdict_rests_on(document, attestation):
    document["evidence"]["quality"]["attestation"] = attestation
    rest_on(document)
    with pytest.raises(PassportError):
        check(document)


# The last byte of P-256's object identifier, changed into that of no curve.
P256_OID, NO_OID = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d03017f")
DER = KEYS.release.public_key().public_bytes(
    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
)
UNKNOWN_CURVE = (
    "-----BEGIN PUBLIC KEY-----\n"
    + base64.b64encode(DER.replace(P256_OID, NO_OID)).decode()
    + "\n-----END PUBLIC KEY-----\n"
)


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        ("", "a trusted key is not a PEM public key"),
        ("\ud800", "a trusted key is not a PEM public key"),
        ("-----BEGIN PUBLIC KEY-----", "a trusted key is not a PEM public key"),
        (UNKNOWN_CURVE, "a trusted key is not a PEM public key"),
        (
            public_pem(ed25519.Ed25519PrivateKey.generate().public_key()),
            "a trusted key is neither ECDSA P-256 nor ML-DSA-65",
        ),
    ],
    ids=["empty", "surrogate", "cut", "unknown curve", "ed25519"],
)
def test_unusable_trusted_keys(document, pem, message):
    refused(document, message, trusted=[*TRUSTED, pem])


NAMES = st.sampled_from(["verdict", "evidence", "attestation", "report", "quality"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["verdict", "evidence", "attestation", "report", "quality"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
PATHS = st.sampled_from(
    [("verdict",), ("evidence",)]
    + [("evidence", kind) for kind in KINDS]
    + [("evidence", kind, part) for kind in KINDS for part in ("attestation", "report")]
)


@given(path=PATHS, value=VALUES)
@settings(deadline=None, max_examples=100)
def test_no_part_takes_another_value(genuine, path, value):
    document = copy.deepcopy(genuine)
    target = document
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    with pytest.raises(PassportError):
        check(document)


# A second signature


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A passport of a model whose release signs with two keys, and what to trust."""
    keys = Keys.generate(mldsa=("release",))
    folder = write_bundle(tmp_path_factory.mktemp("two") / "bundle", keys)
    files = read_bundle(folder).files
    pems = tuple(
        public_pem(key.public_key()) for key in (keys.release, keys.mldsa["release"])
    )
    evidence = {
        kind: {
            "attestation": files[attestation_file(kind)].decode(),
            "report": files[report_file(kind)].decode(),
        }
        for kind in KINDS
    }
    return {
        "verdict": files[VERDICT_FILE].decode(),
        "verdict_mldsa": files[mldsa_file(VERDICT_FILE)].decode(),
        "evidence": evidence,
    }, pems


def test_who_trusts_an_ml_dsa_key_needs_its_signature(two) -> None:
    whole, pems = two
    assert check(whole, trusted=pems).model == check(whole, trusted=pems[:1]).model
    stripped = {name: item for name, item in whole.items() if name != "verdict_mldsa"}
    check(stripped, trusted=pems[:1])
    refused(stripped, "the passport has no verdict_mldsa", trusted=pems)
    twice = {**whole, "verdict_mldsa": whole["verdict"]}
    refused(twice, "expected a signature by ml-dsa-65", trusted=pems)
    second = {**whole, "verdict": whole["verdict_mldsa"]}
    refused(second, "expected a signature by ecdsa-p256-sha256", trusted=pems)
    refused(whole, "not trusted for it", trusted=pems[1:])


def test_both_are_over_one_verdict(two) -> None:
    whole, pems = two
    stranger = Keys.generate(mldsa=("release",))
    other = dsse.sign(b"{}", stranger.mldsa["release"]).decode()
    key = public_pem(stranger.mldsa["release"].public_key())
    refused({**whole, "verdict_mldsa": other}, "not trusted for it", trusted=pems)
    said = "two verdicts, not one"
    refused({**whole, "verdict_mldsa": other}, said, trusted=(*pems, key))
