"""Broken things, made from the good ones that the tests share."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

WORDS = {
    "empty.txt": "",
    "long.txt": "wing\n" + "very " * 40 + "long wing\n",
    "no_word.csv": "number,category\n1,object\n",
    "no_name.csv": "number,name,category\n1,wing,part\n2,,part\n",
    "bad_number.csv": "number,name,category\n1,wing,part\ntwo,beak,part\n",
    "zero.csv": "number,name\n0,wing\n",
    "quote.csv": 'number,name\n1,wing\n2,"beak\n',
    "columns.csv": "number,name,name\n1,wing,beak\n",
    "large.csv": "number,name\n3000000000,wing\n",
    "many.csv": "number,name\n1,wing, left\n",
    "twice.csv": "number,name,category\n1,wing,part\n1,beak,part\n",
}


def make_all(folder: Path, world: Path, made: Path, trained: Path) -> Path:
    """Everything below one folder."""
    (folder / "empty").mkdir(parents=True)
    (folder / "file").write_text("a file where a folder is wanted")
    for name, text in WORDS.items():
        (folder / name).write_text(text)
    (folder / "code.pkl").write_bytes(pickle.dumps((os.getcwd, [])))
    (folder / "words.csv").write_text("layer,unit,description,similarity\nlayer4,0,zebra,0.5\n")
    _configs(folder)
    _weights(folder, world)
    _images(folder)
    _broden(folder, world)
    _shards(folder, made)
    _caches(folder, made)
    _artefacts(folder, trained)
    return folder


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def _configs(folder: Path) -> None:
    (folder / "unknown_key.yaml").write_text("model: {similarty_weight: 1}\n")
    (folder / "empty.yaml").touch()
    (folder / "list.yaml").write_text("- model\n")
    (folder / "twice.yaml").write_text("trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}\n")
    for name in ("latin.yaml", "latin.txt"):
        (folder / name).write_bytes("#café\n".encode("latin-1"))
    (folder / "no_yaml.yaml").write_text("model: {concepts: [\n")


def _weights(folder: Path, world: Path) -> None:
    (folder / "empty.pth").touch()
    shutil.copy(world / "resnet18.pth", folder / "truncated.pth")
    _cut(folder / "truncated.pth")
    torch.save(torch.nn.Linear(1, 1), folder / "pickled.pth")
    torch.save([1, 2], folder / "list.pth")
    for name, key in (("nan_vlm", "visual.proj"), ("nan_scale", "logit_scale"), ("nan_text", "text_projection")):
        state = torch.load(world / "tiny_clip.pt", weights_only=True)
        torch.save({**state, key: state[key] * torch.nan}, folder / f"{name}.pt")
    save_file({"layer.weight": torch.zeros(1)}, folder / "other.safetensors")
    (folder / "empty.safetensors").touch()
    (folder / "no_clip.json").write_text('{"embed_dim": 8}')
    (folder / "no_json.json").write_text("{")


def _images(folder: Path) -> None:
    for name, content in (("corrupt", b"no image at all"), ("nothing", b"")):
        (folder / name).mkdir()
        (folder / name / "a.jpg").write_bytes(content)
    for name in ("pipe", "link", "half"):
        (folder / name).mkdir()
    os.mkfifo(folder / "pipe" / "a.jpg")
    (folder / "link" / "a.jpg").symlink_to("gone.jpg")
    Image.effect_noise((64, 64), 50).save(folder / "half" / "a.png")
    _cut(folder / "half" / "a.png")
    (folder / "bomb").mkdir()
    Image.new("1", (20000, 20000)).save(folder / "bomb" / "a.png")


def _broden(folder: Path, world: Path) -> None:
    copies = {
        name: _copy(world / "broden", folder / f"broden_{name}")
        for name in ("labels", "index", "column", "photo", "mask", "unknown", "number", "rows", "broken_mask",
                     "zero", "twice", "again", "short", "suffix")
    }  # fmt: skip
    (copies["labels"] / "label.csv").unlink()
    (copies["index"] / "index.csv").unlink()
    index = (world / "broden" / "index.csv").read_text()
    (copies["column"] / "index.csv").write_text(index.replace("color", "colour", 1))
    (copies["rows"] / "index.csv").write_text(index.splitlines()[0] + "\n")
    (copies["photo"] / "images" / "src" / "003.jpg").unlink()
    (copies["mask"] / "images" / "src" / "003_color.png").unlink()
    (copies["broken_mask"] / "images" / "src" / "003_color.png").write_bytes(b"no mask")
    labels = (world / "broden" / "label.csv").read_text()
    (copies["unknown"] / "label.csv").write_text("".join(line for line in labels.splitlines(True) if "car" not in line))
    (copies["number"] / "label.csv").write_text(labels.replace("38,", "thirty-eight,", 1))
    (copies["zero"] / "label.csv").write_text(labels.replace("38,", "0,", 1))
    (copies["twice"] / "label.csv").write_text(labels + labels.splitlines(True)[1])
    (copies["again"] / "index.csv").write_text(index + index.splitlines(True)[1])
    (copies["short"] / "index.csv").write_text(index + "src/zzz.jpg,val,64\n")
    (copies["suffix"] / "index.csv").write_text(index.replace("src/003.jpg", "src/003", 1))
    (copies["suffix"] / "images" / "src" / "003.jpg").rename(copies["suffix"] / "images" / "src" / "003")


def _shards(folder: Path, made: Path) -> None:
    copies = {
        name: _copy(made / "broden", folder / f"shards_{name}")
        for name in ("json", "version", "gone", "cut", "strange")
    }
    (copies["json"] / "manifest.json").write_text("{")
    manifest = json.loads((made / "broden" / "manifest.json").read_text())
    (copies["version"] / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    (copies["gone"] / "shard-000001.tar").unlink()
    _cut(copies["cut"] / "shard-000000.tar")
    for shard in copies["strange"].glob("*.tar"):
        shard.write_bytes(b"no tar" * 1000)


def _caches(folder: Path, made: Path) -> None:
    good = made / "features" / "train"
    copies = {
        name: _copy(good, folder / f"cache_{name}") for name in ("unfinished", "json", "gone", "cut", "nan", "shapes")
    }
    (copies["unfinished"] / "manifest.json").unlink()
    (copies["json"] / "manifest.json").write_text("[]")
    rows = np.load(good / "features.npy")
    (copies["gone"] / "features.npy").unlink()
    _cut(copies["cut"] / "features.npy")
    np.save(copies["nan"] / "features.npy", rows * np.float32("nan"))
    np.save(copies["shapes"] / "features.npy", rows[:, 1:])


def _artefacts(folder: Path, trained: Path) -> None:
    good = trained / "artefact"
    copies = {
        name: _copy(good, folder / f"artefact_{name}")
        for name in ("config", "json", "format", "cut", "texts", "weights")
    }
    (copies["config"] / "config.json").unlink()
    (copies["json"] / "config.json").write_text("{")
    (copies["format"] / "config.json").write_text("{}")
    _cut(copies["cut"] / "model.safetensors")
    tensors = load_file(good / "model.safetensors")
    embeddings = tensors.pop("concepts.embeddings")
    save_file(tensors, copies["texts"] / "model.safetensors")
    save_file({"concepts.embeddings": embeddings}, copies["weights"] / "model.safetensors")
    checkpoint = trained / "log" / "checkpoints" / "last.ckpt"
    (folder / "empty.ckpt").touch()
    shutil.copy(checkpoint, folder / "cut.ckpt")
    _cut(folder / "cut.ckpt")
    torch.save(torch.nn.Linear(1, 1), folder / "pickled.ckpt")
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    whole = torch.load(checkpoint, weights_only=True)
    state_of_the_training = ("optimizer_states", "lr_schedulers", "loops", "callbacks")
    weights = {key: value for key, value in whole.items() if key not in state_of_the_training}
    torch.save(weights, folder / "weights.ckpt")
