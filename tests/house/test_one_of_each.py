"""What stands once: a second one is a hole between the two."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.servers import ROOT

PRODUCT = ("sealgate", "models", "security", "service")
# Other people's servers, as their users run them, are no part of the product.
OTHERS = (Path("benchmarks/bare.py"), Path("benchmarks/peers/servers"))


def naming(word: str, root: Path, folders: tuple[str, ...]) -> set[str]:
    """Python files that name something, if only in a type or a comment."""
    files = (file for folder in folders for file in (root / folder).rglob("*.py"))
    return {
        str(file.relative_to(root))
        for file in files
        if word in file.read_text(encoding="utf-8")
    }


def test_one_module_makes_sessions() -> None:
    assert naming("InferenceSession", ROOT, PRODUCT) == {"models/sessions.py"}


def test_tests_and_benchmarks_use_it() -> None:
    found = naming("InferenceSession", ROOT, ("tests", "benchmarks"))
    ours = {
        name
        for name in found
        if not any(Path(name).is_relative_to(other) for other in OTHERS)
    }
    # What an open session would do is shown beside the pinned one.
    assert ours == {
        "tests/house/test_one_of_each.py",
        "tests/models/test_sessions.py",
        "tests/security/assessment/engine/test_dishonest.py",
        "tests/security/inspection/test_wire.py",
        "tests/support/polyglots.py",
    }


@pytest.mark.parametrize(
    "line",
    [
        "session = onnxruntime.InferenceSession(model)",
        "def run(session: 'ort.InferenceSession') -> None: ...",
    ],
)
def test_another_module_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "fast.py").write_text(line)
    assert naming("InferenceSession", tmp_path, PRODUCT) == {"service/fast.py"}
