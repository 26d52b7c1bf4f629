"""What modules return, and what the outputs of a classifier mean.

A module may return a tensor, or a tuple, list or dict, or an object with ``.logits``. The rule is the same for classifiers and
stages: ``.logits`` where there is one, else the first tensor.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from cefam.errors import CefamError

Outputs = Literal["softmax", "sigmoid", "probabilities"]
# Backward functions of operations that move numbers, or combine a few: probabilities pass through them.
PASSING = frozenset(
    "View UnsafeView Reshape Squeeze Unsqueeze Alias Clone ToCopy Slice Select Transpose T Permute Cat Stack "  # noqa: SIM905
    "Clamp ClampMin ClampMax Mul Div Add Sub Rsub Mean".split()
)


def describe_value(value: Any) -> str:
    """A few words on what a module returned, for error messages."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def logits_of(value: Any) -> Tensor:
    """The tensor in what a classifier returned: ``.logits`` where there is one, else the first tensor.

    Raises:
        CefamError: where it holds no tensor.
    """
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
    """What a module returned for one image, kept as shapes, to be returned again for any batch, filled with NaN.

    Args:
        value: the output.
        own_memory: whether what follows writes into it: then it needs memory of its own. Otherwise every entry is one number.
    """

    def __init__(self, value: Any, own_memory: bool) -> None:
        self.spec: TreeSpec
        leaves, self.spec = tree_flatten(value)
        self.leaves: list[Any] = [leaf.shape[1:] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.tensors = [isinstance(leaf, Tensor) for leaf in leaves]
        self.own_memory = own_memory

    def answering(self, nothing: Tensor, batch: int, first: Tensor | None = None) -> Callable[..., Any]:
        """A function that returns it for any arguments.

        Args:
            nothing: a single NaN of the right type, on the right device.
            batch: number of images.
            first: what its first tensor is instead of NaN.
        """

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
    """What a classifier's outputs mean: as the user states, else inferred from the outputs for the probe.

    They are probabilities if they lie in [0, 1] and come from a softmax or sigmoid, or several of them sum to 1.
    Else a single output is a sigmoid's logit, and several are a softmax's.

    Args:
        outputs: (1, Y), with a graph where the module has one.
        given: what the user states, or ``None``.

    Raises:
        CefamError: for another word.
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
    """Whether everything that an output is combined from is a softmax or sigmoid."""
    if function is None:
        return False
    name = function.name().partition("Backward")[0]
    if name in ("Softmax", "Sigmoid"):
        return True
    before = [following for following, _ in function.next_functions if following is not None]
    return name in PASSING and bool(before) and all(map(_squashed, before))


def log_probabilities(outputs: Tensor, kind: Outputs) -> Tensor:
    """Logarithms of the class probabilities, double: (V, Y) -> (V, classes).

    A single output is the second of two classes: (V, 1) -> (V, 2).
    """
    values = outputs.double()
    if kind == "probabilities":
        values = torch.cat([1 - values, values], dim=1) if values.shape[1] == 1 else values
        return values.clamp_min(1e-45).log()
    if values.shape[1] == 1:  # the sigmoid of y is the softmax of (0, y)
        return F.pad(values, (1, 0)).log_softmax(dim=-1)
    return values.log_softmax(dim=-1) if kind == "softmax" else F.logsigmoid(values)


def class_scores(outputs: Tensor) -> Tensor:
    """What class maps are derived from, one column per class, as the network gives it: (V, Y) -> (V, classes)."""
    return torch.cat([-outputs, outputs], dim=1) if outputs.shape[1] == 1 else outputs
