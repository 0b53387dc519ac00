"""Near duplicates among images: copies are found, look-alikes are not, and nothing depends on how many there are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, picture
from PIL import Image, ImageEnhance

from finetune.data import near_images
from finetune.data.near_images import near_image_pairs, perceptual_hashes
from finetune.data.pictures import Picture, look_at, look_at_all, thumbnail
from finetune.preprocess.image_file import ImageFile


def look(image: Image.Image) -> Picture:
    return look_at(ImageFile("x", data=encoded(image)), 10**6)


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
    signs = np.where(bits, np.float32(1), np.float32(-1))
    found = {
        (int(i), int(j)) for rows, columns in near_images._candidates(signs, distance) for i, j in zip(rows, columns)
    }
    differing = (bits[:, None] != bits).sum(axis=2)
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
    assert (seen.mode, seen.size, seen.thumbnail.nbytes) == ("L", (48, 40), 1152)
    assert (thumbnail(picture(0, grey=True).convert("RGB"))[1024:] == 128).all(), "grey has no colour"
