"""The audit says when it has audited nothing."""

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import audit
import pytest


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        (None, False),  # nobody listens
        (b"<html>", False),
        (b"[]", False),
        (json.dumps({"vulnerabilities": []}).encode(), False),  # a mirror
        (json.dumps({"vulnerabilities": [{"id": "x"}]}).encode(), True),
    ],
)
def test_without_a_database_nothing_is_audited_and_a_line_says_so(
    answer: bytes | None, asked: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer or b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> "subprocess.CompletedProcess[str]":
        calls.append(command)
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.setattr(subprocess, "run", run)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port if answer is not None else 9
        monkeypatch.setattr(audit, "KNOWN", f"http://127.0.0.1:{port}/")
        status = audit.main()
        server.shutdown()
    assert status == (5 if asked else 0)
    assert ("--strict" in calls[0]) if asked else not calls
    assert ("skipped: the database of vulnerabilities cannot be reached" in capsys.readouterr().out) is not asked
