"""What a training image looks like depends on (seed, phase, epoch, row), and on nothing that happened before."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from finetune.errors import DataError
from finetune.preprocess import ImageEncoder, ImageFile, ImagePreprocess
from finetune.recipe import AugmentSettings
from finetune.train.augment import AugmentedImages
from finetune.train.job import Moment

ROWS, CLASSES = 6, 3
ENCODER = ImageEncoder(ImagePreprocess(crop=(16, 16), resize=18, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)))
NUMBERS = np.array([0, 2, 1, 1, 0, 2])
LABELS = {
    "single_label": NUMBERS,
    "multi_label": np.eye(CLASSES, dtype=np.float32)[NUMBERS] + np.eye(CLASSES, dtype=np.float32)[NUMBERS[::-1]] % 2,
    "regression": np.linspace(-1, 1, ROWS).astype(np.float32),
}
ALL = AugmentSettings(
    horizontal_flip=0.5, vertical_flip=0.5, quarter_turns=True, random_resized_crop=(0.3, 1.0), color_jitter=0.4,
    rand_augment=9, random_erasing=0.5, mixup=0.4, cutmix=1.0,
)  # fmt: skip
NONE = AugmentSettings(horizontal_flip=0.0, random_resized_crop=None)


def pictures(height: int = 24, width: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(ROWS)]


def examples(
    chosen: AugmentSettings, labels: np.ndarray = NUMBERS, encoder: ImageEncoder = ENCODER, **size: int
) -> AugmentedImages:
    return AugmentedImages(pictures(**size), labels, encoder, chosen, CLASSES)


def moment(
    seed: int = 0, phase: int = 0, epoch: int = 0, cursor: int = 0, step: tuple[int, ...] = (4, 1, 5, 0)
) -> Moment:
    return Moment(seed, phase, epoch, cursor, step)


def pixels(source: AugmentedImages, rows: list[int], when: Moment) -> np.ndarray:
    return np.asarray(source.batch(rows, when)[0]["pixel_values"])


def test_without_changes_a_batch_is_what_evaluation_sees() -> None:
    inputs, targets = examples(NONE).batch([3, 0], moment())
    expected = ENCODER([pictures()[3], pictures()[0]])["pixel_values"]
    assert np.array_equal(inputs["pixel_values"], expected)
    assert targets.tolist() == NUMBERS[[3, 0]].tolist()
    assert targets.dtype == np.int64


def test_a_picture_depends_on_seed_phase_epoch_and_row_alone() -> None:
    source = examples(ALL.model_copy(update={"mixup": 0.0, "cutmix": 0.0}))
    (first,) = pixels(source, [2], moment(step=(2,)))
    assert first.dtype == np.float32
    torch.rand(17)
    for other in (examples(ALL.model_copy(update={"mixup": 0.0, "cutmix": 0.0})), source):
        for rows, when in [([2], moment(step=(2, 0))), ([5, 2, 0], moment(cursor=3, step=(0, 2, 5)))]:
            assert np.array_equal(pixels(other, rows, when)[rows.index(2)], first)
    for when in (moment(seed=1), moment(phase=1), moment(epoch=1)):
        assert not np.array_equal(pixels(source, [2], when)[0], first)


def test_a_phase_may_have_pictures_of_another_size() -> None:
    small = ImageEncoder(ImagePreprocess(crop=(8, 8), resize=9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)))
    for chosen in (ALL, NONE):
        source = pickle.loads(pickle.dumps(AugmentedImages(pictures(), NUMBERS, ENCODER, chosen, CLASSES, {1: small})))
        for phase, size, alone in ((0, 16, ENCODER), (1, 8, small), (2, 16, ENCODER)):
            found = pixels(source, [4, 1], moment(phase=phase))
            assert found.shape == (2, 3, size, size)
            assert np.array_equal(found, pixels(examples(chosen, encoder=alone), [4, 1], moment(phase=phase)))


def test_equal_pictures_in_different_rows_are_changed_differently() -> None:
    source = AugmentedImages([pictures()[0]] * 2, NUMBERS[:2], ENCODER, AugmentSettings(), CLASSES)
    one, two = pixels(source, [0, 1], moment())
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("chosen", [NONE, AugmentSettings(), ALL])
def test_torchs_generator_stands_where_it_stood(chosen: AugmentSettings) -> None:
    source = examples(chosen)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    source.batch([0, 1], moment())
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before  # type: ignore[index,union-attr]


@settings(max_examples=8)
@given(
    parts=st.integers(1, 5), seed=st.integers(0, 50), kind=st.sampled_from(sorted(LABELS)),
    mixing=st.sampled_from([(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)]),
)  # fmt: skip
def test_mixing_does_not_depend_on_how_the_step_is_divided(
    parts: int, seed: int, kind: str, mixing: tuple[float, float]
) -> None:
    chosen = AugmentSettings(random_erasing=0.5, mixup=mixing[0], cutmix=mixing[1])
    source, step = examples(chosen, LABELS[kind]), (4, 1, 5, 0, 2)
    when = moment(seed=seed, step=step)
    whole_inputs, whole_targets = source.batch(list(step), when)
    for part in range(parts):
        rows = list(step[part::parts])
        inputs, targets = source.batch(rows, when)
        places = [step.index(row) for row in rows]
        assert np.array_equal(inputs["pixel_values"], whole_inputs["pixel_values"][places])
        assert np.array_equal(targets, whole_targets[places])


@pytest.mark.parametrize(("name", "mixer"), [("mixup", v2.MixUp), ("cutmix", v2.CutMix)])
def test_a_mixed_step_is_what_torchvision_makes_of_the_whole_step(
    name: str, mixer: Callable[..., v2.Transform]
) -> None:
    """Each row with the one before it, one share for all: found by solving for λ, then compared with v2's own mixing."""
    step = (4, 1, 5, 0)
    found, targets = examples(AugmentSettings(**{name: 0.8}), NUMBERS).batch(list(step), moment(step=step))
    plain = torch.from_numpy(pixels(examples(AugmentSettings()), list(step), moment(step=step)))
    share = float(targets[0][NUMBERS[4]])  # rows 4 and 0 of the step's ends have the label 0 both, so look further
    assert share == pytest.approx(1.0)
    share = float(targets[1][NUMBERS[1]])
    assert 0 < share < 1
    one_hot = np.eye(CLASSES, dtype=np.float32)[NUMBERS[list(step)]]
    expected = share * one_hot + (1 - share) * np.roll(one_hot, 1, axis=0)
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    assert targets.dtype == np.float32
    values = found["pixel_values"]
    if name == "mixup":
        np.testing.assert_allclose(values, share * plain + (1 - share) * plain.roll(1, 0), atol=1e-5)
    else:
        other = plain.roll(1, 0).numpy()
        pasted = (values == other).all(axis=1)
        assert np.array_equal(np.where(pasted[:, None], other, plain.numpy()), values)
        assert np.array_equal(pasted[0], pasted[1])
        assert pasted[0].mean() == pytest.approx(1 - share)


