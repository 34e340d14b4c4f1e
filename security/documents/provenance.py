"""provenance.sigstore.json: how an image was made, as SLSA provenance v1.

Specification: slsa.dev/spec/v1.0/provenance. A pure function of what was built from
what; the role release signs it, which answers for what is deployed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sealgate.protocol.statement import Resource, Statement

__all__ = ["PROVENANCE_TYPE", "ImageBuild", "image_provenance"]

PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
# docs/container.md says what the parameters mean.
_BUILD_TYPE = "https://sealgate.dev/image-build/v1"
_BUILDER = "https://sealgate.dev/image-builder/v1"


@dataclass(frozen=True)
class ImageBuild:
    """One build of an image.

    Attributes:
        bento: ``name:version`` of the Bento in it.
        base, build_base: the images that it was built on and with, pinned by digest.
        closed: no package came from an index.
        tool: that built it, with its version.
        started, finished: RFC 3339.
        materials: what it was made from: requirements, Dockerfile, models, …
        sbom: its bill of materials.
    """

    bento: str
    base: str
    build_base: str
    closed: bool
    tool: str
    started: str
    finished: str
    materials: tuple[Resource, ...]
    sbom: Resource


def image_provenance(build: ImageBuild, subjects: tuple[Resource, ...]) -> bytes:
    """The statement to be signed.

    Args:
        build: how.
        subjects: the image's manifest and its configuration, by digest. A registry
            that packs layers anew changes the first and not the second.
    """
    images = dict.fromkeys((build.base, build.build_base))
    predicate = {
        "buildDefinition": {
            "buildType": _BUILD_TYPE,
            "externalParameters": {
                "bento": build.bento,
                "baseImage": build.base,
                "buildImage": build.build_base,
                "closed": build.closed,
            },
            "internalParameters": {"tool": build.tool},
            "resolvedDependencies": [
                *map(_image, images),
                *(item.to_object() for item in build.materials),
            ],
        },
        "runDetails": {
            "builder": {"id": _BUILDER},
            "metadata": {"startedOn": build.started, "finishedOn": build.finished},
            "byproducts": [build.sbom.to_object()],
        },
    }
    return Statement(subjects, PROVENANCE_TYPE, predicate).to_json()


def _image(reference: str) -> Mapping[str, Any]:
    name, _, digest = reference.partition("@sha256:")
    return {"uri": f"docker://{name}", "digest": {"sha256": digest}}
