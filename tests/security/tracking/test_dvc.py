"""Digests that DVC has recorded, in the very form in which it writes them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from models.bundle import read_bundle
from security import strict_yaml
from security.errors import TrackingError
from security.tracking import dvc
from tests.conftest import Command
from tests.support import small_training
from tests.support.bundles import onnx_model

DATA = b"a,b\n1,2\n"


def digest(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


MD5 = digest(DATA)


def out(path: str, md5: str = MD5, **more: object) -> dict[str, object]:
    return {"md5": md5, "size": len(DATA), "hash": "md5", "path": path, **more}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A DVC project with an empty cache and a file below a folder."""
    root = tmp_path / "project"
    (root / ".dvc").mkdir(parents=True)
    (root / "data").mkdir()
    (root / "data" / "rows.csv").write_bytes(DATA)
    return root


def record(file: Path, *outs: dict[str, object], **more: object) -> None:
    file.write_text(json.dumps({"outs": list(outs), **more}))  # JSON is YAML


def lock(file: Path, **stages: object) -> None:
    file.write_text(json.dumps({"schema": "2.0", "stages": stages}))


def stated(where: str) -> dict[str, object]:
    return {
        "data_dvc_file": where,
        "data_dvc_md5": MD5,
        "data_file_sha256": hashlib.sha256(DATA).hexdigest(),
    }


def test_a_file_without_a_record(project: Path, tmp_path: Path) -> None:
    rows = project / "data" / "rows.csv"
    assert dvc.tracked(rows, "data") == {}
    (project / "other.csv.dvc").write_text("not: [read")
    record(project / "data" / "other.csv.dvc", out("other.csv"))
    assert dvc.tracked(rows, "data") == {}
    # Nor a record outside of any project.
    (tmp_path / "rows.csv").write_bytes(DATA)
    record(tmp_path / "rows.csv.dvc", out("rows.csv"))
    assert dvc.tracked(tmp_path / "rows.csv", "data") == {}


def test_beside_the_file(project: Path) -> None:
    record(project / "data" / "rows.csv.dvc", out("rows.csv"))
    rows = project / "data" / "rows.csv"
    assert dvc.tracked(rows, "data") == stated("data/rows.csv.dvc")
    assert dvc.tracked(rows, "data", DATA) == stated("data/rows.csv.dvc")


