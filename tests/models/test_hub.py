"""Pushing, against a server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from unlearn.errors import ConfigError
from unlearn.models.hub import check_push

ROOT = Path(__file__).parents[2]
OWNER = "someone/forgetful"


@dataclass
class Stub:
    """A hub: what was asked, and the files that were committed."""

    address: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    created: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    refuses: bool = False

    def answer(self, path: str, body: bytes) -> tuple[Any, int]:
        """What the hub says to a request, and its status."""
        if self.refuses:
            return {"error": "no"}, 403
        if path == "/api/repos/create":
            self.created = json.loads(body)
            return {"url": f"{self.address}/{OWNER}", "name": OWNER, "id": OWNER}, 200
        if path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}, 200
        if "/commit/main" in path:
            values = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
            self.files |= {value["path"]: base64.b64decode(value["content"]) for value in values}
            return {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.address}/{OWNER}/commit/{'0' * 40}", "hookOutput": ""}, 200
        return {"tags": [], "valid": True}, 200


def handler_of(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _say(self, value: Any, code: int = 200) -> None:
            text = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_POST(self) -> None:
            body = self._body()
            stub.requests.append(("POST", self.path, self.headers.get("Authorization") or ""))
            self._say(*stub.answer(self.path, body))

        def do_GET(self) -> None:
            stub.requests.append(("GET", self.path, self.headers.get("Authorization") or ""))
            self._say(
                {"id": OWNER, "sha": "1" * 40, "siblings": [], "tags": [], "private": True, "lastModified": "2026-01-01T00:00:00.000Z"}
            )

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(made))
    made.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def pushing(stub: Stub, folder: Path) -> subprocess.CompletedProcess[str]:
    """``push`` in a process that takes the stub for the hub."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom unlearn.models.hub import check_push, push\n"
        f"print(push(Path(sys.argv[1]), {OWNER!r}, check_push({OWNER!r}), ['local.json'], 'a message'))"
    )
    keep = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment = {
        **keep,
        "HF_ENDPOINT": stub.address,
        "HF_TOKEN": "hf_secret_of_mine",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return subprocess.run([sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_folder_is_committed_to_a_private_repository_without_what_is_local(stub: Stub, tmp_path: Path) -> None:
    files = {"README.md": b"---\ntags: [x]\n---\n# a card\n", "model.safetensors": bytes(range(256)), "provenance.json": b"{}"}
    for name, content in {**files, "local.json": b'{"run": "/home/me"}'}.items():
        (tmp_path / name).write_bytes(content)
    done = pushing(stub, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {name: content for name, content in stub.files.items() if name != ".gitattributes"} == files
    assert stub.created["name"] == OWNER.split("/")[1]
    assert stub.created.get("private") is True or stub.created.get("visibility") == "private"
    assert {token for _, path, token in stub.requests if path.startswith("/api/repos") or "commit" in path} == {"Bearer hf_secret_of_mine"}
    assert OWNER in done.stdout


@pytest.mark.slow
def test_a_refusal_is_one_sentence_without_the_token(stub: Stub, tmp_path: Path) -> None:
    stub.refuses = True
    (tmp_path / "README.md").write_text("card")
    done = pushing(stub, tmp_path)
    assert done.returncode != 0
    assert f"ModelError: {OWNER} must be a repository that takes the folder; found: " in done.stderr
    assert "hf_secret_of_mine" not in done.stderr.splitlines()[-1]
    assert stub.files == {}


@pytest.mark.parametrize(
    ("hub_id", "environment", "message"),
    [
        ("model", {"HF_TOKEN": "x"}, r"--push must be a hub id \(owner/name\); found 'model'"),
        ("../a/b", {"HF_TOKEN": "x"}, r"--push must be a hub id"),
        ("me/model", {}, r"in the environment variable HF_TOKEN; found none"),
        ("me/model", {"HF_TOKEN": "x", "HF_HUB_OFFLINE": "1"}, r"found HF_HUB_OFFLINE set"),
    ],
)
def test_what_would_fail_later_is_refused_first(
    hub_id: str, environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        check_push(hub_id)
