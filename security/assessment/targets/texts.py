"""Texts in rows of numbers: each text stands as its place in a list.

Checks work on rows of numbers, of which a column may mean texts. The list grows while
attacks write new texts, and belongs to one process: places never leave it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.held_out import Holdout

__all__ = ["Texts"]


class Texts:
    """A list of texts that grows.

    >>> texts = Texts(["a"])
    >>> texts.place("b"), texts.place("a"), texts.texts
    (1, 0, ['a', 'b'])
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = list(texts)
        self._places = {text: place for place, text in enumerate(self.texts)}

    def place(self, text: str) -> int:
        """Of a text, which is added if it is new."""
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]

    def of(self, places: NDArray[Any]) -> NDArray[np.object_]:
        """The texts at some places, in their shape."""
        whole = np.rint(places).astype(np.int64)
        flat = [self.texts[place] for place in whole.ravel().tolist()]
        return np.array(flat, dtype=object).reshape(whole.shape)

    def placed(self, rows: Holdout) -> NDArray[Any]:
        """The features of rows, in which places are those of this list ``(n, …)``."""
        if not rows.texts:
            return rows.features
        features = rows.features.copy()
        for name, own in rows.texts.items():
            column = rows.columns.index(name)
            places = np.array([self.place(text) for text in own], np.float64)
            features[:, column] = places[features[:, column].astype(np.int64)]
        return features
