"""bento.yaml, read strictly: what BentoML runs, and nothing beside it.

What could be read in two ways is refused by `security.strict_yaml`, and of the rest
each value must be the one that this service has. What may vary is when it was built, as
which version, and with which models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from security import strict_yaml
from security.admission.contents import SERVICE_NAME, SERVICE_OPTIONS, refused
from security.errors import YamlError

__all__ = ["Description", "parse_description"]

MAX_BYTES = 4 << 20

_TEXT = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .:+_-]{0,99}")
_IMAGE = {
    *("base_image", "python_version", "commands", "python_requirements"),
    *("post_commands", "build_include"),
}


@dataclass(frozen=True)
class Description:
    """What is left to compare of a bento.yaml.

    Attributes:
        tags: of the models that it names.
        about: the service's sentence about itself.
        bentoml_version: that built it.
        image: how the image is made: compared with a release's.
    """

    tags: frozenset[str]
    about: str
    bentoml_version: str
    image: Mapping[str, Any]


def parse_description(data: bytes) -> Description:
    """Read a bento.yaml of this service.

    Raises:
        AdmissionRefused: not one document of plain YAML, an unknown, missing or
            repeated key, or a value that this service does not have.
    """
    try:
        found = strict_yaml.load_mapping(data, max_bytes=MAX_BYTES)
    except YamlError as error:
        raise refused(f"bento.yaml: {error}") from None
    about = _about(found.get("schema"))
    services, tags = _services(found.get("services"))
    expected = _expected(found, services, about)
    for key in sorted(expected.keys() | found.keys()):
        if key == "image":
            continue
        if key not in found or key not in expected or found[key] != expected[key]:
            raise refused(f"bento.yaml: {key}: not that of the service Sealgate")
    image = found.get("image")
    if not isinstance(image, dict) or image.keys() != _IMAGE:
        raise refused("bento.yaml: image: not as it is built")
    return Description(tags, about, found["bentoml_version"], image)


def _expected(found: Mapping[str, Any], services: Any, about: str) -> dict[str, Any]:
    """Every key but the image, with its one value."""
    free = {
        key: found.get(key) if _is_text(found.get(key)) else "a short text"
        for key in ("version", "bentoml_version", "creation_time")
    }
    labels = found.get("labels")
    plain = isinstance(labels, dict) and all(map(_is_text, labels.values()))
    return {
        **free,
        "service": "service.app:Sealgate",
        "name": SERVICE_NAME,
        "labels": labels if plain else {},
        "models": [],
        "entry_service": SERVICE_NAME,
        "services": services,
        "envs": [],
        "schema": {
            "name": SERVICE_NAME,
            "type": "service",
            "routes": [],
            "description": about,
            "paths": {},
        },
        "args": {},
        "spec": 2,
        "image": None,
    }


def _services(found: Any) -> tuple[list[dict[str, Any]], frozenset[str]]:
    """The one service as it must be, with the models that are named, and their tags."""
    named = found[0] if isinstance(found, list) and found else {}
    models = named.get("models") if isinstance(named, dict) else None
    tags = [
        item["tag"]
        for item in models or ()
        if isinstance(item, dict) and _is_text(item.get("tag"))
    ]
    times = [
        item["creation_time"]
        for item in models or ()
        if isinstance(item, dict) and _is_text(item.get("creation_time"))
    ]
    service = {
        "name": SERVICE_NAME,
        "service": "",
        "models": [
            {"tag": tag, "module": "", "creation_time": time}
            for tag, time in zip(tags, times)
        ],
        "dependencies": [],
        "config": SERVICE_OPTIONS,
    }
    return [service], frozenset(tags)


def _about(schema: Any) -> str:
    about = schema.get("description") if isinstance(schema, dict) else None
    if not isinstance(about, str) or not about.isprintable() or len(about) > 1000:
        raise refused("bento.yaml: schema: not as it is built")
    return about


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and _TEXT.fullmatch(value) is not None
