"""Code blocks of Markdown."""

from __future__ import annotations

import re

__all__ = ["fenced"]


def fenced(text: str, kind: str) -> str:
    """A block that shows a text as it is, whatever fences stand in it.

    >>> print(fenced("```sh", "text"))
    ````text
    ```sh
    ````
    """
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{kind}\n{text}\n{fence}"
