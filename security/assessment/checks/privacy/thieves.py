"""Thieves: ours, and ART's own.

Ours fits a perceptron to whatever was bought, scores or labels; ART's CopycatCNN and
KnockoffNets fit to labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from security.assessment.art_library import art, repeatable
from security.assessment.checks.estimators import bought_answers

__all__ = ["HIDDEN", "THIEVES", "steal"]

THIEVES = ("perceptron", "copycat", "knockoff")
HIDDEN = 64
_STEPS, _BATCH, _RATE = 300, 256, 0.01

Floats = NDArray[np.float32]


def steal(
    name: str,
    questions: Floats,
    answers: NDArray[np.float64],
    judged: Floats,
    *,
    seed: int,
) -> NDArray[np.int64]:
    """Buy a copy; its labels of the judged rows ``(m,)``.

    Args:
        name: of `THIEVES`.
        questions: ``(n, d)``, scaled.
        answers: ``(n, classes)``, chances, as the output policy left them.
        judged: ``(m, d)``.
        seed: of weights and batches.
    """
    if not len(questions):  # no answer was a number: nothing to copy, no agreement
        return np.full(len(judged), -2)
    count = len(questions)
    with repeatable(seed % (1 << 32)), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % (1 << 32))
        thief = _blank(questions.shape[1], answers.shape[1])
        if name == "perceptron":
            _fit(
                thief.model,
                torch.as_tensor(questions),
                torch.as_tensor(answers.astype(np.float32)),
            )
            return np.asarray(thief.predict(judged).argmax(axis=1))
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


def _blank(columns: int, classes: int) -> Any:
    """An untrained perceptron, as ART's classifier."""
    model = nn.Sequential(
        nn.Linear(columns, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)
    )
    return art().PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=_RATE),
        input_shape=(columns,),
        nb_classes=classes,
        device_type="cpu",
    )


def _fit(model: nn.Module, rows: torch.Tensor, answers: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    for _ in range(_STEPS):
        chosen = torch.randint(len(rows), (min(_BATCH, len(rows)),))
        logits = torch.log_softmax(model(rows[chosen]), dim=1)
        loss = -(logits * answers[chosen]).sum(dim=1).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
