#!/usr/bin/env bash
# uvicorn 0.54.0: what is registered with atexit does not run when the server is stopped in
# good order.
#
# Guess: SIGTERM lets requests and the lifespan finish, then the interpreter ends as it always
# does, and atexit functions run.
# Seen: the lifespan's end runs; then the signal is raised again with its own handler back in
# place, so the process dies of it (status 143) and no atexit function runs. After SIGINT they
# do run: whoever tries it from the keyboard sees nothing wrong.
# Who is hurt: whoever flushes counts, audit ends or metrics at exit: they are lost in every
# deployment, since orchestrators stop by SIGTERM. Put it into the lifespan.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0
cat >"$folder/served.py" <<'PY'
import atexit


async def app(scope, receive, send):
    if scope["type"] != "lifespan":
        return
    await receive()
    atexit.register(print, "atexit ran", flush=True)
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("lifespan ended", flush=True)
    await send({"type": "lifespan.shutdown.complete"})
PY
cat >"$folder/run.py" <<'PY'
import os
import signal
import subprocess
import sys

for name in ("SIGTERM", "SIGINT"):
    command = [sys.executable, "-m", "uvicorn", "served:app", "--port", "0"]
    server = subprocess.Popen(
        command, cwd=os.path.dirname(__file__), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while "Uvicorn running" not in server.stderr.readline():
        pass
    server.send_signal(getattr(signal, name))
    said, _ = server.communicate(timeout=30)
    print(f"{name}: {', '.join(said.splitlines())}; status {server.returncode}")
PY
"$folder/venv/bin/python" "$folder/run.py" | tee "$folder/seen"
cat >"$folder/wanted" <<'TXT'
SIGTERM: lifespan ended; status -15
SIGINT: lifespan ended, atexit ran; status 0
TXT
cmp -s "$folder/seen" "$folder/wanted" || { echo "changed" >&2; exit 1; }
