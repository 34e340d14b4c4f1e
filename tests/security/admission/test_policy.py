"""security.admission.policy: thresholds that hold, or a policy that is refused."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.report import KINDS
from security.admission.policy import (
    Policy,
    Promotion,
    Threshold,
    WaiverRules,
    load_policy,
    parse_policy,
    policy_mistakes,
)
from security.admission.rules import PROMOTION_KINDS, Requirement
from security.admission.toml_lines import key_lines
from security.admission.trust import ROLES
from security.errors import SettingsError
from tests.support.bundles import POLICY
from tests.support.servers import ROOT

SHIPPED = (ROOT / "deploy" / "policy.toml").read_bytes()


def test_a_policy_is_read_whole() -> None:
    policy = parse_policy(POLICY, name="policy.toml")
    assert policy.resource.sha256 == hashlib.sha256(POLICY).hexdigest()
    assert policy.verdict_signers == ("release",)
    assert policy.verdict_max_age == timedelta(days=30)
    assert [item.kind for item in policy.requirements] == [
        "structure",
        "quality",
        "privacy",
    ]
    assert policy.requirements[0].thresholds == (Threshold("errors", high=0.0),)
    assert policy.requirements[1].thresholds == (
        Threshold("accuracy", low=0.8, min_n=50, bound="interval"),
    )
    assert policy.requirements[2].conditions == {"neighbouring": "add_or_remove_one"}


def test_the_shipped_policy_asks_for_what_it_must() -> None:
    policy = load_policy(ROOT / "deploy" / "policy.toml")
    required = {item.kind: item for item in policy.requirements}
    assert {"privacy", "structure", "quality", "robustness"} <= required.keys()
    assert required["privacy"].conditions["accountant"] == "prv"
    bounds = {t.metric: t.high for t in required["privacy"].thresholds}
    assert 0 < bounds["epsilon"] <= 3
    assert 0 < bounds["delta"] < 0.01
    assert policy.verdict_signers == ("release",)
    assert policy.waivers.signers == ("privacy-officer",)
    assert not {"privacy", "structure"} & set(policy.waivers.kinds)
    # Duties are separated: who trains does not assess.
    assert "trainer" not in required["robustness"].signers
    assert "trainer" not in required["quality"].signers


def test_a_comment_changes_the_digest() -> None:
    one, two = (parse_policy(POLICY + tail, name="p") for tail in (b"", b"# x"))
    assert one.resource != two.resource


DEEP = b"[" * 3000
NO_KIND = POLICY[POLICY.index(b"[require.structure]") :]
MODELS = b"""
[[models]]
match = "fraud-*"
without = ["privacy"]
[models.require.quality]
signers = ["assessor", "release"]
min_signers = 2
max_age_days = 7
min_n = 500
[models.require.quality.metrics]
accuracy = { min = 0.9 }
auc = { min = 0.95, max = 1, min_n = 1000 }
[models.require.fairness]
signers = ["privacy-officer"]
max_age_days = 7
[[models]]
match = "toy"
[waivers]
signers = ["privacy-officer"]
max_days = 14
kinds = ["quality", "fairness"]
[promotion]
stays_monitored = true
[promotion.comparison]
min_n = 10
[promotion.comparison.metrics]
accuracy_loss = { max = 1, bound = "interval" }
[promotion.monitoring]
signers = ["monitor"]
max_age_days = 21
"""
FULL = POLICY + MODELS
STAMPS = "timestamps must be one of required, optional"
RANGE = "max_age_days must be 1 to 3650"
FINITE = r"\[require.structure\] metrics.errors: max must be a finite number"
NO_MATCH = "match must be a model's name"

# One fault each: the text, what replaces it, the line and the reason.
FAULTS = [
    (b"version = 1", b"version = 2", 2, "policy: expected version = 1"),
    (b"version = 1", b"version = true", 2, "policy: expected version = 1"),
    (b"version = 1", b"version = 1.0", 2, "policy: expected version = 1"),
    (b"version = 1", b"", 1, "policy: expected version = 1"),
    (
        b"version = 1",
        b'version = 1\nsignatures = "all"',
        3,
        "policy: signatures must be one of both, any, classical",
    ),
    (
        b"max_age_days = 30",
        b"max_age_days = 30\nsignatures = true",
        6,
        r"\[verdict\]: signatures must be one of",
    ),
    (
        b"max_days = 14",
        b'max_days = 14\nsignatures = ["both"]',
        43,
        r"\[waivers\]: signatures must be one of",
    ),
    (b"version = 1", b"verson = 1", 2, "unknown key 'verson'; did you mean 'version'"),
    (b"version = 1", b"version = ", 2, r"invalid value \(column 11\)"),
    (b"version = 1", b"version = \xff", 2, "not UTF-8"),
    (b"version = 1", b"version = " + DEEP, 2, "nested too deeply"),
    (b"version = 1", b"version = " + b"9" * 5000, 2, "exceeds the limit"),
    (b"version = 1", b"version = 1\nversion = 1", 3, "cannot overwrite a value"),
    (b"[verdict]", b"[verdic]", 3, "did you mean 'verdict'"),
    (b'["release"]', b'["admin"]', 4, r"\[verdict\]: signers must name roles"),
    (b'["release"]', b"[]", 4, r"\[verdict\]: signers must name roles"),
    (b'["release"]', b'"release"', 4, r"\[verdict\]: signers must name roles"),
    (b'["release"]', b"[{a = 1}]", 4, r"\[verdict\]: signers must name roles"),
    (b'["release"]', b'["release", "release"]', 4, "each once"),
    (b"version = 1", b"version = 1\ntimestamps = true", 3, STAMPS),
    (b"max_age_days = 30", b'max_age_days = 30\ntimestamps = "yes"', 6, STAMPS),
    (b"max_days = 14", b"max_days = 14\ntimestamps = []", 43, STAMPS),
    (b"min_n = 10\n", b'timestamps = "required"\n', 47, "unknown key 'timestamps'"),
    (b"max_age_days = 30", b"max_age_days = 0", 5, RANGE),
    (b"max_age_days = 30", b"max_age_days = 3651", 5, RANGE),
    (b"max_age_days = 30", b"max_age_days = 3e1", 5, RANGE),
    (b"max_age_days = 30", b"", 3, RANGE),
    (b"max_age_days = 30", b"max_age_day = 30", 5, "did you mean 'max_age_days'"),
    (b"[require.structure]", b"[require.struct]", 6, "no such kind; one of fairness"),
    (b"{ max = 0 }", b"0", 10, "metrics.errors: expected a table"),
    (b"{ max = 0 }", b"{}", 10, "metrics.errors: expected min, max or both"),
    (b"{ max = 0 }", b"{ max = 0, maximum = 0 }", 10, "unknown key 'maximum'"),
    (b"{ max = 0 }", b"{ max = nan }", 10, FINITE),
    (b"{ max = 0 }", b"{ max = -nan }", 10, FINITE),
    (b"{ max = 0 }", b"{ max = inf }", 10, FINITE),
    (b"{ max = 0 }", b'{ max = "0" }', 10, FINITE),
    (b"{ max = 0 }", b"{ max = true }", 10, FINITE),
    (b"{ max = 0 }", b"{ max = 1" + b"0" * 400 + b" }", 10, FINITE),
    (b"{ max = 0 }", b"{ max = 0, min = 1 }", 10, "min is above max"),
    (b"min_n = 50", b"min_n = -1", 15, "min_n must be 0 to 1000000000"),
    (b"min_n = 50", b"min_n = 50.0", 15, "min_n must be 0 to 1000000000"),
    (b'"interval"', b'"lower"', 15, 'bound must be "value" or "interval"'),
    (b'"interval"', b"[]", 15, 'bound must be "value" or "interval"'),
    (b'"add_or_remove_one"', b"[1]", 20, "neighbouring: expected a string, number"),
    (b'"add_or_remove_one"', b"nan", 20, "neighbouring: expected a string, number"),
    (NO_KIND, b"", 1, r"\[require\]: needs at least one kind of evidence"),
    (NO_KIND, b"[require]", 6, r"\[require\]: needs at least one kind of evidence"),
    (b'match = "toy"', b"", 38, NO_MATCH),
    (b'match = "toy"', b'match = ""', 39, NO_MATCH),
    (b'match = "toy"', b'match = "to/y"', 39, NO_MATCH),
    (b'match = "toy"', b'match = "[a-t]oy"', 39, NO_MATCH),
    (b'match = "toy"', b"match = 7", 39, NO_MATCH),
    (b'match = "toy"', b'math = "toy"', 39, "did you mean 'match'"),
    (b'"toy"', b'"fraud-*"', 39, "'fraud-\\*': an entry above matches it already"),
    (b'"fraud-*"', b'"*"', 39, "'toy': an entry above matches it already"),
    (b'without = ["privacy"]', b"without = []", 26, "without must name kinds"),
    (b'["privacy"]', b'["privcy"]', 26, "without must name kinds"),
    (b'["privacy"]', b'["quality"]', 26, "requires quality and goes without it"),
    (b'["privacy"]', b'["parity"]', 26, "without parity, which no default requires"),
    (b"min_signers = 2", b"min_signers = 0", 29, "min_signers must be 1 to 9"),
    (b"min_signers = 2", b"min_signers = 10", 29, "min_signers must be 1 to 9"),
    (b"min_n = 500", b"min_n = nan", 31, "min_n must be 0 to"),
    (b"[models.require.fairness]", b"[models.require.fair]", 35, "no such kind"),
    (b"max_days = 14", b"max_days = 366", 42, "max_days must be 1 to 365"),
    (b"max_days = 14", b"max_age = 14", 42, "did you mean 'max_days'"),
    (b"stays_monitored = true", b"stays_monitored = 1", 45, "must be true or false"),
    (b"stays_monitored = true", b"stay_monitored = true", 45, "did you mean 'stays_m"),
    (b"[promotion.comparison]", b"[promotion.comparision]", 46, "mean 'comparison'"),
    (b"min_n = 10\n", b"max_age_days = 9\n", 47, "unknown key 'max_age_days'"),
    (b"[promotion.monitoring]", b"[promotion.agreement]", 45, "needs a table monitor"),
    (b'["monitor"]', b'["watcher"]', 51, r"\[promotion.monitoring\]: signers must"),
    (b"max_age_days = 21", b"max_age_days = 0", 52, RANGE),
    (b'["quality", "fairness"]', b"[]", 43, r"\[waivers\]: kinds must name kinds"),
    (b'["quality", "fairness"]', b'"*"', 43, r"\[waivers\]: kinds must name kinds"),
]
# A JSON Schema cannot say these: rules between tables, and that 50.0 is no integer.
ONLY_THE_PARSER = {
    b"version = 1.0",
    b"max_age_days = 3e1",
    b"{ max = 0, min = 1 }",
    b"min_n = 50.0",
    b'"fraud-*"',
    b'"*"',
    b'["quality"]',
    b'["parity"]',
}


@pytest.mark.parametrize(
    ("old", "new", "line", "message"), FAULTS, ids=range(len(FAULTS))
)
def test_refuses_one_fault(old: bytes, new: bytes, line: int, message: str) -> None:
    assert FULL.count(old) or old == NO_KIND
    text = POLICY.replace(old, new) if old == NO_KIND else FULL.replace(old, new, 1)
    found = policy_mistakes(text, name="p.toml")
    assert any(re.match(rf"p\.toml:{line}: .*{message}", item) for item in found)
    with pytest.raises(SettingsError, match=re.escape(f"policy {found[0]}")):
        parse_policy(text, name="p.toml")


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    document = json.loads((ROOT / "deploy" / "policy.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return jsonschema.Draft202012Validator(document)


@pytest.mark.parametrize(("old", "new", "line", "message"), FAULTS)
def test_the_schema_refuses_it_too(
    schema: jsonschema.Draft202012Validator,
    old: bytes,
    new: bytes,
    line: int,
    message: str,
) -> None:
    text = POLICY.replace(old, new) if old == NO_KIND else FULL.replace(old, new, 1)
    try:
        document = tomllib.loads(text.decode())
    except (ValueError, RecursionError):
        return  # TOML's own rules
    assert schema.is_valid(document) == (new in ONLY_THE_PARSER and line != 43)


@pytest.mark.parametrize("text", [POLICY, FULL, SHIPPED])
def test_the_schema_takes_what_the_parser_takes(
    schema: jsonschema.Draft202012Validator, text: bytes
) -> None:
    parse_policy(text, name="p.toml")
    schema.validate(tomllib.loads(text.decode()))


def test_the_schema_knows_the_same_kinds_and_roles() -> None:
    document = json.loads((ROOT / "deploy" / "policy.schema.json").read_text())
    waivers = document["properties"]["waivers"]["properties"]
    assert tuple(waivers["kinds"]["items"]["enum"]) == (*KINDS, *PROMOTION_KINDS)
    assert tuple(waivers["signers"]["items"]["enum"]) == ROLES
    assert tuple(document["$defs"]["kinds"]["properties"]) == KINDS
    assert document["$defs"]["promotion"]["properties"].keys() == {
        *PROMOTION_KINDS,
        "stays_monitored",
    }


def test_every_mistake_is_listed() -> None:
    text = FULL.replace(b"max = 0", b"max = nan").replace(b'"fraud-*"', b'"fr/ud"')
    assert policy_mistakes(text, name="p.toml") == [
        "p.toml:10: [require.structure] metrics.errors: max must be a finite number",
        "p.toml:25: [[models]] 1: match must be a model's name, with * or ?",
    ]
    with pytest.raises(SettingsError, match=r"finite number \(and 1 more\)"):
        parse_policy(text, name="p.toml")
    assert policy_mistakes(FULL, name="p.toml") == []


# What a model needs


def kinds(policy: Policy, model: str) -> list[str]:
    return [item.kind for item in policy.required(model)]


def test_the_first_entry_that_matches_counts() -> None:
    policy = parse_policy(FULL, name="p.toml")
    assert kinds(policy, "other") == ["structure", "quality", "privacy"]
    assert kinds(policy, "toy") == ["structure", "quality", "privacy"]
    assert kinds(policy, "fraud") == ["structure", "quality", "privacy"]
    assert kinds(policy, "fraud-eu") == ["structure", "quality", "fairness"]
    more = FULL + b'[[models]]\nmatch = "fraud-eu"\nwithout = ["quality"]\n'
    assert kinds(parse_policy(more, name="p"), "fraud-eu") == kinds(policy, "fraud-eu")


def test_a_table_replaces_the_default_of_its_kind() -> None:
    policy = parse_policy(FULL, name="p.toml")
    quality = policy.required("fraud-eu")[1]
    assert quality.signers == ("assessor", "release")
    assert quality.min_signers == 2
    assert quality.max_age == timedelta(days=7)
    assert quality.thresholds == (
        Threshold("accuracy", low=0.9, min_n=500),
        Threshold("auc", low=0.95, high=1.0, min_n=1000),
    )
    assert policy.required("fraud-eu")[0] == policy.requirements[0]


def test_which_signatures_a_statement_needs() -> None:
    plain = parse_policy(FULL, name="p.toml")
    assert {item.signatures for item in plain.required("fraud-eu")} == {None}
    text = FULL.replace(b"version = 1", b'version = 1\nsignatures = "both"')
    text = text.replace(b"min_signers = 2", b'min_signers = 2\nsignatures = "any"')
    told = parse_policy(text, name="p.toml")
    assert (told.signatures, told.verdict_signatures) == ("both", "both")
    assert told.waivers.signatures == "both"
    of = {item.kind: item.signatures for item in told.required("fraud-eu")}
    assert of == {"structure": "both", "quality": "any", "fairness": "both"}
    comparison, monitoring = told.promotion_of("toy").requirements
    assert (comparison.signatures, monitoring.signatures) == (None, "both")


def test_what_a_promotion_needs() -> None:
    assert parse_policy(POLICY, name="p").promotion_of("toy") == Promotion()
    policy = parse_policy(FULL, name="p.toml")
    comparison, monitoring = policy.promotion_of("toy").requirements
    loss = Threshold("accuracy_loss", high=1.0, min_n=10, bound="interval")
    assert comparison == Requirement("comparison", (), timedelta(0), {}, (loss,))
    assert monitoring.signers == ("monitor",)
    assert monitoring.max_age == timedelta(days=21)
    assert policy.promotion_of("toy").stays_monitored
    # An entry's own takes the place of the whole.
    own = b'[[models]]\nmatch = "own"\n[models.promotion.agreement]\n'
    own += b'signers = ["monitor"]\nmax_age_days = 1\n'
    changed = parse_policy(FULL + own, name="p").promotion_of("own")
    assert [item.kind for item in changed.requirements] == ["agreement"]
    assert not changed.stays_monitored


def test_where_time_stamps_are_needed() -> None:
    needed = b'timestamps = "required"\n'
    assert not any(item.timestamps for item in policy_of(FULL).required("toy"))
    everywhere = policy_of(FULL.replace(b"version = 1\n", b"version = 1\n" + needed))
    assert everywhere.verdict_timestamps
    assert everywhere.waivers.timestamps
    for model in ("toy", "fraud-eu"):
        assert all(item.timestamps for item in everywhere.required(model))
    # Timers make these: it must be said there.
    monitoring = everywhere.promotion_of("toy").of("monitoring")
    assert monitoring is not None
    assert not monitoring.timestamps
    table = b"[promotion.monitoring]\n"
    said = policy_of(FULL.replace(table, table + needed)).promotion_of("toy")
    assert [item.timestamps for item in said.requirements] == [False, True]
    but = b'[verdict]\ntimestamps = "optional"\n'
    text = FULL.replace(b"version = 1\n", b"version = 1\n" + needed)
    assert not policy_of(text.replace(b"[verdict]\n", but)).verdict_timestamps


def policy_of(text: bytes) -> Policy:
    return parse_policy(text, name="p.toml")


def test_waiver_rules() -> None:
    policy = parse_policy(FULL, name="p.toml")
    assert policy.waivers == WaiverRules(
        ("privacy-officer",), timedelta(days=14), ("quality", "fairness")
    )
    assert parse_policy(POLICY, name="p.toml").waivers.signers == ()


def test_no_model_goes_without_any_evidence() -> None:
    text = b"""version = 1
