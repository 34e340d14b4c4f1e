"""Where an image runs its Bento, by the image's own configuration.

A clean Bento somewhere in an image says nothing: what counts is the one that the
container runs. An image holds exactly one, and its configuration runs that one, either
as deploy/container/Dockerfile says, or as BentoML's own images do: that starts
BentoML's entrypoint inside the Bento, works there, and names it in BENTO_PATH. Neither
sets a variable beyond its own: one could name other settings, another library, another
interpreter.

An unpacked file system (`docker export`) has no configuration. It can be given (`docker
image inspect`); without it, the place is where such images have their Bento, and that
the container starts it is not shown.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.errors import BundleError
from models.files import read_regular
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.admission.contents import refused
from security.admission.outside.layers import exact, is_saved, read_saved

__all__ = ["OWN_PATH", "check_config", "open_image"]

MAX_CONFIG_BYTES = 4 << 20
MAX_FOLDERS = 1_000_000

# As deploy/container/Dockerfile has it.
OWN_PATH = "/bento"
_OWN: Mapping[str, Any] = {
    "User": "10001:10001",
    "WorkingDir": OWN_PATH,
    "Entrypoint": ["/app/bin/python", "-P", "-m", "service", "--host", "0.0.0.0"],  # noqa: S104
    "Cmd": ["serve", "--timeout-graceful-shutdown", "30"],
}
# What images of release 0.1.0 start.
_OWN_BEFORE = {**_OWN, "Entrypoint": ["/app/bin/python", "-m", "bentoml"]}
_OWN_VARIABLES = {
    "BENTOML_DO_NOT_TRACK": "True",
    "BENTOML_HOME": "/tmp/bentoml",  # noqa: S108  (in a container that is its own)
    "HOME": "/tmp",  # noqa: S108
    "PYTHONDONTWRITEBYTECODE": "1",
    "SEALGATE_HOME": "/state",
}

# What lies in a saved image's folder: an OCI layout's, and docker's before version 25.
_SAVED = re.compile(
    r"oci-layout|blobs|(?:index|manifest)\.json|repositories"
    r"|[0-9a-f]{64}(?:\.json|\.tar)?"
)
_DEFAULT_PATHS = ("bento", "home/bentoml/bento")
# Variables of BentoML's images and of the Python image under them.
_FIXED = {
    "BENTOML_CONTAINERIZED": "true",
    "BENTOML_HOME": "/home/bentoml/",
    "VIRTUAL_ENV": "/app/.venv",
}
_FREE_OF_BASE = {
    *("GPG_KEY", "LANG", "PATH", "PYTHON_GET_PIP_SHA256", "PYTHON_GET_PIP_URL"),
    *("PYTHON_PIP_VERSION", "PYTHON_SETUPTOOLS_VERSION", "PYTHON_SHA256"),
    "PYTHON_VERSION",
}
_FREE = _FREE_OF_BASE | {
    *("BENTO_PATH", "LC_ALL", "PYTHONIOENCODING", "PYTHONUNBUFFERED"),
    *("UV_COMPILE_BYTECODE", "UV_NO_PROGRESS", "BENTOML_HF_CACHE_DIR"),
}


@contextmanager
def open_image(folder: Path, config: Path | None) -> Iterator[tuple[Path, bool]]:
    """The folder of the one Bento, and whether it is in an image.

    Args:
        folder: of a Bento, an unpacked image or a saved one; possibly hostile.
        config: the configuration of an unpacked image.

    Raises:
        AdmissionRefused: no Bento, several, or not the one that the image runs.
    """
    if is_saved(folder):
        if config is not None:
            raise refused("a saved image has a configuration of its own")
        _refuse_more(folder)
        saved = read_saved(folder)
        table = saved.entries()
        place = _only([name for name in table if _is_bento(name)], folder)
        _check_place(place, check_config(saved.config))
        with tempfile.TemporaryDirectory() as name:
            saved.unpack(place, table, Path(name))
            yield Path(name), True
        return
    place = _only(list(_find(folder)), folder)
    if config is not None:
        _check_place(place, check_config(_read_config(config)))
    elif place not in ("", *_DEFAULT_PATHS):
        raise refused(f"the Bento is in {place}: does the image run that one?")
    for part in Path(place).parents:
        if (folder / part).is_symlink():
            raise refused(f"{part} is a link")
    yield folder / place, place != "" or config is not None


def _refuse_more(folder: Path) -> None:
    """A file system could hold a saved image, and run something else."""
    for name in sorted(os.listdir(folder)):
        if not _SAVED.fullmatch(name):
            raise refused(f"{name} does not belong in a saved image")


def check_config(document: Mapping[str, Any]) -> str:
    """The path of the Bento that an image runs, without a slash in front.

    Args:
        document: an OCI image configuration, or one of `docker image inspect`.

    Raises:
        AdmissionRefused: it runs neither as deploy/container/Dockerfile says nor as
            BentoML's images do, or sets what these do not set. Values are not repeated:
            they may be secret.
    """
    name = "config" if "config" in document else "Config"
    config = exact({**document}, name).get(name)
    if not isinstance(config, dict):
        raise refused("the image's configuration is missing")
    exact(config, "Env", "Healthcheck", *_OWN)
    if config.get("Healthcheck") is not None:
        raise refused("the image runs a health check of its own")
    if config.get("WorkingDir") == OWN_PATH:
        return _check_own(config)
    return _check_bentoml(config)


def _check_own(config: Mapping[str, Any]) -> str:
    """The same, for an image of deploy/container/Dockerfile."""
    before = config.get("Entrypoint") == _OWN_BEFORE["Entrypoint"]
    for key, value in (_OWN_BEFORE if before else _OWN).items():
        if config.get(key) != value:
            raise refused(f"the image's {key} is not that of the Dockerfile")
    variables = _variables(config.get("Env"), _OWN_VARIABLES, _FREE_OF_BASE)
    for name in _OWN_VARIABLES:
        if name not in variables:
            raise refused(f"the image does not set {name}")
    return OWN_PATH.removeprefix("/")


def _check_bentoml(config: Mapping[str, Any]) -> str:
    """The same, for an image of BentoML's."""
    variables = _variables(config.get("Env"), _FIXED, _FREE)
    if not variables.get("PATH", "").startswith("/app/.venv/bin:"):
        raise refused("the image's PATH does not begin with /app/.venv/bin")
    path = variables.get("BENTO_PATH", "")
    if not path.startswith("/") or os.path.normpath(path) != path or path == "/":
        raise refused("the image's BENTO_PATH is no path")
    if config.get("WorkingDir") != path:
        raise refused("the image works elsewhere than in BENTO_PATH")
    if config.get("Entrypoint") != [f"{path}/env/docker/entrypoint.sh"]:
        raise refused("the image does not start the entrypoint of its Bento")
    if config.get("Cmd") not in (None, [], ["serve"]):
        raise refused("the image starts something else than `serve`")
    return path.removeprefix("/")


