"""What tests of adversarial and of certified training share."""

from __future__ import annotations

import pytest
import torch

from security.training.examples import Examples
from security.training.gradients import Batch, single_rows

CONFIG = """
[model]
name = "m"
version = "1"
[data]
name = "breast-cancer"
split_key = "k"
[privacy]
epsilon = 3.0
sampling_rate = 1.0
steps = 2
max_grad_norm = 1.0
expected_batch = 400
[optimizer]
learning_rate = 1.0
[adversarial]
method = "pgd"
radius = 0.1
"""


@pytest.fixture(scope="module")
def digits() -> tuple[Examples, Batch]:
    """1,400 rows of 64 values from -1 to 1 to train on, and 397 others."""
    from sklearn.datasets import load_digits

    source = load_digits()
    inputs = torch.tensor(source.data / 8 - 1).float()
    labels = torch.tensor(source.target)
    train, test = slice(0, 1400), slice(1400, None)
    return Examples(inputs[train], labels[train]), single_rows(
        inputs[test], labels[test]
    )
