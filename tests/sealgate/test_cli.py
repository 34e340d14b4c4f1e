"""The `sealgate` command: the real server, exit codes 0, 1 and 2."""

from __future__ import annotations

import base64
import contextlib
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import numpy as np
import pytest

from sealgate.endpoints import answers_to, listening
from sealgate.keys import parse_configs
from sealgate.profile import Profile
from sealgate.protocol.dsse import public_pem
from sealgate.protocol.hpke import KEM_X25519, PrivateKey
from sealgate.protocol.keyconfig import KeyConfig, encode_list
from tests.conftest import check_security, toy_settings
from tests.support.bundles import NAME, Keys
from tests.support.servers import ROOT, sealgate

HEADER = "a,b,c\n"


@pytest.fixture(scope="module")
def profile_path(server, deployment, tmp_path_factory):
    """The profile that `python -m security profile` writes for the server."""
    path = tmp_path_factory.mktemp("client") / "profile.json"
    check_security(
        deployment,
        *("profile", "--url", server.url, "--model", NAME, "--out", str(path)),
        **toy_settings(deployment),
    )
    return path


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "1,2,3\n-4,5.5,0\n")
    return path


def failed(result, code: int, message: str) -> None:
    """One line on standard error, nothing else, and the exit code."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert message in result.stderr


COMMANDS = ("infer", "feedback", "metadata", "health", "passport", "keys", "proxy")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help(command):
    result = sealgate(*command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: {' '.join(('sealgate', *command))}")
    assert result.stderr == ""
    if not command:
        assert (
            "Exit codes: 0 done; 1 the server refused; 2 wrong usage" in result.stdout
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("train",), "invalid choice: 'train'"),
        (("infer", NAME), "the following arguments are required: --input"),
        (("infer", "--input"), "--input: expected at least one argument"),
        (("infer", "--input", "x", "--timeout", "soon"), "argument --timeout: invalid"),
        (("infer", "--input", "x", "--timeout", "-1"), "argument --timeout: invalid"),
        (("infer", "--input", "x", "--timeout", "nan"), "argument --timeout: invalid"),
        (("infer", "--input", "x", "--timeout", "inf"), "argument --timeout: invalid"),
        (("passport", "--json"), "unrecognized arguments: --json"),
        (("infer", "--input", "x", "--json", "--output", "y"), "not allowed with"),
        (("proxy", "--listen", "8080"), "argument --listen: invalid"),
        (("proxy", "--listen", "127.0.0.1:99999"), "argument --listen: invalid"),
        (("proxy", "--grpc", "8001"), "argument --grpc: invalid"),
        (("keys", "--identity"), "--identity: expected at least one argument"),
    ],
)
def test_usage(arguments, message):
    result = sealgate(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_table(profile_path, rows):
    result = sealgate("infer", NAME, "--profile", profile_path, "--input", rows)
    assert result.returncode == 0, result.stderr
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["row", "no", "yes", "label"]
    # The logits are (-4, 5.5) and (-1.25, 5.375).
    assert [line.split() for line in lines] == [
        ["0", "0.0001", "0.9999", "1"],
        ["1", "0.0013", "0.9987", "1"],
    ]


def test_json(profile_path, tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, features=np.array([[1.0, 2.0, 3.0]]))
    result = sealgate("infer", "--profile", profile_path, "--input", path, "--json")
    assert result.returncode == 0, result.stderr
    outputs = json.loads(result.stdout)
    assert outputs["label"] == [1]
    assert np.allclose(outputs["probabilities"], [[7.4846e-05, 0.99992515]])


def test_outputs_may_be_written(profile_path, rows, tmp_path):
    for name in ("out.npz", "out.json"):
        path = tmp_path / name
        result = sealgate(
            "infer", "--profile", profile_path, "--input", rows, "--output", path
        )
        assert (result.returncode, result.stdout) == (0, ""), result.stderr
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["label"].tolist() == [1, 1]
        assert arrays["probabilities"].dtype == np.float32
    assert json.loads((tmp_path / "out.json").read_text())["label"] == [1, 1]


@pytest.fixture
def table(tmp_path):
    """6,000 rows with a class that is known and a text that is nobody's."""
    path = tmp_path / "big.csv"
    lines = [f"{i % 7},{i % 5},{i % 3 - 1},r{i},yes\n" for i in range(6000)]
    path.write_text("a,b,c,id,label\n" + "".join(lines))
    return path


