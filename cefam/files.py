"""Files are written under a temporary name and then renamed: nobody ever sees half of one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, which becomes it when the block ends well and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may write the same, on machines that number them alike.
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.part")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, wholly or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a .safetensors file, wholly or not at all.

    Raises:
        OSError: where it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # its own word for a full disk
            raise OSError(f"{path} cannot be written: {error}.") from error
