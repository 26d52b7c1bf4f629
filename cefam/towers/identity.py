"""Check that an artefact is used with the tower it was made with."""

from collections.abc import Sequence
from typing import Any

from cefam.errors import CefamError

CLASSIFIER_KEYS = ("stages", "channels", "preprocessing", "fingerprint")
VLM_KEYS = ("embedding_dim", "logit_scale", "logit_bias", "probability", "preprocessing", "fingerprint")


def check_identity(kind: str, stored: dict[str, Any], given: dict[str, Any], keys: Sequence[str]) -> None:
    """Check that the identity stored in an artefact matches the given tower."""
    for key in keys:
        if stored.get(key) != given.get(key):
            raise CefamError(
                f"This artefact was made with another {kind}: its {key} is {stored.get(key)}, the given one has {given.get(key)}. "
                f"Load the {kind} it was made with, or make the artefact again."
            )
