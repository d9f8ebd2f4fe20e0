"""`unipo push` to a directory, and to a hub that runs on this machine."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import unipo as library
from unipo.errors import ConfigError
from unipo.push import pack, to_hub

from .conftest import Said

Call = Callable[..., Said]
OWN = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "short"
    quick = {"sampling.max_tokens": 6, "eval.prompts": 2, "log.progress": False, "save.every": 1}
    library.train(method="grpo", steps=2, prompts=2, **{"run": str(run), **quick})
    return run


def test_push_copies_the_model_and_its_card_and_nothing_else(unipo: Call, trained: Path, tmp_path: Path) -> None:
    found = unipo("push", trained, "--to", "out", "--json")
    assert found.status == 0
    sent = {p.name for p in (tmp_path / "out").iterdir()}
    assert sent == set(found.json["files"])
    assert sent >= OWN
    assert not any(name.endswith((".pt", ".jsonl")) for name in sent)
    assert found.json["files"] == {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    for name in sent:
        assert name in found.err
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    assert "## Evaluation" in (tmp_path / "out" / "README.md").read_text()


def test_push_of_an_earlier_checkpoint_has_that_steps_card(unipo: Call, trained: Path, tmp_path: Path) -> None:
    assert unipo("push", trained / "checkpoints" / "step-000001", "--to", "out").status == 0
    assert "for 1 steps on scratchpad" in (tmp_path / "out" / "README.md").read_text()


def test_a_dry_run_and_a_missing_yes_send_nothing(unipo: Call, trained: Path, tmp_path: Path) -> None:
    said = unipo("push", trained, "--to", "out", "--dry-run")
    assert (said.status, "nothing was sent" in said.err, (tmp_path / "out").exists()) == (0, True, False)
    said = unipo("push", trained, "me/model")  # standard input is no terminal here
    assert said.status == 2
    assert "private if it is made now" in said.err
    assert "nothing was sent; add --yes" in said.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("starter-of-nobody", "--to", "out"), "is no directory"),
        ((".", "--to", "out"), "holds no saved model"),
        ((".",), "say where to"),
        ((".", "me/x", "--to", "out"), "say where to"),
    ],
)
def test_push_refuses_what_cannot_work(unipo: Call, arguments: tuple[str, ...], complaint: str) -> None:
    said = unipo("push", *arguments)
    assert said.status == 2
    assert complaint in said.err


def test_push_never_overwrites_follows_links_or_sends_damage(unipo: Call, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    assert "not an empty directory" in unipo("push", trained, "--to", "full").err
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    model = copy / "checkpoints" / "step-000002" / "model"
    (tmp_path / "secret").write_text("s")
    (model / "secret.json").symlink_to(tmp_path / "secret")
    (model / ".env").write_text("s")
    assert not {"secret.json", ".env"} & set(pack(str(model)).files)
    (model / "config.json").write_text("{}")
    said = unipo("push", model, "--to", "out")
    assert (said.status, "config.json is damaged" in said.err) == (1, True)


def test_a_method_that_is_not_known_here_keeps_its_card(unipo: Call, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    settings = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(settings.replace("method: grpo", "method: made-in-python"))
    said = unipo("push", copy, "--to", "out")
    assert said.status == 0
    assert "the card stays as training wrote it: unknown method 'made-in-python'" in said.err
    before = trained / "checkpoints" / "step-000002" / "model" / "README.md"
    assert (tmp_path / "out" / "README.md").read_text() == before.read_text()


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a small upload needs; remembers what came."""

    calls: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}/me/model"
        if self.path == "/api/repos/create":
            self.calls.append(("create", json.loads(body)))
            self._answer({"url": address, "name": "me/model"})
        elif self.path == "/api/validate-yaml":
            self.calls.append(("card", json.loads(body)["content"]))
            self._answer({"errors": [], "warnings": []})
        elif self.path.startswith("/api/models/me/model/preupload/"):
            files = [f["path"] for f in json.loads(body)["files"]]
            self._answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]})
        elif self.path.startswith("/api/models/me/model/commit/"):
            self.calls.append(("commit", [json.loads(line) for line in body.splitlines()]))
            oid = "0" * 40
            self._answer({"commitOid": oid, "commitUrl": f"{address}/commit/{oid}", "hookOutput": "", "success": True})
        else:
            self._answer({"error": "what?"}, 404)

    def do_GET(self) -> None:
        self._answer({"id": "me/model", "modelId": "me/model", "sha": "0" * 40, "siblings": [], "private": True})

    def _answer(self, record: Any, status: int = 200) -> None:
        text = json.dumps(record).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at `calls`."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """(address, what came) of a hub on this machine."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_Hub, "calls", [], raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", _Hub.calls
    server.shutdown()
    thread.join()
    server.server_close()


def test_upload_speaks_the_hubs_protocol(trained: Path, hub: tuple[str, list[tuple[str, Any]]]) -> None:
    from huggingface_hub import HfApi

    address, calls = hub
    parcel = pack(str(trained))
    to_hub(parcel, "me/model", api=HfApi(endpoint=address, token="hf_none"))
    (_, create), (_, card), (_, commit) = calls
    assert create["visibility"] == "private"
    assert card == (parcel.saved.model / "README.md").read_text()
    assert (create["organization"], create["name"]) == ("me", "model")
    head, *files = commit
    assert head["value"]["summary"] == "unipo: short, step 2"
    assert {f["value"]["path"] for f in files} == set(parcel.files)
    for f in files:
        content = base64.b64decode(f["value"]["content"])
        assert content == (parcel.saved.model / f["value"]["path"]).read_bytes()


def test_what_the_hub_refuses_is_said(trained: Path, hub: tuple[str, list[tuple[str, Any]]]) -> None:
    from huggingface_hub import HfApi

    address, _ = hub
    with pytest.raises(ConfigError, match="the hub did not take 'not a name at all'"):
        to_hub(pack(str(trained)), "not a name at all", api=HfApi(endpoint=address, token="hf_none"))
    with pytest.raises(ConfigError, match="the hub did not take 'other/model'"):
        to_hub(pack(str(trained)), "other/model", api=HfApi(endpoint=f"{address}/nowhere", token="hf_none"))


def test_a_directory_of_runs_is_told_from_a_run(unipo: Call, trained: Path) -> None:
    said = unipo("push", trained.parent, "--to", "out")
    assert said.status == 2
    assert "name one of them" in said.err
    assert str(trained) in said.err
