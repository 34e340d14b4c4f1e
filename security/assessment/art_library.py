"""Importing ART without its side effects.

Importing it writes ``~/.art/config.json``, and it logs and warns on the way. An
assessment leaves nothing behind but its reports, so ART is given another home while it
is imported, and every user of it here imports this module's names.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

__all__ = ["art", "repeatable"]


@cache
def art() -> Any:
    """ART's classes that are used here, imported on the first call."""
    with _other_home(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of what ART imports
        from art import config  # noqa: PLC0415  (the whole point)
        from art.attacks import EvasionAttack, ExtractionAttack  # noqa: PLC0415
        from art.attacks.evasion import (  # noqa: PLC0415
            CarliniL2Method,
            DeepFool,
            FastGradientMethod,
            HopSkipJump,
            ProjectedGradientDescentPyTorch,
        )
        from art.attacks.extraction import CopycatCNN, KnockoffNets  # noqa: PLC0415
        from art.attacks.inference.attribute_inference import (  # noqa: PLC0415
            AttributeInferenceBaseline,
            AttributeInferenceBaselineTrueLabel,
            AttributeInferenceBlackBox,
        )
        from art.attacks.inference.membership_inference import (  # noqa: PLC0415
            MembershipInferenceBlackBox,
            MembershipInferenceBlackBoxRuleBased,
        )
        from art.attacks.inference.model_inversion import MIFace  # noqa: PLC0415
        from art.defences.detector.poison import (  # noqa: PLC0415
            SpectralSignatureDefense,
        )
        from art.defences.detector.poison.activation_defence import (  # noqa: PLC0415
            cluster_activations,
        )
        from art.estimators import BaseEstimator  # noqa: PLC0415
        from art.estimators.classification import (  # noqa: PLC0415
            BlackBoxClassifierNeuralNetwork,
            PyTorchClassifier,
        )
        from art.estimators.classification.classifier import (  # noqa: PLC0415
            ClassifierMixin,
        )

        # The folder is gone after the import; nothing used here reads it.
        config.ART_DATA_PATH = os.devnull
    return SimpleNamespace(
        AttributeInferenceBaseline=AttributeInferenceBaseline,
        AttributeInferenceBaselineTrueLabel=AttributeInferenceBaselineTrueLabel,
        AttributeInferenceBlackBox=AttributeInferenceBlackBox,
        BaseEstimator=BaseEstimator,
        CarliniL2Method=CarliniL2Method,
        ClassifierMixin=ClassifierMixin,
        CopycatCNN=CopycatCNN,
        DeepFool=DeepFool,
        EvasionAttack=EvasionAttack,
        ExtractionAttack=ExtractionAttack,
        HopSkipJump=HopSkipJump,
        FastGradientMethod=FastGradientMethod,
        KnockoffNets=KnockoffNets,
        MembershipInferenceBlackBox=MembershipInferenceBlackBox,
        MembershipInferenceBlackBoxRuleBased=MembershipInferenceBlackBoxRuleBased,
        MIFace=MIFace,
        BlackBoxClassifierNeuralNetwork=BlackBoxClassifierNeuralNetwork,
        ProjectedGradientDescentPyTorch=ProjectedGradientDescentPyTorch,
        PyTorchClassifier=PyTorchClassifier,
        SpectralSignatureDefense=SpectralSignatureDefense,
        cluster_activations=cluster_activations,
    )


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
