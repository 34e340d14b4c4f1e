"""Thieves: ours, and ART's own.

Ours fits a perceptron to whatever was bought, scores or labels; ART's CopycatCNN and
KnockoffNets fit to labels. Copies from one set of questions begin with the same weights
and learn from the same batches: they are trained at once, a layer's weights one tensor
with a copy per slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from security.assessment.art_library import art, repeatable
from security.assessment.checks.descent import Adam
from security.assessment.checks.estimators import bought_answers

__all__ = ["HIDDEN", "THIEVES", "fit_copies", "steal"]

THIEVES = ("perceptron", "copycat", "knockoff")
HIDDEN = 64
_STEPS, _BATCH, _RATE = 300, 256, 0.01

Floats = NDArray[np.float32]
Guesses = NDArray[np.int64]


def steal(
    name: str,
    questions: Floats,
    answers: NDArray[np.float64],
    judged: Floats,
    *,
    seed: int,
) -> Guesses:
    """Buy a copy; its labels of the judged rows ``(m,)``.

    Args:
        name: of `THIEVES`.
        questions: ``(n, d)``, scaled.
        answers: ``(n, classes)``, chances, as the output policy left them.
        judged: ``(m, d)``.
        seed: of weights and batches.
    """
    if name == "perceptron":
        return fit_copies(questions, [answers], judged, seed=seed)[0]
    if not len(questions):
        return _nothing(judged)
    count = len(questions)
    with repeatable(seed % (1 << 32)), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % (1 << 32))
        thief = _classifier(questions.shape[1], answers.shape[1])
        kind = art().CopycatCNN if name == "copycat" else art().KnockoffNets
        quiet = {} if name == "copycat" else {"verbose": False}
        size = min(_BATCH, count)
        attack = kind(
            bought_answers(questions, answers),
            batch_size_fit=size,
            batch_size_query=_BATCH,
            nb_epochs=max(1, round(_STEPS * size / count)),
            nb_stolen=count,
            **quiet,
        )
        copy = attack.extract(questions, thieved_classifier=thief)
        return np.asarray(copy.predict(judged).argmax(axis=1))


def fit_copies(
    questions: Floats,
    answers: Sequence[NDArray[np.float64]],
    judged: Floats,
    *,
    seed: int,
) -> list[Guesses]:
    """A perceptron for each set of answers to the same questions.

    Args:
        questions: as of `steal`.
        answers: each as of `steal`.
        judged: as of `steal`.
        seed: of weights and batches, which are the same for all.

    Returns:
        The labels of the judged rows ``(m,)`` that each copy gives.
    """
    if not len(questions):
        return [_nothing(judged) for _ in answers]
    bought = torch.from_numpy(np.stack(answers).astype(np.float32))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed % (1 << 32))
        copies = _Copies(_blank(questions.shape[1], bought.shape[2]), len(answers))
        copies.fit(torch.from_numpy(questions), bought)
        return list(copies.labels(torch.from_numpy(judged)).numpy())


def _nothing(judged: Floats) -> Guesses:
    """No answer was a number: nothing to copy, no agreement."""
    return np.full(len(judged), -2)


def _blank(columns: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(columns, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)
    )


def _classifier(columns: int, classes: int) -> Any:
    """An untrained perceptron, as ART's classifier."""
    model = _blank(columns, classes)
    return art().PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=_RATE),
        input_shape=(columns,),
        nb_classes=classes,
        device_type="cpu",
    )


class _Copies:
    """Perceptrons side by side, all weights in one vector that Adam moves at once.

    Rows are columns here: there are many of them and few classes, and torch adds and
    multiplies along the last axis several times faster where it is a long one.
    """

    def __init__(self, blank: nn.Sequential, count: int) -> None:
        layers = [layer for layer in blank if isinstance(layer, nn.Linear)]
        parts = [part for each in layers for part in (each.weight, each.bias[:, None])]
        shapes = [(count, *part.shape) for part in parts]
        self._values = torch.cat([part.repeat(count, 1, 1).flatten() for part in parts])
        self._gradient = torch.zeros_like(self._values)
        self._weights = _views(self._values, shapes)
        self._gradients = _views(self._gradient, shapes)

    def fit(self, rows: Tensor, answers: Tensor) -> None:
        """Learn from rows ``(n, d)`` and answers ``(copies, n, classes)``."""
        descent = Adam([self._values], rate=_RATE)
        columns, given = rows.T.contiguous(), answers.transpose(1, 2).contiguous()
        for _ in range(_STEPS):
            chosen = torch.randint(len(rows), (min(_BATCH, len(rows)),))
            self._differentiate(columns[:, chosen], given[:, :, chosen])
            descent.step([self._gradient])

    def labels(self, rows: Tensor) -> Tensor:
        """``(copies, n)``."""
        return self._forward(rows.T)[-1].argmax(dim=1)

    def _forward(self, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first, first_bias, second, second_bias = self._weights
        inputs = columns.expand(len(first), *columns.shape)
        hidden = torch.baddbmm(first_bias, first, inputs).relu_()
        return inputs, hidden, torch.baddbmm(second_bias, second, hidden)

    def _differentiate(self, columns: Tensor, answers: Tensor) -> None:
        """Gradients of the mean cross-entropy of each copy."""
        inputs, hidden, logits = self._forward(columns)
        error = torch.softmax(logits, dim=1)
        error.mul_(answers.sum(dim=1, keepdim=True)).sub_(answers)
        error.div_(columns.shape[1])
        back = torch.bmm(self._weights[2].transpose(1, 2), error)
        # As autograd goes back through a rectifier: in one pass.
        torch.ops.aten.threshold_backward(back, hidden, 0.0, grad_input=back)
        for place, before, after in ((0, inputs, back), (2, hidden, error)):
            torch.bmm(after, before.transpose(1, 2), out=self._gradients[place])
            torch.sum(after, dim=2, keepdim=True, out=self._gradients[place + 1])


def _views(vector: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Parts of a vector, as tensors of those shapes, that share its memory."""
    parts = torch.split(vector, [int(np.prod(shape)) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
