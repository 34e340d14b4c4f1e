"""The examples in the docstrings of the modules that import without the toolkit."""

from __future__ import annotations

import doctest

import pytest

from tests.house.test_exports import RUNTIME, load


@pytest.mark.parametrize("name", RUNTIME)
def test_examples(name):
    result = doctest.testmod(load(name))
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = sum(
        bool(test.examples) for name in RUNTIME for test in finder.find(load(name))
    )
    assert examples > 10
