"""Keys of cached results: digests of all inputs of a computation, for caches and resumable passes.

A cached result is reused while its key is unchanged, so every input of the computation must be passed to :func:`identity`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from cefam import __version__

if TYPE_CHECKING:
    from torch import Tensor, nn


def identity(**inputs: Any) -> dict[str, str]:
    """The key of a result: a digest of each input, and cefam's version.

    Args:
        inputs: plain values, tensors, networks, dataclasses, objects with an ``identity()``, and lists or dicts of these.

    >>> from torch import nn
    >>> one = identity(translator=nn.Linear(2, 2), top_k=8)
    >>> sorted(one), one == identity(translator=nn.Linear(2, 2), top_k=8)
    (['cefam', 'top_k', 'translator'], False)
    """
    return {"cefam": __version__, **{name: digest(value) for name, value in inputs.items()}}


def digest(value: Any) -> str:
    """The first 16 digits of a SHA-256 of a value's content."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """The value in JSON types; tensors and networks as digests."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if callable(getattr(value, "identity", None)):
        found = value.identity()
        # The source is excluded: it does not affect the content.
        return _plain({k: v for k, v in found.items() if k != "source"} if isinstance(found, dict) else found)
    import torch

    if isinstance(value, torch.Tensor):
        return [str(value.dtype), list(value.shape), hashlib.sha256(_bytes(value)).hexdigest()]
    if isinstance(value, torch.nn.Module):
        return weights_fingerprint(value)
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_plain(each) for each in value]
    raise TypeError(f"The content of a {type(value).__name__} is not known: give it an `identity()`.")


def weights_fingerprint(module: "nn.Module", salt: str = "") -> str:
    """SHA-256 of a module's parameters and buffers, by name, and of ``salt``."""
    digest = hashlib.sha256(salt.encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: "Tensor") -> bytes:
    import torch  # imported late: data preparation does not need torch

    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def differing(one: Any, other: Any) -> str:
    """Names of the inputs in which two keys differ, in brackets, for error messages; '' if a key has no names."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return ""
    return f" ({', '.join(sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)))})"
