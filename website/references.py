"""Reference pages, written from the code: commands, settings, the policy, modules.

What a page says is taken from where the code says it: parsers, the classes of the
settings with their docstrings, the policy's JSON Schema. So no page can be out of date.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import griffe

import sealgate
from sealgate.cli import build_parser as client_parser
from security.commands import COMMANDS
from security.commands import build_parser as toolkit_parser
from security.settings.loading import _SECTIONS as TABLES

__all__ = ["commands", "modules", "policy", "settings"]

# argparse has no public way to list a parser's arguments.
# ruff: noqa: SLF001

_ROOT = Path(__file__).resolve().parents[1]
# Rooms whose modules others may import, and in what order they are read.
_ROOMS = ("sealgate", "sealgate/protocol", "models", "security/admission")


# Commands.


def commands() -> Iterator[tuple[str, str]]:
    """A page for the client's command, and one for each subcommand of the toolkit.

    Yields:
        Path of the page below the site's root, and its Markdown.
    """
    yield "reference/commands/sealgate.md", _command_page(client_parser(), "sealgate")
    for name in COMMANDS:
        found = _children(toolkit_parser(name))[name]
        yield f"reference/commands/{name}.md", _command_page(found, name)


def _command_page(parser: argparse.ArgumentParser, title: str) -> str:
    return "\n".join([f"# {title}", "", *_command(parser, 2)])


def _command(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """What `--help` says of a command, then the same of each of its subcommands."""
    yield from _paragraph(parser.description)
    yield from ("```text", _usage(parser), "```", "")
    rows = [row for action in parser._actions for row in _argument(action)]
    if rows:
        yield from ("| argument | |", "|---|---|", *rows, "")
    yield from _paragraph(parser.epilog)
    for name, child in _children(parser).items():
        yield from (f"{'#' * level} {name}", "")
        yield from _command(child, level + 1)


def _usage(parser: argparse.ArgumentParser) -> str:
    """On lines that fit on a page, whatever the width of a terminal."""
    found = re.sub(r"\s+", " ", parser.format_usage().removeprefix("usage: "))
    return textwrap.fill(found, 76, subsequent_indent="    ", break_on_hyphens=False)


def _argument(action: argparse.Action) -> Iterator[str]:
    """The row of an argument; nothing of those that have no words of their own."""
    if isinstance(action, argparse._SubParsersAction | argparse._HelpAction):
        return
    if action.help is argparse.SUPPRESS:
        return
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    if not names:
        names = f"`{action.metavar or action.dest}`"
    elif action.nargs != 0:
        names += f" `{_value(action)}`"
    yield f"| {names} | {_cell(_help(action))} |"


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    if action.metavar is not None:
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


def _help(action: argparse.Action) -> str:
    known = {**vars(action), "prog": "", "default": _shown(action.default)}
    if action.choices is not None:
        known["choices"] = ", ".join(map(str, action.choices))
    return (action.help or "") % known


def _shown(default: object) -> object:
    """A default that is no matter of the machine the page is made on."""
    return default.name if isinstance(default, Path) else default


def _children(
    parser: argparse.ArgumentParser,
) -> Mapping[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


# Settings.


def settings() -> tuple[str, str]:
    """The page of deploy/service.toml: each table and key, what it is unless set."""
    lines = [
        "# Settings",
        "",
        "Every key of `deploy/service.toml`. `[access] issuer` is also the variable "
        "`SEALGATE_ACCESS_ISSUER`, which wins. An unknown key or variable ends the "
        "start; `python -m security config` prints what holds.",
    ]
    for name, kind in TABLES.items():
        lines += ["", f"## [{name}]", "", *_table(kind)]
    return "reference/settings.md", "\n".join(lines)


def _table(kind: type[Any]) -> Iterator[str]:
    words, keys = _documented(kind)
    yield from _paragraph(words)
    yield from ("| key | kind | unless set | |", "|---|---|---|---|")
    for item in dataclasses.fields(kind):
        name = f"`{item.name}`"
        yield (
            f"| {name} | `{_cell(_type(item.type))}` | {_default(item)} | "
            f"{_cell(keys.get(item.name, ''))} |"
        )
    for item in dataclasses.fields(kind):
        part = _part(item)
        if part is not None:
            yield from ("", f"### {item.name}: {part.__name__}", "", *_table(part))


def _part(item: dataclasses.Field[Any]) -> type[Any] | None:
    """The class of a key that is a table, or a list of tables, itself."""
    if item.name in TABLES:  # it stands on the page already
        return None
    names = re.findall(r"\b[A-Z]\w+(?:Settings|Address)\b", str(item.type))
    for kind in _settings_classes():
        if kind.__name__ in names:
            return kind
    return None


def _settings_classes() -> Iterator[type[Any]]:
    for kind in TABLES.values():
        module = inspect.getmodule(kind)
        for found in vars(module).values():
            if inspect.isclass(found) and dataclasses.is_dataclass(found):
                yield found


def _documented(kind: type[Any]) -> tuple[str, dict[str, str]]:
    """What a class's docstring says of it, and of each attribute."""
    words, keys = "", {}
    for section in griffe.Docstring(inspect.getdoc(kind) or "").parse("google"):
        if section.kind is griffe.DocstringSectionKind.text:
            words += section.value
        elif section.kind is griffe.DocstringSectionKind.attributes:
            keys = {item.name: item.description for item in section.value}
    return words, keys


