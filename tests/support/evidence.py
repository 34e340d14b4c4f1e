"""A bundle with every kind of evidence, and one that attacks its own documents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from models.bundle import Bundle, read_bundle, report_file
from models.files import write_atomic
from models.manifest import Column, Manifest
from models.report import KINDS, Check, Dataset, Metric, Report, Subject
from tests.support import bundles
from tests.support.bundles import Keys

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
USE = {
    "intended": "Teaching.",
    "out_of_scope": "Anything about a real person.",
    "limitations": "Linear.",
    "license": "Apache-2.0",
}
TRAIN = Dataset("toy", "train", 435, hashlib.sha256(b"train").hexdigest())
HOLDOUT = Dataset("toy", "holdout", 134, hashlib.sha256(b"holdout").hexdigest())

# What each attack must not become: links, images, HTML, emphasis, headings, lists,
# tables, code, front matter, static sites' directives.
ATTACKS = (
    "[click](https://evil.example)",
    "![x](https://evil.example/p.png)",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "back\\slash \\| pipe",
    "`code` ``` fence",
    "# heading",
    "--- license: mit",
    "line\n---\nlicense: mit\n---\n# New",
    "line\r\n\r\n| a | b |\r\n|---|---|",
    "- item",
    "1. item",
    "> quote",
    "**bold** _em_ ~~gone~~",
    "https://evil.example/ www.evil.example me@evil.example",
    "<https://evil.example>",
    "&lt;b&gt; &#42;",
    "{{ site.secret }} {% raw %} ${x}",
    "right\u202eot left\u200b",
    "[ref]: https://evil.example",
    "=====",
    " \t ",
    '"quoted" \\"',
    "\U0001f600 \u00e9",
)


def report(kind: str, subject: Subject, **changes: object) -> Report:
    """A report like the toolkit's."""
    whole = Report(
        kind=kind,
        created_at=NOW,
        subject=subject,
        tools={"torch": "2.13.0+cpu", "numpy": "2.4.6"},
        datasets=DATASETS.get(kind, ()),
        conditions=CONDITIONS.get(kind, {}),
        metrics=METRICS.get(kind, {}),
        checks=(Check("finite", True, "every score is a number"),),
        details=DETAILS.get(kind, {}),
    )
    return replace(whole, **changes)


def write(
    folder: Path,
    keys: Keys,
    *,
    manifest: Manifest | None = None,
    change: Callable[[Report], Report] = lambda item: item,
) -> Bundle:
    """Every kind of report, signed; admitted under the tests' policy."""
    write_atomic(folder / "model.onnx", bundles.onnx_model())
    given = manifest or bundles.manifest()
    write_atomic(folder / "manifest.json", given.to_json())
    subject = read_bundle(folder).subject
    size = {"model_bytes": Metric(float(len(bundles.onnx_model())))}
    for kind in KINDS:
        whole = report(kind, subject)
        if kind == "structure":
            whole = replace(whole, metrics={**whole.metrics, **size})
        data = change(whole).to_json()
        write_atomic(folder / report_file(kind), data)
        bundles.attest(folder, kind, keys.signers(keys.role(kind)))
    bundles.sign(folder, keys, now=NOW)
    return read_bundle(folder)


def hostile(folder: Path, keys: Keys, attack: str) -> Bundle:
    """A bundle with an attack wherever its format takes text."""
    return write(
        folder,
        keys,
        manifest=_hostile_manifest(attack),
        change=lambda item: _hostile_report(item, attack),
    )


def _hostile_manifest(attack: str) -> Manifest:
    good = bundles.manifest()
    features, (scores, label) = good.inputs[0], good.outputs
    columns = (Column(attack, 0.0, 1.0), *features.columns[1:])
    return replace(
        good,
        inputs=(
            replace(
                features, spec=replace(features.spec, name=attack), columns=columns
            ),
        ),
        outputs=(replace(scores, labels=(attack, "yes")), label),
    )


def _hostile_report(item: Report, attack: str) -> Report:
    row = Dataset(attack, attack, 10, "0" * 64)
    return replace(
        item,
        tools={attack: attack},
        datasets=(*item.datasets, row),
        conditions={**item.conditions, attack: attack, "architecture": attack},
        metrics={**item.metrics, attack: Metric(0.5), f"m/{attack}": Metric(0.25)},
        checks=(*item.checks, Check("bad", False, attack)),
        details={"config": {"use": dict.fromkeys(USE, attack)}},
    )


def _interval(value: float, low: float, high: float, n: int) -> Metric:
    return Metric(value, n=n, low=low, high=high, confidence=0.95)


DATASETS = {
    "fairness": (HOLDOUT,),
    "membership": (TRAIN, HOLDOUT),
    "privacy": (TRAIN,),
    "provenance": (TRAIN,),
    "quality": (HOLDOUT,),
    "robustness": (HOLDOUT,),
}
CONDITIONS = {
    "fairness": {"covered_by_dp": False, "min_group_rows": 30},
    "membership": {
        "access": "black_box",
        "covered_by_dp": False,
        "false_positive_rate": 0.01,
        "shadow_models": 0,
    },
    "privacy": {
        "accountant": "prv",
        "covers_holdout": False,
        "delta": 0.0012,
        "hyperparameters": "public",
        "mechanism": "dp_sgd_gaussian",
        "neighbouring": "add_or_remove_one",
        "noise_generator": "os_urandom",
        "preprocessing": "public_ranges",
        "noise_multiplier": 5.1993,
        "sample_rate": 0.5,
        "sampling": "poisson",
        "steps": 100,
        "unit": "row",
    },
    "provenance": {
        "architecture": "linear",
        "differentially_private": True,
        "personal_data": True,
    },
    "quality": {"covered_by_dp": False, "split": "holdout"},
    "robustness": {
        "attack": "pgd",
        "immutable_columns": "none",
        "norm": "Linf",
        "radius": 0.02,
        "units": "scaled_features",
    },
}
METRICS = {
    "fairness": {
        "true_positive_rate/age 50 and over": _interval(0.91234567, 0.83, 0.96, 60),
        "true_positive_rate/age below 50": _interval(0.87654321, 0.79, 0.93, 74),
        "true_positive_rate_difference": _interval(0.0358, -0.06, 0.13, 134),
    },
    "membership": {"auc": _interval(0.5260167054, 0.44520534, 0.60682806, 285)},
    "parity": {
        "label_agreement": Metric(1.0, n=1006),
        "max_abs_difference": Metric(4.172325134277344e-07, n=1006),
    },
    "privacy": {"epsilon": Metric(2.9982706425655317), "delta": Metric(0.0012)},
    "quality": {
        "accuracy": _interval(0.9701492537, 0.9257619685, 0.9883316653, 134),
        "calibration_error": Metric(0.02309383474179168, n=134),
    },
    "robustness": {
        "radius": Metric(0.02),
        "robust_accuracy": _interval(0.8656716417, 0.7976488590, 0.9133128562, 134),
    },
    "structure": {"errors": Metric(0.0), "model_bytes": Metric(123456.0)},
}
DETAILS = {
    "membership": {"learned": {"members": 218, "others": 67}},
    "provenance": {"config": {"use": USE}},
    "robustness": {
        "curve": [
            {"n": 134, "radius": 0.02, "robust_accuracy": 0.8656716417},
            {"n": 134, "radius": 0.1, "robust_accuracy": 0.17164179104477612},
        ]
    },
}
