"""Where the model that is asked comes from, and what is known of it before."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from models.bundle import Bundle
from models.manifest import Column, Manifest
from models.output_policy import ALL_SCORES, OutputPolicy
from security.assessment.targets.journal import Journal
from security.assessment.targets.predictions import NoTarget
from security.assessment.targets.remote import RemoteLimits, RemoteTarget
from security.assessment.targets.target import OnnxTarget, Target
from security.errors import AssessmentError

__all__ = ["TargetSource"]


@dataclass(frozen=True)
class TargetSource:
    """How to open the target.

    Attributes:
        kind: "onnx", "bundle", "remote", or "predictions" where there is no model.
        name: for people.
        model: the inspected bytes, for files.
        url, profile: for endpoints.
        columns: of the bundle's manifest.
        bounds: of its pixels, where the manifest states them.
        classes: names of the classes where the manifest says.
        output: the manifest's output with class scores, or None.
        path: of the file, below the folder that reports are relative to; or "".
        text: names of the bundle's inputs that are texts.
        manifest: the bundle's.
        leaving: what the bundle's policy lets leave of answers; of what else the file
            gives, everything. An endpoint says it itself.
    """

    kind: str
    name: str
    model: bytes = field(default=b"", repr=False)
    url: str = ""
    profile: Path | None = None
    columns: tuple[Column, ...] = ()
    bounds: tuple[float, float] | None = None
    classes: tuple[str, ...] = ()
    output: str | None = None
    path: str = ""
    text: tuple[str, ...] = ()
    leaving: OutputPolicy = ALL_SCORES
    manifest: Manifest | None = None

    @property
    def predicts_number(self) -> bool:
        """Whether the manifest says so."""
        return self.manifest is not None and self.manifest.number is not None

    @classmethod
    def of(cls, bundle: Bundle) -> TargetSource:
        """A bundle's model, with what its manifest says of its input and output."""
        inputs, outputs = bundle.manifest.inputs, bundle.manifest.outputs
        scores = [item for item in outputs if item.labels]
        score = scores[0] if len(scores) == 1 else None
        return cls(
            "bundle",
            bundle.manifest.name,
            bundle.model,
            columns=bundle.manifest.columns,
            bounds=inputs[0].bounds if len(inputs) == 1 else None,
            classes=score.labels if score else (),
            output=score.spec.name if score else None,
            text=bundle.manifest.text,
            leaving=bundle.manifest.output_policy,
            manifest=bundle.manifest,
        )

    def open(self, limits: RemoteLimits, journal: Journal | None = None) -> Target:
        """Open it; what an endpoint is asked is written down.

        Raises:
            AssessmentError: it cannot be opened.
        """
        if self.kind == "remote":
            if self.profile is None:
                raise AssessmentError("an endpoint needs --client-profile")
            return RemoteTarget(self.url, self.profile, limits, journal)
        if self.kind == "predictions":
            return NoTarget(self.name)
        return OnnxTarget(self.model, self.name, self.kind)
