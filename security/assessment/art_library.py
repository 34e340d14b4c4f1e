"""Importing ART without its side effects.

Importing it writes ``~/.art/config.json``, and it logs and warns on the way. An
assessment leaves nothing behind but its reports, so ART is given another home while it
is imported, and every user of it here imports this module's names.
"""

from __future__ import annotations

import logging.config
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np

__all__ = ["art", "repeatable"]


# What is used here of each of ART's modules.
_NAMES = {
    "art.attacks.evasion": (
        "CarliniL2Method",
        "DeepFool",
        "HopSkipJump",
        "ProjectedGradientDescentPyTorch",
    ),
    "art.attacks.extraction": ("CopycatCNN", "KnockoffNets"),
    "art.attacks.inference.attribute_inference": (
        "AttributeInferenceBaseline",
        "AttributeInferenceBaselineTrueLabel",
        "AttributeInferenceBlackBox",
    ),
    "art.attacks.inference.model_inversion": ("MIFace",),
    "art.defences.detector.poison": ("SpectralSignatureDefense",),
    "art.defences.detector.poison.activation_defence": ("cluster_activations",),
    "art.estimators.classification": (
        "BlackBoxClassifierNeuralNetwork",
        "PyTorchClassifier",
    ),
}


@contextmanager
def _own_logging() -> Iterator[None]:
    """Keep ART from configuring the process's logging.

    That would close every handler there is, and with it the streams of some.
    """
    configure = logging.config.dictConfig
    logging.config.dictConfig = lambda config: None
    try:
        yield
    finally:
        logging.config.dictConfig = configure


@cache
def art() -> Any:
    """ART's classes that are used here, imported on the first call."""
    with _other_home(), _own_logging(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of what ART imports
        # Written as an import, so that the import contracts see it.
        from art import config  # noqa: PLC0415  (the whole point)

        found = {
            name: getattr(import_module(module), name)
            for module, names in _NAMES.items()
            for name in names
        }
        # The folder is gone after the import; nothing used here reads it.
        config.ART_DATA_PATH = os.devnull
    return SimpleNamespace(**found)


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, which ART draws from, and put it back after."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        with warnings.catch_warnings():
            # ART hands torch tensors to numpy in the way of numpy 1.
            warnings.filterwarnings("ignore", message="__array__ implementation")
            yield
    finally:
        np.random.set_state(state)


@contextmanager
def _other_home() -> Iterator[None]:
    before = os.environ.get("HOME")
    with tempfile.TemporaryDirectory(prefix="sealgate-art-") as folder:
        os.environ["HOME"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = before
