"""The service's rooms in one process: real keys, a real session, a real audit log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper

from models.bundle import read_bundle
from models.files import write_atomic
from models.manifest import Manifest, Tensor
from sealgate.protocol import bhttp, keyconfig, ohttp
from sealgate.protocol.bhttp import Request, Response
from sealgate.protocol.hpke import KEM_X25519
from sealgate.protocol.tensors import TensorSpec
from security.access.dpop import Proofs
from security.access.issuer import DEVELOPMENT_ISSUER, jwks_document, mint
from security.access.permissions import Permissions
from security.access.quota_stores import LocalQuotaStore
from security.access.quota_table import Limits, QuotaTable
from security.access.quotas import Quotas
from security.access.tokens import RevocationList, Verifier
from security.admission.gate import Admission, verify
from security.admission.lifecycle import Planned, State
from security.attestation.attesters import Attester
from security.audit.group import GroupLog
from security.audit.log import AuditLog, LogLimits
from security.sealing.freshness import Freshness
from security.sealing.keyring import KeyRing, generate_key, load_keyring
from security.sealing.publish import Publication
from security.sealing.replay import LocalReplayStore
from security.settings.access import AccessSettings
from security.settings.service import ServiceSettings
from service.callers import Callers, documents
from service.gateway import Gateway
from service.guard import App, Guard
from service.inference.lineup import Lineup
from service.inference.served import Entry, Served
from service.routes import Routes
from service.telemetry.metrics import Metrics
from service.telemetry.recorder import Recorder
from tests.support.bundles import Keys, policy, write_bundle

AUDIENCE = "urn:sealgate:tests"
ISSUER_KEY = Ed25519PrivateKey.from_private_bytes(b"\x03" * 32)
SUBJECT = "alice@example.org"
INPUT = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}


@dataclass
class Rooms:
    """What a worker holds, wired as service.app wires it."""

    routes: Routes
    gateway: Gateway
    log: AuditLog
    admission: Admission

    @property
    def records(self) -> bytes:
        return self.log.path.read_bytes()

    def guard(self, inner: App, **bounds: Any) -> Guard:
        return Guard(inner, self.routes, self.gateway, ServiceSettings(**bounds))


def admitted(folder: Path) -> Admission:
    """The toy model, through the gate."""
    keys = Keys.generate()
    bundle = read_bundle(write_bundle(folder, keys))
    return verify(bundle, policy(), keys.trust, now=datetime.now(UTC))


def unverified(folder: Path, model: bytes, manifest: Manifest) -> Admission:
    """Any model as if it had been admitted: for what the runtime must withstand."""
    write_atomic(folder / "model.onnx", model)
    write_atomic(folder / "manifest.json", manifest.to_json())
    return Admission(read_bundle(folder), "0" * 64, {})


def serving(admissions: Iterable[Admission], **bounds: Any) -> Lineup:
    """A lineup of these; of several versions of a model the first is its default."""
    lineup = Lineup(**bounds)
    states: dict[str, dict[str, State[Served]]] = {}
    for admission in admissions:
        warm = lineup.load(Planned(0).admit(admission))
        versions = states.setdefault(warm.content.manifest.name, {})
        versions[warm.content.manifest.version] = warm if versions else warm.promote()
    lineup.switch({name: Entry(versions) for name, versions in states.items()})
    return lineup


def wire(
    folder: Path,
    *,
    admissions: Iterable[Admission] = (),
    require_sealed: bool = True,
    timeout_s: float = 10.0,
    max_body_bytes: int = 1 << 20,
    require_date: bool = False,
    kems: Iterable[int] = (KEM_X25519,),
    identity: ec.EllipticCurvePrivateKey | None = None,
    attester: Attester | None = None,
    ring: Callable[[], KeyRing] | None = None,
    replay_share: int = 1 << 14,
    limits: Limits = Limits(10**9, 10**9, 10**9, 10**9, 1000),
    permissions: Permissions = Permissions(),
    revocations: RevocationList | None = None,
    proofs: Proofs | None = None,
    clock: Callable[[], float] = time.time,
    **changes: Any,
) -> Rooms:
    """Wire the rooms; ``changes`` are settings of access."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jwks.json").write_bytes(jwks_document(ISSUER_KEY.public_key()))
    for key_id, kem_id in enumerate(kems, start=1):
        generate_key(folder / "hpke", key_id, kem_id=kem_id)
    access = AccessSettings(
        issuer=DEVELOPMENT_ISSUER,
        audience=AUDIENCE,
        jwks=folder / "jwks.json",
        **changes,
    )
    all_admissions = list(admissions) or [admitted(folder / "bundle")]
    log = AuditLog(folder / "audit", writer="worker", limits=LogLimits(sync=False))
    metrics = Metrics()
    routes = Routes(
        serving(all_admissions, timeout_s=timeout_s, metrics=metrics),
        Callers(
            Verifier(access, revocations=revocations),
            access,
            proofs=proofs,
            clock=clock,
        ),
        Recorder(GroupLog(log), key=b"k" * 32),
        quotas=Quotas(
            QuotaTable(limits),
            LocalQuotaStore(folder / "quotas", max_entries=1 << 16),
            key=b"q" * 32,
        ),
        require_sealed=require_sealed,
        permissions=permissions,
        metrics=metrics,
        documents=documents(access, certificates=False, jwks=None),
        max_body_bytes=max_body_bytes,
        clock=clock,
    )
    loaded = load_keyring(folder / "hpke")
    store = LocalReplayStore(folder / "replay", max_entries=1 << 16, share=replay_share)
    gateway = Gateway(
        ring or (lambda: loaded),
        routes,
        max_body_bytes=max_body_bytes,
        freshness=Freshness(
            store,
            key=b"r" * 32,
            window_s=120,
            require_date=require_date,
            clock=clock,
        ),
        clock=clock,
        publication=Publication(
            overlap_s=7200, cache_s=3600, identity=identity, attester=attester
        ),
    )
    return Rooms(routes, gateway, log, all_admissions[0])


