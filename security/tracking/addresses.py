"""Models and runs of MLflow, by their URIs.

::

    models:/NAME@ALIAS    models:/NAME/VERSION    models:/MODEL_ID
    runs:/RUN_ID          runs:/RUN_ID/PATH
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from security.errors import TrackingError

__all__ = ["ModelId", "ModelVersion", "RunPath", "parse_address"]

# MLflow forbids these in names; "?", "#" and "%" would mean something in a URI.
_NAME = r"[^/:@?#%\x00-\x1f]{1,256}"
_VERSION = re.compile(rf"models:/(?P<name>{_NAME})/(?P<version>[0-9]{{1,18}})")
_ALIAS = re.compile(rf"models:/(?P<name>{_NAME})@(?P<alias>[\w-]{{1,255}})")
_MODEL_ID = re.compile(r"models:/(?P<model_id>m-[0-9a-f]{32})")
_PATH = r"[\w@+=,. -]{1,256}"
_RUN = re.compile(rf"runs:/(?P<run_id>\w{{1,64}})(?P<path>(?:/{_PATH}){{0,16}})/?")


@dataclass(frozen=True)
class ModelVersion:
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        version: a number; empty where an alias was given that was not looked up.
        alias: empty where the version was given.
    """

    name: str
    version: str = ""
    alias: str = ""

    @property
    def uri(self) -> str:
        """As MLflow reads it."""
        if self.version:
            return f"models:/{self.name}/{self.version}"
        return f"models:/{self.name}@{self.alias}"


@dataclass(frozen=True)
class ModelId:
    """A logged model that need not be registered."""

    model_id: str

    @property
    def uri(self) -> str:
        """As MLflow reads it."""
        return f"models:/{self.model_id}"


@dataclass(frozen=True)
class RunPath:
    """A run, or a folder of its artifacts.

    Attributes:
        run_id: of the run.
        path: of the folder, from the root of the artifacts; empty for the run.
    """

    run_id: str
    path: str = ""

    @property
    def uri(self) -> str:
        """As MLflow reads it."""
        return f"runs:/{self.run_id}" + (f"/{self.path}" if self.path else "")


def parse_address(text: str) -> ModelVersion | ModelId | RunPath:
    """Parse a URI.

    Raises:
        TrackingError: another form.

    >>> parse_address("models:/credit@champion")
    ModelVersion(name='credit', version='', alias='champion')
    >>> parse_address("runs:/0a1b/model").uri
    'runs:/0a1b/model'
    """
    if found := _MODEL_ID.fullmatch(text):
        return ModelId(**found.groupdict())
    if found := _VERSION.fullmatch(text) or _ALIAS.fullmatch(text):
        if found["name"].strip(". ") == found["name"]:
            return ModelVersion(**found.groupdict())
    elif found := _RUN.fullmatch(text):
        path = found["path"].strip("/")
        if not {".", ".."} & set(path.split("/")):
            return RunPath(found["run_id"], path)
    raise TrackingError(
        f"{text[:100]!r}: expected models:/NAME@ALIAS, models:/NAME/VERSION, "
        "models:/MODEL_ID or runs:/RUN_ID/PATH"
    )
