"""Notebooks as pages: each is run, and what it shows stands below its code.

`python -m website.notebooks` runs those of examples/notebooks and writes of each a
page, NAME.md, and the notebook with its outputs, NAME.ipynb, into build/notebooks. One
that fails ends the command with its error. Without the Adult data set (``ADULT``, or
../shared/data/adult) pages have the code alone, and say so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from website.fences import fenced

__all__ = ["RESULTS", "main", "page_of", "pages", "run"]

_ROOT = Path(__file__).resolve().parents[1]
RESULTS = _ROOT / "build/notebooks"
_ADULT = _ROOT.parent / "shared/data/adult"
_TIMEOUT_S = 900
_MISSING = "!!! note\n    Made without its data set: what it shows is missing here.\n"
# Where this run took place is of no interest.
_FOLDER = re.compile(r"/(?:[\w.-]+/)*tmp[\w.-]+/")


def main() -> None:
    """Run each notebook and write its page.

    Raises:
        nbclient.exceptions.CellExecutionError: one failed; says in which cell.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    adult = Path(os.environ.get("ADULT", _ADULT)).resolve()
    for source in _sources():
        notebook = jupytext.read(source)
        if (adult / "adult.data.gz").exists():
            run(notebook, {"ADULT": str(adult), "EXAMPLES": "examples"})
            (RESULTS / f"{source.stem}.md").write_text(page_of(notebook))
        else:
            print(f"{source.stem}: not run, {adult} has no adult.data.gz")
        nbformat.write(notebook, RESULTS / f"{source.stem}.ipynb")


def _sources() -> list[Path]:
    return sorted((_ROOT / "examples/notebooks").glob("*.py"))


def pages() -> Iterator[tuple[str, str]]:
    """The pages of the site, as `main` wrote them, or with the code alone.

    Yields:
        Path of the page below the site's root, and its Markdown.
    """
    for source in _sources():
        made = RESULTS / f"{source.stem}.md"
        if made.exists():
            text = made.read_text()
        else:
            head, _, rest = page_of(jupytext.read(source)).partition("\n")
            text = f"{head}\n\n{_MISSING}{rest}"
        yield f"notebooks/{source.stem}.md", text


def run(notebook: Any, variables: dict[str, str]) -> None:
    """Run a notebook's cells in a process of their own, in the project's folder."""
    # Read only when the kernel starts, which inherits them.
    os.environ.update(variables, PYTHONPATH=str(_ROOT), PYTHONWARNINGS="ignore")
    kernel = AsyncKernelManager(kernel_name="python3", transport="ipc")
    NotebookClient(notebook, kernel, timeout=_TIMEOUT_S).execute(cwd=str(_ROOT))


def page_of(notebook: Any) -> str:
    """Markdown of a notebook: its texts, its code, and what that showed."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.source:
            parts += [fenced(cell.source, "python"), *_shown(cell)]
    return "\n\n".join(parts) + "\n"


def _shown(cell: Any) -> Iterator[str]:
    """What a cell showed: figures as they are, everything else as text."""
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        if "text/html" in data:
            # A block of HTML ends at an empty line (CommonMark, section 4.6).
            yield re.sub(r"\n\s*\n", "\n", data["text/html"])
        else:
            text = output.get("text", "") or data.get("text/plain", "")
            text = _FOLDER.sub("", text).rstrip()
            if text and output.get("name") != "stderr":
                yield fenced(text, "text")


if __name__ == "__main__":
    main()
