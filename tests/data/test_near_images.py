"""Near duplicates among images: copies are found, look-alikes are not, and nothing depends on how many there are."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pictures import encoded, picture
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from finetune.data import near_images
from finetune.data.near_images import near_image_pairs, perceptual_hashes
from finetune.data.pictures import Picture, look_at, look_at_all, thumbnail
from finetune.data.tone_correlation import tone_correlation
from finetune.preprocess.image_file import ImageFile


def look(image: Image.Image) -> Picture:
    return look_at(ImageFile("x", data=encoded(image)), 10**6)


def seen(image: Image.Image) -> Picture:
    """What `look` sees, without a file."""
    return Picture("", thumbnail(image), image.size, "RGB")


def reopened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


COPIES = {
    "half the size": lambda image: image.resize((60, 50), Image.Resampling.BICUBIC),
    "larger": lambda image: image.resize((200, 170), Image.Resampling.BILINEAR),
    "other proportions": lambda image: image.resize((100, 100), Image.Resampling.BICUBIC),
    "JPEG": lambda image: reopened(encoded(image, "JPEG", quality=60)),
    "WebP": lambda image: reopened(encoded(image, "WEBP", quality=70)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
}


@pytest.mark.parametrize("change", COPIES)
@pytest.mark.parametrize("grey", [True, False])
def test_a_changed_copy_is_found_among_other_pictures(change: str, grey: bool) -> None:
    originals = [picture(number, (120, 100), grey=grey).convert("RGB") for number in range(12)]
    copy = COPIES[change](originals[5])
    pairs = near_image_pairs([look(image) for image in [*originals, copy]], 4)
    assert [(i, j) for i, j, _ in pairs] == [(5, 12)]
    assert near_images.CORRELATION <= pairs[0][2] <= 1


@cache
def tiles() -> tuple[Image.Image, ...]:
    """Sixty parts of two colour photographs, of 240×240 pixels; some overlap."""
    datasets = pytest.importorskip("sklearn.datasets")
    rng = np.random.default_rng(0)
    corners = [(photo, rng.integers(0, 400), rng.integers(0, 187)) for photo in (0, 1) for _ in range(30)]
    photos = [Image.fromarray(pixels) for pixels in datasets.load_sample_images().images]
    return tuple(photos[photo].crop((x, y, x + 240, y + 240)) for photo, x, y in corners)


@cache
def tile_looks() -> tuple[Picture, ...]:
    return tuple(seen(tile) for tile in tiles())


def toned(tone: Callable[[float], float]) -> Callable[[Image.Image], Image.Image]:
    """Every channel's value through one curve, cut off at black and white."""
    table = [round(min(255, max(0, tone(value)))) for value in range(256)] * 3
    return lambda image: image.point(table)


def half(image: Image.Image) -> Image.Image:
    return image.resize((120, 120), Image.Resampling.LANCZOS)


def small_bright_jpeg(image: Image.Image) -> Image.Image:
    return reopened(encoded(half(toned(lambda v: 1.2 * v)(image)), "JPEG", quality=75))


# Changes of a photograph, and how many of sixty copies must be found.
PHOTO_COPIES: dict[str, tuple[int, Callable[[Image.Image], Image.Image]]] = {
    "half the size": (60, half),
    "a quarter of the size": (60, lambda image: image.resize((60, 60), Image.Resampling.LANCZOS)),
    "JPEG": (60, lambda image: reopened(encoded(image, "JPEG", quality=40))),
    "half the size as JPEG": (60, lambda image: reopened(encoded(half(image), "JPEG", quality=75))),
    "palette": (60, lambda image: reopened(encoded(image.convert("P"), "GIF"))),
    "CMYK": (60, lambda image: reopened(encoded(image.convert("CMYK"), "JPEG", quality=90))),
    "grey": (60, lambda image: image.convert("L").convert("RGB")),
    "saturation × 0.2": (60, lambda image: ImageEnhance.Color(image).enhance(0.2)),
    "saturation × 0.7": (60, lambda image: ImageEnhance.Color(image).enhance(0.7)),
    "saturation × 1.3": (60, lambda image: ImageEnhance.Color(image).enhance(1.3)),
    "brightness × 0.7": (60, toned(lambda v: 0.7 * v)),
    "brightness × 1.1": (60, toned(lambda v: 1.1 * v)),
    "brightness × 1.2": (60, toned(lambda v: 1.2 * v)),
    "brightness × 1.3": (55, toned(lambda v: 1.3 * v)),
    "gamma 0.8": (60, toned(lambda v: 255 * (v / 255) ** 0.8)),
    "gamma 1.25": (60, toned(lambda v: 255 * (v / 255) ** 1.25)),
    "contrast × 0.7": (60, toned(lambda v: 128 + 0.7 * (v - 128))),
    "contrast × 1.3": (58, toned(lambda v: 128 + 1.3 * (v - 128))),
    "automatic contrast": (60, ImageOps.autocontrast),
    "half the size, brighter, JPEG": (58, small_bright_jpeg),
    "grey, brighter, JPEG": (58, lambda image: small_bright_jpeg(image.convert("L").convert("RGB"))),
}


