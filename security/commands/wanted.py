"""Which checks a policy's evidence of a model needs, beyond what a profile runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.metrics import METRICS, check_of
from security.errors import SettingsError
from security.settings.loading import load_settings

if TYPE_CHECKING:
    from security.admission.policy import Policy

__all__ = ["add_policy", "deployed_policy", "wanted"]


def add_policy(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --policy."""
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE.toml",
        help=f"run the checks too that its metrics come from (default: {default})",
    )


def deployed_policy() -> Policy | None:
    """The policy of the deployment's settings; None where there is no usable one."""
    from security.admission.policy import load_policy  # noqa: PLC0415

    try:
        return load_policy(load_settings().admission.policy)
    except SettingsError:
        return None


def wanted(policy: Policy | None, model: str) -> dict[str, Any]:
    """``wanted`` and ``norms`` of `Options`, as a model's policy needs them.

    Args:
        policy: or None, which needs nothing.
        model: its name.
    """
    found = dict.fromkeys(() if policy is None else _asked(policy, model))
    norms = ("linf", "l2") if "l2" in found else ()
    return {"wanted": tuple(name for name in found if name != "l2"), "norms": norms}


def _asked(policy: Policy, model: str) -> Iterator[str]:
    for item in policy.required(model):
        # The kind itself is needed, whatever is bounded of it.
        yield from [name for name in METRICS[item.kind] if name][:1]
        for threshold in item.thresholds:
            check = check_of(item.kind, threshold.metric)
            if check is not None:
                yield check
            if threshold.metric.partition("/")[0].endswith("_l2"):
                yield "l2"
