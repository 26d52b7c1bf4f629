"""Extract tensors from module outputs, and convert classifier outputs to probabilities.

A module may return a tensor, a tuple, list or dict, or an object with ``.logits``. A classifier's logits are ``.logits`` if
present, else the first tensor; a stage's output is the first tensor.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from cefam.errors import CefamError

Outputs = Literal["softmax", "sigmoid", "probabilities"]
# Autograd nodes that `_squashed` looks through: they only move values or combine a few of them.
PASSING = frozenset(
    "View UnsafeView Reshape Squeeze Unsqueeze Alias Clone ToCopy Slice Select Transpose T Permute Cat Stack "  # noqa: SIM905
    "Clamp ClampMin ClampMax Mul Div Add Sub Rsub Mean".split()
)


def describe_value(value: Any) -> str:
    """Short description of a module's output, for error messages."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def logits_of(value: Any) -> Tensor:
    """The logits in a classifier's output: ``.logits`` if present, else the first tensor."""
    found = value if isinstance(value, Tensor) else getattr(value, "logits", None)
    if found is None:
        found = value["logits"] if isinstance(value, dict) and "logits" in value else first_tensor(value)
    if not isinstance(found, Tensor):
        raise CefamError(f"The classifier must return logits (B, classes), got {describe_value(value)}.")
    return found


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in a module's output, or ``None``."""
    return next((leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)), None)


def with_first_tensor(value: Any, tensor: Tensor) -> Any:
    """The same output with its first tensor replaced."""
    leaves, spec = tree_flatten(value)
    leaves[next(index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor))] = tensor
    return tree_unflatten(leaves, spec)


class StandIn:
    """Structure and shapes of a module's output for one image, used to return the same output filled with NaN.

    Args:
        value: the module's output.
        own_memory: whether the output is modified in place later, so that its tensors must be allocated; otherwise they are
            expanded from a single NaN.
    """

    def __init__(self, value: Any, own_memory: bool) -> None:
        self.spec: TreeSpec
        leaves, self.spec = tree_flatten(value)
        self.leaves: list[Any] = [leaf.shape[1:] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.tensors = [isinstance(leaf, Tensor) for leaf in leaves]
        self.own_memory = own_memory

    def answering(self, nothing: Tensor, batch: int, first: Tensor | None = None) -> Callable[..., Any]:
        """A function that ignores its arguments and returns the output filled with NaN."""

        def answer(*_: Any, **__: Any) -> Any:
            leaves: list[Any] = []
            for leaf, is_tensor in zip(self.leaves, self.tensors, strict=True):
                filled = nothing.expand(batch, *leaf) if is_tensor else leaf
                leaves.append(filled.clone() if is_tensor and self.own_memory else filled)
            if first is not None:
                leaves[self.tensors.index(True)] = first.clone() if self.own_memory else first
            return tree_unflatten(leaves, self.spec)

        return answer


def meaning(outputs: Tensor, given: Outputs | None) -> Outputs:
    """The type of a classifier's outputs: as given by the user, else inferred from the outputs for the probe.

    Outputs in [0, 1] are probabilities if they come from a softmax or sigmoid, or if there are several and they sum to 1.
    Otherwise a single output is a sigmoid logit, and several outputs are softmax logits.

    Args:
        outputs: (1, Y), with their autograd graph if there is one.
        given: the type given by the user, or ``None``.
    """
    if given is not None:
        if given not in get_args(Outputs):
            raise CefamError(f"outputs must be {' or '.join(map(repr, get_args(Outputs)))}, got {given!r}.")
        return given
    values = outputs.detach().double()
    inside = bool(((values >= 0) & (values <= 1)).all())
    distribution = inside and abs(float(values.sum()) - 1) < 1e-3 and outputs.shape[1] > 1
    if distribution or (inside and _squashed(outputs.grad_fn)):
        return "probabilities"
    return "sigmoid" if outputs.shape[1] == 1 else "softmax"


def _squashed(function: Any) -> bool:
    """Whether every path of the autograd graph reaches a softmax or sigmoid through ``PASSING`` nodes only."""
    if function is None:
        return False
    name = function.name().partition("Backward")[0]
    if name in ("Softmax", "Sigmoid"):
        return True
    before = [following for following, _ in function.next_functions if following is not None]
    return name in PASSING and bool(before) and all(map(_squashed, before))


def log_probabilities(outputs: Tensor, kind: Outputs) -> Tensor:
    """Log-probabilities of the classes in double precision: (V, Y) -> (V, classes).

    A single output is the score of the second of two classes: (V, 1) -> (V, 2).
    """
    values = outputs.double()
    if kind == "probabilities":
        values = torch.cat([1 - values, values], dim=1) if values.shape[1] == 1 else values
        return values.clamp_min(1e-45).log()
    if values.shape[1] == 1:  # the sigmoid of y is the softmax of (0, y)
        return F.pad(values, (1, 0)).log_softmax(dim=-1)
    return values.log_softmax(dim=-1) if kind == "softmax" else F.logsigmoid(values)


def class_scores(outputs: Tensor) -> Tensor:
    """Raw outputs with one column per class, used to compute class maps: (V, Y) -> (V, classes)."""
    return torch.cat([-outputs, outputs], dim=1) if outputs.shape[1] == 1 else outputs
