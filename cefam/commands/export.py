"""``cefam export``: a training checkpoint as safetensors + JSON + model card. No network is built."""


def export(checkpoint: str, folder: str, overwrite: bool = False) -> None:
    """Write a training checkpoint as safetensors, JSON and a model card.

    Args:
        checkpoint: a .ckpt of `cefam fit`.
        folder: output folder.
        overwrite: replace an existing artefact.
    """
    from cefam.trained import write_artefact

    print(f"Exported to {write_artefact(checkpoint, folder, overwrite)}.")
