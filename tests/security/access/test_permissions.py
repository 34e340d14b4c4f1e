"""security.access.permissions: what scopes and grants allow, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.access.claims import Principal
from security.access.permissions import (
    ACTIONS,
    Grant,
    Permissions,
    load_permissions,
    model_scope,
)
from security.errors import HiddenError, ScopeError, SettingsError
from tests.support.servers import ROOT

NONE = Permissions()


def principal(*scopes: str, **more: Any) -> Principal:
    return Principal("alice", "app", "1", frozenset(scopes), 0, **more)


def allowed(table: Permissions, who: Principal, model: str = "toy", **how: Any) -> bool:
    how = {"version": "1.0.0", "action": "infer"} | how
    return table.allows(who, model, how["version"], how["action"])


@pytest.mark.parametrize("scopes", [("infer:toy",), ("infer:*",), ("x", "infer:toy")])
def test_a_scope_allows_a_model(scopes: tuple[str, ...]) -> None:
    assert allowed(NONE, principal(*scopes))
    assert allowed(NONE, principal(*scopes), action="metadata")


def test_each_action_has_its_scope() -> None:
    for action in ("infer", "explain", "metadata"):
        assert allowed(NONE, principal(f"{action}:toy"), action=action)
        assert allowed(NONE, principal(f"{action}:*"), action=action)
    assert not allowed(NONE, principal("metadata:toy"))
    assert not allowed(NONE, principal("metadata:toy"), action="explain")
    assert not allowed(NONE, principal("explain:toy"))
    assert not allowed(NONE, principal("infer:toy"), action="explain")
    assert allowed(NONE, principal("explain:toy"), action="metadata")


@pytest.mark.parametrize(
    "scope",
    [
        "infer:other",
        "infer:toy2",
        "infer:to",
        "infer:TOY",
        "infer:",
        "infer",
        "infer:**",
        "infer:t*",
        "infer:toy:x",
        "xinfer:toy",
        "*",
        "*:*",
        "toy",
        "metrics",
        "admin",
        "",
    ],
)
def test_refuses_a_model(scope: str) -> None:
    for who in (principal(scope), principal()):
        with pytest.raises(HiddenError):
            NONE.authorize(who, "toy", "1.0.0", "infer")


def test_what_is_missing_is_said_to_who_may_know() -> None:
    NONE.authorize(principal("metadata:toy"), "toy", "1.0.0", "metadata")
    with pytest.raises(ScopeError, match=r"^infer:toy$"):
        NONE.authorize(principal("metadata:toy"), "toy", "1.0.0", "infer")


def test_a_model_called_star_is_no_wildcard() -> None:
    # The manifest refuses such a name; the check does not depend on that.
    assert not allowed(NONE, principal("infer:toy"), model="*")


def test_the_server_needs_its_own_scope() -> None:
    NONE.authorize_server(principal("metrics"), "metrics")
    for scope in ("infer:*", "infer:metrics", "metrics:read", "METRICS", "admin"):
        with pytest.raises(ScopeError, match=r"^metrics$"):
            NONE.authorize_server(principal(scope), "metrics")


@given(
    scopes=st.sets(st.text()),
    model=st.from_regex(r"[A-Za-z0-9._-]{1,9}", fullmatch=True),
)
def test_only_the_two_scopes_grant(scopes: set[str], model: str) -> None:
    granted = bool(scopes & {model_scope(model), "infer:*"})
    assert allowed(NONE, principal(*scopes), model=model) == granted


# Grants.

FULL = Grant(
    "full",
    subjects=frozenset({"alice", "bob"}),
    clients=frozenset({"app"}),
    groups=frozenset({"/readers"}),
    tenants=frozenset({"north"}),
    issuers=frozenset({"https://a"}),
    scopes=frozenset({"Models.Infer"}),
    models=frozenset({"chest-*", "toy"}),
    versions=frozenset({"1.*", "2.0.0"}),
    actions=frozenset({"infer"}),
)
WHO = Principal(
    "alice",
    "app",
    "1",
    frozenset({"Models.Infer", "x"}),
    0,
    "https://a",
    groups=frozenset({"/readers", "/writers"}),
    tenant="north",
)


@pytest.mark.parametrize(
    ("model", "version", "fits"),
    [
        ("toy", "1.0.0", True),
        ("chest-xray", "2.0.0", True),
        ("chest-", "1.9", True),
        ("chest", "1.0.0", False),
        ("toys", "1.0.0", False),
        ("xtoy", "1.0.0", False),
        ("toy", "2.0.1", False),
        ("toy", "10.0.0", False),
        ("toy", None, True),
    ],
)
def test_a_grant_is_about_models_and_versions(model, version, fits) -> None:
    table = Permissions("ignored", (FULL,))
    assert allowed(table, WHO, model, version=version) == fits
    assert allowed(table, WHO, model, version=version, action="metadata") == fits


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("subjects", {"subject": "eve"}),
        ("clients", {"client_id": "other"}),
        ("groups", {"groups": frozenset({"/writers"})}),
        ("groups", {"groups": frozenset()}),
        ("tenants", {"tenant": None}),
        ("tenants", {"tenant": "south"}),
        ("issuers", {"issuer": "https://b"}),
        ("scopes", {"scopes": frozenset({"x"})}),
    ],
)
def test_every_kind_of_caller_must_fit(kind: str, change: dict[str, Any]) -> None:
    table = Permissions("sufficient", (FULL,))
    assert allowed(table, WHO)
    other = replace(WHO, **change)
    assert FULL.misfit(other) == kind
    assert not allowed(table, other)


def test_how_scopes_and_grants_meet() -> None:
    grant = Grant(
        "g",
        subjects=frozenset({"alice"}),
        models=frozenset({"toy"}),
        actions=frozenset({"infer", "metrics"}),
    )
    scope = principal("infer:toy", "metrics")
    bare = principal()
    stranger = Principal("eve", "app", "1", frozenset({"infer:toy", "metrics"}), 0)
    expected = {
        "sufficient": (True, True, True),
        "necessary": (True, False, False),
        "ignored": (True, True, False),
    }
    for mode, outcomes in expected.items():
        table = Permissions(mode, (grant,))
        for who, outcome in zip((scope, bare, stranger), outcomes):
            assert allowed(table, who) == outcome, (mode, who)
            if outcome:
                table.authorize_server(who, "metrics")
            else:
                with pytest.raises(ScopeError):
                    table.authorize_server(who, "metrics")


# The file.


def load(folder: Path, text: str) -> Permissions:
    path = folder / "access.toml"
    path.write_text(text)
    return load_permissions(path)


def test_the_shipped_table_grants_nothing_beyond_scopes() -> None:
    assert load_permissions(ROOT / "deploy" / "access.toml") == NONE


def test_the_shipped_example_is_one(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "access.toml").read_text()
    example = text[text.index("# [[grants]]") :]
    lines = [line.removeprefix("# ") for line in example.splitlines()]
    (grant,) = load(tmp_path, "\n".join(lines)).grants
    assert grant.models == {"chest-*"}
    assert grant.actions == {"infer"}


def test_a_table(tmp_path: Path) -> None:
    table = load(
        tmp_path,
        'scopes = "necessary"\n'
        '[[grants]]\nname = "a"\neveryone = true\nactions = ["metrics"]\n'
        '[[grants]]\nname = "b"\ntenants = ["t"]\nmodels = ["*"]\nactions = ["infer"]',
    )
    assert (table.scopes, [grant.name for grant in table.grants]) == (
        "necessary",
        ["a", "b"],
    )
    assert table.grants[0].everyone


ONE = '[[grants]]\nname = "g"\nsubjects = ["a"]\nmodels = ["m"]\nactions = ["infer"]\n'
FAULTS = [
    ("x", "Expected"),
    ("scopes = 1", "scopes: one of sufficient"),
    ('scopes = "any"', "scopes: one of sufficient"),
    ("grant = []", "unknown key 'grant'"),
    ("grants = 1", r"expected at most 4096 \[\[grants\]\]"),
    ("grants = [1]", r"grant 1: expected tables"),
    ("[[grants]]", "grant 1: name is missing"),
    ('[[grants]]\nname = "g"', "names callers, or everyone"),
    (ONE + "everyone = true", "names callers, or everyone"),
    (ONE + "everyone = 1", "everyone: expected true or false"),
    (ONE + 'subject = ["a"]', "unknown key 'subject'"),
    (ONE.replace('["a"]', "[]"), "subjects: expected an array of texts"),
    (ONE.replace('["a"]', '[""]'), "subjects: expected an array of texts"),
    (ONE.replace('["a"]', '"a"'), "subjects: expected an array of texts"),
    (ONE.replace('["m"]', '["m n"]'), "'m n' is no name, or name and"),
    (ONE.replace('["m"]', '["a*b"]'), r"'a\*b' is no name, or name and"),
    (ONE.replace('["m"]', '["m/../x"]'), "is no name, or name and"),
    (ONE + 'versions = ["latest"]', "'latest' is no name, or name and"),
    (ONE.replace('["infer"]', '["Infer"]'), "of explain, feedback, infer, metadata, "),
    (ONE.replace('["infer"]', '["why"]'), "of explain, feedback, infer, metadata, "),
    (ONE.replace('["infer"]', '["admin"]'), "of explain, feedback, infer, metadata, "),
    (ONE.replace('["infer"]', '["metrics"]'), "metadata, monitoring need models"),
    (ONE.replace('models = ["m"]\n', ""), "metadata, monitoring need models"),
    (ONE + ONE, "grant 'g' is there twice"),
    ("x = " + "[" * 5000, r"access\.toml: "),
]


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=range(len(FAULTS)))
def test_refuses_one_fault(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, text)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        load_permissions(tmp_path / "none.toml")
    (tmp_path / "access.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"access\.toml"):
        load_permissions(tmp_path / "access.toml")


@settings(deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8"))
    | st.builds("{}\n{}".format, st.just(ONE), st.text(st.characters(codec="utf-8")))
)
def test_any_text_is_read_or_refused(tmp_path_factory, text: str) -> None:
    try:
        table = load(tmp_path_factory.mktemp("access"), text)
    except SettingsError:
        return
    assert all(grant.actions <= set(ACTIONS) for grant in table.grants)
