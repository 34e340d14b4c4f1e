"""What becomes of exported models: imported, compared, scanned and served.

Runs in the project's own environment, on the folders that `cases.write` made, and in a
process of its own: `run.measured` starts it.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sealgate
from models.bundle import read_bundle, report_file
from models.errors import BundleError
from models.files import write_atomic
from models.sessions import make_session
from sealgate.errors import SealgateError
from security.commands import main
from tests.conftest import mint
from tests.support import zoo
from tests.support.bundles import report
from tests.support.servers import serve

# What a served number may be away from onnxruntime's own, run on all rows at once.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SCANNED = 40


@dataclass(frozen=True)
class Case:
    """A folder of an exported model."""

    folder: Path
    home: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def bundle(self) -> Path:
        return self.home / self.name

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "case.json").read_bytes())
        return found

    def inputs(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The rows as the model takes them, by input."""
        with np.load(self.folder / "rows.npz") as file:
            if "x" in file:
                return dict.fromkeys(names, file["x"])
            return {name: _objects(file[name]) for name in names}


def _objects(array: np.ndarray) -> np.ndarray:
    return array.astype(object) if array.dtype.kind == "U" else array


def _command(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(item) for item in arguments])
    return code, out.getvalue(), err.getvalue().strip()


def measure(cases: Path, home: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Results by case, in a process whose environment is that of ``home``."""
    (home / "policy.toml").write_bytes(zoo.POLICY)
    assert _command("keygen")[0] == 0
    found = [Case(cases / name, home) for name in names]
    results = {case.name: _measured(case) for case in found}
    stored = [case for case in found if results[case.name].get("admitted")]
    _serve(stored, home, results)
    return results


def _measured(case: Case) -> dict[str, Any]:
    told = case.told
    result: dict[str, Any] = {key: told[key] for key in ("exporter", "estimator")}
    result["versions"] = told["versions"]
    if "error" in told:
        return result | {"not_exported": told["error"]}
    result |= _imported(case)
    if "refused" in result:
        return result
    manifest = read_bundle(case.bundle).manifest
    result["outputs"] = [str(item.spec) for item in manifest.outputs]
    return result | _scanned(case) | _admitted(case)


def _imported(case: Case) -> dict[str, Any]:
    """The import with the original's answers; without them where that is refused."""
    given = ("import", case.folder / "model.onnx", "--name", case.name)
    place = ("--version", "1.0.0", "--out", case.bundle)
    answers = ("--expect", case.folder / "expect.csv", "--data", _rows(case))
    code, said, refused = _command(*given, *place, *answers)
    found: dict[str, Any] = {}
    if code == 2:
        found["not_compared"] = _plain(refused, case)
        code, said, refused = _command(*given, *place)
    if code:
        return found | {"refused": _plain(refused, case)}
    lines = said.splitlines()
    found["findings"] = [line[10:] for line in lines if line.startswith("finding ")]
    found["notes"] = [line[10:] for line in lines if line.startswith("note ")]
    with contextlib.suppress(BundleError):
        metrics = read_bundle(case.bundle).report("parity").metrics
        found["parity"] = {name: _short(item.value) for name, item in metrics.items()}
        found["parity"]["rows"] = metrics["rows_that_differ"].n
    return found


def _rows(case: Case) -> Path:
    """The rows without the truth; inputs of one column each as columns."""
    path = case.home / f"{case.name}-rows.npz"
    with np.load(case.folder / "rows.npz") as file:
        np.savez(path, **{n: _column(n, file[n]) for n in file if n != "y"})
    return path


def _column(name: str, array: np.ndarray) -> np.ndarray:
    single = array.ndim == 2 and array.shape[1] == 1 and name != "x"
    return array[:, 0] if single else array


def _scanned(case: Case) -> dict[str, Any]:
    """A quick scan, of few rows: what is read is in question, not what withstands."""
    out, rows = case.home / f"{case.name}-scan", case.home / f"{case.name}-few.npz"
    with np.load(case.folder / "rows.npz") as file:
        np.savez(rows, **{n: _column(n, file[n])[:SCANNED] for n in file})
    given = ("--data", rows, "--out", out, "--jobs", 1)
    code, _, refused = _command("scan", case.bundle, *given)
    if code:
        return {"not_scanned": _plain(refused, case)}
    document = json.loads((out / "scan.json").read_bytes())
    by_name = {item["check"]: item for item in document["results"]}
    quality = by_name.get("quality", {}).get("metrics", {})
    metrics = {name: _short(item["value"]) for name, item in quality.items()}
    return {
        "reading": document["target"].get("decision", ""),
        "scan": {
            "checks": {name: item["status"] for name, item in by_name.items()},
            "accuracy": metrics.get("accuracy"),
            "accuracy_of_the_original": _original(case),
        },
    }


def _original(case: Case) -> float | None:
    """The share of rows on which the original is right, if it names classes."""
    from models.data.readers import read_table

    table = read_table(str(case.folder / "expect.csv"), base=Path())
    if "prediction" not in table.arrays:
        return None
    with np.load(case.folder / "rows.npz") as file:
        truth = file["y"].astype(str)
    said = np.asarray(table.column("prediction")).astype(str)
    return _short(float(np.mean(truth[:SCANNED] == said[:SCANNED])))


def _admitted(case: Case) -> dict[str, Any]:
    found = report("structure", read_bundle(case.bundle).subject)
    write_atomic(case.bundle / report_file("structure"), found.to_json())
    for step in (
        ("sign", case.bundle, "--role", "assessor", "--kind", "structure"),
        ("admit", case.bundle),
        ("store", case.bundle),
    ):
        code, _, refused = _command(*step)
        if code:
            return {"not_admitted": _plain(refused, case)}
    return {"admitted": True}


def _serve(cases: list[Case], home: Path, results: dict[str, dict[str, Any]]) -> None:
    """One server for all, and each asked by our own client."""
    names = [case.name for case in cases]
    settings = zoo.settings(home, names)
    with (
        serve("service.app:Sealgate", home, extra=settings) as server,
        sealgate.Client(server.url, token=mint(home, "infer:*")) as client,
    ):
        for case in cases:
            results[case.name]["served"] = _served(case, client)


def _served(case: Case, client: Any) -> str:
    """Whether what comes through the server is what onnxruntime gives here."""
    session = make_session(read_bundle(case.bundle).model)
    inputs = case.inputs([node.name for node in session.get_inputs()])
    batch = session.get_inputs()[0].shape[0]
    if isinstance(batch, int):
        inputs = {name: array[:batch] for name, array in inputs.items()}
    if session.get_inputs()[0].type == "tensor(float16)":
        inputs = {name: array.astype(np.float16) for name, array in inputs.items()}
    names = [node.name for node in session.get_outputs()]
    wanted = dict(zip(names, session.run(names, inputs)))
    try:
        answer = client.infer(case.name, inputs)
    except SealgateError as error:
        return f"{type(error).__name__}: {error}"[:200]
    for name, value in wanted.items():
        table = zoo.as_table(value)
        if answer[name].shape != table.shape or not _same(answer[name], table):
            return f"another {name}"
    return "same"


def _same(got: np.ndarray, wanted: np.ndarray) -> bool:
    if wanted.dtype.kind == "f":
        return bool(np.allclose(got, wanted, equal_nan=True, **CLOSE))
    return got.astype(str).tolist() == wanted.astype(str).tolist()


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _plain(text: str, case: Case) -> str:
    """A message without the paths of one run, and with short numbers."""
    text = text.replace(f"{case.name}-few.npz", "rows.npz")
    text = text.replace(f"{case.name}-rows.npz", "rows.npz")
    for place in (case.folder, case.home):
        text = text.replace(f"{place}/", "")
    text = re.sub(r"(\d\.\d\d)\d+", r"\1", text.splitlines()[-1])
    return re.sub(r"\s+", " ", text)[:300]


if __name__ == "__main__":
    found = measure(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:])
    Path(sys.argv[3]).write_text(json.dumps(found))