def test_many_rows_as_csv_with_the_inputs_columns(profile_path, table, tmp_path):
    out = tmp_path / "out.csv"
    result = sealgate(
        "infer", "--profile", profile_path, "--input", table, "--output", out
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6000
    assert list(rows[0]) == [
        *("a", "b", "c", "id", "label"), "no", "yes", "predicted_label",
    ]  # fmt: skip
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(6000)]
    for row in rows[:50]:
        said = "yes" if float(row["yes"]) > float(row["no"]) else "no"
        assert (row["predicted_label"], row["label"]) == (said, "yes")


def test_parquet_out(profile_path, table, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out.parquet"
    result = sealgate(
        "infer", "--profile", profile_path, "--input", table, "--output", out
    )
    assert result.returncode == 0, result.stderr
    read = parquet.read_table(out)
    assert read.num_rows == 6000
    assert set(read["predicted_label"].to_pylist()) <= {"no", "yes"}
    assert read["yes"].type == "float"


def test_standard_input_and_csv_out(profile_path, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "sealgate", "infer", "--profile", profile_path,
         "--input", "-", "--csv"],
        cwd=ROOT, input="c,a,b\n3,1,2\n,1,2\n",
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    head, first, second = result.stdout.splitlines()
    assert head == "c,a,b,no,yes,label"
    assert first.startswith("3,1,2,7.48")
    assert first.endswith(",yes")
    # An empty cell is a missing value: this model has no answer to it.
    assert second.startswith(",1,2,nan,nan,")


def test_version():
    result = sealgate("--version")
    assert result.returncode == 0
    assert re.fullmatch(r"sealgate [0-9.]+\n", result.stdout)


def test_several_files_are_one_answer(profile_path, rows, tmp_path):
    more = tmp_path / "more.json"
    more.write_text("[[1, 0, 0]]")
    result = sealgate(
        "infer", "--profile", profile_path, "--json", "--input", rows, more
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["label"] == [1, 1, 0]
    assert result.stderr.splitlines() == [f"1/2 {rows}", f"2/2 {more}"]


def test_which_of_several_files_was_refused(profile_path, rows, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("[[1, 2]]")
    result = sealgate("infer", "--profile", profile_path, "--input", rows, bad)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith(f"refused: {bad}: toy: 400 ")


def test_parquet(profile_path, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    pandas.DataFrame({"c": [3], "id": ["x"], "a": [1], "b": [2]}).to_parquet(path)
    result = sealgate("infer", "--profile", profile_path, "--json", "--input", path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["label"] == [1]
    path.write_bytes(path.read_bytes()[:-20])
    result = sealgate("infer", "--profile", profile_path, "--json", "--input", path)
    failed(result, 2, f"error: {path}: ")


def test_metadata(profile_path):
    result = sealgate("metadata", "--profile", profile_path)
    assert result.stdout.splitlines() == [
        "toy:1.0.0",
        "  at most 64 rows in a request",
        "  input   features  FP32[-1,3]",
        "            a  -10 to 10",
        "            b  -10 to 10",
        "            c  -10 to 10",
        "  output  probabilities  FP32[-1,2]",
        "            no, yes",
        "  output  label  INT64[-1]",
    ]
    result = sealgate("metadata", "--profile", profile_path, "--json")
    assert json.loads(result.stdout)["name"] == NAME


def test_health(server, profile_path):
    for flags in (("--url", server.url), ("--profile", profile_path)):
        result = sealgate("health", *flags)
        assert (result.returncode, result.stdout) == (0, "ready\n")
    result = sealgate("health", "--url", "http://127.0.0.1:9")
    assert (result.returncode, result.stdout) == (1, "not ready\n")


def test_keys(server, tmp_path):
    path = tmp_path / "keys"
    result = sealgate("keys", "--url", server.url, "--output", path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert any("  X25519  AES-128-GCM, ChaCha20-Poly1305  sha256:" in x for x in lines)
    assert len(lines) == len(parse_configs(path.read_bytes()))


def test_keys_that_are_pinned(server, profile_path, tmp_path):
    result = sealgate("keys", "--profile", profile_path)
    assert result.returncode == 0, result.stderr
    signed = "signed by the identity key: ecdsa-p256-sha256, ml-dsa-65"
    assert result.stdout.splitlines()[-1] == signed
    saved = tmp_path / "keys"
    sealgate("keys", "--url", server.url, "--output", saved)
    pinned = base64.b64encode(saved.read_bytes()).decode()
    path = edit(profile_path, tmp_path, key_configs=pinned)
    result = sealgate("keys", "--profile", path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "the profile's pinned keys are these"
    other = KeyConfig(9, KEM_X25519, PrivateKey.generate().public_bytes)
    other = base64.b64encode(encode_list([other])).decode()
    path = edit(profile_path, tmp_path, key_configs=other)
    result = sealgate("keys", "--profile", path)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "the profile's pinned keys are others"


def test_keys_signed_by_nobody_we_trust(server, tmp_path):
    path = tmp_path / "identity.pem"
    path.write_text(public_pem(Keys.generate().release.public_key()))
    result = sealgate("keys", "--url", server.url, "--identity", path)
    failed(result, 2, "error: the server")
    path.write_text("x")
    result = sealgate("keys", "--url", server.url, "--identity", path)
    failed(result, 2, "error: an identity key is not a PEM public key")


# The proxy


def test_proxy(server, profile_path):
    command = [sys.executable, "-m", "sealgate", "proxy", "--profile", profile_path]
    process = subprocess.Popen(
        [*command, "--to", server.url, "--listen", "127.0.0.1:0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        match = re.fullmatch(r"sealing (http://127.0.0.1:\d+) to (\S+)\n", line)
        assert match, line + process.stderr.read()
        assert match[2] == server.url
        answer = httpx.get(f"{match[1]}/v2/models/{NAME}")
        assert answer.json()["name"] == NAME
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def running_proxy(*arguments):
    """A proxy in a process of its own, and what it says it seals."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sealgate", "proxy", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().split()[1], process
    finally:
        process.kill()
        process.communicate()


def test_a_proxy_for_grpc(server, profile_path):
    rpc = pytest.importorskip("tritonclient.grpc", reason="grpcio is not installed")
    arguments = ("--profile", profile_path, "--grpc", "127.0.0.1:0")
    with running_proxy(*arguments) as (where, process):
        assert where.startswith("grpc://127.0.0.1:")
        address = where.removeprefix("grpc://")
        with rpc.InferenceServerClient(address) as client:
            assert client.is_model_ready(NAME)
        taken = sealgate("proxy", "--profile", profile_path, "--grpc", address)
        failed(taken, 2, f"error: {address}: ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_proxy_for_both(server, profile_path):
    rpc = pytest.importorskip("tritonclient.grpc", reason="grpcio is not installed")
    both = ("--grpc", "127.0.0.1:0", "--listen", "127.0.0.1:0")
    with running_proxy("--profile", profile_path, *both) as (first, process):
        second = process.stdout.readline().split()[1]
        web, address = sorted((first, second), reverse=True)
        assert httpx.get(f"{web}/v2/models/{NAME}").json()["name"] == NAME
        with rpc.InferenceServerClient(address.removeprefix("grpc://")) as client:
            assert client.is_model_ready(NAME)


def test_what_grpc_needs_is_named(profile_path):
    """Where it is not installed; nothing else of the proxy needs it."""
    code = (
        "import sys; sys.modules['grpc'] = None; "
        "from sealgate.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ("proxy", "--profile", profile_path, "--grpc", "127.0.0.1:0")
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    failed(result, 2, "error: --grpc needs grpc: install sealgate[grpc]")


def test_grpc_beyond_this_machine_is_refused(profile_path):
    result = sealgate("proxy", "--profile", profile_path, "--grpc", "0.0.0.0:0")
    failed(result, 2, "--allow-remote allows it")


def test_a_proxy_on_a_socket_is_its_owners_alone(server, profile_path, tmp_path):
    path = tmp_path / "proxy.sock"
    with running_proxy("--profile", profile_path, "--socket", path) as (where, process):
        assert where == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport) as client:
            answer = client.get(f"http://anything/v2/models/{NAME}")
        assert answer.json()["name"] == NAME
        again = sealgate("proxy", "--profile", profile_path, "--socket", path)
        failed(again, 2, f"error: {path}: ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert not path.exists()


def test_a_proxy_replaces_a_dead_socket_and_nothing_else(profile_path, tmp_path):
    path = tmp_path / "proxy.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with running_proxy("--profile", profile_path, "--socket", path) as (where, _):
        assert where == f"unix:{path}"
    file = tmp_path / "file"
    file.write_text("precious")
    result = sealgate("proxy", "--profile", profile_path, "--socket", file)
    failed(result, 2, "there is something else")
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("host", "where", "name"),
    [
        ("::1", "http://[::1]:", "[::1]:"),
        ("LocalHost", "http://localhost:", "localhost:"),
    ],
)
def test_where_a_proxy_listens(host, where, name):
    with listening(host, 0, None) as endpoint:
        port = endpoint.getsockname()[1]
        called, hosts = answers_to(endpoint, host)
    assert called == f"{where}{port}"
    assert f"{name}{port}".encode() in hosts
    assert hosts == {one.lower() for one in hosts}


def test_a_socket_goes_with_its_proxy_however_that_ends(tmp_path):
    path = tmp_path / "proxy.sock"
    with pytest.raises(RuntimeError), listening("", 0, path):
        assert path.is_socket()
        raise RuntimeError
    assert not path.exists()


def test_a_proxy_that_lends_nobody_its_token(server, profile_path):
    listen = ("--listen", "127.0.0.1:0")
    command = ("--profile", profile_path, *listen, "--no-token")
    with running_proxy(*command) as (url, _):
        assert httpx.get(f"{url}/v2/models/{NAME}").status_code == 401


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(("flags", "status"), [((), 401), (("--allow-others",), 200)])
def test_another_account_gets_the_token_only_if_that_is_allowed(
    server, profile_path, flags, status
):
    code = (
        "import sys, urllib.error, urllib.request\n"
        "try: print(urllib.request.urlopen(sys.argv[1]).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)"
    )
    listen = ("--listen", "127.0.0.1:0")
    with running_proxy("--profile", profile_path, *listen, *flags) as (url, _):
        result = subprocess.run(
            ["/usr/bin/python3", "-c", code, f"{url}/v2/models/{NAME}"],
            user=54_321,
            group=54_321,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    assert int(result.stdout) == status


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "192.0.2.1:8080", "example.com:80"])
def test_a_proxy_is_for_this_machine(profile_path, listen):
    result = sealgate("proxy", "--profile", profile_path, "--listen", listen)
    failed(result, 2, "--allow-remote allows it")


def test_a_proxy_whose_address_is_taken(server, profile_path):
    listen = server.url.removeprefix("http://")
    result = sealgate("proxy", "--profile", profile_path, "--listen", listen)
    failed(result, 2, f"error: {listen}: ")


def test_the_profile_may_come_from_the_environment(profile_path, rows):
    result = sealgate("infer", "--input", rows, SEALGATE_PROFILE=str(profile_path))
    assert result.returncode == 0, result.stderr


def test_the_profile_lies_in_the_working_directory(profile_path, rows, tmp_path):
    (tmp_path / ".sealgate").mkdir()
    (tmp_path / ".sealgate" / "profile.json").write_bytes(profile_path.read_bytes())
    result = sealgate("infer", "--input", rows, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_passport(profile_path):
    result = sealgate("passport", "--profile", profile_path)
    assert result.returncode == 0, result.stderr
    first, *lines = result.stdout.splitlines()
    assert first.startswith(f"{NAME}:1.0.0  admitted 20")
    assert "  privacy.epsilon 2.5" in lines
    assert "  quality.accuracy 0.95  n=200  95% interval 0.91 to 0.97" in lines
    assert lines[-2].startswith("policy sha256:")
    assert lines[-1].startswith("verdict sha256:")


def edit(profile_path, tmp_path, **changes):
    """A copy of the profile with other fields."""
    document = json.loads(profile_path.read_text()) | changes
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path


# 1: the server refused


def test_refused_token(profile_path, rows, tmp_path):
    path = edit(profile_path, tmp_path, token="a.b.c")
    result = sealgate("infer", "--profile", path, "--input", rows)
    failed(result, 1, "refused: toy: 401 A valid access token is needed")


def test_refused_model(profile_path, rows):
    result = sealgate("infer", "other", "--profile", profile_path, "--input", rows)
    failed(result, 1, "refused: other: 404 Not found")


def test_refused_rows(profile_path, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[[1, 2]]")
    result = sealgate("infer", "--profile", profile_path, "--input", path)
    failed(result, 1, 'input "features": expected FP32[-1,3], got FP32[1,2]')


def test_a_model_name_that_is_no_text(profile_path, rows):
    command = [sys.executable, "-m", "sealgate", "infer", b"\xff"]
    result = subprocess.run(
        [*command, "--profile", profile_path, "--input", rows],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    failed(result, 1, "refused: ?: 404 Not found")


# 2: an error on this side


def test_no_profile(rows, tmp_path):
    result = sealgate("infer", "--input", rows, cwd=tmp_path)
    message = "error: profile .sealgate/profile.json: No such file or directory"
    failed(result, 2, message)


def test_malformed_profile(tmp_path, rows):
    path = tmp_path / "profile.json"
    path.write_text("{")
    failed(sealgate("infer", "--profile", path, "--input", rows), 2, "not JSON")


def test_plain_http_profile(profile_path, rows, tmp_path):
    path = edit(profile_path, tmp_path, url="http://models.example")
    result = sealgate("infer", "--profile", path, "--input", rows)
    failed(result, 2, "error: plain http is for this machine only; use https")


def test_no_model(profile_path, rows, tmp_path):
    path = edit(profile_path, tmp_path, model=None)
    result = sealgate("infer", "--profile", path, "--input", rows)
    failed(result, 2, "error: no model: name one, or let the profile name it")


def test_no_server(profile_path, rows, tmp_path):
    path = edit(profile_path, tmp_path, url="http://127.0.0.1:9")
    result = sealgate("infer", "--profile", path, "--input", rows)
    failed(
        result,
        2,
        "error: http://127.0.0.1:9 does not answer: the connection was refused",
    )


def test_no_input(profile_path, tmp_path):
    path = tmp_path / "none.csv"
    result = sealgate("infer", "--profile", profile_path, "--input", path)
    failed(result, 2, f"error: {path}: No such file or directory")


def test_unusable_input(profile_path, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    result = sealgate("infer", "--profile", profile_path, "--input", path)
    failed(result, 2, f'error: {path}: input "features": column "c" is missing')


def test_values_that_cannot_be_sent(profile_path, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "1,2,1e300\n")
    result = sealgate("infer", "--profile", profile_path, "--input", path)
    failed(
        result,
        2,
        'rows.csv: input "features", column "c", line 2: a value is out of range for',
    )


def test_passport_of_a_key_the_client_does_not_trust(profile_path, tmp_path):
    other = public_pem(Keys.generate().release.public_key())
    path = edit(profile_path, tmp_path, trusted_keys=[other])
    result = sealgate("passport", "--profile", path)
    failed(result, 2, "signed by a key that is not trusted for it")


def test_the_token_is_in_no_output(profile_path, rows, tmp_path):
    token = Profile.load(profile_path).token
    for arguments in (
        ("infer", "--profile", profile_path, "--input", rows),
        ("infer", "other", "--profile", profile_path, "--input", rows),
        ("passport", "--profile", edit(profile_path, tmp_path, trusted_keys=[])),
    ):
        result = sealgate(*arguments)
        assert token not in result.stdout + result.stderr
