"""``cefam study``: from a classifier, photographs and words to pages, in one command."""

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

    Every tenth photograph is kept for validation, for judging the concepts, and for the pages.

    Args:
        classifier: a function of yours that returns the network, "my_net.birds"; or a torchvision name, "timm:NAME" or "hf:NAME".
        images: a folder of photographs.
        concepts: a concept set by name ("broden") or file (a word per line, or CSV).
        folder: for everything that is made.
        vlm: the teacher: "MODEL:PRETRAINED" of open_clip, "local-dir:/folder", or "brodenette".
        views: random views per photograph; more take longer and train better.
        epochs: of the training, at most.
        pages: photographs that are explained, at most.
        stages: names of modules, see `cefam stages`; null: the last of each resolution.
        class_names: a text file with a class name per line; null: the names that the network brings.
        device: "auto", "cpu", "cuda" ...
    """
    from pathlib import Path

    from cefam.commands._lightning import quiet
    from cefam.io.reading import read_text
    from cefam.studies import study as run_study

    quiet()
    names = None if class_names is None else read_text(Path(class_names)).splitlines()
    run_study(classifier, images, concepts, folder, vlm, views, epochs, pages, stages, names, device)


def run(arguments: list[str]) -> None:
    """Run the verb with these options."""
    call("study", study, arguments)
