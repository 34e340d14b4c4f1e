"""A real nginx in front of a server, stopped by who started it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from sealgate.exchange import GATEWAY_PATH
from tests.support.servers import free_port

CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {http}
  server {{
    listen 127.0.0.1:{port};
    {server}
  }}
}}
"""


_RELAY = """
    location = /relay {{
      proxy_pass {url}{path};
      # Nothing of the caller reaches the gateway but the sealed message.
      proxy_pass_request_headers off;
      proxy_set_header Content-Type $http_content_type;
      # For pages: which origin asks, and what it will ask (CORS).
      proxy_set_header Origin $http_origin;
      set $asks $http_access_control_request_method;
      proxy_set_header Access-Control-Request-Method $asks;
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_request_buffering off;
      # A sealed request is refused when it comes twice.
      proxy_next_upstream off;
    }}
"""


@contextmanager
def relay(folder: Path, url: str) -> Iterator[str]:
    """The URL of nginx as an Oblivious Relay in front of a server."""
    directives = _RELAY.format(url=url, path=GATEWAY_PATH)
    with nginx(folder, server=directives) as found:
        yield f"{found}/relay"


@contextmanager
def nginx(folder: Path, *, server: str, http: str = "") -> Iterator[str]:
    """The URL of an nginx with directives for its server and around it."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port, server=server, http=http))
    process = subprocess.Popen([program, "-p", folder, "-c", config])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                httpx.get(url, timeout=1)
                break
            except httpx.HTTPError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)
