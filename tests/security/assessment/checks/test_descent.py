"""Adam as torch.optim has it, and copies that are trained at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from security.assessment.checks.descent import Adam
from security.assessment.checks.privacy.thieves import HIDDEN, fit_copies


def test_adam_is_torchs_own_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        [torch.linspace(-1, 1, 12).reshape(3, 4), torch.ones(5, dtype=torch.float64)]
        for _ in "ab"
    )
    own = Adam(ours, rate=0.1, betas=(0.5, 0.9))
    known = torch.optim.Adam(theirs, lr=0.1, betas=(0.5, 0.9), foreach=False)
    for _ in range(50):
        gradients = [
            torch.randn(item.shape, generator=generator, dtype=item.dtype)
            for item in ours
        ]
        own.step(gradients)
        for item, gradient in zip(theirs, gradients, strict=True):
            item.grad = gradient
        known.step()
    for mine, item in zip(ours, theirs, strict=True):
        assert torch.equal(mine, item)


def test_copies_that_are_trained_at_once_are_those_that_torch_trains_alone():
    random = np.random.default_rng(0)
    questions = random.uniform(-1, 1, (400, 3)).astype(np.float32)
    judged = random.uniform(-1, 1, (500, 3)).astype(np.float32)
    chance = 1 / (1 + np.exp(-8 * questions[:, 0]))
    whole = np.stack([chance, 1 - chance], axis=1)
    # A policy that withholds leaves rows whose chances do not add up to 1.
    answers = [whole, whole.round(1), np.where(whole > 0.5, whole, 0.0)]
    made = fit_copies(questions, answers, judged, seed=7)
    for guess, given in zip(made, answers, strict=True):
        alone = trained_alone(questions, given, judged, seed=7)
        assert (guess == alone).mean() >= 0.99


def trained_alone(questions, answers, judged, *, seed):
    """The same perceptron by autograd and torch's optimizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        rows = torch.as_tensor(questions)
        given = torch.as_tensor(answers.astype(np.float32))
        for _ in range(300):
            chosen = torch.randint(len(rows), (256,))
            logits = torch.log_softmax(model(rows[chosen]), dim=1)
            optimizer.zero_grad()
            torch.autograd.backward(-(logits * given[chosen]).sum(dim=1).mean())
            optimizer.step()
        with torch.no_grad():
            return model(torch.as_tensor(judged)).argmax(dim=1).numpy()