def token(
    *scopes: str,
    subject: str = SUBJECT,
    client_id: str = "app",
    now: int | None = None,
) -> str:
    return mint(
        ISSUER_KEY,
        audience=AUDIENCE,
        subject=subject,
        client_id=client_id,
        scopes=scopes,
        lifetime_s=600,
        now=int(time.time()) if now is None else now,
    )


def request(
    method: str = "GET",
    path: str = "/v2",
    *,
    bearer: str | None = None,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    body: bytes = b"",
) -> Request:
    if bearer is not None:
        headers = ((b"authorization", b"Bearer " + bearer.encode()), *headers)
    return Request(
        method.encode(), b"https", b"models.example", path.encode(), headers, body
    )


def sealed(keys: bytes, message: bytes) -> tuple[bytes, ohttp.ResponseContext]:
    return ohttp.seal_request(keyconfig.decode_list(keys)[0], message)


def opened(context: ohttp.ResponseContext, outer: Response) -> Response:
    assert outer.status == 200
    assert dict(outer.headers)[b"content-type"] == b"message/ohttp-res"
    return bhttp.decode_response(context.open(bytes(outer.body)))


def manifest(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Manifest:
    tensors = (tuple(map(Tensor, specs)) for specs in (inputs, outputs))
    return Manifest("odd", "1.0.0", *tensors, max_rows=64)


def _model(nodes: list[Any], initializers: Iterable[Any] = ()) -> bytes:
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 3])
        for name in "xy"
    )
    graph = helper.make_graph(nodes, "odd", [x], [y], list(initializers))
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return bytes(model.SerializeToString())


X, Y = (TensorSpec(name, "FP32", (-1, 3)) for name in "xy")


def log_model(folder: Path) -> Admission:
    """y = log x: NaN for what is negative."""
    return unverified(
        folder, _model([helper.make_node("Log", ["x"], ["y"])]), manifest((X,), (Y,))
    )


def reshape_model(folder: Path) -> Admission:
    """Fails at run time unless there are exactly two rows."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [2, 3])
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    # Its output shape is inferred as [2, 3].
    outputs = (replace(Y, shape=(2, 3)),)
    return unverified(folder, _model(nodes, [shape]), manifest((X,), outputs))


def misdeclared_model(folder: Path) -> Admission:
    """Says that y is [rows, 3], and gives all of x in one row: [1, rows * 3]."""
    # From values, so that onnxruntime cannot tell the shape before it runs.
    nodes = [
        helper.make_node("Sub", ["x", "x"], ["zeros"]),
        helper.make_node("Exp", ["zeros"], ["ones"]),
        helper.make_node("ReduceSum", ["ones"], ["all"], keepdims=0),
        helper.make_node("ReduceMax", ["ones"], ["one"], keepdims=0),
        helper.make_node("Unsqueeze", ["one", "axis"], ["first"]),
        helper.make_node("Unsqueeze", ["all", "axis"], ["second"]),
        helper.make_node("Concat", ["first", "second"], ["sizes"], axis=0),
        helper.make_node("Cast", ["sizes"], ["shape"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [0])
    return unverified(folder, _model(nodes, [axis]), manifest((X,), (Y,)))


def gathering_model(folder: Path) -> Admission:
    """y = x, after a loop of as many rounds as x says that keeps a number of each."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["again"]),
            helper.make_node("Cast", ["round"], ["kept"], to=TensorProto.FLOAT),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept", TensorProto.FLOAT, []),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["rounds"], to=TensorProto.INT64),
        helper.make_node("Loop", ["rounds", "always"], ["all"], body=body),
        helper.make_node("ReduceSum", ["all"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["none"]),
        helper.make_node("Add", ["x", "none"], ["y"]),
    ]
    always = helper.make_tensor("always", TensorProto.BOOL, [], [True])
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])
    return unverified(folder, _model(nodes, [always, zero]), manifest((X,), (Y,)))


