"""Shards behind a URL, from a server that cuts connections, answers short, or fails: every sample comes, or a sentence."""

import functools
import hashlib
import http.server
import multiprocessing
import shutil
import threading
from pathlib import Path

import pytest
import torch

from cefam.datamodules import RegionsData
from cefam.datasets import Manifest, storage
from cefam.datasets.features import load_features
from cefam.errors import CefamError
from tests.commands import evaluated, run


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; ``faults`` are done to the next requests of shards, ``asked`` are the paths of all."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.faults, self.asked = [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    """One request."""

    def do_GET(self):
        self.server.asked.append(self.path)
        fault = self.server.faults.pop(0) if self.path.endswith(".tar") and self.server.faults else None
        if fault is None:
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        if fault == "error":
            self.send_error(503)
            return
        if fault == "flipped":
            content = content[:2000] + bytes([content[2000] ^ 1]) + content[2001:]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) // 2 if fault == "short" else len(content)))
        self.end_headers()
        self.wfile.write(content if fault == "flipped" else content[: len(content) // 2])
        self.close_connection = True

    def log_message(self, *ignored):
        pass


@pytest.fixture
def server(prepared, monkeypatch):
    monkeypatch.setattr(storage, "WAIT", 0.01)
    found = Server(prepared)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize("faults", [["flipped", "cut", "short", "error"]])
def test_an_evaluation_over_http_is_the_local_one(server, trained, prepared, measured, tmp_path, faults):
    server.faults = list(faults)
    assert evaluated(trained, prepared, tmp_path / "remote", f"--data.shards={server.url}/broden") == 0
    assert (tmp_path / "remote/records.csv").read_bytes() == (measured / "records.csv").read_bytes()
    assert not server.faults


@pytest.mark.parametrize("fault", ["cut", "short", "flipped", "error"])
def test_a_server_that_never_answers_well_is_named(server, fault):
    server.faults = [fault] * 100
    place = rf"{server.url}/broden/shard-000000.tar cannot be fetched.*attempt 5 of 5"
    with pytest.raises(CefamError, match=place):
        list(RegionsData(f"{server.url}/broden").test_dataloader())


def test_nobody_answers(server, capsys, monkeypatch, trained, prepared, tmp_path):
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    server.server_close()
    assert evaluated(trained, prepared, tmp_path / "out", f"--data.shards={server.url}/broden") == 1
    assert "cannot be fetched" in capsys.readouterr().err
    assert run("verify", "nothing://there/broden") == 1
    assert "cannot be read: Protocol not known: nothing" in capsys.readouterr().err


def test_the_cache_is_filled_once_compared_and_mended(server, world, tmp_path, monkeypatch):
    monkeypatch.setenv(storage.CACHE, str(tmp_path / "cache"))
    storage._cached.cache_clear()
    options = ["--config", world / "towers.yaml", "--size", 64, "--resize", 64, "--device", "cpu"]
    options += ["--images", f"{server.url}/val"]
    assert run("features", *options, "--folder", tmp_path / "one") == 0
    shards = [path for path in server.asked if path.endswith(".tar")]
    assert sorted(shards) == ["/val/shard-000000.tar", "/val/shard-000001.tar"]
    kept = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock")
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in kept] == [path.name for path in kept]
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"x")  # a disk that forgets
    storage._cached.cache_clear()  # another process
    assert run("features", *options, "--folder", tmp_path / "other") == 0
    assert len([path for path in server.asked if path.endswith(".tar")]) == 3
    assert torch.equal(load_features(tmp_path / "one").matrix, load_features(tmp_path / "other").matrix)


def fetch(place, sha256, folder):
    return str(storage._cached(place, sha256, folder))


def test_several_processes_fetch_a_shard_once(server, tmp_path):
    shard = Manifest.read(f"{server.url}/val").placed(f"{server.url}/val")[0]
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.starmap(fetch, [(shard.place, shard.sha256, str(tmp_path))] * 4)
    assert len(set(found)) == 1
    assert server.asked.count("/val/shard-000000.tar") == 1
    assert hashlib.sha256(Path(found[0]).read_bytes()).hexdigest() == shard.sha256


def test_workers_read_over_http(server, prepared):
    one, other = (
        list(RegionsData(folder, batch_size=3, num_workers=2).test_dataloader())
        for folder in (str(prepared / "broden"), f"{server.url}/broden")
    )
    assert sorted(batch.ids for batch in one) == sorted(batch.ids for batch in other)


def test_a_remote_manifest_names_no_other_place(server, prepared, tmp_path):
    copy = shutil.copytree(prepared / "val", prepared / "elsewhere", dirs_exist_ok=True)
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"root": null', '"root": "http://127.0.0.1:1/other"'))
    with pytest.raises(ValueError, match="only a manifest of your own may do that"):
        Manifest.read(f"{server.url}/elsewhere")
    for name in ("../val/shard-000000.tar", "/etc/shard-000000.tar", "http://127.0.0.1:1/shard-000000.tar"):
        (copy / "manifest.json").write_text(text.replace("shard-000000.tar", name))
        with pytest.raises(ValueError, match="is not a file of cefam-shards version 1"):
            Manifest.read(copy)


def test_an_object_store_of_fsspec_is_read(prepared):
    """Fsspec's own store in memory stands for those of clouds, whose packages are not installed here."""
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(prepared / "broden"), "/bucket/broden", recursive=True)
    one, other = (
        list(RegionsData(folder).test_dataloader()) for folder in (str(prepared / "broden"), "memory://bucket/broden")
    )
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.masks, b.masks)
    assert run("verify", "memory://bucket/broden") == 0


def test_a_pipe_is_no_place(tmp_path, capsys):
    """Webdataset's `pipe:` runs what it names."""
    assert run("verify", f"pipe:touch {tmp_path}/ran") == 1
    assert not (tmp_path / "ran").exists()
    assert "holds neither shards nor features nor an artefact" in capsys.readouterr().err
