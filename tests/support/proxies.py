"""Debian's nginx and HAProxy as reverse proxies before a server, in a process of their own, on a free port."""

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from fieldlm.cli.broker import free_port, wait_until_open

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
FOUND = {name: shutil.which(name, path=_PATH) for name in ("nginx", "haproxy")}
# In CI a missing proxy must fail; elsewhere its tests are not made.
IS_CI = os.environ.get("CI") == "true"
NAMES = [name for name in ("nginx", "nginx-passing", "haproxy") if FOUND[name.partition("-")[0]] or IS_CI]

# One connection to the server, which all clients share: what is left on it by one would be answered to the next.
NGINX = """
daemon off; master_process off; worker_processes 1; user root; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream server {{ server {server}; keepalive 1; keepalive_timeout 600s; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Host $http_host;
      proxy_ignore_client_abort on; proxy_next_upstream off; proxy_read_timeout 600s;
      {more}
    }}
  }}
}}
"""
PLAIN = 'proxy_set_header Connection "";'
PASSING = (
    "proxy_request_buffering off; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $http_connection;"
)
"""As many set-ups for web sockets have it: an offered upgrade, and what a client says of its connection, goes on."""

HAPROXY = """
global
  nbthread 1
  log stderr local0 err
defaults
  mode http
  timeout connect 60s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  http-reuse always
frontend clients
  bind 127.0.0.1:{port}
  default_backend servers
backend servers
  retries 0
  server one {server} pool-max-conn 1
"""


@contextmanager
def proxy(name: str, url: str, folder: Path) -> Generator[int]:
    """Run the proxy `name` before the server at `url`, its files in `folder`; yields the port where it listens."""
    program = FOUND[name.partition("-")[0]]
    assert program, "CI needs nginx and HAProxy: apt-get install nginx-light haproxy"
    folder.mkdir(parents=True, exist_ok=True)
    port, settings = free_port(), folder / "settings"
    server = urlsplit(url).netloc
    if name == "haproxy":
        settings.write_text(HAPROXY.format(port=port, server=server))
        command = [program, "-db", "-f", str(settings)]
    else:
        more = PASSING if name == "nginx-passing" else PLAIN
        settings.write_text(NGINX.format(folder=folder, port=port, server=server, more=more))
        command = [program, "-p", str(folder), "-c", str(settings)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_open("127.0.0.1", port)
            yield port
        finally:
            process.terminate()
            process.wait()
