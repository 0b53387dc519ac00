"""Predictors of images, from whatever a picture may come as."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.errors import BundleError, DataError
from finetune.preprocess import ImageEncoder, ImageFile
from finetune.serve import Predictor

RED, GREEN, GREY = (250, 10, 10), (10, 250, 10), (128, 128, 128)


@pytest.fixture(scope="module")
def predictor(image_bundle) -> Predictor:
    return Predictor(image_bundle, threads=2)


def noise(index: int, height: int = 13, width: int = 17) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def one_colour(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((12, 9, 3), colour, dtype=np.uint8)


def test_answers_are_what_the_colours_say(predictor):
    """The mean red of an all-red picture is (250/255 - 0.4)/0.2; its logit is that plus the bias."""
    red, green = predictor.predict([one_colour(RED), one_colour(GREEN)])
    assert (red.label, green.label) == ("business", "politics")
    logits = (np.array(RED) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3] + [0, 0.1, 0.2]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(list(red.probabilities.values()), expected, rtol=1e-5)


def test_arrays_pictures_bytes_and_paths_of_one_png_give_equal_logits_to_the_bit(predictor, tmp_path):
    arrays = [noise(index, 9 + index, 20 - index) for index in range(5)]
    pictures = [Image.fromarray(array) for array in arrays]
    data = [encoded(picture) for picture in pictures]
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, content in zip(paths, data):
        path.write_bytes(content)
    expected = predictor.logits(arrays)
    assert np.unique(expected, axis=0).shape == (5, 3)
    for inputs in (
        pictures,
        data,
        paths,
        [str(path) for path in paths],
        [ImageFile("here", path=path) for path in paths],
        [ImageFile("here", data=content) for content in data],
        [arrays[0], pictures[1], data[2], paths[3], str(paths[4])],
        [Image.open(path) for path in paths],
    ):
        np.testing.assert_array_equal(predictor.logits(inputs), expected)
    for one in (arrays[3], pictures[3], data[3], paths[3], str(paths[3])):
        np.testing.assert_allclose(predictor.logits(one), expected[3:4], atol=1e-6)


def test_the_network_is_fed_what_the_bundle_s_encoder_makes(predictor, image_bundle, monkeypatch):
    settings = json.loads((image_bundle / "preprocess.json").read_text())["image"]
    pictures = [noise(index) for index in range(7)]
    fed = []
    monkeypatch.setattr(
        "finetune.serve.predictor.run_logits",
        lambda _, batch: fed.append(batch["pixel_values"]) or np.zeros((len(batch["pixel_values"]), 3), np.float32),
    )
    predictor.logits(pictures, batch_size=4)
    assert [len(part) for part in fed] == [4, 3]
    encoder = ImageEncoder(type(predictor._bundle.preprocess).from_json(settings))
    np.testing.assert_array_equal(np.concatenate(fed), encoder(pictures)["pixel_values"])


def test_the_order_of_answers_is_the_order_of_images_for_any_batch_size(predictor):
    pictures = [noise(index) for index in range(11)]
    expected = predictor.logits(pictures, batch_size=1)
    for batch_size in (2, 5, 64):
        np.testing.assert_allclose(predictor.logits(pictures, batch_size), expected, atol=1e-5)
        streamed = list(predictor.stream(iter(pictures), batch_size))
        assert [answer.label for answer in streamed] == [answer.label for answer in predictor.predict(pictures)]
    stacked = np.stack(pictures)
    np.testing.assert_allclose(predictor.logits(stacked), expected, atol=1e-5)


def test_images_run_one_by_one_when_the_model_is_not_batch_invariant(make_bundle):
    pictures = [noise(index) for index in range(6)]
    honest = Predictor(make_bundle(image=True, leaky=True, batch_invariant=False), threads=2)
    alone = np.concatenate([honest.logits(picture) for picture in pictures])
    np.testing.assert_array_equal(honest.logits(pictures, batch_size=4), alone)
    batched = Predictor(make_bundle(image=True, leaky=True, batch_invariant=True), threads=2)
    assert np.abs(batched.logits(pictures, batch_size=4) - alone).max() > 0.01


def test_no_more_than_a_batch_of_pixels_is_held(predictor, monkeypatch):
    """Nothing of the second batch is decoded before the first has been answered."""
    decoded, seen, lock = [], [], threading.Lock()
    real_pixels, real_run = ImageEncoder.pixels, Predictor._run

    def pixels(self, item):
        with lock:
            decoded.append(1)
        return real_pixels(self, item)

    def run(self, ready):
        seen.append(len(decoded))
        return real_run(self, ready)

    monkeypatch.setattr(ImageEncoder, "pixels", pixels)
    monkeypatch.setattr(Predictor, "_run", run)
    predictor.predict([noise(index) for index in range(10)], batch_size=4)
    assert seen == [4, 8, 10]


def test_a_picture_that_pillow_has_only_opened_is_never_read_by_two_threads(predictor, tmp_path, monkeypatch):
    """Its file has one position, which threads reading the same picture together would move under each other."""
    Image.fromarray(noise(1)).save(tmp_path / "a.png")
    expected = predictor.logits(tmp_path / "a.png")
    readers: dict[bool, set[int]] = {True: set(), False: set()}
    real = ImageEncoder.pixels

    def pixels(self, item):
        readers[isinstance(item, Image.Image)].add(threading.get_ident())
        return real(self, item)

    monkeypatch.setattr(ImageEncoder, "pixels", pixels)
    with Image.open(tmp_path / "a.png") as lazy:
        found = predictor.logits([lazy, tmp_path / "a.png"] * 8)
    np.testing.assert_allclose(found, np.repeat(expected, 16, axis=0), atol=1e-6)
    assert readers[True] == {threading.get_ident()}
    assert readers[False]
    assert threading.get_ident() not in readers[False]


def awkward() -> dict[str, tuple[Image.Image, str, dict]]:
    colour = Image.fromarray(noise(3))
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "grey.png": (colour.convert("L"), "PNG", {}),
        "clear.png": (colour.convert("RGBA"), "PNG", {}),
        "palette.gif": (colour.convert("P"), "GIF", {}),
        "press.jpg": (colour.convert("CMYK"), "JPEG", {}),
        "deep.png": (Image.fromarray(noise(4)[..., 0].astype(np.uint16) * 257), "PNG", {}),
        "turned.jpg": (colour, "JPEG", {"exif": turned}),
        "one.bmp": (Image.new("1", (1, 1), 1), "BMP", {}),
    }


@pytest.mark.parametrize("name", awkward())
def test_awkward_images_are_answered_as_training_would_see_them(predictor, tmp_path, name):
    picture, kind, options = awkward()[name]
    picture.save(tmp_path / name, kind, **options)
    (answer,) = predictor.predict(tmp_path / name)
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    pixels = predictor._bundle.encoder()([tmp_path / name])["pixel_values"]
    expected = pixels[0].mean(axis=(1, 2)) + np.array([0, 0.1, 0.2])
    np.testing.assert_allclose(predictor.logits(tmp_path / name)[0], expected, atol=1e-5)


def unreadable(folder: Path) -> dict[str, Path]:
    whole = encoded(Image.fromarray(noise(5, 60, 60)))
    contents = {"cut.png": whole[: len(whole) // 2], "words.jpg": b"this is no picture", "empty.png": b""}
    contents["huge.png"] = encoded(Image.new("L", (300, 300)))
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in (*contents, "missing.png")}


def test_an_unreadable_image_is_named_and_ends_a_prediction(predictor, tmp_path):
    for name, path in unreadable(tmp_path).items():
        for threads in (predictor, Predictor(predictor._bundle.path, threads=1)):
            with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
                threads.predict([noise(1), path, noise(2)])
            assert "\n" not in str(caught.value)


def test_an_attempt_answers_all_others_as_if_the_unreadable_were_not_there(predictor, tmp_path):
    bad = list(unreadable(tmp_path).values())
    good = [noise(index) for index in range(7)]
    mixed = [bad[0], *good[:3], bad[1], bad[2], *good[3:], bad[3], bad[4]]
    for batch_size in (1, 3, 32):
        answers = predictor.attempt(mixed, batch_size)
        for given, answer in zip(mixed, answers, strict=True):
            assert isinstance(answer, DataError) == isinstance(given, Path)
            if isinstance(given, Path):
                assert given.name in str(answer)
        assert [a.label for a in answers if not isinstance(a, DataError)] == [
            answer.label for answer in predictor.predict(good)
        ]
    assert all(isinstance(answer, DataError) for answer in predictor.attempt(bad))
    assert predictor.attempt([]) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p.predict("The striker scored twice."), "The striker scored twice.: there is no such file"),
        (lambda p: p.predict(["x" * 5000]), "cannot be opened"),
        (lambda p: p.predict([None]), "image 0 is of type NoneType"),
        (lambda p: p.predict(5), "image 0 is of type int"),
        (lambda p: p.predict([noise(1), ["a"]]), "image 1 is of type list"),
        (lambda p: p.predict([noise(1), b"no picture"]), "image 1: this is no image"),
        (lambda p: p.predict(np.zeros((4, 4), np.float32)), "type float32"),
        (lambda p: p.predict(np.zeros((4, 4, 4), np.uint8)), "is no picture"),
        (lambda p: p.predict([noise(1)], batch_size=0), "batch_size is 0"),
        (lambda p: p.stream(Path("a.png")), "iterable of images, not one image"),
    ],
)
def test_what_is_no_image_is_one_sentence(predictor, call, words):
    with pytest.raises(DataError, match=words) as caught:
        call(predictor)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "picture", [noise(1), np.zeros((4, 4), np.uint8), Image.fromarray(noise(1)), encoded(Image.new("L", (2, 2))), Path("a.png")]
)  # fmt: skip
def test_a_picture_for_a_bundle_of_texts_is_one_sentence(bundle, picture):
    texts = Predictor(bundle, threads=1)
    for inputs in (picture, [picture], ["a text", picture]):
        with pytest.raises(DataError, match="every text must be a string") as caught:
            texts.predict(inputs)
        assert "\n" not in str(caught.value)


def test_one_predictor_of_images_serves_many_threads(predictor):
    jobs = [[noise(index)] * (1 + index % 4) for index in range(24)]
    expected = [predictor.logits(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        for ours, theirs in zip(pool.map(predictor.logits, jobs), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_model_for_another_size_of_image_is_refused_at_opening(make_bundle, reseal):
    path = make_bundle(image=True)
    document = json.loads((path / "preprocess.json").read_text())
    document["image"]["crop"] = [6, 8]
    (path / "preprocess.json").write_text(json.dumps(document))
    reseal(path)
    with pytest.raises(BundleError, match=r"wants 'pixel_values' of shape .*8, 6.* makes \(None, 3, 6, 8\)"):
        Predictor(path)


def test_serving_images_imports_neither_torch_nor_torchvision_nor_transformers(image_bundle, tmp_path):
    Image.fromarray(one_colour(GREEN)).save(tmp_path / "a.png")
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'transformers', 'datasets', 'pyarrow', 'sklearn', 'scipy', 'onnx'):\n"
        "    sys.modules[name] = None  # importing it would raise\n"
        "from finetune.serve import Predictor\n"
        "print(Predictor(sys.argv[1]).predict(sys.argv[2])[0].label)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(image_bundle), str(tmp_path / "a.png")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "politics\n"