def test_each_step_is_mixed_by_its_own_share() -> None:
    source = examples(AugmentSettings(mixup=0.8))
    shares = {round(float(source.batch([1], moment(cursor=n))[1][0][NUMBERS[1]]), 6) for n in range(8)}
    assert len(shares) == 8


def test_with_both_kinds_a_step_is_mixed_by_one_of_them() -> None:
    source = examples(AugmentSettings(horizontal_flip=0.0, random_resized_crop=None, mixup=0.8, cutmix=0.8))
    plain, other = ENCODER([pictures()[1], pictures()[4]])["pixel_values"]
    kinds = set()
    for cursor in range(12):
        (mixed,) = pixels(source, [1], moment(cursor=cursor))
        kinds.add(bool(((mixed == plain) | (mixed == other)).all()))
    assert kinds == {True, False}


def test_a_row_that_is_not_of_the_step_is_not_mixed() -> None:
    for kind, labels in LABELS.items():
        source = examples(AugmentSettings(mixup=0.8, cutmix=0.8), labels)
        inputs, targets = source.batch([3], moment(step=(4, 1)))
        expected = pixels(examples(AugmentSettings()), [3], moment(step=(4, 1)))
        np.testing.assert_allclose(inputs["pixel_values"], expected, atol=1e-5)
        np.testing.assert_allclose(
            targets[0], np.eye(CLASSES)[NUMBERS[3]] if kind == "single_label" else labels[3], atol=1e-6
        )


