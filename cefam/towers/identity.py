"""What an artefact belongs to, in plain types, and the refusal of another tower."""

from collections.abc import Sequence
from typing import Any

from cefam.errors import CefamError

CLASSIFIER_KEYS = ("stages", "channels", "preprocessing", "fingerprint")
VLM_KEYS = ("embedding_dim", "logit_scale", "logit_bias", "probability", "preprocessing", "fingerprint")


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
