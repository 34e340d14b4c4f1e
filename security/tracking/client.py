"""MLflow's client: the only module that imports it, and only once it is asked for.

It reaches whatever the tracking server names: stores of objects, folders, other hosts.
What it downloads is bounded by the operating system, what it raises is made one line,
and its reports to its makers are switched off.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from sealgate.errors import SealgateError
from security.errors import SettingsError, TrackingError
from security.tracking.addresses import ModelId, ModelVersion, RunPath

__all__ = ["Client", "Registered", "asking", "connect"]

Address = ModelVersion | ModelId | RunPath

_OURS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# MLflow's own are 7 tries, which take minutes where no server answers.
_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
_MAX_MESSAGE = 300
_BATCH = 100  # values in one request, fewer than any of MLflow's limits
_USER = re.compile(r"//[^/\s]+@")
_QUERY = re.compile(r"\?[^\s?]*=\S*")
_VERSION = re.compile(r"[0-9]{1,18}")
_RUN = re.compile(r"\w{1,64}")
_LOGGED = re.compile(r"m-[0-9a-f]{32}")


class Registered:
    """A version of a registered model, as the server has it.

    Attributes:
        address: with the version.
        run_id: of the run that logged it, or "".
        model_id: of the logged model, or "".
    """

    def __init__(self, name: str, found: Any) -> None:
        """Of the model that was asked for, and what the server answered."""
        version = str(found.version)
        if not _VERSION.fullmatch(version):
            raise TrackingError(f"MLflow: {name}: its version is no number")
        self.address = ModelVersion(name, version)
        self.run_id = _matching(_RUN, found.run_id)
        source = str(found.source or "").removeprefix("models:/")
        self.model_id = _matching(_LOGGED, found.model_id or source)


def connect(tracking_uri: str | None) -> Client:
    """MLflow's client.

    Args:
        tracking_uri: of the server; what MLFLOW_TRACKING_URI says, or MLflow's own
            default, where it is None.

    Raises:
        SettingsError: MLflow is not installed, or too old.
    """
    os.environ.update(_OURS)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import mlflow  # noqa: PLC0415  (optional, seconds)
    except ImportError as error:
        missing = "MLflow" if error.name == "mlflow" else f"MLflow's {error.name}"
        raise SettingsError(
            f"{missing} is not installed: pip install mlflow-skinny"
        ) from None
    if int(mlflow.__version__.partition(".")[0]) < 3:
        raise SettingsError(f"MLflow {mlflow.__version__}: 3 or newer is needed")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    return Client(mlflow, tracking_uri)


class Client:
    """A tracking server and its registry of models.

    Every method raises TrackingError where MLflow refuses, or cannot be reached.
    """

    def __init__(self, mlflow: Any, tracking_uri: str | None) -> None:
        self._mlflow = mlflow
        with asking():
            if tracking_uri:
                mlflow.set_tracking_uri(tracking_uri)
            self._client = mlflow.MlflowClient()

    @property
    def server(self) -> str:
        """Scheme, host and port of the tracking server; "" where it is none."""
        found = urlsplit(str(self._mlflow.get_tracking_uri()))
        if found.scheme not in ("http", "https"):
            return ""
        return f"{found.scheme}://{found.netloc.rpartition('@')[2]}"

    def registered(self, address: ModelVersion) -> Registered:
        """Look a version up, by its number or by an alias."""
        with asking():
            if address.version:
                found = self._client.get_model_version(address.name, address.version)
            else:
                found = self._client.get_model_version_by_alias(
                    address.name, address.alias
                )
            return Registered(address.name, found)

    def files(self, address: Address) -> dict[str, int]:
        """Names and sizes, as the server states them, of the files in a folder."""
        with asking():
            found = self._mlflow.artifacts.list_artifacts(artifact_uri=address.uri)
            return {
                PurePosixPath(str(item.path)).name: int(item.file_size or 0)
                for item in found
                if not item.is_dir
            }

    def download(self, address: Address, name: str, folder: Path, room: int) -> Path:
        """Download a file into a folder.

        Args:
            address: of the folder that it is in.
            name: of the file, a plain one.
            folder: of this user alone.
            room: no file may be longer, in bytes: the system refuses to write more. A
                server may have a folder of many files where it listed one.
        """
        with tempfile.TemporaryDirectory(dir=folder) as place:
            with asking(), _short_files(room):
                came = self._mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{address.uri}/{name}", dst_path=place
                )
            inside = Path(os.path.realpath(came))
            if not inside.is_relative_to(os.path.realpath(place)):
                raise TrackingError(f"{name}: MLflow put it outside of its folder")
            return inside.replace(folder / name)

    def experiment(self) -> str:
        """The id of the experiment that MLFLOW_EXPERIMENT_NAME or _ID names.

        It is made where there is none of that name.
        """
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "")
        told = os.environ.get("MLFLOW_EXPERIMENT_ID") or ("" if name else "0")
        with asking():
            if told:
                return str(self._client.get_experiment(told).experiment_id)
            if found := self._client.get_experiment_by_name(name):
                return str(found.experiment_id)
            return str(self._client.create_experiment(name))

    def create_run(self, name: str, *, began_ms: int | None = None) -> str:
        """Begin a run in that experiment.

        Args:
            name: of the run.
            began_ms: when, in milliseconds since 1970; now, if it is None.

        Returns:
            Its id.
        """
        experiment = self.experiment()
        with asking():
            run = self._client.create_run(experiment, began_ms, run_name=name)
            return str(run.info.run_id)

    def end_run(self, run_id: str) -> None:
        """End a run in good order."""
        with asking():
            self._client.set_terminated(run_id)

    def log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] = {},
        params: Mapping[str, str] = {},
        tags: Mapping[str, str] = {},
        model_id: str = "",
    ) -> None:
        """Write to a run; metrics also to the logged model, if there is one."""
        points = [(name, value, 0) for name, value in metrics.items()]
        with asking():
            entities = self._mlflow.entities
            rows = {
                "params": [entities.Param(*item) for item in params.items()],
                "tags": [entities.RunTag(*item) for item in tags.items()],
            }
            for kind, values in rows.items():
                for part in _parts(values):
                    self._client.log_batch(run_id, **{kind: part})
        self.log_points(run_id, points, model_id=model_id)

    def log_points(
        self, run_id: str, points: list[tuple[str, float, int]], *, model_id: str = ""
    ) -> None:
        """Write metrics, each with its step, to a run."""
        now = int(time.time() * 1000)
        with asking():
            metrics = [
                self._mlflow.entities.Metric(
                    name, value, now, step, model_id=model_id or None, run_id=run_id
                )
                for name, value, step in points
            ]
            for part in _parts(metrics):
                self._client.log_batch(run_id, metrics=part)

    def log_files(self, run_id: str, folder: Path, path: str) -> None:
        """Write the files of a folder to a folder of a run's artifacts."""
        with asking():
            self._client.log_artifacts(run_id, str(folder), path)

    def tag_version(self, address: ModelVersion, tags: Mapping[str, str]) -> None:
        """Tag a version of a registered model."""
        with asking():
            for name, value in tags.items():
                self._client.set_model_version_tag(
                    address.name, address.version, name, value
                )

    def set_alias(self, address: ModelVersion, alias: str) -> None:
        """Have an alias name a version."""
        with asking():
            self._client.set_registered_model_alias(
                address.name, alias, address.version
            )


def _matching(form: re.Pattern[str], value: object) -> str:
    """What the server says, where it has the form; else nothing."""
    return value if isinstance(value, str) and form.fullmatch(value) else ""


def _parts(values: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _BATCH):
        yield values[start : start + _BATCH]


@contextmanager
def asking() -> Iterator[None]:
    """One line in place of what MLflow, or the store behind it, raises."""
    try:
        yield
    except SealgateError:
        raise
    except Exception as error:  # noqa: BLE001  (other people's servers and stores)
        shown = "".join(c if c.isprintable() else " " for c in str(error))
        text = " ".join(shown.split()) or type(error).__name__
        # An address may hold a name and a password, or be signed in its query.
        text = _USER.sub("//", text)
        text = _QUERY.sub("?...", text)
        raise TrackingError(f"MLflow: {text[:_MAX_MESSAGE]}") from None


@contextmanager
def _short_files(room: int) -> Iterator[None]:
    """Let nothing in this process write a file that is longer.

    It holds for MLflow's threads and for its stores' libraries: none has a bound of its
    own, and the size that a server states may be wrong.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    bounds = [room, *(item for item in (soft, hard) if item != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
