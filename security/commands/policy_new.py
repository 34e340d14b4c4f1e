"""`policy new`: the deployment's policy with an entry for one model, from a profile."""

from __future__ import annotations

import json
import re
from pathlib import Path

from security.admission.policy import (
    Policy,
    load_policy,
    parse_policy,
    read_policy_bytes,
)
from security.errors import SettingsError

__all__ = ["PROFILES", "extended", "profile_names"]

PROFILES = Path(__file__).resolve().parents[2] / "deploy" / "policies"


def profile_names() -> tuple[str, ...]:
    """The profiles that there are."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.toml")))


def extended(base: Path, profile: str, model: str) -> str:
    """A policy's text, and after it an entry that asks of a model what a profile does.

    Verdict and waivers stay the policy's: they are the deployment's, not a model's.

    Args:
        base: the policy.
        profile: one of `profile_names`.
        model: its name.

    Raises:
        SettingsError: the policy cannot be read, or an entry of it matches first.
    """
    before = load_policy(base)
    path = PROFILES / f"{profile}.toml"
    wanted = load_policy(path)
    needed = {item.kind for item in wanted.requirements}
    without = [item.kind for item in before.requirements if item.kind not in needed]
    lines = [
        f"# From the profile {profile}: what {model} needs in place of the above.",
        "[[models]]",
        f'match = "{model}"',
    ]
    if without:
        lines.append(f"without = {json.dumps(without)}")
    entry = "\n".join(lines)
    text = read_policy_bytes(base).decode().rstrip()
    text += f"\n\n{entry}\n\n{_as_entry(path.read_text())}"
    _check(parse_policy(text.encode(), name=base.name), before, model)
    return text


def _as_entry(profile: str) -> str:
    """The tables of a profile's evidence, with their comments, below an entry."""
    first = re.search(r"^\[(require\.|promotion)", profile, re.MULTILINE)
    start = 0 if first is None else first.start()
    # The comments right above a table belong to it.
    above = re.search(r"(?:^#.*\n)+\Z", profile[:start], re.MULTILINE)
    start = start if above is None else above.start()
    text = profile[start:]
    return re.sub(
        r"^(# )?\[(require|promotion)(?=[.\]])",
        r"\1[models.\2",
        text,
        flags=re.MULTILINE,
    )


def _check(made: Policy, before: Policy, model: str) -> None:
    first = before.rules_for(model)
    if first is not None:
        raise SettingsError(
            f"the policy has an entry for {first.match!r}, which matches {model!r}"
        )
    rules = made.rules_for(model)
    if rules is None or rules.match != model:  # a name that is a pattern
        raise SettingsError(f"{model!r} is no model's name")
