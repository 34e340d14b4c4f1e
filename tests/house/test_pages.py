"""Lists that pages state, beside the tables of the code: no page may contradict it."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from models.metrics import METRICS, known
from models.report import KINDS
from sealgate.cli import build_parser as client_parser
from sealgate.options import Options
from sealgate.profile import Profile
from sealgate.protocol.datatypes import DATATYPES
from security.access.permissions import ACTIONS
from security.access.quota_table import Limits
from security.admission.trust import ROLES
from security.assessment.engine.registry import NAMES
from security.audit.records import FIELDS
from security.commands import build_parser
from security.settings.issuers import ALGORITHMS, IssuerSettings
from security.settings.loading import _OTHER_VARIABLES, _SECTIONS
from security.settings.runtime import RuntimeSettings
from security.settings.service import ServiceSettings
from service.problems import _KINDS as PROBLEMS
from service.telemetry.metrics import FAMILIES
from tests.support.servers import ROOT

DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (*sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("*.md")))
    # What was true of a release stays in its list of changes.
    if path.name != "CHANGELOG.md"
}


def between(page: str, start: str, end: str) -> str:
    _, found, rest = PAGES[page].partition(start)
    assert found, f"{page}: {start!r}"
    return rest.partition(end)[0]


def capitals(passage: str) -> set[str]:
    """The words in capitals and digits of a passage."""
    return set(re.findall(r"\b[A-Z][A-Za-z]*[0-9]*(?:DSA)?\b", passage))


def code(passage: str) -> list[str]:
    """What stands between single backticks of a line."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", passage)


