"""What was compiled is what the compiler gives; others read the details of errors."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from sealgate.errors import OverloadedError
from tests.support.servers import ROOT

pytestmark = pytest.mark.skipif(
    os.environ.get("INTEROP") != "grpc", reason="grpc: run make interop-grpc"
)
PROTO = "sealgate/rpc/inference.proto"
COMPILED = ("sealgate/rpc/inference_pb2.py", "sealgate/rpc/inference_pb2.pyi")
READ = """
import json, sys
from google.rpc import error_details_pb2, status_pb2
status = status_pb2.Status.FromString(sys.stdin.buffer.read())
found = {"code": status.code, "message": status.message}
for kind in ("ErrorInfo", "RequestInfo", "RetryInfo"):
    message = getattr(error_details_pb2, kind)()
    (detail,) = [item for item in status.details if item.Is(message.DESCRIPTOR)]
    assert detail.Unpack(message)
    found[kind] = str(message)
print(json.dumps(found))
"""


def python(*arguments: str, **options) -> subprocess.CompletedProcess[bytes]:
    interpreter = Path(os.environ["INTEROP_PART"]) / "bin" / "python"
    return subprocess.run(
        [str(interpreter), *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        **options,
    )


def test_the_compiled_files_are_the_protos(tmp_path):
    folder = ROOT if os.environ.get("RECORD") else tmp_path
    outs = (f"--python_out={folder}", f"--pyi_out={folder}")
    python("-m", "grpc_tools.protoc", "-I.", *outs, PROTO)
    for name in COMPILED:
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()


def test_googles_own_messages_read_the_details():
    pytest.importorskip("grpc")
    from sealgate.rpc.refusals import refusal_for

    problem = {"type": "https://sealgate.dev/problems/overloaded", "error": "busy"}
    error = OverloadedError(503, problem, retry_after_s=2.5, request_id="1f")
    data = dict(refusal_for(error).trailing)["grpc-status-details-bin"]
    found = json.loads(python("-c", READ, input=data).stdout)
    assert (found["code"], found["message"]) == (14, "busy")
    assert 'reason: "OVERLOADED"' in found["ErrorInfo"]
    assert 'domain: "sealgate.dev"' in found["ErrorInfo"]
    assert 'request_id: "1f"' in found["RequestInfo"]
    assert "seconds: 2" in found["RetryInfo"]
    assert "nanos: 500000000" in found["RetryInfo"]
