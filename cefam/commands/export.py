"""``cefam export``: a training checkpoint as safetensors + JSON + model card. No network is built."""

from pathlib import Path

from cefam.commands._options import call


def export(checkpoint: str, folder: str, overwrite: bool = False) -> Path:
    """Write a training checkpoint as safetensors, JSON and a model card.

    Args:
        checkpoint: a .ckpt of `cefam fit`.
        folder: output folder.
        overwrite: replace an existing artefact.
    """
    from cefam.trained import write_artefact

    return write_artefact(checkpoint, folder, overwrite)


def run(arguments: list[str]) -> None:
    """Run the verb with these options."""
    print(f"Exported to {call('export', export, arguments)}.")
