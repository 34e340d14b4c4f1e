"""Small real bundles: a linear ONNX model, reports, signatures by real keys."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from onnx import NodeProto, TensorProto, helper, numpy_helper

from models.bundle import (
    VERDICT_FILE,
    Bundle,
    attestation_file,
    mldsa_file,
    read_bundle,
    report_file,
)
from models.files import write_atomic
from models.manifest import Column, Manifest, Tensor
from models.output_policy import ALL_SCORES, OutputPolicy
from models.report import Dataset, Metric, Report, Subject
from sealgate.protocol.dsse import ECDSA_P256, ML_DSA_65, key_hint
from sealgate.protocol.tensors import TensorSpec
from security.admission.attest import (
    Signers,
    report_payload,
    signed_files,
    verdict_inputs,
    verdict_payload,
)
from security.admission.evaluation import Evaluation, Recomputed, evaluation_steps
from security.admission.keys import load_mldsa_key, load_signing_key, mldsa_key_file
from security.admission.policy import Policy, parse_policy
from security.admission.signers import write_signed
from security.admission.steps import Scene, demand
from security.admission.trust import ROLES, TrustRoot

ALGORITHMS = (ECDSA_P256, ML_DSA_65)
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
    """A signing key per role; an ML-DSA-65 key beside it for those in ``mldsa``."""

    trainer: ec.EllipticCurvePrivateKey
    assessor: ec.EllipticCurvePrivateKey
    privacy_officer: ec.EllipticCurvePrivateKey
    release: ec.EllipticCurvePrivateKey
    monitor: ec.EllipticCurvePrivateKey
    mldsa: Mapping[str, MLDSA65PrivateKey] = field(default_factory=dict)

    @classmethod
    def generate(cls, *, mldsa: Iterable[str] = ()) -> Keys:
        second = {role: MLDSA65PrivateKey.generate() for role in mldsa}
        return cls(*(ec.generate_private_key(ec.SECP256R1()) for _ in ROLES), second)

    @classmethod
    def of(cls, home: Path) -> Keys:
        """Those that `keygen` made."""
        files = {role: home / "keys" / f"{role}.pem" for role in ROLES}
        beside = {role: mldsa_key_file(path) for role, path in files.items()}
        second = {
            r: load_mldsa_key(path) for r, path in beside.items() if path.exists()
        }
        return cls(*map(load_signing_key, files.values()), second)

    @property
    def trust(self) -> TrustRoot:
        return TrustRoot(
            {
                role: {
                    key_hint(key.public_key()): key.public_key()
                    for key in (self.signers(role).ecdsa, self.signers(role).mldsa)
                    if key is not None
                }
                for role in ROLES
            }
        )

    def signers(self, role: str) -> Signers:
        key = getattr(self, role.replace("-", "_"))
        return Signers(key, self.mldsa.get(role))

    def role(self, kind: str) -> str:
        """Who signs reports of a kind."""
        trainers = ("privacy", "parity", "provenance")
        return "trainer" if kind in trainers else "assessor"

    def signer(self, kind: str) -> ec.EllipticCurvePrivateKey:
        return self.trainer if self.role(kind) == "trainer" else self.assessor


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
        attest(folder, kind, keys.signers(keys.role(kind)))
    if admit:
        sign(folder, keys, policy_bytes=policy_bytes, now=now)
    return folder


def attest(folder: Path, kind: str, key: ec.EllipticCurvePrivateKey | Signers) -> None:
    signers = key if isinstance(key, Signers) else Signers(key)
    payload = report_payload(read_bundle(folder), kind)
    write_signed(folder, signed_files(attestation_file(kind), payload, signers))


def sign(
    folder: Path,
    keys: Keys,
    *,
    policy_bytes: bytes = POLICY,
    now: datetime | None = None,
) -> None:
    bundle, rules = read_bundle(folder), policy(policy_bytes)
    payload = verdict_payload(
        bundle,
        rules,
        now=now or datetime.now(UTC),
        signatures={
            item.name: ALGORITHMS[: 1 + (mldsa_file(item.name) in bundle.files)]
            for item in verdict_inputs(bundle, rules, {})
        }
        if keys.mldsa
        else None,
    )
    signed = signed_files(VERDICT_FILE, payload, keys.signers("release"))
    write_signed(folder, signed)


def rewrite_report(folder: Path, kind: str, **changes: object) -> Report:
    """Replace fields of a report; the caller decides whether to sign it again."""
    changed = replace(read_bundle(folder).report(kind), **changes)
    write_atomic(folder / report_file(kind), changed.to_json())
    return changed
