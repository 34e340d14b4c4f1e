"""Errors of bundles and what they hold.

::

    SealgateError
    ├── BundleError          the folder, or a file in it, is not what it must be
    │   ├── ManifestError    manifest.json
    │   └── ReportError      evidence/<kind>.json
    ├── DatasetError         a data set is unknown, or cannot be used as asked
    ├── ExportError          a module cannot be exported, or computes something else
    └── SessionError         onnxruntime refuses a model
        └── ProviderError    what it shall run on is not here
"""

from __future__ import annotations

from sealgate.errors import SealgateError

__all__ = [
    "BundleError",
    "DatasetError",
    "ExportError",
    "ManifestError",
    "ProviderError",
    "ReportError",
    "SessionError",
]


class BundleError(SealgateError):
    """A bundle's folder, or a file in it, is not what it must be."""


class ManifestError(BundleError):
    """manifest.json is malformed or describes something impossible."""


class ReportError(BundleError):
    """A report is malformed."""


class DatasetError(SealgateError):
    """A data set is unknown, or cannot be used as asked."""


class ExportError(SealgateError):
    """A module cannot be exported, or its export computes something else."""


class SessionError(SealgateError):
    """onnxruntime refuses a model."""


class ProviderError(SessionError):
    """What a model shall run on is not installed, or does not work here."""
