"""Train both towers of Brodenette from nothing and write them where the package looks for them.

    python -m examples.brodenette_recipe --folder runs/brodenette_towers

Add ``--install`` to replace the shipped ones. Scenes are drawn once and kept in the folder; a tower that is there is kept.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import lightning as L
import open_clip
import torch
from safetensors.torch import save_file

from cefam import load_classifier, load_vlm
from cefam.brodenette.captions import caption
from cefam.brodenette.scenes import describe
from cefam.brodenette.towers import MEAN, STD, weights_folder
from cefam.brodenette.vocabulary import SIZE
from cefam.concepts import ConceptSet
from cefam.files import write_text
from examples.brodenette_recipe.data import CAPTIONS, scenes
from examples.brodenette_recipe.quality import accuracy, retrieval
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


def train_classifier(folder: Path, count: int, epochs: int, seed: int) -> None:
    """Train the classifier and write ``classifier.safetensors``, in half precision."""
    L.seed_everything(seed)
    data = Epochs(scenes("train", count, folder / "scenes"), batch_size=128, seed=seed)
    training = ClassifierTraining(steps=epochs * len(data))
    trainer(epochs).fit(training, loader(data))
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in training.network.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "classifier.safetensors")


def train_vlm(folder: Path, count: int, epochs: int, seed: int) -> None:
    """Train the vision-language model and write ``vlm/`` in open_clip's format, in half precision."""
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
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, target / "open_clip_model.safetensors")
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


def main() -> None:
    """Draw, train, measure, and install if asked to."""
    parser = argparse.ArgumentParser(prog="python -m examples.brodenette_recipe", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/brodenette_towers"))
    parser.add_argument("--scenes", type=int, default=24_000)
    parser.add_argument("--classifier_epochs", type=int, default=12)
    parser.add_argument("--vlm_epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--install", action="store_true", help="replace the towers that the package ships")
    options = parser.parse_args()
    folder, times = options.folder, {}
    for name, made, train, epochs in (
        ("classifier", folder / "classifier.safetensors", train_classifier, options.classifier_epochs),
        ("vlm", folder / "vlm" / "open_clip_config.json", train_vlm, options.vlm_epochs),
    ):
        if not made.is_file():
            start = time.monotonic()
            train(folder, options.scenes, epochs, options.seed)
            times[f"{name}_seconds"] = round(time.monotonic() - start)
    quality: dict[str, Any] = {
        "accuracy": accuracy(
            load_classifier("brodenette", weights=str(folder / "classifier.safetensors")),
            scenes("test", 2000, folder / "scenes"),
        ),
        "retrieval": retrieval(load_vlm(f"local-dir:{folder / 'vlm'}"), scenes("retrieval", 2000, folder / "scenes")),
        "seed": options.seed,
        **times,
    }
    write_text(folder / "quality.json", json.dumps(quality, indent=1))
    print(json.dumps(quality, indent=1))
    if options.install:
        shutil.copytree(folder / "vlm", weights_folder() / "vlm", dirs_exist_ok=True)
        for name in ("classifier.safetensors", "quality.json"):
            shutil.copy(folder / name, weights_folder() / name)


if __name__ == "__main__":
    main()
