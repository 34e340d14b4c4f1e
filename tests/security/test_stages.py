"""Progress: results on standard output, what runs on standard error, in either kind."""

from __future__ import annotations

import re
import time

import pytest

from security.commands import stages
from security.commands.stages import Stages
from tests.support.patience import SpoiledError, once


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(stages, "_EVERY_S", 0.02)
    monkeypatch.setattr(stages, "_TERMINAL_EVERY_S", 0.02)


def run():
    with Stages() as told:
        told("training", 0.25, "", "loss 1.0")
        time.sleep(0.2)
        told("training", 0.5, "", "loss 0.5")
        time.sleep(0.1)
        told("training", 1.0, "4 steps")
        time.sleep(0.1)
        told("attacks", 0.1, left_s=7.0)
        time.sleep(0.1)


def test_a_line_now_and_then_where_there_is_no_terminal(capsys):
    def scene():
        run()
        shown = capsys.readouterr()
        assert shown.out == "training    4 steps\n"
        lines = shown.err.splitlines()
        assert all("\r" not in line and "\x1b" not in line for line in lines)
        for expected in (
            "training 25%, 0 s so far; loss 1.0",
            "training 50%, 0 s so far, about 0 s left; loss 0.5",
            "working, 0 s so far",
            "attacks 10%, 0 s so far, about 7 s left",
        ):
            if expected not in lines:  # its tenth of a second went to other work
                raise SpoiledError(expected, lines)

    once(scene)


def test_one_line_that_changes_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    def scene():
        run()
        shown = capsys.readouterr()
        assert shown.out == "training    4 steps\n"
        assert "\n" not in shown.err
        if not re.search(r"\r\x1b\[K\[##########          \] training 50%", shown.err):
            raise SpoiledError(shown.err)
        assert shown.err.endswith("\r\x1b[K")

    once(scene)


def test_what_is_quick_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(stages, "_EVERY_S", 5.0)
    with Stages() as told:
        told("data", 1.0, "5 rows")
    assert capsys.readouterr() == ("data        5 rows\n", "")
