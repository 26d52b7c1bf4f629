"""Draws scenes as pixels and masks, in integer arithmetic.

All shapes are drawn into one index map, with the number of their part in the scene. Image and masks are looked up from it, so
they always agree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from cefam.brodenette.scenes import FULL, Element, Scene
from cefam.brodenette.vocabulary import BACKGROUNDS, COLORS, NUMBER, OBJECTS, PATCHES, SIZE, Points

MIN_PIXELS = 16  # labels with fewer visible pixels are removed from the mask
CATEGORIES = ("color", "object", "part", "material")  # as in Broden; "composition" (colored parts) is an additional one
TILE = 128  # period of a texture in half pixels
SPAN = TILE + FULL  # stored side of a texture: crops need no modulo

# cos and sin of k / 64 radians, k = 0 .. 32, times 1024.
_COS = (1024, 1024, 1024, 1023, 1022, 1021, 1020, 1018, 1016, 1014, 1012, 1009, 1006, 1003, 1000, 996, 992,
        988, 984, 979, 974, 969, 964, 958, 953, 947, 940, 934, 927, 920, 913, 906, 899)  # fmt: skip
_SIN = (0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 159, 175, 191, 207, 222, 238, 253,
        269, 284, 299, 315, 330, 345, 360, 375, 390, 405, 419, 434, 448, 463, 477, 491)  # fmt: skip


@dataclass(frozen=True)
class Drawing:
    """A drawn scene: ``image`` (SIZE, SIZE, 3), uint8; ``masks``: label numbers (SIZE, SIZE) per category, 0 = none.

    ``parts`` (FULL, FULL): index of the visible part in each half pixel, in drawing order from 0; ``owners``: the element of
    each part.
    """

    image: np.ndarray
    masks: dict[str, np.ndarray]
    parts: np.ndarray
    owners: tuple[int, ...]

    def visible(self, position: int) -> np.ndarray:
        """Boolean mask (SIZE, SIZE) of the pixels in which an element is at least partly visible."""
        halves = np.isin(self.parts, [part for part, owner in enumerate(self.owners) if owner == position])
        return np.asarray(halves.reshape(SIZE, 2, SIZE, 2).any(axis=(1, 3)))


def place(points: Points, element: Element) -> list[tuple[int, int]]:
    """Corners of a shape in the scene, in half pixels."""
    angle = abs(element.turn)
    cos, sin = _COS[angle], _SIN[angle] if element.turn >= 0 else -_SIN[angle]
    corners = []
    for x, y in points:
        u, v = (-x if element.flip else x) * element.width, y * element.height
        corners.append((element.x + (u * cos - v * sin) // 65536, element.y + (u * sin + v * cos) // 65536))
    return corners


@dataclass(frozen=True)
class _Table:
    """Element, color, texture and labels of each number in the index map, in drawing order."""

    owners: list[int]
    colors: list[tuple[int, int, int]]
    textures: list[int]
    labels: dict[str, list[int]]

    def add(self, owner: int, element: Element, part: int) -> int:
        look = element.looks[part]
        red, green, blue = (min(max(c + s, 0), 255) for c, s in zip(COLORS[look.color], look.shade, strict=True))
        self.owners.append(owner)
        self.colors.append((red, green, blue))
        self.textures.append(_texture_offset(look.material or element.kind, element.texture + 7919 * part))
        named = {
            "color": look.color,
            "object": element.kind,
            "part": element.parts[part] if element.parts else "",
            "material": look.material or "",
            "composition": f"{look.color} {element.parts[part]}" if element.parts else "",
        }
        for category, name in named.items():
            self.labels[category].append(NUMBER.get((category, name), 0))
        return len(self.owners) - 1


def draw(scene: Scene) -> Drawing:
    """Draw a scene."""
    table = _Table([], [], [], {category: [] for category in (*CATEGORIES, "composition")})
    canvas = Image.new("L", (FULL, FULL))
    pen = ImageDraw.Draw(canvas)
    for owner, element in enumerate(scene.elements):
        if element.kind in BACKGROUNDS:
            pen.rectangle((0, element.y, FULL, FULL), fill=table.add(owner, element, 0))
        elif element.kind in OBJECTS:
            kind = OBJECTS[element.kind]
            numbers = {part: table.add(owner, element, index) for index, part in enumerate(kind.parts)}
            for part, points in kind.shapes:
                if part not in element.missing:
                    pen.polygon(place(points, element), fill=numbers[part])
        else:
            pen.polygon(place(PATCHES[element.variant], element), fill=table.add(owner, element, 0))
    index = np.asarray(canvas)
    shown = index[::2, ::2]
    masks = {category: _mask(np.array(labels, np.uint16), shown) for category, labels in table.labels.items()}
    return Drawing(_shade(index, table, scene), masks, index, tuple(table.owners))


def _mask(labels: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Label numbers of a category, without labels of fewer than ``MIN_PIXELS`` pixels."""
    mask = labels[parts]
    counts = np.bincount(mask.ravel(), minlength=1)
    rare = (counts > 0) & (counts < MIN_PIXELS)
    return np.where(rare[mask], 0, mask).astype(np.uint16) if rare.any() else mask


