"""A stand-in for the W&B server, which answers on this machine what the client asks for and keeps what it is given."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

# What a server, or what stands between, can do instead of answering. "dies" and "hangs" begin when `spoil` says so.
STATES = (
    *("refused", "hole", "401", "403", "404", "429", "500", "portal", "empty", "garbage", "redirects", "closes"),
    *("slow", "stops", "dies", "hangs"),
)


class WandbServer(ThreadingHTTPServer):
    """Knows one user, "someone", and one project, "seglab"; in a `state` of `STATES` it does what that says instead."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, state: str = "") -> None:
        self.state = "" if state in ("dies", "hangs") else state
        self.later = state if state in ("dies", "hangs") else ""
        self.ended = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.queries: list[tuple[str, dict[str, Any]]] = []  # GraphQL text and variables
        self.streamed: dict[str, list[dict[str, Any]]] = {}  # what was sent of a run's history, by the run's id
        self.files: set[str] = set()  # the names of uploaded files
        self.commands: list[list[dict[str, Any]]] = []  # for an agent of a sweep, one list a heartbeat

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        if self.state == "refused":
            self.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nobody listens any more, and those who wait are left alone."""
        self.ended.set()
        self.shutdown()
        self.server_close()

    def spoil(self) -> None:
        """From here on it does what its state says."""
        self.state = self.later or self.state
        if self.state == "dies":
            self.close()

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

    def sweep(self) -> dict[str, Any]:
        """What was made of `wandb sweep`."""
        config = next((given["config"] for given in self.variables("UpsertSweep") if given.get("config")), "")
        known = {"id": "s", "name": "sweep1", "displayName": "sweep1", "state": "RUNNING", "method": "grid"}
        known |= {"config": config, "description": "", "controller": "", "scheduler": "", "bestLoss": None}
        return known | {
            "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": None,
            "updatedAt": None,
            "runs": {"edges": []},
        }

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
        if "upsertSweep" in query:
            sweep = {"name": "sweep1", "project": project}
            return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "agentHeartbeat" in query:
            busy = json.loads(variables.get("runState") or "{}")  # the trials that have not ended
            commands = [] if busy else self.commands.pop(0) if self.commands else [{"type": "exit"}]
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        if "sweep(" in query:
            return {"project": project | {"sweep": self.sweep()}}
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

    def spoilt(self) -> bool:
        """Whether the state of the server has been the answer."""
        state = self.server.state
        if state in ("hole", "hangs"):
            self.server.ended.wait(600)
            self.close_connection = True
        elif state.isdigit():
            self.send(int(state), b"{}", "application/json")
        elif state == "portal":
            self.send(200, b"<html><form>please log in</form></html>", "text/html")
        elif state == "empty":
            self.send(200, b"{}", "application/json")
        elif state == "garbage":
            self.send(200, b'{"data": [1, ', "application/json")
        elif state == "redirects":
            self.send_response(302)
            self.send_header("Location", self.server.url + "/graphql")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif state == "closes":
            self.close_connection = True
        else:
            if state == "slow":
                self.server.ended.wait(2)
            return False
        return True

    def reply(self, content: dict[str, Any]) -> None:
        self.send(200, json.dumps(content).encode(), "application/json")

    def send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.body()
        if self.spoilt():
            return
        if self.path == "/graphql":
            asked = json.loads(body)
            variables = asked.get("variables") or {}
            self.server.queries.append((asked["query"], variables))
            self.reply({"data": self.server.answer(asked["query"], variables)})
        else:
            if self.path.endswith("/file_stream"):
                self.server.streamed.setdefault(self.path.split("/")[-2], []).append(json.loads(body))
            stop = {"stopped": True} if self.server.state == "stops" else {}
            self.reply({"exitcode": None, "limits": {}} | stop)

    def do_PUT(self) -> None:
        self.body()
        if self.spoilt():
            return
        self.server.files.add(self.path.removeprefix("/upload/"))
        self.reply({})

    def do_GET(self) -> None:
        if not self.spoilt():
            self.reply({})
