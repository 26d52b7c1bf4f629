"""Train the towers of Brodenette from nothing and write them where the package looks for them.

    python -m examples.brodenette_recipe --folder runs/brodenette_towers

``--towers brodenette_vit`` trains some of them. Add ``--install`` to replace the shipped ones. Scenes are drawn once and kept in the
folder; a tower that is there is kept.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cefam import load_classifier, load_vlm
from cefam.brodenette.captions import caption
from cefam.brodenette.scenes import describe
from cefam.brodenette.towers import CLASSIFIERS, MEAN, STD, classifier_weights, weights_folder
from cefam.brodenette.vocabulary import SIZE
from cefam.concepts.sets import ConceptSet
from cefam.io.files import write_text
from examples.brodenette_recipe.data import CAPTIONS, scenes
from examples.brodenette_recipe.quality import accuracy, compatible_share, retrieval
from examples.brodenette_recipe.training import ClassifierTraining, Epochs, VLMTraining, loader, normalized

DIM = 64
VLM_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "patch_size": None},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic", "resize_mode": "squash"},
}
NORM = 0.44 * DIM**0.5  # of raw CLIP image embeddings, about 10 in 512 dimensions


def trainer(epochs: int) -> L.Trainer:
    """A bare Trainer: the towers are what is kept."""
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )


def train_classifier(name: str, folder: Path, count: int, epochs: int, seed: int) -> None:
    """Train a classifier and write its weights, in half precision; "_edited" ones learn from edited scenes, too."""
    L.seed_everything(seed)
    drawn = scenes("train", count, folder / "scenes", edits=name.endswith("_edited"))
    data = Epochs(drawn, batch_size=128, seed=seed)
    training = ClassifierTraining(name, steps=epochs * len(data))
    if name in CONTINUED:
        made = classifier_weights(CONTINUED[name], folder)
        training.network.load_state_dict(load_file(made if made.is_file() else classifier_weights(CONTINUED[name])))
    trainer(epochs).fit(training, loader(data))
    save_file(halved(training.network), classifier_weights(name, folder))


def halved(network: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict in half precision."""
    state = network.state_dict()
    return {name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in state.items()}


def train_vlm(name: str, folder: Path, count: int, epochs: int, seed: int) -> None:
    """Train a vision-language model and write its folder in open_clip's format, in half precision."""
    L.seed_everything(seed)
    target = folder / "vlm"
    target.mkdir(parents=True, exist_ok=True)
    # Two thirds of the scenes are the classifier's, one third show anything.
    parts = scenes("train", count, folder / "scenes"), scenes("captioned", count // 2, folder / "scenes")
    data = Epochs(parts[0] + parts[1], batch_size=128, seed=seed, captions=True)
    model = open_clip.model.CLIP(**VLM_CONFIG["model_cfg"])
    tokenizer = open_clip.get_tokenizer("RN50", context_length=VLM_CONFIG["model_cfg"]["text_cfg"]["context_length"])
    training = VLMTraining(model.to(memory_format=torch.channels_last), tokenizer, steps=epochs * len(data))
    training.begin(data.scenes.images[:256])
    trainer(epochs).fit(training, loader(data))
    model.eval()
    with torch.no_grad():
        norm = model.encode_image(normalized(data.scenes.images[-1000:])).norm(dim=-1).mean()
        for parameter in model.visual.attnpool.c_proj.parameters():
            parameter.mul_(NORM / norm)  # L_emb and L_sim are weighed against each other for CLIP's norm
        model.token_embedding.weight.mul_(_tokens_in_use(tokenizer).unsqueeze(1))
        print(
            f"bias of the prompts: {float(training.bias[0]):.4f}"
        )  # of the sigmoid reading: cefam.towers.vlm.BRODENETTE
    save_file(halved(model), target / "open_clip_model.safetensors")
    write_text(target / "open_clip_config.json", json.dumps(VLM_CONFIG, indent=1))


def _tokens_in_use(tokenizer: Any) -> torch.Tensor:
    """1 for tokens of captions and prompts (V,), 0 for those that were never trained; zeros compress well."""
    texts = set(ConceptSet.brodenette().prompts)
    for index in range(4000):
        scene = describe("captioned", index)
        texts.update(phrase for variant in range(CAPTIONS) for phrase in caption(scene, variant))
    texts.add("one and two")
    used = torch.zeros(VLM_CONFIG["model_cfg"]["text_cfg"]["vocab_size"])
    used[tokenizer(sorted(texts)).unique()] = 1
    return used


EPOCHS = {
    "brodenette": 12,
    "brodenette_edited": 16,
    "brodenette_vit": 16,
    "brodenette_vit_edited": 8,
}  # of the classifiers
CONTINUED = {
    "brodenette_vit_edited": "brodenette_vit"
}  # a transformer learns slowly: this one starts from the other's weights
VLM_EPOCHS = 12


def main() -> None:
    """Draw, train, measure, and install if inputs to."""
    parser = argparse.ArgumentParser(prog="python -m examples.brodenette_recipe", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/brodenette_towers"))
    parser.add_argument("--towers", nargs="+", choices=TOWERS, default=TOWERS)
    parser.add_argument("--scenes", type=int, default=24_000)
    parser.add_argument("--epochs", type=int, help="of every tower, in place of its own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--install", action="store_true", help="replace the towers that the package ships")
    options = parser.parse_args()
    for tower in options.towers:
        made = _files(tower, options.folder)
        quality: dict[str, Any] = {"seed": options.seed}
        if not made[-1].is_file():
            start = time.monotonic()
            train, name, epochs = _training(tower)
            train(name, options.folder, options.scenes, options.epochs or epochs, options.seed)
            quality["seconds"] = round(time.monotonic() - start)
            quality |= _quality(tower, options.folder)
            write_text(options.folder / _quality_file(tower), json.dumps(quality, indent=1))
            print(tower, json.dumps(quality, indent=1))
        if options.install:
            for path in (*made, options.folder / _quality_file(tower)):
                place = weights_folder() / path.relative_to(options.folder)
                place.parent.mkdir(exist_ok=True)
                shutil.copy(path, place)


TOWERS = [*CLASSIFIERS, "vlm:brodenette"]


def _training(tower: str) -> tuple[Callable[..., None], str, int]:
    """The function that trains a tower, the name that it is loaded by, and the number of epochs."""
    kind, _, name = tower.rpartition(":")
    return (train_vlm, name, VLM_EPOCHS) if kind else (train_classifier, name, EPOCHS[name])


def _files(tower: str, folder: Path) -> list[Path]:
    """The files of a tower; the last one to be written comes last."""
    kind, _, name = tower.rpartition(":")
    if not kind:
        return [classifier_weights(name, folder)]
    return [folder / "vlm" / file for file in ("open_clip_model.safetensors", "open_clip_config.json")]


def _quality_file(tower: str) -> str:
    return f"quality_{tower.replace(':', '_')}.json"


def _quality(tower: str, folder: Path) -> dict[str, Any]:
    """How good a tower is, on scenes that it has not seen."""
    kind, _, name = tower.rpartition(":")
    if kind:
        vlm = load_vlm(f"local-dir:{folder / 'vlm'}")
        return {"retrieval": retrieval(vlm, scenes("retrieval", 2000, folder / "scenes"))}
    classifier = load_classifier(name, weights=str(classifier_weights(name, folder)))
    return {
        "accuracy": accuracy(classifier, scenes("test", 2000, folder / "scenes")),
        "compatible": compatible_share(classifier, scenes("test", 2000, folder / "scenes", edits=True)),
    }


if __name__ == "__main__":
    main()
