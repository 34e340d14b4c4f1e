"""Models that benchmarks serve, admitted by the commands."""

from __future__ import annotations

from pathlib import Path

from models.bundle import read_bundle, report_file
from models.files import write_atomic
from models.manifest import Manifest
from tests.conftest import check_security
from tests.support import bundles

__all__ = ["admit"]


def admit(
    home: Path, model: bytes, manifest: Manifest, settings: dict[str, str]
) -> None:
    """Write a bundle with the tests' evidence, sign it, admit it, store it.

    Args:
        home: a SEALGATE_HOME with keys and a policy.
        model: ONNX.
        manifest: of the bundle.
        settings: the deployment's, as variables.
    """
    folder = home / manifest.name
    write_atomic(folder / "model.onnx", model)
    write_atomic(folder / "manifest.json", manifest.to_json())
    subject = read_bundle(folder).subject
    for kind in bundles.KINDS:
        data = bundles.report(kind, subject).to_json()
        write_atomic(folder / report_file(kind), data)
    for role in ("trainer", "assessor"):
        check_security(home, "sign", str(folder), "--role", role, **settings)
    check_security(home, "admit", str(folder), **settings)
    check_security(home, "store", str(folder), **settings)
