"""Batch jobs on a Ray cluster, by Ray Data: what they write is what one process writes.

``make interop-ray`` runs it, with ray in an environment of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import check_security, toy_settings
from tests.support.in_process import security_result
from tests.support.servers import ROOT, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("INTEROP") != "ray", reason="ray: run make interop-ray"
    ),
]

ROWS = 20_000


@pytest.fixture
def home(pristine: Path, tmp_path: Path) -> Path:
    home = Path(shutil.copytree(pristine, tmp_path / "home"))
    (home / "quotas.toml").write_text(
        f"[batch.default]\nrows_per_day = {ROWS // 2}\n[[batch.rule]]\n"
        'subjects = ["more"]\nrows_per_day = "unlimited"\n'
    )
    return home


@pytest.fixture
def source(tmp_path: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    random = np.random.default_rng(3)
    columns = {name: random.normal(size=ROWS) for name in "abc"}
    path = tmp_path / "rows.parquet"
    table = pa.table({"id": np.arange(ROWS), **columns})
    parquet.write_table(table, path, row_group_size=100)
    return path


def settings(home: Path) -> dict[str, str]:
    return toy_settings(home) | {"SEALGATE_QUOTAS_TABLE": str(home / "quotas.toml")}


def arguments(home: Path, source: Path, out: Path, *more: str) -> list[str]:
    paths = ("--input", str(source), "--out", str(out), "--keep", "id")
    return ["batch", str(home / "bundle"), *paths, "--part-rows", "100", *more]


def on_ray(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # Ray writes a token to the home of whoever runs it.
    own = {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A busy machine takes longer than Ray waits for by itself.
        "RAY_raylet_start_wait_time_s": "300",
        "RAY_agent_register_timeout_ms": "300000",
    }
    python = Path(os.environ["INTEROP_PART"]) / "bin" / "python"
    return subprocess.run(
        [str(python), "-m", "security", *words],
        cwd=ROOT,
        env=environment(home, settings(home)) | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_a_cluster_writes_what_one_process_writes(
    home: Path, source: Path, tmp_path: Path
) -> None:
    alone, out = tmp_path / "alone.csv", tmp_path / "ray.csv"
    words = arguments(home, source, alone, "--job", "more", "--processes", "1")
    assert security_result(home, *words, extra=settings(home)).returncode == 0
    # 200 parts, of which half may be begun; then the rest, in several windows.
    ray = ("--ray", "local")
    result = on_ray(home, *arguments(home, source, out, *ray))
    assert result.returncode == 1, result.stderr
    assert "has spent rows-per-day" in result.stderr
    assert not out.exists()
    more = (*ray, "--job", "more", "--resume", "--json")
    result = on_ray(home, *arguments(home, source, out, *more))
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["rows"], summary["resumed_rows"]) == (ROWS, ROWS // 2)
    assert out.read_bytes() == alone.read_bytes()
    check_security(home, "audit", "verify", **settings(home))


def test_a_bad_row_on_a_cluster_is_named(home: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "in.csv", tmp_path / "out"
    lines = [f"{n},1,2,3" for n in range(1000)]
    lines[777] = "777,1,none,3"
    path.write_text("id,a,b,c\n" + "\n".join(lines) + "\n")
    result = on_ray(home, *arguments(home, path, out, "--ray", "local"))
    assert result.returncode == 2, result.stderr
    assert 'column "b", line 779' in result.stderr


def test_no_cluster_is_one_line(home: Path, source: Path, tmp_path: Path) -> None:
    words = arguments(home, source, tmp_path / "out", "--ray", "auto")
    result = on_ray(home, *words)
    assert result.returncode == 2, result.stderr
    assert "error: Ray: " in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
