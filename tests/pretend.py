"""A pretended accelerator, for machines without one: what holds its tensors on a device must not mix in others.

Its tensors say "pretend:0" and hold one on the CPU; every operation on them gives another one, and refuses what a GPU refuses.
Importing this gives torch a device for good: ``python -m tests.check_devices`` does so in a process of its own.
"""

import copy
import dataclasses
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
torch.pretend.get_amp_supported_dtype = lambda: [torch.bfloat16]
aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
COPYING = (aten._to_copy.default, aten.copy_.default)


class OnDevice(torch.Tensor):
    """A tensor of the pretended device; ``held`` is the one on the CPU."""

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=torch.device("pretend", 0), **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})

    def __repr__(self, **options):
        return f"OnDevice({self.held!r})"

    def tolist(self):
        return self.held.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("A tensor of a device has no numpy: call .cpu() first.")


class Operations(TorchDispatchMode):
    """Lets ``device=`` of operations name the pretended device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return computed(function, args, kwargs or {})


class Making(TorchFunctionMode):
    """The same for functions that make tensors of numbers; torch would fill those in memory that is not there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        makes = function in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
        if not makes or (function is torch.as_tensor and isinstance(args[0], OnDevice)):
            return function(*args, **kwargs)
        where = kwargs.pop("device", None)
        own = isinstance(args[0], OnDevice)
        made = function(*map(_held, args), **kwargs)
        return OnDevice(made) if own or (where is not None and torch.device(where).type == "pretend") else made


@contextmanager
def pretended():
    """While open, the device is there."""
    with Operations(), Making():
        yield


def computed(function: Callable, args: tuple, kwargs: dict):
    """What the function gives for the held tensors, on the device where it would be.

    Raises:
        RuntimeError: where the device's tensors are mixed with others.
    """
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    mine = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    others = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim() > 0]
    # A device's tensor may be indexed from the CPU, not the other way round.
    allowed = function in COPYING or (function in INDEXING and isinstance(args[0], OnDevice))
    if mine and others and not allowed:
        raise RuntimeError(f"{function} mixes devices: {[(tuple(t.shape), str(t.device)) for t in tensors]}")
    where = kwargs.get("device")
    here = torch.device(where).type == "pretend" if where is not None else bool(mine)
    options = {**kwargs, "device": torch.device("cpu")} if where is not None else kwargs
    result = function(*tree_map(_held, args), **tree_map(_held, options))
    if function is aten.copy_.default:
        return args[0]
    same = {id(_held(tensor)): tensor for tensor in tensors}  # what is changed in place is given back itself
    return tree_map_only(torch.Tensor, lambda value: same.get(id(value), OnDevice(value) if here else value), result)


def _held(value):
    return value.held if isinstance(value, OnDevice) else value


def moved(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of a module on the device, with the states of its metrics."""
    return copy.deepcopy(module)._apply(lambda tensor: tensor if isinstance(tensor, OnDevice) else OnDevice(tensor))


def alike(one, other, where, tolerance):
    """Compare what the CPU and the device gave, through tuples, lists and data classes."""
    if isinstance(one, torch.Tensor):
        assert isinstance(other, OnDevice), f"{where} is on {other.device}"
        torch.testing.assert_close(one.detach(), other.detach().held, equal_nan=True, **tolerance)
    elif isinstance(one, (list, tuple)):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            alike(a, b, f"{where}[{index}]", tolerance)
    elif isinstance(one, dict):
        for key in one:
            alike(one[key], other[key], f"{where}[{key!r}]", tolerance)
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            alike(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}", tolerance)