def _variables(found: Any, fixed: Mapping[str, str], free: set[str]) -> dict[str, str]:
    """An image's variables: some with their one value, some with any, no other."""
    texts = found if isinstance(found, list) else []
    pairs = [item.partition("=") for item in texts if isinstance(item, str)]
    variables = {name: value for name, _, value in pairs}
    if len(variables) != len(texts):
        raise refused("the image sets a variable twice")
    for name, value in variables.items():
        if name not in free and fixed.get(name) != value:
            raise refused(f"the image sets {name}")
    return variables


def _check_place(place: str, runs: str) -> None:
    if place != runs:
        raise refused(f"the image runs /{runs}, and its Bento is in /{place}")


def _only(found: list[str], folder: Path) -> str:
    """The folder of the one bento.yaml."""
    if not found:
        raise refused(f"{folder} holds no Bento")
    if len(found) > 1:
        places = ", ".join(f"/{name}" for name in sorted(found)[:3])
        raise refused(f"{len(found)} Bentos in one image: {places}")
    return found[0].rpartition("/")[0]


def _is_bento(name: str) -> bool:
    return name.rpartition("/")[2] == "bento.yaml"


def _find(folder: Path) -> Iterator[str]:
    """Every bento.yaml, whatever it is; links to folders are not followed."""
    for count, (parent, _, files) in enumerate(os.walk(folder)):
        if count > MAX_FOLDERS:
            raise refused(f"more than {MAX_FOLDERS} folders")
        if "bento.yaml" in files:
            yield (Path(parent) / "bento.yaml").relative_to(folder).as_posix()


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        data = read_regular(path, max_bytes=MAX_CONFIG_BYTES, follow_links=True)
        found = strict_json.loads(data, max_bytes=MAX_CONFIG_BYTES)
    except (BundleError, JsonError) as error:
        raise refused(f"image configuration {path.name}: {error}") from None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict):
        raise refused(f"image configuration {path.name}: expected one")
    return found
