"""Small real bundles: a linear ONNX model, reports, signatures by real keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.bundle import (
    VERDICT_FILE,
    Bundle,
    attestation_file,
    read_bundle,
    report_file,
)
from models.files import write_atomic
from models.manifest import Column, Manifest, Tensor
from models.output_policy import ALL_SCORES, OutputPolicy
from models.report import Dataset, Metric, Report, Subject
from sealgate.protocol.dsse import key_hint
from sealgate.protocol.tensors import TensorSpec
from security.admission.attest import sign_report, sign_verdict
from security.admission.evaluation import Evaluation, Recomputed, evaluation_steps
from security.admission.policy import Policy, parse_policy
from security.admission.steps import Scene, demand
from security.admission.trust import ROLES, TrustRoot

KINDS = ("structure", "quality", "privacy")
NAME = "toy"
VERSION = "1.0.0"
WEIGHTS = np.array([[1.0, -1.0], [0.5, 0.25], [-2.0, 2.0]], dtype=np.float32)

POLICY = b"""
version = 1
[verdict]
signers = ["release"]
max_age_days = 30
[require.structure]
signers = ["assessor"]
max_age_days = 30
[require.structure.metrics]
errors = { max = 0 }
[require.quality]
signers = ["assessor"]
max_age_days = 30
[require.quality.metrics]
accuracy = { min = 0.8, min_n = 50, bound = "interval" }
[require.privacy]
signers = ["trainer"]
max_age_days = 30
[require.privacy.conditions]
neighbouring = "add_or_remove_one"
[require.privacy.metrics]
epsilon = { max = 3.0 }
"""


@dataclass(frozen=True)
class Keys:
    """A signing key per role."""

    trainer: ec.EllipticCurvePrivateKey
    assessor: ec.EllipticCurvePrivateKey
    privacy_officer: ec.EllipticCurvePrivateKey
    release: ec.EllipticCurvePrivateKey
    monitor: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls) -> Keys:
        return cls(*(ec.generate_private_key(ec.SECP256R1()) for _ in ROLES))

    @property
    def trust(self) -> TrustRoot:
        return TrustRoot(
            {
                role: {key_hint(key.public_key()): key.public_key()}
                for role in ROLES
                for key in [getattr(self, role.replace("-", "_"))]
            }
        )

    def signer(self, kind: str) -> ec.EllipticCurvePrivateKey:
        trainers = ("privacy", "parity", "provenance")
        return self.trainer if kind in trainers else self.assessor


def policy(text: bytes = POLICY) -> Policy:
    return parse_policy(text, name="policy.toml")


def scene_of(bundle: Bundle, trust: TrustRoot, text: bytes = POLICY) -> Scene:
    """What the checks look at, now."""
    return Scene(bundle, policy(text), trust, datetime.now(UTC))


def evaluate(
    bundle: Bundle,
    policy: Policy,
    trust: TrustRoot,
    *,
    now: datetime,
    recomputed: Recomputed | None = None,
) -> Evaluation:
    """What the evidence is found to be, without a verdict, or the first refusal."""
    return demand(evaluation_steps(Scene(bundle, policy, trust, now), recomputed))


def onnx_model(weights: np.ndarray = WEIGHTS, *, slow: bool = False) -> bytes:
    """features FP32[-1,3] -> probabilities FP32[-1,2], label INT64[-1].

    A slow one does as many rounds of a loop as the largest feature says, on the way.
    """
    kept = "kept" if slow else "features"
    nodes = [
        *(_rounds() if slow else ()),
        helper.make_node("MatMul", [kept, "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", 3])],
        [
            helper.make_tensor_value_info(
                "probabilities", TensorProto.FLOAT, ["rows", 2]
            ),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
        ],
        [
            numpy_helper.from_array(weights, "weights"),
            *([numpy_helper.from_array(np.array(True), "always")] if slow else ()),
        ],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return model.SerializeToString()


def _rounds() -> list[NodeProto]:
    names = ("round", "condition", "state")
    types = (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT)
    shapes: tuple[list[object], ...] = ([], [], ["rows", 3])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["again"]),
            helper.make_node("Identity", ["state"], ["next"]),
        ],
        "body",
        [helper.make_tensor_value_info(*item) for item in zip(names, types, shapes)],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["rows", 3]),
        ],
    )
    return [
        helper.make_node("ReduceMax", ["features"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["rounds"], to=TensorProto.INT64),
        helper.make_node("Loop", ["rounds", "always", "features"], ["kept"], body=body),
    ]


def manifest(
    version: str = VERSION, name: str = NAME, leaving: OutputPolicy = ALL_SCORES
) -> Manifest:
    return Manifest(
        name=name,
        version=version,
        inputs=(
            Tensor(
                TensorSpec("features", "FP32", (-1, 3)),
                columns=tuple(Column(name, -10.0, 10.0) for name in ("a", "b", "c")),
            ),
        ),
        outputs=(
            Tensor(TensorSpec("probabilities", "FP32", (-1, 2)), labels=("no", "yes")),
            Tensor(TensorSpec("label", "INT64", (-1,))),
        ),
        max_rows=64,
        output_policy=leaving,
    )


def report(kind: str, subject: Subject, now: datetime | None = None) -> Report:
    metrics = {
        "structure": {"errors": Metric(0.0)},
        "quality": {
            "accuracy": Metric(0.95, n=200, low=0.91, high=0.97, confidence=0.95)
        },
        "privacy": {"epsilon": Metric(2.5), "delta": Metric(1e-3)},
    }
    # The mechanism that epsilon belongs to: recomputed by the gate when it admits.
    mechanism = {
        "mechanism": "dp_sgd_gaussian",
        "sampling": "poisson",
        "neighbouring": "add_or_remove_one",
        "sample_rate": 0.1,
        "noise_multiplier": 1.2,
        "steps": 50,
        "delta": 1e-3,
    }
    return Report(
        kind=kind,
        created_at=(now or datetime.now(UTC)).replace(microsecond=0),
        subject=subject,
        tools={"tests": "1"},
        datasets=(Dataset("toy", "holdout", 200, hashlib.sha256(b"").hexdigest()),),
        conditions=mechanism if kind == "privacy" else {},
        metrics=metrics[kind],
    )


def write_bundle(
    folder: Path,
    keys: Keys,
    *,
    kinds: Iterable[str] = KINDS,
    name: str = NAME,
    version: str = VERSION,
    policy_bytes: bytes = POLICY,
    now: datetime | None = None,
    admit: bool = True,
    weights: np.ndarray = WEIGHTS,
    slow: bool = False,
    leaving: OutputPolicy = ALL_SCORES,
) -> Path:
    """Write a bundle that the policy admits; the verdict only if ``admit``."""
    now = now or datetime.now(UTC)
    write_atomic(folder / "model.onnx", onnx_model(weights, slow=slow))
    write_atomic(folder / "manifest.json", manifest(version, name, leaving).to_json())
    subject = read_bundle(folder).subject
    for kind in kinds:
        data = report(kind, subject, now).to_json()
        write_atomic(folder / report_file(kind), data)
        attest(folder, kind, keys.signer(kind))
    if admit:
        sign(folder, keys, policy_bytes=policy_bytes, now=now)
    return folder


def attest(folder: Path, kind: str, key: ec.EllipticCurvePrivateKey) -> None:
    signed = sign_report(read_bundle(folder), kind, key)
    write_atomic(folder / attestation_file(kind), signed)


def sign(
    folder: Path,
    keys: Keys,
    *,
    policy_bytes: bytes = POLICY,
    now: datetime | None = None,
) -> None:
    verdict = sign_verdict(
        read_bundle(folder),
        policy(policy_bytes),
        keys.release,
        now=now or datetime.now(UTC),
    )
    write_atomic(folder / VERDICT_FILE, verdict)


def rewrite_report(folder: Path, kind: str, **changes: object) -> Report:
    """Replace fields of a report; the caller decides whether to sign it again."""
    changed = replace(read_bundle(folder).report(kind), **changes)
    write_atomic(folder / report_file(kind), changed.to_json())
    return changed
