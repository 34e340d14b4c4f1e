"""Figures of notebooks are those of scan.html; a page opens where it is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from security.assessment.reporting.comparison import compare
from security.assessment.reporting.figures import (
    Figure,
    lines,
    of_check,
    of_comparison,
    read_scan,
    table,
)
from security.errors import AssessmentError
from tests.support.pages import check_structure
from tests.support.servers import ROOT

ATTACK = "<script>alert(1)</script>"


def test_a_notebook_shows_what_the_page_shows(attacked: Path) -> None:
    page = (attacked / "scan.html").read_text()
    figures = of_check(read_scan(attacked / "scan.json"), "evasion")
    curves = [one for one in figures if "polyline" in one.markup]
    assert curves
    assert all(one.markup in page for one in curves)
    shown = figures[0]._repr_html_()
    # Its style holds for it alone: each rule stands within .sealgate.
    style = shown.partition("<style>")[2].partition("</style>")[0]
    assert style.startswith(".sealgate {")
    assert style.count("{") == style.count("}")
    assert "url(" not in style


def test_the_worst_rows_come_first_and_are_few(attacked: Path) -> None:
    scan = read_scan(attacked / "scan.json")
    (rows, *_) = [
        one for one in of_check(scan, "evasion", most_rows=3) if "Rows" in one.title
    ]
    assert rows.markup.count("<tr>") == 4  # with its head


def test_what_a_scan_did_not_do_is_said(attacked: Path) -> None:
    with pytest.raises(AssessmentError, match=r"fairness: not done.*evasion, quality"):
        of_check(read_scan(attacked / "scan.json"), "fairness")


def test_two_scans_beside_each_other(attacked: Path) -> None:
    before = json.loads((attacked / "scan.json").read_text())
    after = json.loads((attacked / "scan.json").read_text())
    assert "No metric differs" in of_comparison(compare(before, after)).markup
    (quality,) = [one for one in after["results"] if one["check"] == "quality"]
    accuracy = quality["metrics"]["accuracy"]
    accuracy |= {"value": 0.01, "low": 0.0, "high": 0.02}
    found = of_comparison(compare(before, after))
    assert "accuracy, worse" in found.markup
    assert "0.01" in found.markup


def test_names_are_text() -> None:
    chart = lines(ATTACK, {ATTACK: [[1, 2], [2, 3]]}, x=ATTACK, y=ATTACK)
    cells = table(ATTACK, [ATTACK], [[ATTACK]])
    for figure in (chart, cells):
        assert "<script" not in figure._repr_html_()


def test_a_figure_is_saved_as_a_page(tmp_path: Path) -> None:
    figure = lines("costs", {"a": [[1, 2, 1, 3], [2, 3, 2, 4]]}, x="x", y="y")
    figure.save(tmp_path / "costs.html")
    found = check_structure((tmp_path / "costs.html").read_bytes())
    assert "svg" in {tag for tag, _ in found.tags}
    with pytest.raises(ValueError, match="nothing: no point"):
        lines("nothing", {"a": []}, x="x", y="y")
    assert isinstance(figure, Figure)


def test_the_page_opens_when_the_scan_is_done(tmp_path: Path) -> None:
    """A real browser is a program that is given an address; so is this one."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o700)
    truth = "".join(f"{i % 2},{i % 2}\n" for i in range(40))
    (tmp_path / "rows.csv").write_text("truth,prediction\n" + truth)
    command = [sys.executable, "-m", "security", "scan", "--open"]
    done = subprocess.run(
        [*command, "--predictions", "rows.csv", "--out", "out", "--jobs", "1"],
        cwd=tmp_path,
        env={**os.environ, "BROWSER": f"{browser} %s", "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    opened = (tmp_path / "opened").read_text().strip()
    assert opened == (tmp_path / "out/scan.html").resolve().as_uri()