def _type(annotation: object) -> str:
    return str(annotation)


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default is not dataclasses.MISSING:
        return f"`{_literal(item.default)}`"
    if item.default_factory is not dataclasses.MISSING:
        made = item.default_factory()
        return "" if dataclasses.is_dataclass(made) else f"`{_literal(made)}`"
    return "required"


def _literal(value: object) -> str:
    """As TOML writes it, where it can."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list | frozenset | set):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{}" if not value else _cell(json.dumps(dict(value), default=str))
    if isinstance(value, str | Path):
        return json.dumps(str(value))
    return str(value)


# The policy.


def policy() -> tuple[str, str]:
    """The page of policy.toml, from its JSON Schema."""
    schema = json.loads((_ROOT / "deploy/policy.schema.json").read_text())
    lines = [
        "# Policy, key by key",
        "",
        "What `deploy/policy.schema.json` says; why is in [the policy](../policy.md).",
        "",
        *_schema(schema, schema["properties"], schema.get("required", ())),
    ]
    for name, part in {**schema["properties"], **schema["$defs"]}.items():
        objects = [one for one in (part, *part.get("anyOf", ())) if _keys(one)]
        for one in objects:
            lines += ["", f"## {name}", "", *_paragraph(part.get("description"))]
            lines += _schema(schema, _keys(one), one.get("required", ()))
    return "reference/policy.md", "\n".join(lines)


def _keys(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of a table, or of a table of tables."""
    if "properties" in part:
        return dict(part["properties"])
    inner = part.get("additionalProperties") or part.get("items") or {}
    return dict(inner.get("properties", {})) if isinstance(inner, dict) else {}


def _schema(
    schema: Mapping[str, Any], keys: Mapping[str, Any], required: Any
) -> Iterator[str]:
    """The table of some keys of a part of the schema."""
    yield from ("| key | value | |", "|---|---|---|")
    for name, part in keys.items():
        words = part.get("description", "")
        if name in required:
            words = f"Required. {words}"
        yield f"| `{name}` | {_kind(part, schema)} | {_cell(words)} |"


def _kind(part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a value may be."""
    if "$ref" in part:
        place = part["$ref"].removeprefix("#/").split("/")
        found: Any = reduce(lambda held, key: held[key], place, schema)
        if any(_keys(one) for one in (found, *found.get("anyOf", ()))):
            return f"[{place[-1]}](#{place[-1].lower()})"
        return _kind(found, schema)
    if "allOf" in part:
        return _kind(part["allOf"][0], schema)
    if "const" in part:
        return f"`{json.dumps(part['const'])}`"
    if "enum" in part:
        return ", ".join(f"`{json.dumps(one)}`" for one in part["enum"])
    if "anyOf" in part or "oneOf" in part:
        either = part.get("anyOf", part.get("oneOf"))
        return " or ".join(_kind(one, schema) for one in either)
    if part.get("type") == "array":
        return f"list of {_kind(part.get('items', {}), schema)}"
    bounds = [
        f"{word} {part[key]}"
        for key, word in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in part
    ]
    kind = part.get("type", "any")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    return " ".join([{"object": "table", "string": "text"}.get(kind, kind), *bounds])


# Modules.


def modules() -> Iterator[tuple[str, str]]:
    """A page for each room that others may import, module by module.

    Yields:
        Path of the page below the site's root, and its Markdown.
    """
    yield (
        "reference/python/sealgate.md",
        "\n".join(
            [
                "# sealgate",
                "",
                *_paragraph((sealgate.__doc__ or "").partition(">>>")[0]),
                *(_export(name) for name in sealgate.__all__),
            ]
        ),
    )
    for room in _ROOMS[1:]:
        name = room.replace("/", ".")
        lines = [f"# {name}", ""]
        for path in sorted((_ROOT / room).glob("[a-z]*.py")):
            lines += [f"::: {name}.{path.stem}", ""]
        yield f"reference/python/{name}.md", "\n".join(lines)


def _export(name: str) -> str:
    """What the package exports, or where on another page that is described."""
    module = getattr(sealgate, name).__module__
    if module.startswith("sealgate.protocol."):
        return f"`{name}`: [{module}.{name}](sealgate.protocol.md#{module}.{name})\n"
    return f"::: {module}.{name}\n"


# Markdown.


def _paragraph(text: str | None) -> Iterator[str]:
    if text:
        yield from (inspect.cleandoc(text).replace("<", "&lt;"), "")


def _cell(text: str) -> str:
    """A text in a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").strip()
