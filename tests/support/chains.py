"""From an assessed bundle to a verdict: the policy, and the steps as commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.in_process import security_code

_TRAINER = ("parity", "privacy", "provenance")
_HEAD = 'version = 1\n[verdict]\nsigners = ["release"]\nmax_age_days = 30\n'


def policy(**required: tuple[str, ...]) -> str:
    """A policy: of each kind that is needed, lines like ``metrics.radius = { … }``."""
    text = _HEAD
    for kind, lines in required.items():
        signer = "trainer" if kind in _TRAINER else "assessor"
        text += f'[require.{kind}]\nsigners = ["{signer}"]\nmax_age_days = 30\n'
        text += "".join(f"{line}\n" for line in lines)
    return text


@dataclass(frozen=True)
class Chain:
    """A deployment whose commands run in this process.

    Attributes:
        home: its SEALGATE_HOME.
        policy: the file of its policy.
    """

    home: Path
    policy: Path

    @property
    def settings(self) -> dict[str, str]:
        """Variables that a server of this deployment needs too."""
        return {"SEALGATE_ADMISSION_POLICY": str(self.policy)}

    def command(self, *arguments: object) -> int:
        """The exit code of `python -m security …`."""
        given = map(str, arguments)
        return security_code(self.home, *given, extra=self.settings)

    def admit(self, bundle: Path, *roles: str) -> None:
        """Make keys that are missing, sign for these roles, admit."""
        asked = [part for role in roles for part in ("--role", role)]
        assert self.command("keygen") == 0
        assert self.command("sign", bundle, *asked) == 0
        assert self.command("admit", bundle) == 0
