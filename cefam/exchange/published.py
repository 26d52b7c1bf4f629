"""Import CE-FAM's published translator (a pickled module, .pth)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cefam.errors import CefamError
from cefam.exchange.inert import TRANSLATOR, Layer, read_pickle
from cefam.translator import Translator


def read_translator(path: str | Path, channels: list[int]) -> tuple[Translator, dict[str, Any]]:
    """Translator of a .pth file, and its VLM settings ``scale``, ``bias`` and ``model_type``."""
    found = read_pickle(path)
    if isinstance(found, Layer) and found.kind == TRANSLATOR:
        layers = found.state.get("_modules", {})
        weights = {
            f"{name}.{part}": layers[name].state["_parameters"][part]
            for name in ("fc1", "fc2", "fc3")
            for part in ("weight", "bias")
            if isinstance(layers.get(name), Layer)
        }
        about = {name: found.state.get(name) for name in ("scale", "bias", "model_type")}
    elif isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values()):
        weights, about = found, {}
    else:
        raise CefamError(f"{path} is not a translator of CE-FAM: it holds a {type(found).__name__}.")
    try:
        widths = [len(weights[f"fc{index}.bias"]) for index in (1, 2, 3)]
        translator = Translator(channels, widths[2], widths[:2])
        translator.load_state_dict({name: torch.as_tensor(value).float() for name, value in weights.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise CefamError(
            f"The translator in {path} does not fit stages of {channels} channels ({str(error).splitlines()[0]}): name the classifier "
            f"and the stages that it was trained for."
        ) from error
    return translator.eval(), {name: value for name, value in about.items() if isinstance(value, int | float | str)}
