"""[deployment]: where it is said which models a running server serves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from security.settings.checks import check_positive

__all__ = ["DeploymentSettings", "check_deployment"]


@dataclass(frozen=True)
class DeploymentSettings:
    """Where `python -m security models` says what a running server serves.

    Attributes:
        directory: of the plan, its history, and what each worker reports.
        poll_s: how often each worker looks at the plan, the policy and the trust root.
    """

    directory: Path = Path("deployment")
    poll_s: float = 0.5


def check_deployment(deployment: DeploymentSettings) -> None:
    """Refuse values that mean nothing.

    Raises:
        SettingsError: names the key.
    """
    check_positive(deployment, "deployment", ("poll_s",))