@pytest.mark.parametrize("change", PHOTO_COPIES)
def test_changed_copies_of_photographs_are_found(change: str) -> None:
    least, make = PHOTO_COPIES[change]
    copies = [seen(make(tile)) for tile in tiles()]
    found = sum(bool(near_image_pairs(pair, 4)) for pair in zip(tile_looks(), copies))
    assert found >= least


def test_different_parts_of_photographs_are_not_copies() -> None:
    """Parts that do not overlap, in several sizes, all within a photograph and across the two."""
    datasets = pytest.importorskip("sklearn.datasets")
    photos = [Image.fromarray(pixels) for pixels in datasets.load_sample_images().images]
    for side in (213, 140, 100):
        corners = [(x, y) for x in range(0, 641 - side, side) for y in range(0, 428 - side, side)]
        parts = [seen(photo.crop((x, y, x + side, y + side))) for photo in photos for x, y in corners]
        textured = [part for part in parts if part.thumbnail[:4096].std() >= 4]
        assert near_image_pairs(textured, 16) == []
        every = np.stack([part.thumbnail for part in textured])
        rows, columns = np.triu_indices(len(every), 1)
        assert tone_correlation(every[:, :4096], rows, columns).max() < 0.95


def test_different_digits_are_not_copies() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = (datasets.load_digits().images[:600] * 15.9).astype(np.uint8)
    assert near_image_pairs([seen(Image.fromarray(digit).convert("RGB")) for digit in digits], 8) == []


@cache
def logo(colour: str, ground: str = "white") -> Picture:
    image = Image.new("RGB", (120, 90), ground)
    ImageDraw.Draw(image).ellipse((20, 10, 80, 70), fill=colour)
    return look(image)


def test_one_shape_in_other_hues_is_another_picture() -> None:
    colours = ("red", "lime", "blue", "yellow", "magenta", "cyan", "orange", "#b04040", "#4040b0", "#40a040", "#a0a040")
    pairs = near_image_pairs([logo(colour) for colour in colours], 16)
    same = {("red", "#b04040"), ("blue", "#4040b0"), ("lime", "#40a040"), ("yellow", "#a0a040")}
    assert {(colours[i], colours[j]) for i, j, _ in pairs} == same


def test_a_shape_of_another_lightness_or_in_grey_is_a_copy_but_a_negative_is_not() -> None:
    assert len(near_image_pairs([logo("#c03030"), logo("#a02020"), logo("#606060")], 4)) == 3
    assert near_image_pairs([logo("white", "black"), logo("black", "white")], 16) == []


def test_plain_colours_are_told_apart() -> None:
    plain = [look(Image.new("RGB", (20, 20), colour)) for colour in ("red", "blue", "#4c4c4c", "red", "#fe0000")]
    assert [(i, j) for i, j, _ in near_image_pairs(plain[:3], 16)] == []
    assert [(i, j) for i, j, _ in near_image_pairs([*plain[:3], plain[4]], 16)] == [(0, 3)]


def test_tones_in_another_order_are_another_picture() -> None:
    """Free means per tone would explain them wholly; a rising curve does not."""

    def stripes(*tones: int) -> NDArray[np.uint8]:
        return np.repeat(np.array(tones, np.uint8), 1024)

    lumas = np.stack([stripes(20, 90, 160, 230), stripes(20, 60, 200, 230), stripes(20, 160, 90, 230)])
    first, second = np.array([0, 0]), np.array([1, 2])
    same, other = tone_correlation(lumas, first, second)
    assert same == pytest.approx(1)
    assert other < 0.97


