"""Names of networks and feature maps, without the library that builds them.

A configuration is checked before torch is imported, which takes seconds.
"""

from __future__ import annotations

__all__ = ["ARCHITECTURES", "FEATURES"]

# Of `models.architectures.build_network`.
ARCHITECTURES = ("linear", "mlp", "resnet", "cnn", "plain-cnn")
# Of `models.features.FEATURE_MAPS`.
FEATURES = ("scattering",)
