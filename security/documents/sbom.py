"""The software in the serving image, as a CycloneDX 1.6 SBOM.

Made from the compiled requirements, which is what the image is installed from: exact
versions, and the digests of every file that pip may take.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from models.report import Subject
from security.errors import SettingsError

__all__ = ["serving_sbom"]

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://sealgate.dev/sbom/v1")
_ROOT = "image"
# One requirement after its lines are joined (pip's requirements file format).
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[A-Za-z0-9._, -]*\])?\s*"
    r"==\s*(?P<version>[A-Za-z0-9.!+_-]+)\s*(?:;(?P<marker>[^#]*))?"
)
_HASH = re.compile(r"\s--hash=sha256:([0-9a-f]{64})(?=\s|$)")
_BENTO = re.compile(r"[a-z0-9][a-z0-9._-]*(?::[a-z0-9][a-z0-9._-]*)?")


@dataclass(frozen=True)
class _Package:
    name: str
    version: str
    marker: str
    sha256: tuple[str, ...]

    @property
    def purl(self) -> str:
        """Package URL (package-url/purl-spec, type pypi)."""
        name = self.name.lower().replace("_", "-")
        return f"pkg:pypi/{name}@{quote(self.version, safe='')}"


def serving_sbom(
    requirements: bytes,
    *,
    bento: str | None,
    base: str | None = None,
    models: Sequence[Subject] = (),
) -> bytes:
    """Write the SBOM.

    Args:
        requirements: compiled requirements, ``name==version`` with hashes.
        bento: ``name:version`` of the Bento that the image holds, if it is known.
        base: the image under it, ``NAME@sha256:DIGEST``, if it is known.
        models: that the Bento holds.

    Returns:
        CycloneDX JSON, the same bytes for the same arguments. It says itself that it
        is incomplete: what Python and the base image hold is not in the requirements.

    Raises:
        SettingsError: a line that is not an exact requirement, or a name that is no
            Bento's.
    """
    if bento is not None and not _BENTO.fullmatch(bento):
        raise SettingsError("bento: expected name:version")
    packages = _parse(requirements)
    parts = [_component(package) for package in packages]
    parts += [_model(subject) for subject in models]
    parts += [_base(base)] if base else []
    refs = [part["bom-ref"] for part in parts]
    name, _, version = (bento or "sealgate").partition(":")
    about = [base, *(subject.root_sha256 for subject in models)]
    known = about if base or models else []
    state = json.dumps([bento, requirements.decode(), *known])
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(_NAMESPACE, state).urn,
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "component": {
                "type": "container",
                "bom-ref": _ROOT,
                "name": name,
                **({"version": version} if version else {}),
            },
        },
        "components": parts,
        "dependencies": [
            {"ref": _ROOT, "dependsOn": refs},
            *({"ref": ref} for ref in refs),
        ],
        "compositions": [{"aggregate": "incomplete", "assemblies": [_ROOT]}],
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def _model(subject: Subject) -> dict[str, Any]:
    """A model by its root digest: bom.cdx.json in its bundle says the rest."""
    return {
        "type": "machine-learning-model",
        "bom-ref": f"bundle-{subject.root_sha256}",
        "name": subject.name,
        "version": subject.version,
        "hashes": [{"alg": "SHA-256", "content": subject.root_sha256}],
    }


def _base(reference: str) -> dict[str, Any]:
    """The image under it (package-url/purl-spec, type oci)."""
    name, _, digest = reference.partition("@")
    purl = f"pkg:oci/{name.rpartition('/')[2].partition(':')[0]}@{quote(digest)}"
    return {
        "type": "container",
        "bom-ref": purl,
        "name": name,
        "version": digest,
        "purl": purl,
    }


def _component(package: _Package) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "purl": package.purl,
        # Under a marker, it depends on the machine whether the package is there.
        "scope": "optional" if package.marker else "required",
    }
    if package.marker:
        marker = {"name": "sealgate:environment_marker", "value": package.marker}
        component["properties"] = [marker]
    if package.sha256:
        # Hashes of files to choose from, so not the component's own `hashes`.
        component["externalReferences"] = [
            {
                "type": "distribution",
                "url": f"https://pypi.org/project/{package.name}/{package.version}/",
                "comment": "pip takes one of the files with these hashes",
                "hashes": [
                    {"alg": "SHA-256", "content": digest} for digest in package.sha256
                ],
            }
        ]
    return component


def _parse(requirements: bytes) -> list[_Package]:
    try:
        text = requirements.decode()
    except UnicodeDecodeError:
        raise SettingsError("requirements: not UTF-8") from None
    packages = {package.purl: package for package in _packages(text)}
    if not packages:
        raise SettingsError("requirements: name no package")
    return [packages[purl] for purl in sorted(packages)]


def _packages(text: str) -> Iterator[_Package]:
    for count, line in _logical_lines(text):
        digests = tuple(sorted(_HASH.findall(line)))
        found = _REQUIREMENT.fullmatch(_HASH.sub("", line).strip())
        if found is None:
            raise SettingsError(f"requirements, line {count}: not name==version")
        marker = (found["marker"] or "").strip()
        yield _Package(found["name"], found["version"], marker, digests)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with content, joined at backslashes, with the number of the first."""
    joined, start = "", 0
    for count, line in enumerate(text.splitlines(), 1):
        content = re.sub(r"(^|\s)#.*", "", line).rstrip()
        start = start if joined else count
        joined += content.removesuffix("\\") + " "
        if content.endswith("\\"):
            continue
        if joined.strip():
            yield start, joined
        joined = ""
    if joined.strip():
        yield start, joined
