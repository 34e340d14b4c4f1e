"""Alertmanager's webhook: an alert that fires starts a command, one run at a time.

    webhook.py --token-file FILE [--listen 127.0.0.1:9099] -- COMMAND [ARGUMENT …]

Nothing of the alert reaches the command. Whoever has the token can make it run, and no
more than that: `retrain --if-drifted` believes the signed monitoring report alone.
"""

from __future__ import annotations

import argparse
import hmac
import json
import subprocess
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MAX_BODY_BYTES = 1 << 20
TIMEOUT_S = 10


def fires(body: bytes) -> bool:
    """Whether one alert at least of a notification (version 4) is firing.

    Raises:
        ValueError: not a notification.
    """
    document = json.loads(body)
    if not isinstance(document, dict) or document.get("version") != "4":
        raise ValueError("not a notification of version 4")
    alerts = document.get("alerts")
    if not isinstance(alerts, list):
        raise ValueError("no alerts")
    return any(isinstance(a, dict) and a.get("status") == "firing" for a in alerts)


class Runner:
    """Starts a command, unless it is at work."""

    def __init__(self, command: list[str]) -> None:
        self._command, self._lock = command, threading.Lock()

    def start(self) -> bool:
        """Whether it was started."""
        if not self._lock.acquire(blocking=False):
            return False
        threading.Thread(target=self._run).start()
        return True

    def _run(self) -> None:
        try:
            code = subprocess.run(self._command, check=False).returncode
            print(f"{self._command[0]} ended with {code}", flush=True)
        except OSError as error:
            print(f"{self._command[0]}: {error.strerror}", flush=True)
        finally:
            self._lock.release()


def handler(token: bytes, runner: Runner) -> type[BaseHTTPRequestHandler]:
    """What answers requests that bring the token."""
    wanted = b"Bearer " + token

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_S

        def do_POST(self) -> None:
            given = self.headers.get("Authorization", "").encode()
            length = self.headers.get("Content-Length", "")
            if not hmac.compare_digest(given, wanted):
                self._answer(HTTPStatus.UNAUTHORIZED)
            elif not length.isdecimal() or int(length) > MAX_BODY_BYTES:
                self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            else:
                self._take(self.rfile.read(int(length)))

        def _take(self, body: bytes) -> None:
            try:
                started = fires(body) and runner.start()
            except (ValueError, RecursionError):
                self._answer(HTTPStatus.BAD_REQUEST)
            else:
                self._answer(HTTPStatus.ACCEPTED if started else HTTPStatus.OK)

        def _answer(self, status: HTTPStatus) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing of requests: what is run says enough."""

    return Handler


def main() -> None:
    """Listen until the process is ended."""
    parser = argparse.ArgumentParser(description="Start a command for an alert.")
    parser.add_argument("--listen", default="127.0.0.1:9099", metavar="HOST:PORT")
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    token = args.token_file.read_bytes().strip()
    if len(token) < 16:
        parser.error("the token is shorter than 16 bytes")
    host, _, port = args.listen.rpartition(":")
    answers = handler(token, Runner(args.command))
    server = ThreadingHTTPServer((host, int(port)), answers)
    print(f"listening on {host}:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