def endless_model(folder: Path) -> Admission:
    """A loop of 10^15 rounds, each of which onnxruntime can stop between."""
    names = ("round", "condition", "state")
    types = (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT)
    shapes: tuple[list[Any], ...] = ([], [], ["rows", 3])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["again"]),
            helper.make_node("Mul", ["state", "state"], ["next"]),
        ],
        "body",
        [helper.make_tensor_value_info(*item) for item in zip(names, types, shapes)],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["rows", 3]),
        ],
    )
    rounds = helper.make_tensor("rounds", TensorProto.INT64, [], [10**15])
    always = helper.make_tensor("always", TensorProto.BOOL, [], [True])
    loop = helper.make_node("Loop", ["rounds", "always", "x"], ["y"], body=body)
    return unverified(folder, _model([loop], [rounds, always]), manifest((X,), (Y,)))


def external_model(folder: Path, weights: Path, location: str) -> Admission:
    """Keeps its weights in a file beside it, which no digest covers."""
    weights.write_bytes(np.eye(3, dtype=np.float32).tobytes())
    tensor = TensorProto(
        name="w", data_type=1, dims=[3, 3], data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", location), ("offset", "0"), ("length", "36")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return unverified(folder, _model(nodes, [tensor]), manifest((X,), (Y,)))


def wide_model(folder: Path) -> Admission:
    """y = the mean of each row of 100,000 columns."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 100_000])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)
    graph = helper.make_graph([node], "odd", [x], [y])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    specs = (replace(X, shape=(-1, 100_000)),), (replace(Y, shape=(-1, 1)),)
    return unverified(folder, bytes(model.SerializeToString()), manifest(*specs))


def lookup_model(folder: Path) -> Admission:
    """y = table[x]: a whole run fails if one row of x is out of range."""
    x = helper.make_tensor_value_info("x", TensorProto.INT64, ["rows"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])
    table = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    graph = helper.make_graph(
        [node], "odd", [x], [y], [numpy_helper.from_array(table, "table")]
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    specs = (TensorSpec("x", "INT64", (-1,)),), (Y,)
    return unverified(folder, bytes(model.SerializeToString()), manifest(*specs))


def counting_model(folder: Path) -> Admission:
    """y = x, after as many rounds of a loop as the largest value in x says."""
    names = ("round", "condition", "state")
    types = (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT)
    shapes: tuple[list[Any], ...] = ([], [], ["rows", 3])
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
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["rounds"], to=TensorProto.INT64),
        helper.make_node("Loop", ["rounds", "always", "x"], ["y"], body=body),
    ]
    always = helper.make_tensor("always", TensorProto.BOOL, [], [True])
    return unverified(folder, _model(nodes, [always]), manifest((X,), (Y,)))


def centring_model(folder: Path) -> Admission:
    """y = x minus the mean of all rows: rows that share a run are not apart."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    return unverified(folder, _model(nodes), manifest((X,), (Y,)))


def quantising_model(folder: Path) -> Admission:
    """y = x in 8 bits of a scale over all rows, as quantize_dynamic writes it."""
    quantised = ["q", "scale", "zero"]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], quantised),
        helper.make_node("DequantizeLinear", quantised, ["y"]),
    ]
    return unverified(folder, _model(nodes), manifest((X,), (Y,)))


def bomb_model(folder: Path) -> Admission:
    """y = x, and on the way a tensor of as many gigabytes as the largest in x."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["count"], to=TensorProto.INT64),
        helper.make_node("Mul", ["count", "giga"], ["size"]),
        helper.make_node("Unsqueeze", ["size", "axis"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["none"], keepdims=0),
        helper.make_node("Add", ["x", "none"], ["y"]),
    ]
    giga = helper.make_tensor("giga", TensorProto.INT64, [], [1 << 28])
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [0])
    return unverified(folder, _model(nodes, [giga, axis]), manifest((X,), (Y,)))