def test_where_a_flat_area_differs_the_picture_does() -> None:
    """A flat area holds one tone, wherever its pixels are."""
    rng = np.random.default_rng(0)
    pattern = np.asarray(picture(1, (64, 64), grey=True)).copy()
    pattern[16:48, 16:48] = 255
    changed = pattern.copy()
    changed[20:44, 20:44] = 215 + 40 * (rng.random((24, 24)) < 0.5)
    lumas = np.stack([pattern.ravel(), changed.ravel()])
    correlation = tone_correlation(lumas, np.array([0]), np.array([1]))
    assert correlation[0] < near_images.CORRELATION


def test_flips_turns_and_other_colours_are_not_copies() -> None:
    image = picture(1, (100, 100)).convert("RGB")
    others = [
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        image.transpose(Image.Transpose.ROTATE_90),
        Image.merge("RGB", image.split()[::-1]),
    ]
    assert near_image_pairs([look(one) for one in [image, *others]], 16) == []


def test_look_alikes_share_a_hash_and_are_told_apart_on_pixels() -> None:
    """Like cells of one solar module: one pattern, another grain."""
    rng = np.random.default_rng(0)
    pattern = np.asarray(picture(1, (96, 96), grey=True), float)
    cells = [np.clip(pattern + 9 * np.kron(rng.normal(size=(24, 24)), np.ones((4, 4))), 0, 255) for _ in range(10)]
    looks = [look(Image.fromarray(cell.astype(np.uint8)).convert("RGB")) for cell in cells]
    hashes = perceptual_hashes(np.stack([one.thumbnail for one in looks]))
    distances = (hashes[:, None] != hashes).sum(axis=2)
    assert (distances[np.triu_indices(10, 1)] <= 4).any(), "or pixels need not be compared"
    assert near_image_pairs(looks, 4) == []


def test_flat_pictures_are_alike_if_they_are_equally_bright() -> None:
    flats = [look(Image.new("RGB", size, (v, v, v))) for size, v in (((9, 9), 0), ((30, 20), 1), ((9, 9), 255))]
    noise = look(picture(3))
    assert [(i, j) for i, j, _ in near_image_pairs([*flats, noise], 4)] == [(0, 1)]


@given(st.integers(0, 2**31), st.integers(0, 16), st.integers(2, 200))
def test_candidates_are_all_pairs_within_the_distance(seed: int, distance: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.random((count, 64)) < 0.5
    for row in range(1, count, 2):  # close to the row before it
        bits[row] = bits[row - 1]
        bits[row, rng.permutation(64)[: rng.integers(0, 20)]] ^= True
    other = bits[rng.permutation(count)]
    signs = np.where(np.stack([bits, other]), np.float32(1), np.float32(-1))
    found = {
        (int(i), int(j)) for rows, columns in near_images._candidates(signs, distance) for i, j in zip(rows, columns)
    }
    differing = np.minimum(*((one[:, None] != one).sum(axis=2) for one in (bits, other)))
    assert found == {(i, j) for i in range(count) for j in range(i + 1, count) if differing[i, j] <= distance}


def test_a_crowd_of_copies_still_forms_one_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_images, "_CROWD", 3)
    copies = [look(picture(1, (60 + 2 * number, 60))) for number in range(20)]
    pairs = {(i, j) for i, j, _ in near_image_pairs(copies, 4)}
    assert {(i, i + 1) for i in range(19)} <= pairs
    assert len(pairs) <= 3 * 20


def test_no_and_one_image_have_no_pairs() -> None:
    assert near_image_pairs([], 4) == near_image_pairs([look(picture(0))], 4) == []


def test_identity_is_of_pixels_and_size_not_of_the_file() -> None:
    image = picture(0)
    assert look(image).identity == look_at(ImageFile("x", data=encoded(image, "BMP")), 10**6).identity
    assert look(image).identity != look(image.resize((40, 48))).identity
    wide, high = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert look(wide).identity != look(high).identity


def test_looking_keeps_order_and_gives_reasons_in_place() -> None:
    files = [ImageFile(f"{n}", data=b"no image" if n == 3 else encoded(picture(n))) for n in range(8)]
    looks = look_at_all(files, 10**6)
    assert isinstance(looks[3], str)
    assert looks[3].startswith("3: ")
    assert [one.identity for one in looks if isinstance(one, Picture)] == [
        look(picture(n)).identity for n in range(8) if n != 3
    ]


def test_a_look_is_small_and_says_the_files_own_mode() -> None:
    seen = look_at(ImageFile("x", data=encoded(picture(0, grey=True))), 10**6)
    assert (seen.mode, seen.size, seen.thumbnail.nbytes) == ("L", (48, 40), 4224)
    assert (thumbnail(picture(0, grey=True).convert("RGB"))[4096:] == 128).all(), "grey has no colour"