@pytest.mark.parametrize("kind", sorted(LABELS))
def test_targets_have_the_form_that_the_loss_takes(kind: str) -> None:
    labels = LABELS[kind]
    plain = examples(AugmentSettings(), labels).batch([0, 5], moment())[1]
    assert np.array_equal(plain, labels[[0, 5]])
    assert plain.dtype == labels.dtype
    mixed = examples(AugmentSettings(mixup=1.0), labels).batch([0, 5], moment())[1]
    assert mixed.dtype == np.float32
    assert mixed.shape == {"single_label": (2, CLASSES), "multi_label": (2, CLASSES), "regression": (2,)}[kind]
    if kind == "regression":
        low, high = sorted((labels[0], labels[5]))
        assert low <= mixed[0] <= high


def test_flips_turns_and_crops_do_what_they_say() -> None:
    plain = ENCODER.pixels(pictures(20, 20)[0])
    encoder = ImageEncoder(ImagePreprocess(crop=(16, 16), resize=18))

    def seen(chosen: AugmentSettings) -> set[bytes]:
        source = examples(chosen, encoder=encoder, height=20, width=20)
        views = (pixels(source, [0], moment(epoch=epoch))[0] for epoch in range(24))
        return {np.rint(view * 255).astype(np.uint8).transpose(1, 2, 0).tobytes() for view in views}

    quiet = {"horizontal_flip": 0.0, "random_resized_crop": None}
    assert seen(AugmentSettings(**quiet)) == {plain.tobytes()}
    assert seen(AugmentSettings(**{**quiet, "horizontal_flip": 1.0})) == {plain[:, ::-1].tobytes()}
    assert seen(AugmentSettings(**quiet, vertical_flip=1.0)) == {plain[::-1].tobytes()}
    turned = [encoder.pixels(Image.fromarray(np.ascontiguousarray(np.rot90(pictures(20, 20)[0], n)))) for n in range(4)]
    assert seen(AugmentSettings(**quiet, quarter_turns=True)) == {view.tobytes() for view in turned}
    assert len(seen(AugmentSettings(horizontal_flip=0.0))) == 24


def test_a_crop_of_the_whole_picture_is_resized_by_the_settings_interpolation() -> None:
    source = [np.asarray(Image.fromarray(pictures()[0]).resize((40, 40)))]
    for name in ("nearest", "bicubic", "lanczos"):
        encoder = ImageEncoder(ImagePreprocess(crop=(16, 16), resize=16, interpolation=name))  # type: ignore[arg-type]
        changed = AugmentedImages(
            source, NUMBERS[:1], encoder, AugmentSettings(horizontal_flip=0, random_resized_crop=(1.0, 1.0)), CLASSES
        )
        views = [pixels(changed, [0], moment(epoch=epoch))[0] for epoch in range(40)]
        assert any(np.array_equal(view, encoder(source)["pixel_values"][0]) for view in views)


def test_pictures_keep_the_networks_size_whatever_the_shape() -> None:
    encoder = ImageEncoder(ImagePreprocess(crop=(12, 28), resize=(14, 30), resize_mode="cover"))
    for size in ((40, 9), (9, 40), (1, 1)):
        for chosen in (ALL, ALL.model_copy(update={"random_resized_crop": None})):
            source = examples(chosen, encoder=encoder, height=size[0], width=size[1])
            assert pixels(source, [4, 1], moment()).shape == (2, 3, 12, 28)


def test_erased_parts_are_the_mean_colour_of_normalised_pictures() -> None:
    source = examples(AugmentSettings(horizontal_flip=0, random_resized_crop=None, random_erasing=1.0))
    (erased,) = pixels(source, [0], moment())
    (plain,) = ENCODER([pictures()[0]])["pixel_values"]
    changed = (erased != plain).any(axis=0)
    assert changed.any()
    assert not changed.all()
    assert (erased[:, changed] == 0).all()


def test_an_image_that_cannot_be_read_is_named() -> None:
    images = [*pictures()[:1], ImageFile("rows.csv:3: broken.png", data=b"nothing")]
    source = AugmentedImages(images, NUMBERS[:2], ENCODER, ALL, CLASSES)
    with pytest.raises(DataError, match=r"^rows.csv:3: broken.png: this is no image"):
        source.batch([0, 1], moment(step=(0, 1)))


def test_examples_can_be_sent_to_another_process() -> None:
    source = examples(ALL)
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(pixels(copy, [1, 4], moment()), pixels(source, [1, 4], moment()))
    assert list(copy.lengths) == [1] * ROWS
