"""Read pickles without executing them: a fixed list of classes is converted to plain records, everything else is rejected.

Unpickling can execute arbitrary code, so the classes that a pickle names are never imported; arrays, tensors, parameters and
plain layers are rebuilt here from their data.
"""

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cefam.errors import CefamError, MissingError

TRANSLATOR = "MapConverter"  # the published translator's class
LAYERS = ("Linear", "Tanh", "ReLU", "LeakyReLU", "Sigmoid", "Softmax", "Sequential", "Identity", "Dropout", "GELU")
STORAGES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "?",
}  # fmt: skip
LARGEST = 2**33  # maximum uncompressed size of a .pth file, in bytes


@dataclass
class Layer:
    """A layer as a record: class name and state."""

    kind: str
    state: dict[str, Any] = field(default_factory=dict)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"the state of a {self.kind} is a {type(state).__name__}")
        self.state = state


class _Dict(dict[Any, Any]):
    """A dict that drops pickled attributes (torch's ``_metadata``)."""

    def __setstate__(self, state: Any) -> None: ...


@dataclass
class _DType:
    """A NumPy dtype by type code and byte order."""

    code: str
    order: str = "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def numpy(self) -> np.dtype[Any]:
        if not re.fullmatch(r"[fiub](1|2|4|8)", self.code):
            raise pickle.UnpicklingError(f"arrays of {self.code!r}")
        return np.dtype(self.order + self.code)


@dataclass
class _Array:
    """A NumPy array that is filled by its state."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        if kind.code.startswith("O"):
            self.value = data  # list of the objects in the array
        else:
            self.value = np.frombuffer(data, kind.numpy()).reshape(shape, order="F" if fortran else "C")


def _frombuffer(data: Any, kind: _DType, shape: Any, order: Any) -> _Array:
    return _Array(np.frombuffer(data, kind.numpy()).reshape(shape, order=order))


def _scalar(kind: _DType, data: bytes) -> Any:
    return np.frombuffer(data, kind.numpy())[0].item()


def _latin(text: str, encoding: str) -> bytes:
    """Bytes in the encoding of early pickle protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding!r}")
    return text.encode("latin1")


def _tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if 0 not in size else 0
    if min((offset, *size, *stride), default=0) < 0 or last >= max(len(storage), 1):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    return torch.as_strided(torch.from_numpy(storage.copy()), size, stride, offset).clone()


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): lambda *_: _Array() for module in _NUMPY},
    **{(module, "scalar"): _scalar for module in _NUMPY},
    **{(module, "_frombuffer"): _frombuffer for module in ("numpy.core.numeric", "numpy._core.numeric")},
    ("numpy", "ndarray"): "numpy.ndarray",
    ("numpy", "dtype"): lambda code, *_: _DType(str(code)),
    ("_codecs", "encode"): _latin,
    **{(module, "bytes"): lambda: b"" for module in ("builtins", "__builtin__")},
    ("collections", "OrderedDict"): _Dict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    **{("torch", name): name for name in STORAGES},
}


def _known(module: str, name: str) -> Any:
    """Replacement for a class or function of a pickle; ``None`` if it is not listed."""
    if (module, name) in _ALLOWED:
        return _ALLOWED[module, name]
    if name == TRANSLATOR or (module.startswith("torch.nn.modules.") and name in LAYERS):
        # A type, since pickles create objects by calling it or its `__new__`.
        return type(name, (Layer,), {"__init__": lambda self, *_: None, "__new__": lambda cls, *_: _blank(cls, name)})
    return None


def _blank(cls: type, name: str) -> Any:
    found: Any = object.__new__(cls)
    found.kind, found.state = name, {}
    return found


class _Unpickler(pickle.Unpickler):
    """An unpickler that takes classes from a fixed list."""

    def __init__(self, data: bytes, path: Path, storage: Callable[[str, str], np.ndarray] | None = None) -> None:
        super().__init__(io.BytesIO(data))
        self.path, self.storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        """Look up a name without importing it."""
        found = _known(module, name)
        if found is None:
            raise CefamError(
                f"{self.path} holds {module}.{name}, which cefam does not read: only arrays, tensors, texts, lists and plain layers are "
                f"taken out of a pickle, nothing in it is run."
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Load a torch storage."""
        if self.storage is None or not isinstance(pid, tuple) or len(pid) < 4 or pid[1] not in STORAGES:
            raise pickle.UnpicklingError(f"an unknown reference {pid!r:.60}")
        return self.storage(STORAGES[pid[1]], str(pid[2]))


def read_pickle(path: str | Path) -> Any:
    """Contents of a pickle as plain types, arrays and :class:`Layer` records.

    Also reads torch's ``.pth`` files (a zip with a pickle and the tensor data).
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"There is no file {path}.")
    try:
        if not zipfile.is_zipfile(path):
            return _plain(_Unpickler(path.read_bytes(), path).load())
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise CefamError(f"{path} holds more than {LARGEST // 2**30} GB: it is not read.")
            (about,) = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            root = about.removesuffix("data.pkl")

            def storage(code: str, key: str) -> np.ndarray:
                return np.frombuffer(archive.read(f"{root}data/{key}"), code)

            return _plain(_Unpickler(archive.read(about), path, storage).load())
    except CefamError:
        raise
    except Exception as error:  # damaged pickles raise arbitrary exceptions
        raise CefamError(
            f"{path} cannot be read ({type(error).__name__}: {error}): it is damaged, or no pickle."
        ) from error


def _plain(value: Any) -> Any:
    """Replace array records by arrays, recursively."""
    if isinstance(value, _Array):
        return _plain(value.value) if isinstance(value.value, list) else value.value
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(entry) for entry in value)
    if isinstance(value, Layer):
        value.state = _plain(value.state)
    return value
