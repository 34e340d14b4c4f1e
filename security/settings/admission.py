"""[admission]: which models may run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["AdmissionSettings", "ModelKeySetting"]

# A file, or the URI of another source of keys (`security.admission.model_keys`).
ModelKeySetting = Path | str


@dataclass(frozen=True)
class AdmissionSettings:
    """Which models may run.

    Attributes:
        trust: public keys by role; must come from the deployer, never from the Bento.
        policy: relative to the folder of service.toml.
        model_key: where the key that opens sealed models is, needed only for those: a
            file, or ``exec:`` and a program that writes it.
    """

    trust: Path = Path("trust.json")
    policy: Path = field(default=Path("policy.toml"), metadata={"base": "config"})
    model_key: ModelKeySetting = Path("keys/model.pem")