def table(page: str, head: str) -> list[list[str]]:
    """The rows of the table with this head, cell by cell."""
    lines = between(page, head + "\n", "\n\n").splitlines()[1:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def first_names(page: str, head: str) -> list[str]:
    """The names in the first cells of a table."""
    return [name for row in table(page, head) for name in code(row[0])]


def fields(kind: type) -> set[str]:
    return {item.name for item in dataclasses.fields(kind)}


def test_datatypes():
    stated = between("docs/protocol.md", "Datatypes: ", "(")
    assert capitals(stated) == set(DATATYPES)
    # A row of the other page may stand for several widths: INT8 … INT64.
    head = "| datatype | ONNX | as JSON | as bytes |"
    named = set(first_names("docs/serving.md", head))
    widths = {kind + str(bits) for kind in ("INT", "UINT") for bits in (16, 32)}
    assert set(DATATYPES) - widths == named


def test_algorithms():
    stated = between("docs/protocol.md", "signed with ", " by a key")
    assert capitals(stated) == set(ALGORITHMS)
    stated = between("docs/access.md", "| `algorithms` | of ", " | all")
    assert capitals(stated) == set(ALGORITHMS)


# Commands, their options and exit codes.


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every command with all words before it, and ``command --option`` of each."""
    for action in parser._actions:
        yield from (f"{parser.prog} {name}" for name in action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield inner.prog
                yield from options_of(inner)


@pytest.fixture(scope="module")
def commands() -> set[str]:
    found = {*options_of(build_parser()), *options_of(client_parser())}
    return {name.removeprefix("python -m ") for name in found}


def mentioned(text: str) -> Iterator[list[str]]:
    """The words of each command that a page shows, in a sentence or in a block."""
    joined = text.replace("\\\n", " ")
    shown = re.findall(
        r"(?:^\$ |^    |`)(?:\S+/)?(?:python -m )?"
        r"((?:security|sealgate) [a-z][^\n`|;]*)",
        joined,
        re.MULTILINE,
    )
    for command in shown:
        yield command.partition("#")[0].split()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_there_is(page: str, commands: set[str]) -> None:
    for program, *words in mentioned(PAGES[page]):
        where = program
        for word in words:
            if f"{where} {word}" in commands and not word.startswith("-"):
                where = f"{where} {word}"
        assert where != program, f"{page}: no command: {program} {' '.join(words)}"
        for word in words:
            option = re.match(r"--[a-z][a-z0-9-]*", word)
            if option and option[0] != "--help":
                assert f"{where} {option[0]}" in commands, f"{page}: {where} {word}"


def test_exit_codes() -> None:
    for page, text in PAGES.items():
        stated = re.findall(r"[Ee]xit code (\d+)|exits (\d+)", text)
        codes = {int(left or right) for left, right in stated}
        assert codes <= {0, 1, 2, 130}, page


# Settings.


def settings() -> set[str]:
    return {
        f"{section}.{item.name}"
        for section, kind in _SECTIONS.items()
        for item in dataclasses.fields(kind)
    }


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_there_is(page: str) -> None:
    known_names = settings()
    variables = {f"SEALGATE_{name.replace('.', '_').upper()}" for name in known_names}
    # A verdict's name in policies, and the client's own variables.
    variables |= _OTHER_VARIABLES | {"SEALGATE_ROBUSTNESS_WAIVED"}
    text = PAGES[page]
    assert {*re.findall(r"SEALGATE_[A-Z0-9_]+[A-Z0-9]", text)} <= variables
    files = ("audit.vkey", "audit.key", "service.toml", "access.toml")
    for section, name in re.findall(r"`([a-z]+)\.([a-z_0-9]+)(?: = [^`]*)?`", text):
        if section in _SECTIONS and f"{section}.{name}" not in files:
            assert f"{section}.{name}" in known_names, page


def test_the_keys_of_an_issuer() -> None:
    head = "| key | meaning | default |"
    first, second = PAGES["docs/access.md"].split(head)[1:]
    stated = [
        name
        for part in (first, second)
        for line in part.partition("\n\n")[0].splitlines()
        for name in code(line.split("|")[1] if "|" in line else "")
    ]
    assert {*stated} == fields(IssuerSettings)


def test_bounds_and_runs() -> None:
    runtime = first_names("docs/models.md", "| `[runtime]` | |")
    assert {*runtime} == fields(RuntimeSettings) - {"models"}
    bounds = table("docs/operations.md", "| setting | default | beyond it |")
    for names, defaults, _ in bounds:
        for name, stated in zip(code(names), defaults.split(", ")):
            assert amount(stated) == getattr(ServiceSettings(), name), name


def amount(text: str) -> float | None:
    """What a page writes as 32 KiB, 10 s, 50,000 or unlimited."""
    if text == "unlimited":
        return None
    number, _, unit = text.replace(",", "").partition(" ")
    return float(number) * {"KiB": 1 << 10, "MiB": 1 << 20}.get(unit, 1)


def test_quotas() -> None:
    stated = table("docs/quotas.md", "| limit | default | counts |")
    limits = {code(name)[0]: amount(default) for name, default, _ in stated}
    assert limits == {
        item.name: getattr(Limits(), item.name) for item in dataclasses.fields(Limits)
    }


# What an operator and a client see.


def test_series_and_their_labels() -> None:
    stated: dict[str, set[str]] = {}
    for names, labels, _ in table("docs/operations.md", "| series | labels | what |"):
        of_second = "of the second" in labels
        for place, name in enumerate(code(names)):
            own = set() if of_second and place == 0 else set(code(labels))
            stated[name.removesuffix("_total")] = own
    assert stated == {name: set(item.labels) for name, item in FAMILIES.items()}


def test_problems() -> None:
    stated: dict[str, int] = {}
    for status, names in table(
        "docs/protocol.md", "| status | the last part of `type` |"
    ):
        stated |= dict.fromkeys(code(names), int(status))
    assert stated == {name: item.status for name, item in PROBLEMS.items()}
    for page, text in PAGES.items():
        for status, name in re.findall(
            r"(\d{3}),? \(?`(?:…#)?([a-z]+(?:-[a-z]+)+)`", text
        ):
            assert stated.get(name) == int(status), f"{page}: {status} {name}"


def test_records_of_the_audit_log() -> None:
    head = "| field | meaning |"
    stated = first_names("docs/audit.md", head)
    assert {*stated} == {*FIELDS, "seq", "prev", "hash"}
    (actions,) = (row[1] for row in table("docs/audit.md", head) if "action" in row[0])
    assert {*code(actions)} == {*re.findall(r"[a-z-]+", FIELDS["action"])}


def test_endpoints() -> None:
    """The page has what the description of the interface has."""
    interface = yaml.safe_load((ROOT / "service" / "openapi.yaml").read_text())
    stated: set[str] = set()
    rows = table("docs/serving.md", "| method and path | scope | answer |")
    for words in (word for row in rows for word in code(row[0])):
        path = words.split()[-1]
        if not path.startswith("/"):
            continue  # a method of the next one
        whole = path.replace("{m}", "{model}")
        if "[/versions/{v}]" in whole:
            stated.add(whole.replace("[/versions/{v}]", "/versions/{version}"))
        stated.add(whole.replace("[/versions/{v}]", ""))
    described = {
        re.sub(r"\{name\}|\{model_name\}", "{model}", path)
        for path in interface["paths"]
    }
    assert described <= stated


def test_the_clients_options() -> None:
    stated = {*first_names("docs/client.md", "| option | meaning |")}
    told = code(PAGES["docs/client.md"])
    assert stated <= fields(Options)
    assert fields(Options) <= {*told, *re.findall(r"[a-z_0-9]+", " ".join(told))}
    of_profile = code(
        between("docs/client.md", "A profile (`profile.json`) holds", ". It")
    )
    assert {*of_profile} == fields(Profile)


# Evidence.


def test_kinds_of_evidence() -> None:
    rows = table("docs/attestation.md", "| kind | made by | says |")
    assert [row[0] for row in rows] == [*sorted(KINDS, key=[r[0] for r in rows].index)]
    assert {row[0] for row in rows} == {*KINDS}


def test_roles() -> None:
    names = first_names("docs/keys.md", "| key | kind | who holds it | what it does |")
    assert {f"keys/{role}.pem" for role in ROLES} <= {*names}
    for page, text in PAGES.items():
        assert {*re.findall(r"--role ([a-z-]+)", text)} <= {
            *ROLES,
            "model",
            "sealing",
        }, page


def test_checks() -> None:
    page = PAGES["docs/assessment.md"]
    assert [name for name in NAMES if not re.search(rf"\b{name}\b", page)] == []
    assert {*re.findall(r"--check ([a-z-]+)", page)} <= {*NAMES}


def metrics_of(text: str) -> Iterator[tuple[str, str]]:
    """Kind and name of each metric that a policy on a page bounds."""
    for kind, block in re.findall(
        r"^\[(?:require|models\.[^.\]]+|model\.require)\.?([a-z]+)\.metrics\]\n((?:.+\n)*)",
        text,
        re.MULTILINE,
    ):
        for line in block.splitlines():
            if "=" in line and not line.startswith("#"):
                yield kind, line.partition(" = ")[0].strip('"')


def policies() -> Iterable[Path]:
    return (
        *(ROOT / "deploy").glob("*policy*.toml"),
        *(ROOT / "deploy/policies").glob("*"),
    )


def test_metrics_of_policies() -> None:
    texts = {**PAGES, **{path.name: path.read_text() for path in policies()}}
    found = [
        (name, kind, metric)
        for name, text in texts.items()
        for kind, metric in metrics_of(text)
    ]
    assert len(found) > 20
    for name, kind, metric in found:
        assert known(kind, metric), f"{name}: {kind} {metric}"


def test_metrics_of_numbers() -> None:
    every = [name for kind in METRICS for name in METRICS[kind]]
    assert every
    rows = table("docs/assessment.md", "| check, kind | metrics |")
    for kinds, names in rows:
        kind = {"evasion": "robustness"}.get(code(kinds)[0], code(kinds)[0])
        for name in code(names):
            if "…" not in name:
                assert known(kind, name), f"{kind} {name}"


def test_actions_of_grants() -> None:
    texts = {**PAGES, "access.toml": (ROOT / "deploy" / "access.toml").read_text()}
    stated = [
        (page, action)
        for page, text in texts.items()
        for listed in re.findall(r"^#? ?actions = \[([^\]]*)\]", text, re.MULTILINE)
        for action in re.findall(r'"([^"]+)"', listed)
    ]
    assert stated
    assert [item for item in stated if item[1] not in ACTIONS] == []
