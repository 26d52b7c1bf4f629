"""What an artefact belongs to: weights by hash, settings in plain types, and the refusal of another tower."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cefam.errors import CefamError

CLASSIFIER_KEYS = ("stages", "channels", "preprocessing", "fingerprint")
VLM_KEYS = ("embedding_dim", "logit_scale", "logit_bias", "probability", "preprocessing", "fingerprint")


def weights_fingerprint(module: nn.Module, salt: str = "") -> str:
    """SHA-256 of a module's parameters and buffers, by name, and of ``salt``."""
    digest = hashlib.sha256(salt.encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_identity(kind: str, stored: dict[str, Any], given: dict[str, Any], keys: Sequence[str]) -> None:
    """Refuse an artefact that was made with another tower.

    Raises:
        CefamError: with the first thing that differs.
    """
    for key in keys:
        if stored.get(key) != given.get(key):
            raise CefamError(
                f"This artefact was made with another {kind}: its {key} is {stored.get(key)}, the given one has {given.get(key)}. "
                f"Load the {kind} it was made with, or make the artefact again."
            )
