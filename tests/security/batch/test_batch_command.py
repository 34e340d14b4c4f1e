"""`python -m security batch`: large files, by the gate, with quotas, on record."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from models.output_policy import OutputPolicy
from tests.conftest import check_security, toy_settings
from tests.support import bundles
from tests.support.bundles import WEIGHTS, Keys, write_bundle
from tests.support.in_process import security_result
from tests.support.servers import ROOT, environment

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = 3000
QUOTAS = "[default]\nrows_per_minute = 1\n[batch.default]\n"


@pytest.fixture
def home(pristine: Path, tmp_path: Path) -> Path:
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    (home / "quotas.toml").write_text(QUOTAS)
    return home


def settings(home: Path) -> dict[str, str]:
    return toy_settings(home) | {"SEALGATE_QUOTAS_TABLE": str(home / "quotas.toml")}


def batch(home: Path, source: Path, out: Path, *more: object, model: str = "bundle"):
    arguments = [str(home / model), "--input", str(source), "--out", str(out)]
    if "--ray" not in more and "--processes" not in more:
        more = (*more, "--processes", 1)
    return security_result(
        home, "batch", *arguments, *map(str, more), extra=settings(home)
    )


def table(rows: int = ROWS) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    columns = {name: random.normal(size=rows) for name in "cab"}
    return {"id": np.arange(rows) + 100, **columns, "note": np.array(["x"] * rows)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(table()), path, row_group_size=250)
    return path


def scores(columns: dict[str, np.ndarray]) -> np.ndarray:
    rows = np.stack([columns[name] for name in "abc"], axis=1)
    logits = rows.astype(np.float32) @ WEIGHTS
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def records(home: Path) -> list[dict]:
    path = home / "export.jsonl"
    path.unlink(missing_ok=True)
    form = ("--format", "jsonl", "--output", str(path))
    check_security(home, "audit", "export", *form, **settings(home))
    found = map(json.loads, path.read_text().splitlines())
    jobs = [item for item in found if str(item["action"]).startswith("batch")]
    return sorted(jobs, key=lambda item: item["time_us"])


# Answers.


def test_answers_in_every_form(home: Path, source: Path, tmp_path: Path) -> None:
    wanted = scores(table())
    names = ["no" if row[0] >= row[1] else "yes" for row in wanted]
    outs = [tmp_path / name for name in ("o.parquet", "o.csv", "o.jsonl", "folder")]
    for out in outs:
        result = batch(home, source, out, "--keep", "id", "--part-rows", 700)
        assert result.returncode == 0, result.stderr
        assert "3,000 rows answered" in result.stdout
        assert "ignored columns: note" in result.stderr
    for path in (outs[0], outs[3]):
        found = pq.read_table(path)
        assert found.column_names == ["id", "no", "yes", "label"]
        assert found["id"].to_pylist() == list(range(100, 100 + ROWS))
        assert found["label"].to_pylist() == names
        np.testing.assert_allclose(found["yes"], wanted[:, 1], rtol=1e-5)
    with outs[1].open(newline="") as file:
        lines = list(csv.DictReader(file))
    objects = [json.loads(line) for line in outs[2].read_text().splitlines()]
    assert [line["id"] for line in lines] == [str(n) for n in range(100, 100 + ROWS)]
    assert [line["label"] for line in lines] == names
    assert [item["label"] for item in objects] == names
    np.testing.assert_allclose([o["no"] for o in objects], wanted[:, 0], rtol=1e-5)
    np.testing.assert_allclose([float(x["no"]) for x in lines], wanted[:, 0], rtol=1e-5)


def test_csv_and_folders_answer_the_same(
    home: Path, source: Path, tmp_path: Path
) -> None:
    columns = table()
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3):
        some = {
            name: values[number * 1000 :][:1000] for name, values in columns.items()
        }
        pq.write_table(pa.table(some), folder / f"{number}.parquet")
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values())))
    answers = []
    for number, item in enumerate((source, folder, path)):
        out = tmp_path / f"{number}.csv"
        result = batch(home, item, out, "--keep", "id", "--part-rows", 400)
        assert result.returncode == 0, result.stderr
        answers.append(out.read_bytes())
    assert answers[0] == answers[1] == answers[2]


def test_what_the_output_policy_withholds_is_not_written(
    home: Path, source: Path, tmp_path: Path
) -> None:
    folder = home / "silent"
    policy = OutputPolicy(label_only=True)
    write_bundle(folder, Keys.generate(), name="silent", admit=False, leaving=policy)
    for role in ("trainer", "assessor"):
        check_security(home, "sign", str(folder), "--role", role, **settings(home))
    check_security(home, "admit", str(folder), **settings(home))
    out = tmp_path / "o.parquet"
    assert batch(home, source, out, model="silent").returncode == 0
    assert pq.read_table(out).column_names == ["label"]


def every_kind(home: Path) -> None:
    """A model with an input of several datatypes each, which answers them."""
    from models.bundle import read_bundle, report_file
    from models.files import write_atomic
    from models.manifest import Manifest, Tensor
    from sealgate.protocol.tensors import TensorSpec
    from tests.support import zoo

    kinds = ("FP16", "FP32", "INT64", "BOOL", "BYTES")
    folder = home / "every"
    inputs, outputs = (
        tuple(Tensor(TensorSpec(f"{side}{kind}", kind, (-1, 1))) for kind in kinds)
        for side in "io"
    )
    manifest = Manifest("every", "1.0.0", inputs, outputs, max_rows=7)
    write_atomic(folder / "model.onnx", zoo.echo_model(kinds, width=1))
    write_atomic(folder / "manifest.json", manifest.to_json())
    subject = read_bundle(folder).subject
    for kind in bundles.KINDS:
        write_atomic(
            folder / report_file(kind), bundles.report(kind, subject).to_json()
        )
    for role in ("trainer", "assessor"):
        check_security(home, "sign", str(folder), "--role", role, **settings(home))
    check_security(home, "admit", str(folder), **settings(home))


def test_several_inputs_of_every_kind(home: Path, tmp_path: Path) -> None:
    every_kind(home)
    half = np.array([0.5, 2.0, np.nan, 4.0] * 5, np.float16)
    columns = {
        "iBYTES": pa.array(["ä", "", "x,y", '"'] * 5),
        "iINT64": pa.array([2**53 + 1, -1, 0, 2**63 - 1] * 5),
        "iFP16": pa.array(half),
        "iFP32": pa.array([1.5, None, -2.0, 3.0] * 5),
        "iBOOL": pa.array([True, False, False, True] * 5),
    }
    path, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table(columns), path)
    result = batch(home, path, out, model="every")
    assert result.returncode == 0, result.stderr
    found = pq.read_table(out)
    for name in ("BYTES", "INT64", "BOOL"):
        assert found[f"o{name}"].to_pylist() == columns[f"i{name}"].to_pylist()
    np.testing.assert_array_equal(found["oFP16"].to_numpy(), half)
    np.testing.assert_array_equal(
        found["oFP32"].to_numpy(), columns["iFP32"].to_numpy(zero_copy_only=False)
    )
    pq.write_table(pa.table(columns).drop(["iFP16"]), path)
    result = batch(home, path, tmp_path / "other", model="every")
    assert result.returncode == 2
    assert 'column "iFP16" is missing' in result.stderr


# What is refused.


def test_a_column_of_another_type_is_named_before_anything_is_run(
    home: Path, tmp_path: Path
) -> None:
    moments = np.array(["2026-01-01"], "datetime64[s]")
    path, out = tmp_path / "in.parquet", tmp_path / "out.csv"
    pq.write_table(pa.table({"a": [1.0], "b": moments, "c": [1.0]}), path)
    result = batch(home, path, out)
    assert result.returncode == 2
    assert 'column "b": points in time cannot be sent' in result.stderr
    pq.write_table(pa.table({"a": [1.0], "c": [1.0]}), path)
    result = batch(home, path, out, "--skip-bad", tmp_path / "bad.csv")
    assert (result.returncode, 'column "b" is missing' in result.stderr) == (2, True)
    result = batch(home, path, out, "--keep", "id")
    assert result.returncode == 2
    assert not list(tmp_path.glob("out*"))


def test_a_bad_row_ends_the_job_or_is_listed(home: Path, tmp_path: Path) -> None:
    path, out, bad = (tmp_path / name for name in ("in.csv", "out.csv", "bad.csv"))
    lines = [f"{n},{n % 7},{n % 5},1" for n in range(500)]
    lines[123], lines[300], lines[301] = "123,secret-1,0,1", "300,1", "301,1e99,0,1"
    path.write_text("id,a,b,c\n" + "\n".join(lines) + "\n")
    more = ("--keep", "id", "--part-rows", 100)
    result = batch(home, path, out, *more)
    assert result.returncode == 2
    assert 'in.csv: input "features", column "a", line 125' in result.stderr
    assert not out.exists()
    path.write_text(path.read_text().replace("secret-1", "secret-2"))
    refused = batch(home, path, out, *more, "--resume")
    assert "another input, or one that was changed" in refused.stderr
    shutil.rmtree(tmp_path / "out.csv.parts")
    result = batch(home, path, out, *more, "--skip-bad", bad, "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["rows"], summary["skipped"]) == (497, 3)
    with bad.open(newline="") as file:
        listed = [(row["file"], row["row"]) for row in csv.DictReader(file)]
    assert listed == [("in.csv", f"line {line}") for line in (125, 302, 303)]
    answered = [line.split(",")[0] for line in out.read_text().splitlines()[1:]]
    assert answered == [str(n) for n in range(500) if n not in (123, 300, 301)]
    log = b"".join(item.read_bytes() for item in home.glob("audit/*.jsonl"))
    assert b"secret" not in log
    assert b"batch-end" in log


def test_the_gate_refuses_and_says_so_in_the_log(
    home: Path, source: Path, tmp_path: Path
) -> None:
    model = home / "bundle" / "model.onnx"
    model.write_bytes(bundles.onnx_model(WEIGHTS * 2))
    result = batch(home, source, tmp_path / "out")
    assert result.returncode == 1
    assert result.stderr.startswith("refused: ")
    assert not (tmp_path / "out").exists()
    (found,) = records(home)
    assert (found["action"], found["outcome"]) == ("batch", "refuse")
    assert found["reason"].startswith("check-")


def test_quotas_end_a_job_that_goes_on_later(
    home: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    table = home / "quotas.toml"
    table.write_text("[default]\n")
    result = batch(home, source, out)
    assert (result.returncode, "no job may run" in result.stderr) == (2, True)
    assert not list(tmp_path.glob("out*"))
    table.write_text(
        "[batch.default]\nrows_per_day = 1200\n"
        '[[batch.rule]]\nsubjects = ["more"]\nrows_per_day = 5000\n'
    )
    more = ("--part-rows", 500)
    result = batch(home, source, out, *more)
    assert result.returncode == 1
    assert "'batch' has spent rows-per-day" in result.stderr
    assert not out.exists()
    ended = records(home)[-1]
    assert (ended["action"], ended["reason"]) == ("batch-end", "quota-exceeded")
    result = batch(home, source, out, *more, "--resume")
    assert result.returncode == 1
    result = batch(home, source, out, *more, "--resume", "--job", "more", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["resumed_rows"] == 1000
    assert len(out.read_text().splitlines()) == ROWS + 1


def test_bits_are_booked_before_answers_have_their_place(
    home: Path, source: Path, tmp_path: Path
) -> None:
    (home / "quotas.toml").write_text("[batch.default]\nanswer_bits_per_30_days = 9\n")
    result = batch(home, source, tmp_path / "out")
    assert result.returncode == 1
    assert "answer-bits-per-30-days" in result.stderr
    assert not list((tmp_path / "out").glob("part-*"))
    assert records(home)[-1]["reason"] == "extraction-budget"


def test_a_sealed_model_is_opened_here_and_nowhere_else(
    home: Path, source: Path, tmp_path: Path
) -> None:
    public = tmp_path / "model.pub.pem"
    keys = ("keys", "public", "--model")
    public.write_text(check_security(home, *keys, **settings(home)))
    folders = (str(home / "bundle"), "--out", str(home / "sealed"))
    check_security(home, "seal", *folders, "--to", str(public), **settings(home))
    assert not (home / "sealed" / "model.onnx").exists()
    outs = [tmp_path / "plain.csv", tmp_path / "sealed.csv"]
    for out, model in zip(outs, ("bundle", "sealed"), strict=True):
        result = batch(home, source, out, model=model)
        assert result.returncode == 0, result.stderr
    assert outs[0].read_bytes() == outs[1].read_bytes()
    result = batch(home, source, tmp_path / "o", "--ray", "local", model="sealed")
    assert (result.returncode, "stays on this machine" in result.stderr) == (2, True)
    (home / "keys" / "model.pem").unlink()
    result = batch(home, source, tmp_path / "o", model="sealed")
    assert (result.returncode, result.stderr[:9]) == (1, "refused: ")


def test_ray_is_named_where_it_is_missing(
    home: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = batch(home, source, tmp_path / "out", "--ray", "auto")
    assert result.returncode == 2
    assert "--ray needs the package 'ray'" in result.stderr


def test_without_a_log_no_job_runs(home: Path, source: Path, tmp_path: Path) -> None:
    (home / "keys" / "checkpoint.pem").unlink()
    result = batch(home, source, tmp_path / "out")
    assert (result.returncode, "checkpoint.pem" in result.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--out", "x.txt"), "--out: a folder, or a file of"),
        (("--job", "a b"), "--job: "),
        (("--part-rows", "0"), "--part-rows: "),
        (("--processes", "0"), "--processes: "),
        (("--input", "none.csv"), "--input: none.csv is not there"),
    ],
)
def test_wrong_usage_is_one_line(
    home: Path, source: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    result = batch(home, source, tmp_path / "out", *more)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert message in result.stderr


def test_what_is_there_is_not_overwritten(
    home: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    for more in ((), ("--resume",)):
        result = batch(home, source, out, *more)
        assert (result.returncode, "is there" in result.stderr) == (2, True)
    assert out.read_text() == "mine"


# A job that is stopped.


def command(home: Path, source: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "security", "batch", str(home / "bundle")),
        *("--input", str(source), "--out", str(out), "--keep", "id", *more),
    ]


def test_killed_and_resumed_as_if_nothing_had_been(home: Path, tmp_path: Path) -> None:
    source = tmp_path / "rows.parquet"
    pq.write_table(pa.table(table(30_000)), source, row_group_size=1000)
    whole, out = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    more = ("--part-rows", "1000")
    assert batch(home, source, whole, "--keep", "id", *more).returncode == 0
    env = environment(home, settings(home))
    process = subprocess.Popen(
        command(home, source, out, *more, "--processes", "2"), cwd=ROOT, env=env
    )
    journal = tmp_path / "out.parquet.parts" / "_parts.jsonl"
    ends = time.monotonic() + 120
    while not journal.exists() or journal.stat().st_size < 500:
        assert process.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.005)
    busy = batch(home, source, out, "--keep", "id", *more, "--resume")
    assert "another job writes there" in busy.stderr
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    done = journal.read_bytes()
    # As if it had been killed within a line, and a part were lost or damaged.
    journal.write_bytes(done[: len(done) - 20])
    first, second = sorted(journal.parent.glob("part-*"))[:2]
    first.unlink()
    second.write_bytes(b"x" * second.stat().st_size)
    other = batch(home, source, out, *more, "--resume")
    assert "is about another keep" in other.stderr
    result = batch(home, source, out, "--keep", "id", *more, "--resume", "--json")
    assert result.returncode == 0, result.stderr
    assert 0 < json.loads(result.stdout)["resumed_rows"] < 30_000
    assert out.read_bytes() == whole.read_bytes()
    assert not journal.parent.exists()
    again = batch(home, source, out, "--keep", "id", *more, "--resume", "--json")
    assert json.loads(again.stdout)["rows"] == 30_000
    out.rename(tmp_path / "elsewhere")
    gone = batch(home, source, out, "--keep", "id", *more, "--resume")
    assert (gone.returncode, "is gone" in gone.stderr) == (2, True)
    check_security(home, "audit", "verify", **settings(home))
    parts = [item for item in records(home) if item["action"] == "batch-part"]
    assert sum(item["rows"] for item in parts) >= 60_000


def test_another_model_does_not_go_on(home: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    (home / "quotas.toml").write_text("[batch.default]\nrows_per_day = 1000\n")
    more = ("--part-rows", 500)
    assert batch(home, source, out, *more).returncode == 1
    write_bundle(home / "other", Keys.generate(), version="1.0.1", admit=False)
    for role in ("trainer", "assessor"):
        folder = str(home / "other")
        check_security(home, "sign", folder, "--role", role, **settings(home))
    check_security(home, "admit", folder, **settings(home))
    result = batch(home, source, out, *more, "--resume", model="other")
    assert (result.returncode, "about another model" in result.stderr) == (2, True)
