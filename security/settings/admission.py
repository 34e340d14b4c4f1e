"""[admission]: which models may run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["AdmissionSettings"]


@dataclass(frozen=True)
class AdmissionSettings:
    """Which models may run.

    Attributes:
        trust: public keys by role; must come from the deployer, never from the Bento.
        policy: relative to the folder of service.toml.
        model_key: X25519 key that sealed models are opened with; needed only for those.
    """

    trust: Path = Path("trust.json")
    policy: Path = field(default=Path("policy.toml"), metadata={"base": "config"})
    model_key: Path = Path("keys/model.pem")
