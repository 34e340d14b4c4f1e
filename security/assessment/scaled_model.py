"""A bundle's model as attacks see it: run by onnxruntime, in raw or scaled features.

A radius means something only in one unit for all columns, or for all pixels: the share
of each one's public range, 0 to 1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.bundle import Bundle
from models.data.datasets import AnyDataset, TabularDataset
from models.manifest import Tensor as Signature
from models.sessions import make_session
from security.assessment.torch_graph.module import OnnxModule
from security.errors import AssessmentError

__all__ = ["MAX_DIFFERENCE", "ServedModel", "WhiteBox", "check_fits"]

MAX_DIFFERENCE = 1e-4
_CHUNK = 1024  # rows that the model is given at once


class ServedModel:
    """The bundle's model, run by onnxruntime as it will be served.

    Attributes:
        low, span: float64 ``(d,)``, from the manifest's columns; ``()`` for images,
            whose pixels have one range.
        probabilities_name: of the output with one column per class.
        classes: how many.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Load the bytes that were inspected.

        Raises:
            AssessmentError: the manifest is not of a classifier of tables or images.
            SessionError: onnxruntime refuses the model.
        """
        given, scores = _signature(bundle)
        self.probabilities_name, self.classes = scores.spec.name, len(scores.labels)
        self.low, high = _ranges(given)
        self.span = high - self.low
        self._input = given.spec.name
        self._session = make_session(bundle.model)

    def probabilities(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        """Class probabilities ``(n, classes)`` of raw rows ``(n, d)``, or images.

        Raises:
            AssessmentError: they are not probabilities.
        """
        starts = range(0, max(1, len(rows)), _CHUNK)
        return np.concatenate([self._run(rows[at : at + _CHUNK]) for at in starts])

    def _run(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        feed = {self._input: np.asarray(rows, dtype=np.float32)}
        try:
            (output,) = self._session.run([self.probabilities_name], feed)
        except Exception as error:  # noqa: BLE001  (its exceptions share no other base)
            raise AssessmentError(
                f"onnxruntime cannot run the model: {str(error).splitlines()[0][:200]}"
            ) from None
        values = np.asarray(output, dtype=np.float64)
        if values.shape != (len(rows), self.classes):
            raise AssessmentError(f"probabilities have shape {values.shape}")
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise AssessmentError("probabilities are negative or not finite")
        if np.abs(values.sum(axis=1) - 1).max(initial=0) > 1e-3:
            raise AssessmentError("probabilities do not sum to 1")
        return values

    def labels(self, rows: NDArray[np.floating]) -> NDArray[np.int64]:
        """The likeliest class ``(n,)`` of raw rows ``(n, d)``, or images."""
        return np.argmax(self.probabilities(rows), axis=1)

    def scale(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        """Raw rows to the unit box; what is missing goes to its middle."""
        scaled = (np.asarray(rows, dtype=np.float64) - self.low) / self.span
        scaled = np.where(np.isfinite(scaled), np.clip(scaled, 0, 1), 0.5)
        return np.asarray(scaled)

    def unscale(self, scaled: NDArray[np.floating]) -> NDArray[np.float32]:
        """The unit box to raw rows, in the type that onnxruntime is given."""
        return (self.low + np.asarray(scaled, np.float64) * self.span).astype(
            np.float32
        )


class WhiteBox(nn.Module):
    """The same graph in torch: scaled features to log probabilities, with gradients."""

    low: Tensor
    span: Tensor

    def __init__(self, bundle: Bundle, served: ServedModel) -> None:
        super().__init__()
        self._graph = OnnxModule(bundle.model)
        self._output = served.probabilities_name
        self.register_buffer("low", torch.tensor(served.low))
        self.register_buffer("span", torch.tensor(served.span))

    def forward(self, scaled: Tensor) -> Tensor:
        """Scaled rows ``(n, d)`` to log probabilities ``(n, classes)``."""
        raw = self.low + scaled.double() * self.span
        # Rounding may step over the range's end, where the graph's own clipping would
        # cut the gradient off: clipped in value, straight through for the gradient.
        inside = torch.minimum(torch.maximum(raw, self.low), self.low + self.span)
        raw = raw + (inside - raw).detach()
        probabilities = self._graph(raw)[self._output]
        log = torch.log(probabilities.clamp_min(torch.finfo(torch.float64).tiny))
        # A graph of comparisons has no path for the gradient: give it one, of 0. Then
        # the attack finds what its random starts find, and its checks say so.
        return log + 0.0 * scaled.double().flatten(1).sum(dim=1, keepdim=True)

    def check_parity(self, served: ServedModel, scaled: NDArray[np.float64]) -> float:
        """The largest difference from onnxruntime on rows of the unit box.

        Raises:
            AssessmentError: it is above `MAX_DIFFERENCE`: attacks would attack
                something else.
        """
        with torch.no_grad():
            mine = self(torch.from_numpy(scaled)).exp().numpy()
        difference = float(
            np.abs(mine - served.probabilities(served.unscale(scaled))).max()
        )
        if not difference <= MAX_DIFFERENCE:
            raise AssessmentError(
                f"the torch graph differs from onnxruntime by {difference:.1e}"
            )
        return difference


def check_fits(bundle: Bundle, dataset: AnyDataset) -> None:
    """Refuse a data set whose columns, images or classes are not the model's.

    Raises:
        AssessmentError: says which.
    """
    given, scores = _signature(bundle)
    if isinstance(dataset, TabularDataset):
        fits = tuple(given.columns) == dataset.columns
        what = "columns and ranges"
    else:
        shape = (-1, *dataset.features.shape[1:])
        fits = (given.spec.shape, given.bounds) == (shape, dataset.bounds)
        what = "image shape and pixel range"
    if not fits:
        raise AssessmentError(
            f"data set {dataset.name!r} does not have the model's {what}"
        )
    if scores.labels != dataset.classes:
        raise AssessmentError(
            f"data set {dataset.name!r} does not have the model's classes"
        )


def _signature(bundle: Bundle) -> tuple[Signature, Signature]:
    """The one input, and the output with class labels."""
    inputs = bundle.manifest.inputs
    if len(inputs) != 1 or not (inputs[0].columns or inputs[0].bounds):
        raise AssessmentError(
            "the manifest has not one input with named columns, or of bounded pixels"
        )
    scores = [item for item in bundle.manifest.outputs if item.labels]
    if len(scores) != 1:
        raise AssessmentError("the manifest has not one output with class labels")
    return inputs[0], scores[0]


def _ranges(given: Signature) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends."""
    if given.bounds is not None and not given.columns:
        low, high = given.bounds
        return np.array(float(low)), np.array(float(high))
    return (
        np.array([column.low for column in given.columns]),
        np.array([column.high for column in given.columns]),
    )
