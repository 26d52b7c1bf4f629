"""``cefam study``: from a classifier, photographs and words to pages, in one command."""

import shlex
from functools import wraps
from typing import Any

from cefam.commands._options import call


def study(
    classifier: str,
    images: str,
    concepts: str,
    folder: str = "runs/study",
    vlm: str = "ViT-B-16-quickgelu:openai",
    views: int = 1,
    epochs: int = 100,
    pages: int = 24,
    stages: list[str] | None = None,
    class_names: str | None = None,
    device: str = "auto",
) -> None:
    """Train a translator for a classifier and explain photographs with it. A stopped study resumes.

    Every tenth photograph is kept for validation, for judging the concepts, and for the pages. `--print_config` prints the
    configs and commands of the single verbs that do the same.

    Args:
        classifier: a function of yours that returns the network, "my_net.birds"; or a torchvision name, "timm:NAME" or "hf:NAME".
        images: a folder of photographs.
        concepts: a concept set by name ("broden") or file (a word per line, or CSV).
        folder: for everything that is made.
        vlm: the teacher: "MODEL:PRETRAINED" of open_clip, "local-dir:/folder", "brodenette", or a function of yours.
        views: random views per photograph; more take longer and train better.
        epochs: of the training, at most.
        pages: photographs that are explained, at most.
        stages: names of modules, see `cefam stages`; null: the last of each resolution.
        class_names: a text file with a class name per line; null: the names that the network brings.
        device: "auto", "cpu", "cuda" ...
    """
    from cefam.commands._lightning import quiet
    from cefam.studies import study as run_study

    quiet()
    run_study(classifier, images, concepts, folder, vlm, views, epochs, pages, stages, _lines(class_names), device)


def _lines(file: str | None) -> list[str] | None:
    from pathlib import Path

    from cefam.errors import MissingError
    from cefam.io.reading import read_text

    if file is not None and not Path(file).is_file():
        raise MissingError(f"There is no file {file}: name a text file with a class name per line as `--class_names`.")
    return None if file is None else read_text(Path(file)).splitlines()


@wraps(study)
def print_configs(**options: Any) -> None:
    """Print the configs and commands of the single verbs that do the same as a study with these options."""
    import yaml

    from cefam.commands._lightning import quiet
    from cefam.datasets.photographs import Photographs
    from cefam.studies import HELD_OUT, batch_size, neighbors, part_of, view_of, vocabulary
    from cefam.towers.named import named_classifier, vlm_source

    quiet()
    tower = named_classifier(options["classifier"], options["stages"], _lines(options["class_names"]))
    train = sum(part_of(number) == "train" for number in range(Photographs.read(options["images"]).count))
    teacher = vlm_source(options["vlm"])
    folder = options["folder"]
    batches = batch_size(train * max(1, options["views"]))
    features = {part: f"{folder}/features/{part}" for part in ("train", "val")}
    data = {"class_path": "FeaturesData", "init_args": {**features, "batch_size": batches}}
    trainer = {
        "max_epochs": options["epochs"],
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": folder}},
    }
    trainer["logger"]["init_args"] |= {"name": "fit", "version": ""}
    configs = {
        "towers.yaml": {"classifier": tower.source, "vlm": teacher},
        "fit.yaml": {
            "model": {"concepts": options["concepts"], "background": vocabulary(teacher)},
            "data": data,
            "trainer": trainer,
        },
    }
    for name, config in configs.items():
        print(f"# {name}\n{yaml.safe_dump(config, sort_keys=False)}")
    print(f"# Every {HELD_OUT}th photograph is for validation: TRAIN and VAL are folders of yours.")
    view = " ".join(f"--{name} {value}" for name, value in view_of(tower).items())
    for part, views in (("TRAIN", options["views"]), ("VAL", 0)):
        to = shlex.quote(f"{folder}/features/{part.lower()}")
        print(f"# cefam features --config towers.yaml --images {part} --folder {to} --views {views} {view}")
    print(
        f"# cefam probe --config towers.yaml --images TRAIN --folder {shlex.quote(folder)}/probe --top {neighbors(train)} {view}"
    )
    print("# cefam fit --config towers.yaml --config fit.yaml")
    print(f"# cefam doctor --artefact {shlex.quote(folder)} --images VAL")
    print(f"# cefam explain VAL --artefact {shlex.quote(folder)} --out {shlex.quote(folder)}/pages")


def run(arguments: list[str]) -> None:
    """Run the verb with these options; ``--print_config`` prints what the single verbs would take."""
    given = [word for word in arguments if word.replace("-", "_") != "__print_config"]
    if len(given) < len(arguments):
        call("study", print_configs, given)
    else:
        call("study", study, given)
