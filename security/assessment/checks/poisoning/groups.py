"""Which rows of a class stand apart from the others, by what the last layer reads.

- activation clustering (Chen et al. 2018): two means in ten principal components;
- spectral signatures (Tran, Li, Madry 2018): the direction of the largest variance, cut
  where it parts best.

The engines are ART's. Its verdicts are not used: they remove a share of every class, or
any smaller cluster, so that a third of a clean class is accused. Here the separation is
held against what a cloud without groups of the same size and spread gives, and a group
is only where `pattern` begins. ART's spectral scores leave the mean in; they get rows
without one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from security.assessment.art_library import art, repeatable
from security.assessment.sklearn_library import sklearn

__all__ = ["METHODS", "Split", "split"]

Floats = NDArray[np.float64]
METHODS = ("clusters", "spectrum")

_DIMENSIONS = 10
_CLOUDS = 10
_SILHOUETTE_ROWS = 1000
_MAX_FEATURES = 512


@dataclass(frozen=True, eq=False)
class Split:
    """A class in two.

    Attributes:
        method: one of `METHODS`.
        group: ``(n,)``, the smaller part.
        separation: the silhouette of clusters; of the spectrum, the share of the
            variance that lies between the parts.
        usual: the mean of the same for clouds without groups.
        excess: how far above that, in the clouds' standard deviations.
    """

    method: str
    group: NDArray[np.bool_]
    separation: float
    usual: float
    excess: float

    @property
    def size(self) -> float:
        """The smaller part's share."""
        return float(self.group.mean())


def split(method: str, features: Floats, random: np.random.Generator) -> Split | None:
    """A class in two; None where all its rows are alike.

    Args:
        method: one of `METHODS`.
        features: ``(n, features)``, with more than ten rows.
        random: of the clouds, and of the clustering.
    """
    if features.shape[1] > _MAX_FEATURES:
        width = features.shape[1]
        # Distances survive a random projection (Johnson, Lindenstrauss); time does not
        # grow with the width of a layer.
        directions = np.random.default_rng(0).normal(size=(width, _MAX_FEATURES))
        features = features @ (directions / np.sqrt(_MAX_FEATURES))
    centred = features - features.mean(axis=0)
    centred = centred[:, centred.std(axis=0) > 0]
    if not centred.size:
        return None
    return (
        _clusters(centred, random)
        if method == "clusters"
        else _spectrum(centred, random)
    )


def _clusters(features: Floats, random: np.random.Generator) -> Split:
    seed = int(random.integers(1 << 31))
    (side,), (reduced,) = _clustered([features], seed)
    own = _silhouette(reduced, side, seed)
    clouds = [
        random.normal(size=reduced.shape) * reduced.std(axis=0) for _ in range(_CLOUDS)
    ]
    sides, places = _clustered(clouds, seed)
    usual = [_silhouette(*pair, seed) for pair in zip(places, sides, strict=True)]
    return _split("clusters", side == 1, own, np.array(usual))


def _clustered(
    parts: list[Floats], seed: int
) -> tuple[list[NDArray[np.int64]], list[Floats]]:
    with repeatable(seed):
        sides, places = art().cluster_activations(
            parts, nb_clusters=2, nb_dims=_DIMENSIONS, reduce="PCA"
        )
    return sides, places


def _silhouette(points: Floats, side: NDArray[np.int64], seed: int) -> float:
    chosen = np.random.default_rng(seed).permutation(len(points))[:_SILHOUETTE_ROWS]
    points, side = points[chosen], side[chosen]
    if not np.ptp(side):
        return 0.0
    return float(sklearn("metrics").silhouette_score(points, side))


def _spectrum(centred: Floats, random: np.random.Generator) -> Split:
    scores = art().SpectralSignatureDefense.spectral_signature_scores(centred)[:, 0]
    # The scores have no sign; the direction that they are measured along has.
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    line = np.copysign(scores, centred @ direction)
    own, cut = _best_cut(line[None])
    usual, _ = _best_cut(random.normal(size=(_CLOUDS, len(line))))
    return _split("spectrum", line > cut[0], float(own[0]), usual)


def _best_cut(lines: Floats) -> tuple[Floats, Floats]:
    """The largest share of each line's variance between two parts, and the cut."""
    lines = lines - lines.mean(axis=1, keepdims=True)
    ordered = np.sort(lines, axis=1)
    count = ordered.shape[1]
    below = np.arange(1, count)
    sums = np.cumsum(ordered, axis=1)[:, :-1]
    between = sums**2 / below + sums**2 / (count - below)
    place = between.argmax(axis=1)
    rows = np.arange(len(lines))
    share = between[rows, place] / np.maximum((lines**2).sum(axis=1), 1e-300)
    return share, (ordered[rows, place] + ordered[rows, place + 1]) / 2


def _split(
    method: str, side: NDArray[np.bool_], separation: float, usual: Floats
) -> Split:
    group = side if side.mean() <= 0.5 else ~side
    spread = max(float(usual.std(ddof=1)), 1e-3)
    mean = float(usual.mean())
    return Split(method, group, separation, mean, (separation - mean) / spread)
