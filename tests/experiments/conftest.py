"""A stand-in for the W&B server, which answers on this machine what the client asks for and keeps what it is given."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb


class WandbServer(ThreadingHTTPServer):
    """Knows one user, "someone", and one project, "seglab"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.queries: list[tuple[str, dict[str, Any]]] = []  # GraphQL text and variables
        self.streamed: dict[str, list[dict[str, Any]]] = {}  # what was sent of a run's history, by the run's id
        self.files: set[str] = set()  # the names of uploaded files

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client hangs up when it is done

    def variables(self, name: str) -> list[dict[str, Any]]:
        """Of every query or mutation of this name."""
        return [variables for query, variables in self.queries if f" {name}" in query]

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """The history of a run, as its lines lie on the server."""
        lines: dict[int, str] = {}
        for sent in self.streamed.get(run_id, []):
            history = sent.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            lines |= dict(enumerate(history["content"], history["offset"]))
        return [json.loads(lines[number]) for number in sorted(lines)]

    def exit_code(self, run_id: str) -> int | None:
        return next((sent["exitcode"] for sent in self.streamed.get(run_id, []) if sent.get("complete")), None)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "p", "name": "seglab", "entity": {"id": "e", "name": "someone"}, "entityName": "someone"}
        if "upsertBucket" in query:
            keys = ("name", "displayName", "description", "sweepName")
            bucket = {key: variables.get(key) for key in keys} | {"id": "b", "config": "{}", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket | {"project": project}, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "createArtifact(" in query:
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"id": "s", "latestArtifact": None}}
            return {"createArtifact": {"artifact": artifact}}
        if "upsertView" in query:
            view = {key: variables.get(key) for key in ("name", "displayName", "description", "spec")}
            view |= {"id": "v", "project": project, "createdAt": "2026-01-01T00:00:00", "updatedAt": None}
            return {"upsertView": {"view": view, "inserted": True}}
        if "models(" in query:
            node = project | {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
            page = {"endCursor": "c", "hasNextPage": False}
            return {"models": {"edges": [{"node": node, "cursor": "c"}], "pageInfo": page}}
        if "viewer" in query:
            viewer = {"id": "u", "entity": "someone", "username": "someone", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer}
        return {}


class Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/graphql":
            asked = json.loads(body)
            variables = asked.get("variables") or {}
            self.server.queries.append((asked["query"], variables))
            self.reply({"data": self.server.answer(asked["query"], variables)})
        else:
            if self.path.endswith("/file_stream"):
                self.server.streamed.setdefault(self.path.split("/")[-2], []).append(json.loads(body))
            self.reply({"exitcode": None, "limits": {}})

    def do_PUT(self) -> None:
        self.body()
        self.server.files.add(self.path.removeprefix("/upload/"))
        self.reply({})

    def do_GET(self) -> None:
        self.reply({})


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The stand-in, with the environment of somebody who is logged in to it."""
    with WandbServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        wandb.teardown()  # it reads the environment once a process
        yield server
        wandb.teardown()
        server.shutdown()


@pytest.fixture
def nobody_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of somebody without a key for W&B, whose server does not answer."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens
    wandb.teardown()
    yield
    wandb.teardown()
