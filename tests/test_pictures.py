"""Photographs and masks as they come: orientation, encodings, ignored numbers, names; from the file to the command's result."""

import csv
import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from cefam.brodenette import describe, draw
from cefam.concepts.categories import IGNORED
from cefam.datasets import Manifest, read_shard
from cefam.datasets.features import load_features
from cefam.errors import CefamError
from cefam.images.pictures import open_mask, open_picture, read_pixels, to_pixels
from cefam.images.views import EvaluationView
from tests.commands import run

# EXIF orientation -> how a picture must be stored so that it is shown upright.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
UPRIGHT = Image.fromarray(draw(describe("evaluation", 3)).image).resize((96, 72))


def stored(picture, orientation, kind="PNG"):
    data, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    picture.transpose(STORED[orientation]).save(data, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))
    return data.getvalue()


@pytest.mark.parametrize("orientation", STORED)
def test_photographs_are_shown_upright(orientation):
    found = open_picture(stored(UPRIGHT, orientation), "photograph")
    assert np.array_equal(np.asarray(found), np.asarray(UPRIGHT))
    assert torch.equal(EvaluationView(72, 64)(to_pixels(found)), EvaluationView(72, 64)(to_pixels(UPRIGHT)))


def written(picture, kind="JPEG", **options):
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


PHOTOGRAPHS = {
    "usual": written(UPRIGHT),
    "progressive, not subsampled": written(UPRIGHT, progressive=True, subsampling=0, quality=95),
    "restart markers": written(UPRIGHT, restart_marker_rows=1),
    "grey": written(UPRIGHT.convert("L")),
    "CMYK": written(UPRIGHT.convert("CMYK")),
    "on its side": stored(UPRIGHT, 6, "JPEG"),
    "several pictures": written(UPRIGHT, "MPO", save_all=True, append_images=[UPRIGHT.rotate(180)]),
    "PNG": written(UPRIGHT.convert("RGBA"), "PNG"),
}


@pytest.mark.parametrize("kind", PHOTOGRAPHS)
def test_pixels_are_pillows_whatever_decodes_them(kind, tmp_path):
    content = PHOTOGRAPHS[kind]
    (tmp_path / "a").write_bytes(content)
    expected = to_pixels(open_picture(content, "a"))
    for source in (content, tmp_path / "a"):
        assert torch.equal(read_pixels(source, "a"), expected)


def test_usual_photographs_are_not_left_to_pillow(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda picture: pytest.fail("Pillow decodes."))
    assert read_pixels(PHOTOGRAPHS["usual"], "a").shape == (3, 72, 96)


def test_without_torchvisions_decoder_pillow_reads_all(monkeypatch):
    """Some builds of torchvision come without it: the operator is missing."""
    expected = read_pixels(PHOTOGRAPHS["usual"], "a")
    monkeypatch.setattr("torchvision.io.decode_jpeg", lambda data: torch.ops.image.not_there(data))
    assert torch.equal(read_pixels(PHOTOGRAPHS["usual"], "a"), expected)


def test_damaged_photographs_give_what_pillow_gives():
    """The same pixels, or the same sentence."""

    def outcome(read):
        try:
            return read().tolist()
        except CefamError as error:
            return str(error)

    draws, sentences = random.Random(0), 0
    for content in [PHOTOGRAPHS["usual"], PHOTOGRAPHS["restart markers"]] * 100:
        place = draws.randrange(len(content))
        damaged = draws.choice(
            [
                content[:place],
                content[:place] + draws.randbytes(1) + content[place + 1 :],
                content[:place] + content[place + draws.randrange(50) :],
                content[: -draws.randrange(1, 12)],
            ]
        )
        expected = outcome(lambda found=damaged: to_pixels(open_picture(found, "a")))
        assert outcome(lambda found=damaged: read_pixels(found, "a")) == expected
        sentences += isinstance(expected, str)
    assert 50 < sentences < 150


def test_photographs_that_are_not_there_are_named(tmp_path):
    with pytest.raises(CefamError, match=r"The image a cannot be read .*No such file"):
        read_pixels(tmp_path / "a.jpg", "a")


def test_every_command_sees_them_upright(world, tmp_path):
    """Features from a folder and from shards of it, of photographs on their side and of the same ones upright."""
    for name in ("upright", "turned"):
        (tmp_path / name).mkdir()
    for index, orientation in enumerate(STORED):
        UPRIGHT.rotate(7 * index).save(tmp_path / "upright" / f"{index}.png")
        (tmp_path / "turned" / f"{index}.png").write_bytes(stored(UPRIGHT.rotate(7 * index), orientation))
    assert run("prepare", "--kind=images", f"--source={tmp_path}/turned", f"--folder={tmp_path}/shards") == 0
    found = []
    for source in ("upright", "turned", "shards"):
        options = ["--config", world / "towers.yaml", f"--images={tmp_path}/{source}", "--size=64", "--resize=64"]
        assert run("features", *options, f"--folder={tmp_path}/features/{source}", "--device=cpu") == 0
        features = load_features(tmp_path / "features" / source)
        found.append(features.split(features.matrix)["pooled"][3])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


INDEX = np.zeros((12, 14), np.int64)
INDEX[:5], INDEX[8:] = 1, 2


def palette():
    """As labelme writes it: numbers, with colors that mean nothing."""
    picture = Image.fromarray(INDEX.astype(np.uint8)).convert("P")
    picture.putdata(INDEX.ravel().tolist())
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    return picture


ENCODINGS = {
    "RGB": lambda: Image.fromarray(np.dstack([INDEX, INDEX * 0, INDEX * 0]).astype(np.uint8)),
    "L": lambda: Image.fromarray(INDEX.astype(np.uint8)),
    "P": palette,
    "I;16": lambda: Image.fromarray(INDEX.astype(np.uint16)),
    "I": lambda: Image.fromarray(INDEX.astype(np.int32)),
}


