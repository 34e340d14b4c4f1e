"""`policy check`, `explain` and `diff`, and the comparison behind the last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from security.admission.comparison import compare
from security.admission.policy import parse_policy, policy_mistakes
from security.commands import main
from tests.support.bundles import POLICY
from tests.support.promotions import PROMOTION
from tests.support.servers import ROOT

MODELS = b"""
[waivers]
signers = ["privacy-officer"]
max_days = 14
kinds = ["quality"]
[[models]]
match = "fraud-*"
without = ["privacy"]
[models.require.quality]
signers = ["assessor", "release"]
min_signers = 2
max_age_days = 7
[models.require.quality.metrics]
accuracy = { min = 0.9 }
"""
FULL = POLICY + MODELS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_bytes(FULL)
    return path


def test_check(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: ok\n"
    bad = tmp_path / "bad.toml"
    bad.write_bytes(FULL.replace(b"max = 0", b"mx = 0").replace(b"= 14", b"= 0"))
    assert main(["policy", "check", str(file), str(bad)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{file}: ok"
    assert [line.split(":")[1] for line in out[1:]] == ["10", "10", "26"]
    assert all(line.startswith(f"{bad}:") for line in out[1:])
    assert main(["policy", "check", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err.startswith("error: policy ")


def test_explain(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "explain", str(file)]) == 0
    out = capsys.readouterr().out
    assert "the worse end of the interval of accuracy must be at least 0.8, " in out
    assert "measured on at least 50 samples" in out
    assert "A model whose name is 'fraud-*' needs instead:" in out
    assert "quality: signed by 2 different keys of assessor or release" in out
    assert "no evidence of: privacy" in out
    assert "The verdict: signed by a release key, no older than 30 days." in out
    assert "May be waived: quality; signed by a privacy-officer key, for at most" in out


def test_explain_says_where_stamps_are_needed(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everywhere = b'version = 1\ntimestamps = "required"\n'
    file.write_bytes(FULL.replace(b"version = 1\n", everywhere))
    assert main(["policy", "explain", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    asked = [line for line in lines if "with a trusted time stamp" in line]
    assert len(asked) == len([line for line in lines if "signed by" in line])


def test_explain_one_model(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "explain", "--model", "fraud-eu", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("fraud-eu needs, by the entry for 'fraud-*':\n")
    assert "privacy:" not in out
    assert main(["policy", "explain", "--model", "toy", str(file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("toy needs, by the defaults:\n")
    assert "epsilon must be at most 3." in out


def test_explain_what_is_shipped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "explain", str(ROOT / "deploy" / "policy.toml")]) == 0
    assert "mechanism must be 'dp_sgd_gaussian'." in capsys.readouterr().out


def test_diff(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.toml"
    other.write_bytes(FULL + b"# the same\n")
    assert main(["policy", "diff", str(file), str(other)]) == 0
    assert capsys.readouterr().out == "no difference in what is demanded\n"
    other.write_bytes(FULL.replace(b"max = 3.0", b"max = 2.0"))
    assert main(["policy", "diff", str(file), str(other)]) == 0
    line = "stricter  defaults: privacy: metric epsilon: max 3 -> 2\n"
    assert capsys.readouterr().out == line
    assert main(["policy", "diff", str(other), str(file)]) == 1
    line = "looser    defaults: privacy: metric epsilon: max 2 -> 3\n"
    assert capsys.readouterr().out == line


# One change each: what it says, for whom; and the way back says the opposite.
CHANGES = [
    (b"min_n = 50", b"min_n = 60", "", "stricter", "accuracy: min_n 50 -> 60"),
    (b"min = 0.8", b"min = 0.85", "", "stricter", "accuracy: min 0.8 -> 0.85"),
    (b'"interval"', b'"value"', "", "looser", "bound interval -> value"),
    (b"min = 0.8, ", b"max = 1, ", "", "looser", "min 0.8 -> None"),
    (
        b"[require.quality]",
        b'[require.quality]\nsignatures = "both"',
        "",
        "stricter",
        "quality: signatures: by the trust root -> both",
    ),
    (
        b"version = 1",
        b'version = 1\nsignatures = "any"',
        "*",
        "looser",
        "verdict: signatures: by the trust root -> any",
    ),
    (b"max_age_days = 7", b"max_age_days = 8", "fraud-*", "looser", "max_age_days 7"),
    (b"min_signers = 2", b"min_signers = 1", "fraud-*", "looser", "min_signers 2 -> 1"),
    (b', "release"]', b"]", "fraud-*", "stricter", "signers: no longer release"),
    (b"max_days = 14", b"max_days = 15", "*", "looser", "waivers: max_days 14 -> 15"),
    (
        b'kinds = ["quality"]',
        b'kinds = ["quality", "privacy"]',
        "*",
        "looser",
        "waivers: kinds: also privacy",
    ),
    (
        b'without = ["privacy"]',
        b"",
        "fraud-*",
        "added",
        "privacy",
    ),
    (b"epsilon = { max = 3.0 }", b"", "", "removed", "privacy: metric epsilon"),
    (
        b"[require.quality]",
        b'[require.quality]\ntimestamps = "required"',
        "",
        "stricter",
        "quality: timestamps required",
    ),
    (
        b"[verdict]",
        b'[verdict]\ntimestamps = "required"',
        "*",
        "stricter",
        "verdict: timestamps required",
    ),
    (
        b"[waivers]",
        b'[waivers]\ntimestamps = "required"',
        "*",
        "stricter",
        "waivers: timestamps required",
    ),
    (
        b'neighbouring = "add_or_remove_one"',
        b"",
        "",
        "removed",
        "privacy: condition neighbouring",
    ),
]
OPPOSITE = {"stricter": "looser", "looser": "stricter"}
OPPOSITE |= {"added": "removed", "removed": "added"}


@pytest.mark.parametrize(("old", "new", "models", "effect", "what"), CHANGES)
def test_each_change(
    *, old: bytes, new: bytes, models: str, effect: str, what: str
) -> None:
    assert old in FULL
    before = parse_policy(FULL, name="old")
    after = parse_policy(FULL.replace(old, new, 1), name="new")
    found = [(c.models, c.effect) for c in compare(before, after) if what in c.what]
    assert found == [(models, effect)]
    back = {(c.models, c.effect) for c in compare(after, before)}
    assert (models, OPPOSITE[effect]) in back
    assert not compare(before, before)


def test_another_value_of_a_condition_counts_as_looser() -> None:
    before = parse_policy(FULL, name="old")
    after = parse_policy(FULL.replace(b"add_or_remove_one", b"x"), name="new")
    (change,) = compare(before, after)
    assert change.loosens
    assert change.what.endswith("'add_or_remove_one' -> 'x', another value")


def entry(match: str, without: str) -> bytes:
    return f'[[models]]\nmatch = "{match}"\nwithout = ["{without}"]\n'.encode()


@pytest.mark.parametrize(
    ("before", "after", "models", "whats"),
    [
        ([], [("a*", "privacy")], "a*", {"removed privacy"}),
        (
            [("a*", "privacy"), ("*b", "quality")],
            [("*b", "quality"), ("a*", "privacy")],
            "a* and *b",
            {"removed quality", "added privacy"},
        ),
        ([("a-?", "privacy")], [("a-*", "privacy")], "a-*", {"removed privacy"}),
        ([("*", "privacy")], [("x", "quality"), ("*", "privacy")], "x", None),
    ],
)
def test_patterns(
    *,
    before: list[tuple[str, str]],
    after: list[tuple[str, str]],
    models: str,
    whats: set[str] | None,
) -> None:
    old, new = (
        parse_policy(POLICY + b"".join(entry(*item) for item in items), name="p")
        for items in (before, after)
    )
    changes = [change for change in compare(old, new) if change.models == models]
    found = {f"{change.effect} {change.what}" for change in changes}
    assert found == (whats or {"removed quality", "added privacy"})


def test_a_promotion_is_compared_too() -> None:
    whole = POLICY + PROMOTION
    text = PROMOTION.replace(b"max = 0.1,", b"max = 0.2,")
    text = text[: text.index(b"[promotion.monitoring]")]
    old, new = (parse_policy(item, name="p") for item in (whole, POLICY + text))
    assert {f"{it.effect} {it.what}" for it in compare(old, new)} == {
        "looser promotion: agreement: metric disagreement: max 0.1 -> 0.2",
        "removed promotion: monitoring",
    }
    stays = whole.replace(b"[promotion]\n", b"[promotion]\nstays_monitored = true\n")
    (change,) = compare(old, parse_policy(stays, name="p"))
    assert change.effect == "stricter"


def test_the_examples_in_the_documentation() -> None:
    text = (ROOT / "docs" / "policy.md").read_text()
    examples = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(examples) > 5
    whole = "".join(examples)
    assert policy_mistakes(whole.encode(), name="policy.md") == []
    assert parse_policy(whole.encode(), name="policy.md").rules_for("fraud-eu")
    keys = set(re.findall(r"(\w+) =", whole))
    every = {"version", "signers", "min_signers", "max_age_days", "min_n", "min", "max"}
    assert every | {"bound", "match", "without", "max_days", "kinds"} <= keys


PROFILES = sorted((ROOT / "deploy/policies").glob("*.toml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profiles_are_policies_with_reasons(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "check", str(path)]) == 0
    text = path.read_text()
    policy = parse_policy(text.encode(), name=path.name)
    kinds = {item.kind for item in policy.requirements}
    assert {"provenance", "privacy", "structure", "quality", "robustness"} <= kinds
    others = {other.stem for other in PROFILES if other != path}
    assert {name for name in others if name in text} == others
    assert "privacy" not in policy.waivers.kinds


def test_new_adds_an_entry_for_one_model(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new.toml"
    asked = ["policy", "new", "--from", "imported", "--policy", str(file)]
    assert main([*asked, "--model", "credit", "--out", str(out)]) == 0
    assert out.read_text().startswith(file.read_text().rstrip())
    assert "# No epsilon can be computed" in out.read_text()
    made = parse_policy(out.read_bytes(), name="new.toml")
    profile = ROOT / "deploy/policies/imported.toml"
    wanted = parse_policy(profile.read_bytes(), name="imported.toml")
    assert {item.kind: item for item in made.required("credit")} == {
        item.kind: item for item in wanted.requirements
    }
    before = parse_policy(file.read_bytes(), name="policy.toml")
    assert made.required("other") == before.required("other")
    assert made.required("fraud-1") == before.required("fraud-1")
    assert made.waivers == before.waivers
    assert made.promotion_of("credit") == wanted.promotion != made.promotion_of("x")
    capsys.readouterr()
    assert main([*asked, "--model", "credit"]) == 0
    assert capsys.readouterr().out == out.read_text()


def test_new_refuses_what_would_not_hold(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        command = ["policy", "new", "--policy", str(file), *arguments]
        assert main(command) == 2
        return capsys.readouterr().err

    matched = refused("--from", "imported", "--model", "fraud-7")
    assert "has an entry for 'fraud-*', which matches 'fraud-7'" in matched
    assert "must be a model's name" in refused("--from", "imported", "--model", "[a]")
    kept = refused("--from", "imported", "--model", "a", "--out", str(file))
    assert "exists already" in kept
    with pytest.raises(SystemExit):
        main(["policy", "new", "--from", "importet", "--model", "a"])