def _shade(index: np.ndarray, table: _Table, scene: Scene) -> np.ndarray:
    """Pixels (SIZE, SIZE, 3): color times texture, averaged over 2 x 2 half pixels, times light, plus noise."""
    grain = np.take(textures(), np.array(table.textures, np.int32)[index] + _positions())
    color = np.array(table.colors, np.uint16)[index]  # 255 * 255 fits
    lifted = ((grain.astype(np.int16) - 128) >> 2)[..., None]  # makes texture visible on black
    full = ((color * grain[..., None]) >> 7).astype(np.int16) + lifted
    np.clip(full, 0, 255, out=full)
    pixels = (full[::2, ::2] + full[::2, 1::2] + full[1::2, ::2] + full[1::2, 1::2]).astype(np.int32) >> 2
    along = np.arange(SIZE, dtype=np.int32) - SIZE // 2
    light = scene.light
    brightness = light.level + light.right * along // SIZE + (light.down * along // SIZE)[:, None]
    noise = (random_bytes(scene.name, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.int32) - 128) * scene.noise >> 7
    lit: np.ndarray = np.clip((pixels * brightness[..., None] >> 8) + noise[..., None], 0, 255).astype(np.uint8)
    return lit


def random_bytes(name: str, count: int) -> np.ndarray:
    """Uniform bytes seeded by a name: raw output of PCG64, which NumPy guarantees to be stable, unlike its distributions."""
    seed = int.from_bytes(name.encode(), "little")
    raw = np.random.PCG64(seed).random_raw((count + 7) // 8)
    return raw.astype("<u8").view(np.uint8)[:count]


@cache
def _positions() -> np.ndarray:
    return (np.arange(FULL, dtype=np.int32)[:, None] * SPAN + np.arange(FULL, dtype=np.int32)).astype(np.int32)


def _texture_offset(kind: str, cut: int) -> int:
    """Start of a texture crop in the flattened bank; ``cut`` is any integer."""
    mixed = (cut * 2654435761) & 0xFFFFFFFF
    return (_KINDS.index(kind) * SPAN + (mixed >> 8) % TILE) * SPAN + (mixed >> 18) % TILE


@cache
def textures() -> np.ndarray:
    """All textures (kinds, SPAN, SPAN), uint8; 128 leaves a color unchanged."""
    bank = [np.clip(_TEXTURES[kind](kind), 0, 255).astype(np.uint8) for kind in _KINDS]
    reach = np.arange(SPAN) % TILE
    return np.stack([tile[reach][:, reach] for tile in bank])


def _noise(name: str, down: int, across: int) -> np.ndarray:
    """Smooth noise (TILE, TILE) of about -128 .. 127, averaged over ``down`` x ``across`` with wrapped edges."""
    noise = random_bytes(name, TILE * TILE).reshape(TILE, TILE).astype(np.int64) - 128
    total = sum(np.roll(noise, (i, j), (0, 1)) for i in range(down) for j in range(across))
    return np.asarray(total) * 128 // max(int(np.abs(np.asarray(total)).max()), 1)


def _wave(phase: np.ndarray, period: int) -> np.ndarray:
    """A triangle wave of -64 .. 64."""
    place_in = phase % period
    wave: np.ndarray = np.abs(place_in * 256 // period - 128) - 64
    return wave


_Y, _X = np.mgrid[0:TILE, 0:TILE]

# One tile per material, and per background without materials; the noise is seeded by the texture's name.
_TEXTURES: dict[str, Callable[[str], np.ndarray]] = {
    "brick": lambda name: (
        np.where((_Y % 16 < 3) | ((_X + 16 * (_Y // 16 % 2)) % 32 < 3), 205, 112) + _noise(name, 3, 3) // 8
    ),
    "fabric": lambda _: 128 + np.where((_X // 8 + _Y // 8) % 2, 44, -44),
    "fur": lambda name: 128 + _noise(name, 12, 2) * 3 // 4,
    "glass": lambda _: 120 + np.where((_X + 2 * _Y) % 64 < 12, 110, 0) + np.where((_X + 2 * _Y) % 64 > 56, 50, 0),
    "metal": lambda _: 130 + _wave(_X + _Y, 64),
    "paper": lambda name: np.where(_Y % 16 < 3, 72, 138) + _noise(name, 1, 1) // 16,
    "stone": lambda name: 122 + _noise(name, 9, 9) * 3 // 4,
    "wood": lambda name: 120 + _wave(_Y * 2 + _noise(name, 5, 31) // 6, 16) * 3 // 5,
    "sky": lambda name: 128 + _noise(name, 10, 24) // 6,
    "wall": lambda _: np.full((TILE, TILE), 128),
    "grass": lambda name: 124 + _noise(name, 7, 1) // 2,
    "water": lambda name: 128 + _wave(_Y + _noise(name, 13, 13) // 20, 16) // 2,
    "sand": lambda name: 128 + _noise(name, 1, 1) // 4,
    "road": lambda name: 118 + _noise(name, 3, 3) // 3,
    "snow": lambda name: 132 + _noise(name, 16, 16) // 8,
    "floor": lambda _: np.full((TILE, TILE), 128),
}
_KINDS = tuple(_TEXTURES)
