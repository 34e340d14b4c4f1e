"""Importing scikit-learn without what its modules import and a few learners never use.

Its modules import each other whole, and with them pandas, SciPy's distributions,
optimizers and splines: more than half of the processor time that importing takes, and
as long as some checks take. They are imported when something of them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from security.deferring import deferring

__all__ = ["DEFERRED", "sklearn"]

# scikit-learn takes names of these only, to call them later: it derives no class. What
# derives one of SciPy's optimizers is among SciPy's splines, which are deferred too.
DEFERRED = frozenset(
    {
        "pandas",
        "scipy.integrate",
        "scipy.interpolate",
        "scipy.optimize",
        "scipy.stats",
    }
)


def sklearn(part: str) -> Any:
    """A part of scikit-learn, imported when this is called.

    >>> sklearn("neighbors").KNeighborsClassifier(3).n_neighbors
    3
    """
    with deferring(DEFERRED):
        return import_module(f"sklearn.{part}")
