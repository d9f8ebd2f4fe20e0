"""The server answers on this machine only, to its own name, and hands out nothing but its runs."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.view.conftest import HOSTILE, completion, write_lines
from unipo.errors import ConfigError
from unipo.view.reading import Run
from unipo.view.server import make_server

START = "/delta?run=0&generation=-1&steps=0&rows=0&prompts=0"


@pytest.fixture
def port(small: Path) -> Iterator[int]:
    with make_server([Run(small)]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(port: int, target: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, target, headers=headers)
    reply = connection.getresponse()
    return reply, reply.read()


def test_it_listens_on_the_loopback_address_only(small: Path) -> None:
    with make_server([Run(small)]) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_the_page_has_no_data_and_allows_only_its_own_scripts(port: int) -> None:
    reply, body = ask(port, "/")
    assert reply.status == 200
    assert "script-src 'sha256-" in body.decode()
    assert "unsafe" not in body.decode().partition("<style>")[0]
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


def test_it_tells_what_is_new_and_only_that(port: int, small: Path) -> None:
    first = json.loads(ask(port, START)[1])
    assert first["total"] == 240 == len(first["rows"]["step"])
    write_lines(small / "completions.jsonl", [completion(31, 0, "the new one")], "a")
    place = f"generation={first['generation']}&steps=30&rows=240&prompts={len(first['prompts'])}"
    news = json.loads(ask(port, f"/delta?run=0&{place}")[1])
    assert news["rows"]["preview"] == ["the new one"]
    assert news["series"]["step"] == []


def test_it_gives_one_response_in_full_as_json(port: int) -> None:
    ask(port, START)
    reply, body = ask(port, "/detail?run=0&i=0")
    assert reply.headers["Content-Type"] == "application/json"
    assert json.loads(body)["text"] == HOSTILE


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost:1", ""])
def test_a_request_that_names_another_host_is_refused(port: int, host: str) -> None:
    assert ask(port, START, Host=host)[0].status == 403


def test_localhost_is_its_name_too(port: int) -> None:
    assert ask(port, "/", Host=f"localhost:{port}")[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_answers_get(port: int, method: str) -> None:
    assert ask(port, START, method)[0].status in (405, 501)


@pytest.mark.parametrize(
    "target",
    ["/../../etc/passwd", "/config.yaml", "//etc/passwd", "/%2e%2e/secret", "/detail/../config.yaml", "/delta/"],
)
def test_there_are_no_other_paths(port: int, target: str) -> None:
    reply, body = ask(port, target)
    assert reply.status == 404
    assert b"root:" not in body


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/delta?run=1&generation=0&steps=0&rows=0&prompts=0", 404),
        ("/delta?run=../x", 400),
        ("/delta?run=0", 400),
        ("/detail?run=0&i=100000", 404),
        ("/detail?run=0&i=-1", 404),
        ("/detail?run=-1&i=0", 404),
        ("/detail?run=0", 400),
    ],
)
def test_runs_and_responses_are_known_by_number(port: int, target: str, status: int) -> None:
    assert ask(port, target)[0].status == status


def test_a_taken_port_is_an_error_that_says_so(port: int, small: Path) -> None:
    with pytest.raises(ConfigError, match="--port"):
        make_server([Run(small)], port)