def test_a_lock_is_read_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep the file lies below it: reading one may take seconds."""
    deep = project / "a" / "b" / "c" / "rows.csv"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(DATA)
    lock(project / "dvc.lock", make={"cmd": "x", "outs": [out("other")]})
    read: list[bytes] = []
    load = strict_yaml.load_mapping

    def counted(data: bytes, *, max_bytes: int) -> dict[str, object]:
        read.append(data)
        return load(data, max_bytes=max_bytes)

    monkeypatch.setattr(strict_yaml, "load_mapping", counted)
    assert dvc.recorded(deep) is None
    assert len(read) == 1


def test_from_another_working_folder(project: Path) -> None:
    record(project / "rows.csv.dvc", out("rows.csv"), wdir="data")
    record(project / "data" / "rows.csv.dvc", out("data/rows.csv"), wdir="..")
    found = dvc.tracked(project / "data" / "rows.csv", "data")
    assert found == stated("data/rows.csv.dvc")


def test_an_output_of_a_lock(project: Path) -> None:
    old = digest(b"before")
    lock(
        project / "dvc.lock",
        # A dependency is that of the run before: it says nothing of this one.
        train={"cmd": "x", "deps": [out("data/rows.csv", old)]},
        prepare={"cmd": "y", "outs": [out("data/rows.csv")]},
    )
    assert dvc.tracked(project / "data" / "rows.csv", "data") == stated("dvc.lock")
    lock(project / "dvc.lock", train={"deps": [out("data/rows.csv", old)]})
    assert dvc.tracked(project / "data" / "rows.csv", "data") == {}


def write_list(project: Path, files: dict[str, str]) -> str:
    listed = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    data = json.dumps(listed, sort_keys=True).encode()
    md5 = f"{digest(data)}.dir"
    place = project / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data)
    return md5


def test_a_file_of_a_folder(project: Path) -> None:
    # As DVC 3.67 has named the list of such a folder.
    assert (
        write_list(
            project,
            {
                "s/y": "3b5d5c3712955042212316173ccf37be",
                "x": "60b725f10c9c85c70d97880dfe8191b3",
            },
        )
        == "08e21f057948acbd7ce1d2971181fdae.dir"
    )
    md5 = write_list(project, {"rows.csv": MD5, "x/y": "0" * 32})
    record(project / "data.dvc", out("data", md5, nfiles=2))
    rows = project / "data" / "rows.csv"
    wanted = stated("data.dvc") | {"data_dvc_folder_md5": md5}
    assert dvc.tracked(rows, "data") == wanted
    place = project / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    place.write_text("[]")
    with pytest.raises(TrackingError, match="has another digest"):
        dvc.tracked(rows, "data")
    place.unlink()
    with pytest.raises(TrackingError, match="not in the project's cache: dvc fetch"):
        dvc.tracked(rows, "data")
    other = write_list(project, {"other.csv": MD5})
    record(project / "data.dvc", out("data", other))
    with pytest.raises(TrackingError, match=r"data\.dvc has no such file"):
        dvc.tracked(rows, "data")


def test_another_file_than_was_recorded(project: Path) -> None:
    rows = project / "data" / "rows.csv"
    record(project / "data" / "rows.csv.dvc", out("rows.csv", "0" * 32))
    with pytest.raises(
        TrackingError, match=f"its MD5 is {MD5}, data/rows.csv.dvc has 0"
    ):
        dvc.tracked(rows, "data")
    # The digest of another file is no way around.
    with pytest.raises(TrackingError, match="dvc commit"):
        dvc.tracked(rows, "data", DATA + b"3,4\n")
    older = {"outs": [{"md5": "0" * 32, "path": "rows.csv"}]}
    (project / "data" / "rows.csv.dvc").write_text(json.dumps(older))
    with pytest.raises(TrackingError, match="it is of DVC 2"):
        dvc.tracked(rows, "data")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("outs: [", "not plain YAML"),
        ("outs: &a [{md5: x, path: y}]\nb: *a", "aliases are not read"),
        ("outs: []\nouts: []", "a key is repeated"),
        ("#" * (dvc.MAX_RECORD_BYTES + 1), "at most 1048576 allowed"),
    ],
)
def test_a_record_that_cannot_be_read(project: Path, text: str, reason: str) -> None:
    (project / "data" / "rows.csv.dvc").write_text(text)
    with pytest.raises(TrackingError, match=rf"rows\.csv\.dvc: .*{reason}"):
        dvc.tracked(project / "data" / "rows.csv", "data")


@pytest.mark.parametrize(
    "outs",
    [
        *([], None, "rows.csv", [None], [{"path": "rows.csv"}], [{"md5": MD5}]),
        *([{"md5": "f" * 31, "path": "rows.csv"}], [{"md5": MD5, "path": 5}]),
        [{"md5": MD5, "path": "../../etc/passwd"}],
        [{"md5": MD5, "path": "rows.csv\0"}],
    ],
)
def test_a_record_of_nothing(project: Path, outs: object) -> None:
    record = project / "data" / "rows.csv.dvc"
    record.write_text(json.dumps({"outs": outs}))
    assert dvc.tracked(project / "data" / "rows.csv", "data") == {}


def test_a_training_records_it_and_refuses_other_rows(
    security: Command, project: Path
) -> None:
    rows = small_training.write_rows(project / "rows.csv")
    (project / "small.toml").write_text(small_training.CONFIG)
    md5 = digest(rows.read_bytes())
    record(project / "rows.csv.dvc", out("rows.csv", "0" * 32))
    config = str(project / "small.toml")
    refused = security("train", config, "--out", str(project / "bundle"))
    assert refused.returncode == 2
    assert f"rows.csv: its MD5 is {md5}, rows.csv.dvc has 0000" in refused.stderr
    assert not (project / "bundle").exists()
    # Before any budget was booked.
    assert security("ledger", "show").stdout == "nothing was spent\n"
    checked = security("check", config)
    assert checked.returncode == 2
    assert "rows.csv.dvc has 0000" in checked.stderr
    record(project / "rows.csv.dvc", out("rows.csv", md5))
    done = security("train", config, "--out", str(project / "bundle"))
    assert done.returncode == 0, done.stderr
    conditions = read_bundle(project / "bundle").report("provenance").conditions
    assert conditions["data_dvc_file"] == "rows.csv.dvc"
    assert conditions["data_dvc_md5"] == md5
    sha256 = hashlib.sha256(rows.read_bytes()).hexdigest()
    assert conditions["data_file_sha256"] == sha256


def test_an_import_records_it(security: Command, project: Path) -> None:
    model = onnx_model()
    (project / "model.onnx").write_bytes(model)
    md5 = digest(model)
    record(project / "model.onnx.dvc", out("model.onnx", md5))
    arguments = ("import", str(project / "model.onnx"), "--name", "toy")
    arguments += ("--version", "1.0.0", "--out", str(project / "bundle"))
    done = security(*arguments)
    assert done.returncode == 0, done.stderr
    conditions = read_bundle(project / "bundle").report("provenance").conditions
    assert conditions["model_dvc_md5"] == md5
    record(project / "model.onnx.dvc", out("model.onnx", "1" * 32))
    refused = security(*arguments[:-1], str(project / "other"))
    assert refused.returncode == 2
    assert "model.onnx.dvc has 1111" in refused.stderr
