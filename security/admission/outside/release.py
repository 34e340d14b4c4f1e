"""What a release's source tree gives when it is built, file by file.

Everything in a Bento but its lock, its models and bento.yaml follows from the release:
sources are copied, environment and interface are made by BentoML. They are made here
again, by the same code that made the Bento's, and compared both ways. So the versions
of BentoML and Python here must be those that built it.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs
import bentoml
import yaml  # type: ignore[import-untyped]  # it comes with BentoML, untyped
from _bentoml_sdk.images import populate_image_from_build_config
from bentoml._internal.bento.build_config import BentoBuildConfig, BentoPathSpec

from models.errors import BundleError
from models.files import read_regular
from security.admission.contents import (
    BASE_IMAGE,
    LOCK_FILE,
    MAX_SOURCE_BYTES,
    SERVICE_NAME,
    is_source,
    list_files,
    refused,
)
from security.admission.hooks import AdmittedImage
from security.admission.outside.description import Description

__all__ = ["Release", "build_release", "check_release"]

# Beside what a release gives: made for each Bento, and looked at elsewhere.
_OWN = ("bento.yaml", f"src/{LOCK_FILE}")


@dataclass(frozen=True)
class Release:
    """What a release gives when it is built.

    Attributes:
        files: by path in the Bento, all but its lock, its models and bento.yaml.
        image: how the image is made, as bento.yaml says it.
        bentoml_version: that it was built with here.
    """

    files: Mapping[str, bytes]
    image: Mapping[str, Any]
    bentoml_version: str


def build_release(source: Path, about: str) -> Release:
    """Build a release's source tree, but for its models.

    Args:
        source: trusted.
        about: the service's sentence about itself.
    """
    options = BentoBuildConfig.from_file(str(source / "bentofile.yaml"))
    files = dict(_sources(source, options))
    plain = AdmittedImage(base_image=BASE_IMAGE, distro="custom")
    image = populate_image_from_build_config(plain, options, str(source))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        info = image.environment(folder, [])
        files |= {path: _read(folder / path) for path in list_files(folder)}
    build_file = io.StringIO()
    options.with_defaults().to_yaml(build_file)
    files["src/bentofile.yaml"] = build_file.getvalue().encode()
    service = bentoml.service(name=SERVICE_NAME)(type("S", (), {"__doc__": about}))
    files["apis/openapi.yaml"] = yaml.dump(service.openapi_spec).encode()
    files["apis/schema.json"] = json.dumps(service.schema(), indent=2).encode()
    return Release(files, attrs.asdict(info), importlib.metadata.version("bentoml"))


def check_release(bento: Path, description: Description, release: Release) -> None:
    """Refuse a Bento that the release, built here, would not have given.

    Args:
        bento: its folder; possibly hostile.
        description: its bento.yaml.
        release: trusted.

    Raises:
        AdmissionRefused: names the first file that is missing, new or different.
    """
    if description.bentoml_version != release.bentoml_version:
        raise refused(
            f"built by BentoML {description.bentoml_version}: compare with a release "
            f"where that is installed, not {release.bentoml_version}"
        )
    for key, value in release.image.items():
        if description.image[key] != value:
            raise refused(f"bento.yaml: image: {key} is not the release's")
    found = {n for n in list_files(bento) if n not in _OWN and not _is_extra(n)}
    for name in sorted(found | release.files.keys()):
        short = name.removeprefix("src/")
        if name not in release.files:
            raise refused(f"{short} is not in the release")
        if name not in found:
            raise refused(f"{short} is missing, and in the release")
        if _read(bento / name) != release.files[name]:
            raise refused(f"{short} is not the release's")


def _is_extra(name: str) -> bool:
    """A model's file, or bytecode of a source: both are looked at elsewhere."""
    compiled = name.startswith("src/") and "/__pycache__/" in name
    return compiled or name.startswith("models/")


def _sources(source: Path, options: BentoBuildConfig) -> Iterator[tuple[str, bytes]]:
    """What a build copies, by path in the Bento."""
    included = BentoPathSpec(options.include, options.exclude or [], str(source))
    for folder, folders, files in os.walk(source):
        relative = Path(folder).relative_to(source)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = (relative / name).as_posix()
            if included.includes(path) and is_source(path):
                yield f"src/{path}", _read(source / path)
    yield "README.md", _read(source / "README.md")


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, max_bytes=MAX_SOURCE_BYTES)
    except BundleError as error:
        raise refused(str(error)) from None
