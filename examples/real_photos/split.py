"""Split a folder in Broden's format by image: every second image for development, the others for confirmation.

python -m examples.real_photos.split BRODEN runs/real_photos/development runs/real_photos/confirmation

Each part has the list of labels whole, its own ``index.csv`` and a link to the images.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from cefam.io.files import write_text


def split(source: Path, parts: Sequence[Path]) -> None:
    """Deal the images of ``source`` out to the folders ``parts``, one after another."""
    header, *images = (source / "index.csv").read_text().splitlines()
    for number, part in enumerate(parts):
        part.mkdir(parents=True, exist_ok=True)
        for name in sorted(path.name for path in source.glob("*.csv") if path.name != "index.csv"):
            shutil.copy(source / name, part / name)
        if not (part / "images").exists():
            (part / "images").symlink_to((source / "images").resolve(), target_is_directory=True)
        write_text(part / "index.csv", "\n".join([header, *images[number :: len(parts)], ""]))


if __name__ == "__main__":
    split(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