def write_broden(root, mask, suffix="png"):
    (root / "images").mkdir(parents=True)
    UPRIGHT.save(root / "images" / "a.jpg")
    mask.save(root / "images" / f"m.{suffix}")
    (root / "index.csv").write_text(f"image,color,object,part,material\na.jpg,, m.{suffix} ,,\n")
    rows = "".join(f"{n},word{n},object(1)\n" for n in range(1, 600))
    (root / "label.csv").write_text("number,name,category\n" + rows)
    return root


def labels_of(folder):
    shard, *_ = Manifest.read(folder).placed(folder)
    (sample,) = read_shard(shard)
    return sample.masks[0].index_map


@pytest.mark.parametrize("name", ENCODINGS)
def test_masks_hold_the_numbers_that_were_written(name, tmp_path):
    root = write_broden(tmp_path / "broden", ENCODINGS[name](), "tiff" if name == "I" else "png")
    assert run("prepare", "--kind=broden", f"--source={root}", "--folder=shards") == 0
    assert np.array_equal(labels_of(tmp_path / "shards"), INDEX)
    big = INDEX * 250  # beyond one byte
    if name in ("RGB", "I;16", "I"):
        picture = np.dstack([big % 256, big // 256, big * 0]).astype(np.uint8) if name == "RGB" else big
        kind = {"RGB": np.uint8, "I;16": np.uint16, "I": np.int32}[name]
        data = io.BytesIO()
        Image.fromarray(picture.astype(kind)).save(data, "TIFF")
        assert np.array_equal(open_mask(data.getvalue(), "mask"), big)


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("CMYK", "tiff"), ("F", "tiff")])
def test_masks_of_other_encodings_are_refused_by_name(mode, suffix, tmp_path, capsys):
    root = write_broden(tmp_path / "broden", ENCODINGS["L"]().convert(mode), suffix)
    assert run("prepare", "--kind=broden", f"--source={root}", "--folder=shards") == 1
    assert f"m.{suffix} is encoded as '{mode}'" in capsys.readouterr().err
    assert not list((tmp_path / "shards").glob("*.tar"))


def test_an_ignored_number_is_an_option_not_a_label(tmp_path, capsys):
    index = INDEX.copy()
    index[5:8] = 255
    (tmp_path / "broden").mkdir()
    root = write_broden(tmp_path / "broden" / "a", Image.fromarray(index.astype(np.uint8)))
    assert run("prepare", "--kind=broden", f"--source={root}", "--folder=shards", "--ignore=255") == 0
    assert np.array_equal(labels_of(tmp_path / "shards"), np.where(index == 255, IGNORED, index))
    assert Manifest.read(tmp_path / "shards").num_pairs == 2
    (root / "label.csv").write_text("number,name,category\n1,a,object\n2,b,object\n")
    assert run("prepare", "--kind=broden", f"--source={root}", "--folder=again") == 1
    assert "if such pixels are not to be measured, set `ignore`" in capsys.readouterr().err


def test_a_mask_that_lies_as_its_photograph_was_stored_is_refused(tmp_path, capsys):
    """The photograph is shown upright: its mask would lie across it."""
    for name, turn, status in (("upright", None, 0), ("stored", Image.Transpose.ROTATE_90, 1)):
        mask = ENCODINGS["L"]().resize((48, 36), Image.Resampling.NEAREST)
        root = write_broden(tmp_path / name, mask.transpose(turn) if turn is not None else mask)
        (root / "images" / "a.jpg").write_bytes(stored(UPRIGHT, 6, "JPEG"))
        assert run("prepare", "--kind=broden", f"--source={root}", f"--folder={tmp_path}/{name}_shards") == status
    assert "is stored on its side and shown upright" in capsys.readouterr().err


def test_a_picture_of_floats_is_refused_where_it_is_found(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.random.default_rng(0).random((20, 20)).astype(np.float32)).save(tmp_path / "images" / "f.tiff")
    assert run("prepare", "--kind=images", "--source=images", "--folder=shards") == 1
    assert "The image f.tiff has 32-bit pixels (mode F)" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tar"))


def test_broken_images_are_named_without_the_memory_they_were_in(tmp_path):
    with pytest.raises(ValueError, match=r"The image a\.png cannot be read \(it is not an image") as error:
        open_picture(b"nothing", "a.png")
    assert "BytesIO" not in str(error.value)


def test_an_index_without_a_column_says_what_helps(tmp_path, capsys):
    root = write_broden(tmp_path / "broden", ENCODINGS["L"]())
    with (root / "index.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["Image ", " OBJECT"], ["a.jpg", "m.png"]])
    assert run("prepare", "--kind=broden", f"--source={root}", "--folder=shards") == 1
    assert '`--masks "[object]"`' in capsys.readouterr().err
    assert run("prepare", "--kind=broden", f"--source={root}", "--folder=shards", "--masks=[object]") == 0


@pytest.mark.parametrize("pixels", [(2, 2, 2), (0, 0, 200), (0, 128, 128)])
def test_colors_are_not_taken_for_numbers(pixels):
    data = io.BytesIO()
    Image.new("RGB", (4, 4), pixels).save(data, "PNG")
    with pytest.raises(ValueError, match="RGB with a blue channel"):
        open_mask(data.getvalue(), "mask")


def test_sixteen_bit_greymaps_are_photographs():
    data = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)).save(data, "PPM")
    found = read_pixels(data.getvalue(), "a.pgm")
    assert found.shape == (3, 8, 8)
    assert (found.min(), found.max()) == (0, 255)
