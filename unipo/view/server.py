"""The page over HTTP, on this machine only, following runs as they go on.

It answers GET, knows its runs by number and takes no path from a request, so there is nothing else it could hand out.
Requests that name another host are refused, or a page elsewhere could read runs through a name that points here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from unipo.errors import ConfigError
from unipo.view.delta import Seen, delta
from unipo.view.page import live_page
from unipo.view.reading import Run

HOST = "127.0.0.1"
# Responses read from the files per request, so that a page shows something while a long run is read.
READ_AT_ONCE = 5_000


class Refused(Exception):
    """A request that cannot be answered."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


def make_server(runs: Sequence[Run], port: int = 0) -> ThreadingHTTPServer:
    """A server on the loopback address; port 0 takes a free one. `serve_forever` starts it."""
    try:
        server = ThreadingHTTPServer((HOST, port), handler(runs))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on port {port}: {error}; choose another with --port") from error
    server.daemon_threads = True
    return server


def handler(runs: Sequence[Run]) -> type[BaseHTTPRequestHandler]:
    """The request handler of these runs."""
    page = live_page(runs).encode()

    class Handler(BaseHTTPRequestHandler):
        server_version = "unipo"
        sys_version = ""
        protocol_version = "HTTP/1.1"
        timeout = 60  # of a connection that says nothing

        def do_GET(self) -> None:
            try:
                self._check_host()
                kind, body = answer(self.path)
                self._send(HTTPStatus.OK, kind, body)
            except Refused as refusal:
                self._send(refusal.status, "text/plain; charset=utf-8", f"{refusal}\n".encode())
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the page was closed meanwhile

        def _check_host(self) -> None:
            port = self.connection.getsockname()[1]
            if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
                raise Refused(HTTPStatus.FORBIDDEN, f"this server answers on http://{HOST}:{port}/ only")

        def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            headers = {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Cross-Origin-Resource-Policy": "same-origin",
                "Referrer-Policy": "no-referrer",
                "X-Frame-Options": "DENY",
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """A page asks every few seconds; nobody wants to read that."""

    def answer(target: str) -> tuple[str, bytes]:
        """(content type, body) of a request's target."""
        url = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if url.path == "/":
            return "text/html; charset=utf-8", page
        if url.path == "/delta":
            return "application/json", _delta(_chosen(runs, query), query)
        if url.path == "/detail":
            return "application/json", _detail(_chosen(runs, query), query)
        raise Refused(HTTPStatus.NOT_FOUND, "there is /, /delta and /detail")

    return Handler


def _delta(run: Run, query: Mapping[str, str]) -> bytes:
    unread = run.refresh(READ_AT_ONCE)
    steps, rows, prompts = (max(0, _number(query, name)) for name in ("steps", "rows", "prompts"))
    seen = Seen(_number(query, "generation"), steps, rows, prompts)
    record = delta(run, seen)
    record["more"] = record["more"] or unread
    return _json(record)


def _detail(run: Run, query: Mapping[str, str]) -> bytes:
    i = _number(query, "i")
    with run.lock:
        if not 0 <= i < len(run):
            raise Refused(HTTPStatus.NOT_FOUND, f"{run.name} has {len(run)} responses, there is no number {i}")
        return _json(run.detail(i))


def _chosen(runs: Sequence[Run], query: Mapping[str, str]) -> Run:
    k = _number(query, "run")
    if not 0 <= k < len(runs):
        raise Refused(HTTPStatus.NOT_FOUND, f"there are {len(runs)} runs, numbered from 0")
    return runs[k]


def _number(query: Mapping[str, str], name: str) -> int:
    try:
        return int(query.get(name, ""))
    except ValueError:
        raise Refused(HTTPStatus.BAD_REQUEST, f"{name} must be a number") from None


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(errors="replace")
