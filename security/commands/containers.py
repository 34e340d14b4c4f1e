"""docker, podman and buildah: the same image by whichever is here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import BundleError
from models.files import read_regular
from sealgate.protocol.statement import Resource
from security.errors import SettingsError

__all__ = [
    "BUILDERS",
    "Builder",
    "find_builder",
    "find_wheels",
    "image_subjects",
    "make_context",
]

BUILDERS = ("docker", "podman", "buildah")

_ROOT = Path(__file__).resolve().parents[2]
_DOCKERFILE = _ROOT / "deploy" / "container" / "Dockerfile"
_BYTECODE = _ROOT / "security" / "admission" / "outside" / "bytecode.py"
# One time for everything, so that equal contents are equal layers.
_OPTIONS = {
    "docker": ("build",),
    "podman": ("build", "--format=oci", "--layers", "--timestamp=0", "--pull=missing"),
    "buildah": ("bud", "--format=oci", "--layers", "--timestamp=0", "--pull=missing"),
}


@dataclass(frozen=True)
class Builder:
    """A program that builds images.

    Attributes:
        name: one of `BUILDERS`.
    """

    name: str

    def version(self) -> str:
        """What it says of itself, on one line."""
        return self._run("--version", stdout=subprocess.PIPE).strip()

    def build(
        self, context: Path, tag: str, arguments: Mapping[str, str], *, closed: bool
    ) -> None:
        """Build a context's image; what the program says goes to standard error.

        Raises:
            BundleError: it failed.
        """
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        if closed:
            given += ["--build-arg=PIP_NO_INDEX=1", "--network=none"]
        self._run(
            *_OPTIONS[self.name], *given,
            "--tag", tag, "--file", str(context / "Dockerfile"), str(context),
        )  # fmt: skip

    def save(self, tag: str, folder: Path) -> Path:
        """Save an image as an OCI layout; returns the folder.

        Raises:
            BundleError: it failed.
        """
        if self.name == "buildah":
            self._run("push", "--quiet", tag, f"oci:{folder}:{_short(tag)}")
            return folder
        with tempfile.TemporaryDirectory() as name:
            archive = Path(name) / "image.tar"
            form = ("--format", "oci-archive") if self.name == "podman" else ()
            self._run("save", *form, "--output", str(archive), tag)
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
        return folder

    def _run(self, *arguments: str, stdout: int | None = None) -> str:
        # Standard output is the command's own.
        done = subprocess.run(
            [self.name, *arguments],
            stdout=2 if stdout is None else stdout,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"},
            text=True,
            check=False,
        )
        if done.returncode:
            raise BundleError(
                f"{self.name} {arguments[0]} ended with {done.returncode}"
            )
        return done.stdout or ""


def find_builder(name: str | None) -> Builder:
    """The program of that name, or the first that is here.

    Raises:
        SettingsError: there is none.
    """
    for known in (name,) if name else BUILDERS:
        if shutil.which(known):
            return Builder(known)
    raise SettingsError(f"{name or 'docker, podman or buildah'}: not installed")


def find_wheels(folder: Path) -> list[Path]:
    """The packages in a folder.

    Raises:
        SettingsError: there are none.
    """
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise SettingsError(f"{folder}: holds no wheels")
    return found


def make_context(folder: Path, bento: Path, wheels: Sequence[Path]) -> Path:
    """Lay out what deploy/container/Dockerfile is built from; returns the folder."""
    shutil.copytree(bento, folder / "bento")
    shutil.copy(_DOCKERFILE, folder)
    shutil.copy(_BYTECODE, folder)
    target = folder / "wheels"
    target.mkdir()
    for path in wheels:
        shutil.copy(path, target)
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))
    return folder


def image_subjects(folder: Path, tag: str) -> tuple[Resource, ...]:
    """What a saved image is known by: its manifest, and its configuration, by digest.

    Args:
        folder: of one image, an OCI layout, which `verify` has accepted.
        tag: its name.

    Raises:
        BundleError: no OCI layout, as docker saves before version 25.
    """
    path = folder / "index.json"
    while True:
        document = json.loads(read_regular(path, max_bytes=4 << 20))
        if "config" in document:
            break
        images = [
            item["digest"]
            for item in document["manifests"]
            if "vnd.docker.reference.type" not in item.get("annotations", {})
        ]
        path = folder / "blobs" / "sha256" / images[0].removeprefix("sha256:")
    config = document["config"]["digest"].removeprefix("sha256:")
    return Resource(tag, path.name), Resource(f"{tag} configuration", config)


def _short(tag: str) -> str:
    return re.split(r"[:/]", tag)[-1]
