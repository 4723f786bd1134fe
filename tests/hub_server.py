"""A hub of our own on the loopback, for the real client: repositories of files, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as the real client asks for: repositories of files, in memory."""

    repositories: dict[str, dict[str, bytes]]
    commits: list[tuple[str, str]]

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = unquote(self.path).strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            self.repositories.setdefault(name, {})
            self.reply({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        elif parts[1] == "validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            self.reply({"files": modes})
        else:
            name = "/".join(parts[2:4])
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "header":
                    self.commits.append((name, entry["value"]["summary"]))
                else:
                    content = base64.b64decode(entry["value"]["content"])
                    self.repositories[name][entry["value"]["path"]] = content
            self.reply(
                {
                    "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{'1' * 40}",
                    "commitOid": "1" * 40,
                    "success": True,
                }
            )

    def do_GET(self) -> None:
        parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
        api = parts[0] == "api"
        files = self.repositories.get("/".join(parts[2:4] if api else parts[:2]))
        if files is None:
            self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif api and "tree" in parts:
            self.reply(
                [{"type": "file", "path": p, "size": len(b), "oid": "0"} for p, b in files.items()]
            )
        elif api:
            self.reply(
                {
                    "id": "/".join(parts[2:4]),
                    "sha": "1" * 40,
                    "siblings": [{"rfilename": path} for path in files],
                }
            )
        elif "/".join(parts[4:]) not in files:
            self.reply({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        else:
            content = files["/".join(parts[4:])]
            etag = hashlib.sha1(content).hexdigest()
            self.reply(content, ETag=f'"{etag}"', X_Repo_Commit="1" * 40)

    def do_HEAD(self) -> None:
        self.do_GET()


@contextmanager
def hub_server() -> Iterator[str]:
    """A hub without a repository, and its address."""
    Hub.repositories, Hub.commits = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def environment(endpoint: str, folder: Path) -> dict[str, str]:
    """What makes a client of another process ask this hub, and keep its cache in a folder."""
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
