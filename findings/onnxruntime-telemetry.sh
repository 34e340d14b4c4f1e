#!/usr/bin/env bash
# onnxruntime 1.31.1: the Linux wheel reports to its maker once it is imported, and
# disable_telemetry_events() does not prevent it.
#
# Guess: a library that runs models opens no connection of its own; if it does, its own
# function `disable_telemetry_events()`, called right after the import, stops it.
# Seen: some ten seconds after `import onnxruntime`, without any model, it asks for
# mobile.events.data.microsoft.com:443, with that call or without it, and keeps a data base
# below ~/.cache. Only ORT_DISABLE_TELEMETRY=1, set before the import, prevents both.
# Who is hurt: whoever promises that a server calls nobody, and whoever watches for that.
#
# Nothing leaves this machine: the library takes its proxy from the environment, and that
# is a listener of this script's, which hangs up.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime==1.31.1 numpy==2.4.6
cat >"$folder/watch.py" <<'PY'
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

WAIT_S = 30


def asked_for(code: str, **more: str) -> str:
    """The host that a process asks a proxy for within half a minute, or "nothing"."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        home = tempfile.mkdtemp(dir=Path(__file__).parent)
        told = {"PATH": os.environ["PATH"], "HOME": home, "HTTPS_PROXY": proxy}
        wait = f"import time; time.sleep({WAIT_S})"
        command = [sys.executable, "-c", f"import onnxruntime; {code}; {wait}"]
        child = subprocess.Popen(command, env=told | {"https_proxy": proxy} | more)
        server.settimeout(WAIT_S)
        try:
            with server.accept()[0] as one:
                line = one.recv(200).split(b"\r\n")[0].decode()
        except TimeoutError:
            line = "nothing"
        child.kill()
        child.wait()
        kept = any(Path(home).rglob("onnxruntime.db"))
    return f"{line}; {'a' if kept else 'no'} data base in the home folder"


print("import alone:               ", asked_for("pass"))
print("disable_telemetry_events(): ", asked_for("onnxruntime.disable_telemetry_events()"))
print("ORT_DISABLE_TELEMETRY=1:    ", asked_for("pass", ORT_DISABLE_TELEMETRY="1"))
PY
"$folder/venv/bin/python" "$folder/watch.py" | tee "$folder/seen"
host=mobile.events.data.microsoft.com:443
[[ $(grep -c "CONNECT $host .* a data base" "$folder/seen") == 2 ]] &&
  grep -q "=1: *nothing; no data base" "$folder/seen" || { echo "changed" >&2; exit 1; }
