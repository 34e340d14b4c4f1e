"""Networks of which other verifiers have published what holds: VNN-COMP 2021.

The networks bear no licence, so that none is kept here. With checkouts of both

    git clone https://github.com/stanleybak/vnncomp2021          (90419aa)
    git clone https://github.com/stanleybak/vnncomp2021_results  (a83b9da)

in one folder, ``make interop-verifiers VNNCOMP=FOLDER`` asks the bounds what the
verifiers were asked. Where a question is too hard for one box, the box is cut in two,
so that thousands of boxes are bounded for a verdict.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from models.sessions import make_session
from security.bounds.files import read_graph
from security.bounds.proofs import bounds
from tests.interop.verifiers.vnnlib import asked, cases_of, halves

FOLDER = os.environ.get("VNNCOMP", "")
_WORDS = {"holds": "holds", "UNSAT": "holds", "violated": "violated", "SAT": "violated"}
MOST_BOXES = int(os.environ.get("VNNCOMP_BOXES", "1200"))
BENCHMARKS = ("acasxu", "mnistfc")
DEEP = ("mnist-net_256x4", "mnist-net_256x6")  # hours, here

pytestmark = pytest.mark.skipif(
    not FOLDER, reason="VNNCOMP names no folder with vnncomp2021 and its results"
)


@cache
def verdicts() -> dict[tuple[str, str, str], Counter[str]]:
    """What each verifier said: by benchmark, network and property."""
    said: dict[tuple[str, str, str], Counter[str]] = {}
    for file in sorted(Path(FOLDER, "vnncomp2021_results/results_csv").glob("*.csv")):
        for benchmark, network, question, _, word, *_ in csv.reader(
            file.read_text().splitlines()
        ):
            key = benchmark, Path(network).stem, Path(question).stem
            if benchmark in BENCHMARKS and word in _WORDS:
                said.setdefault(key, Counter())[_WORDS[word]] += 1
    return said


def known() -> list[tuple[str, str, str, str]]:
    """Questions with one answer from two verifiers or more, and none against it."""
    return [
        (*key, word)
        for key, counted in sorted(verdicts().items())
        for word in counted
        if len(counted) == 1 and counted[word] > 1 and key[1] not in DEEP
    ]


def decide(model: bytes, question: str) -> str:
    """What the bounds say: "holds", "violated" by a point, or "unknown"."""
    words = set()
    for case in cases_of(question):
        words.add(_decided(model, case))
        if "violated" in words:
            return "violated"
    return "unknown" if "unknown" in words else "holds"


def _decided(model: bytes, case) -> str:
    graph = read_graph(asked(model, case.weights))
    session = make_session(model)
    low, high, whole = case.low[None], case.high[None], case.high - case.low
    boxes = 0
    while len(low):
        boxes += len(low)
        if boxes > MOST_BOXES:
            return "unknown"
        least, _ = bounds(graph, "asked", low, high)
        open_ = ~(least > case.most).any(axis=1)
        low, high = low[open_], high[open_]
        if _answers(session, (low + high) / 2, case):
            return "violated"
        if len(case.low) > 100:  # as many halvings as there are pixels
            return "unknown" if len(low) else "holds"
        ((low, high),) = halves(low, high, whole)
    return "holds"


def _answers(session, rows: np.ndarray, case) -> bool:
    """Whether a point is unsafe, as the network itself answers."""
    given = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in given.shape]
    for row in rows[:200]:
        inputs = {given.name: row.astype(np.float32).reshape(shape)}
        values = case.weights @ session.run(None, inputs)[0].reshape(-1)
        if (values <= case.most).all():
            return True
    return False


def read(benchmark: str, name: str) -> Path:
    return Path(FOLDER, "vnncomp2021/benchmarks", benchmark, name)


@pytest.fixture(scope="module")
def tally():
    counted: Counter[tuple[str, str]] = Counter()
    yield counted
    for (ours, theirs), count in sorted(counted.items()):
        print(f"\nours {ours}, verifiers {theirs}: {count}", end="")


@pytest.mark.parametrize(
    ("benchmark", "network", "question", "word"), known() if FOLDER else []
)
def test_no_certificate_is_refuted(benchmark, network, question, word, tally):
    model = read(benchmark, f"{network}.onnx").read_bytes()
    found = decide(model, read(benchmark, f"{question}.vnnlib").read_text())
    tally[found, word] += 1
    assert found in (word, "unknown")


def test_many_are_certified(tally):
    """Runs after the others: agreement of one that never answers is nothing."""
    assert tally["holds", "holds"] >= 80
    assert tally["violated", "violated"] >= 5
