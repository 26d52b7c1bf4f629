"""An artefact on the hub, from a local stand-in server, by the command."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cefam.io import hub
from tests.commands import ROOT


@pytest.fixture
def served(tmp_path):
    """A server that answers as the hub does for the files below a folder; yields the folder, its address, and the files asked for."""
    files, asked = tmp_path / "served", []
    files.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            name = self.path.removeprefix("/someone/birds/resolve/main/")
            known = (files / name).is_file() and name != self.path
            content = (files / name).read_bytes() if known else b""
            asked.append(name)
            self.send_response(200 if known else 404)
            if not known:
                self.send_header("X-Error-Code", "EntryNotFound" if name != self.path else "RepoNotFound")
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield files, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def of_hub(address: str, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "cefam", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_an_artefact_of_the_hub_is_explained_and_another_one_is_refused(served, quick_study, tmp_path):
    files, address, asked = served
    artefact = quick_study / "artefact"
    for name in (*hub.NEEDED, *hub.OPTIONAL):
        source = (quick_study if name.startswith("probe/") else artefact) / name
        (files / name).parent.mkdir(exist_ok=True)
        (files / name).write_bytes(source.read_bytes())
    (files / "evil.pkl").write_bytes(b"never asked for")
    photograph = next(path for path in (quick_study / "photographs/val").rglob("*") if path.is_file())
    page = tmp_path / "page.html"
    done = of_hub(
        address, tmp_path / "cache", "explain", str(photograph), "--artefact", "hf:someone/birds", "--out", str(page)
    )
    assert done.returncode == 0, done.stderr
    assert "with a probe" not in done.stderr  # it was fetched, too
    assert page.is_file()
    assert {name for name in asked if not name.startswith("/api/")} == {
        *hub.NEEDED,
        *hub.OPTIONAL,
    }  # no other file of it
    other = of_hub(address, tmp_path / "cache", "explain", str(photograph), "--artefact", "hf:someone/else")
    assert other.returncode == 1
    assert other.stderr.startswith("cefam explain: There is no artefact hf:someone/else")