verdict = { signers = ["release"], max_age_days = 1 }
require.quality = { signers = ["assessor"], max_age_days = 1 }
[[models]]
match = "x"
without = ["quality"]
"""
    assert policy_mistakes(text, name="p") == ["p:4: 'x': requires no evidence at all"]


# Lines


def paths(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple]:
    if path:
        yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from paths(item, (*path, name))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths(item, (*path, index))


ODD = b'''
a."b.c".d = 1
"a".e = [1, [2, """x]""\\"""""], # ] "
  { q = 'z', "r.s".t = [] } ]
[[m]]
x = 1979-05-27 07:32:00 # = 3
[m.r.q]
y = \'\'\'a
[b]\'\'\'\'\'
[[m]]
[[m.n]]
z = 1
[[m.n]]
z = "]]"
[m.n.o]
p = 1
[ spaced . "k" ]
v = {}
'''


@pytest.mark.parametrize("text", [POLICY, FULL, SHIPPED, ODD], ids=range(4))
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_every_key_has_its_line(text: bytes, newline: bytes) -> None:
    text = text.replace(b"\n", newline)
    lines = key_lines(text.decode())
    assert set(lines) == set(paths(tomllib.loads(text.decode())))
    source = text.decode().splitlines()
    for path, line in lines.items():
        name = next(part for part in reversed(path) if isinstance(part, str))
        if not isinstance(path[-1], int):
            assert name in source[line - 1]


def test_lines_of_odd_documents() -> None:
    lines = key_lines(ODD.decode())
    assert lines["a", "e", 2, "r.s", "t"] == 4
    assert lines["m", 0, "r", "q", "y"] == 8
    assert lines["m", 1, "n", 1, "o", "p"] == 16
    assert lines["spaced", "k"] == 17


@pytest.mark.parametrize(
    "text",
    [
        b"version = 1\nverdict = 5",
        b"version = 1\n[verdict]\nsigners=['release']\nmax_age_days=1\n[[require]]",
        b"version = 1\nrequire = 1\n[verdict]\nsigners=['release']\nmax_age_days=1",
        b"",
    ],
)
def test_refuses_another_shape(text: bytes) -> None:
    with pytest.raises(SettingsError):
        parse_policy(text, name="policy.toml")


def test_refuses_a_long_policy(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_bytes(POLICY + b"#" * (1 << 20))
    with pytest.raises(SettingsError, match="at most 1048576 allowed"):
        load_policy(tmp_path / "policy.toml")


_LINES = FULL.decode().splitlines()


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, len(_LINES) - 1),
    st.sampled_from(_LINES) | st.text(st.characters(codec="utf-8"), max_size=30),
)
def test_any_change_of_a_line_is_read_or_refused(number: int, line: str) -> None:
    text = "\n".join([*_LINES[:number], line, *_LINES[number + 1 :]])
    try:
        policy = parse_policy(text.encode(), name="policy.toml")
    except SettingsError:
        return
    assert policy.requirements
    assert policy.verdict_signers
    for rules in policy.models:
        assert policy.under(rules)
