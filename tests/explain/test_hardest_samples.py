"""The hardest test rows: which ones, what is said about them, and the pictures written for the report."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from finetune.errors import BundleError
from finetune.explain.pictures import LONGEST_SIDE, colours, overlay
from finetune.explain.samples import MOST_LETTERS, TARGETS, collect_samples, shorten

NAMES = ("ok", "crack", "dark")


def split(inputs, labels):
    return SimpleNamespace(
        inputs=inputs, labels=np.asarray(labels), places=[f"rows.csv:{n + 2}" for n in range(len(inputs))]
    )


def grey(item) -> np.ndarray:
    return np.full((300, 150, 3), int(item), dtype=np.uint8)


def single(tmp_path, count=4, **options):
    logits = np.log(np.array([[0.9, 0.05, 0.05], [0.2, 0.5, 0.3], [0.4, 0.35, 0.25], [0.1, 0.1, 0.8]]))
    rows = split(["10", "60", "110", "160"], [0, 0, 0, 0])
    return collect_samples(
        tmp_path, rows, logits, np.array([0.1, 1.6, 0.9, 2.3]), count, target="single_label", labels=NAMES, **options
    )


def test_misclassified_rows_come_first_and_the_hardest_of_each_kind_before_the_rest(tmp_path):
    found = single(tmp_path)
    assert found["misclassified"] == 2
    assert [row["place"] for row in found["rows"]] == ["rows.csv:5", "rows.csv:3", "rows.csv:4", "rows.csv:2"]
    assert [row["wrong"] for row in found["rows"]] == [True, True, False, False]
    first = found["rows"][0]
    assert (first["truth"], first["answer"], first["about"]) == ("ok", "dark", "dark")
    assert first["score"] == pytest.approx(0.8)
    assert first["hardness"] == pytest.approx(2.3)


def test_count_limits_the_rows_but_not_the_number_of_misclassified(tmp_path):
    found = single(tmp_path, count=1)
    assert len(found["rows"]) == 1
    assert found["misclassified"] == 2
    assert single(tmp_path, count=0) == {"rows": [], "misclassified": 2}


def test_equally_hard_rows_keep_their_order(tmp_path):
    rows = split(["a"] * 5, [0.0] * 5)
    found = collect_samples(tmp_path, rows, np.ones((5, 1)), np.ones(5), 5, target="regression", labels=())
    assert [row["place"] for row in found["rows"]] == rows.places


def test_texts_are_shown_by_their_beginning_and_write_no_file(tmp_path):
    rows = split(["one\n two\tthree", "word " * 200, "x" * 2000], [0, 0, 0])
    logits = np.zeros((3, 3))
    found = collect_samples(tmp_path, rows, logits, np.zeros(3), 9, target="single_label", labels=NAMES)
    texts = [row["text"] for row in found["rows"]]
    assert texts[0] == "one two three"
    assert texts[1].endswith("word…")
    assert len(texts[1]) <= MOST_LETTERS + 1
    assert texts[2] == "x" * MOST_LETTERS + "…"
    assert all(row["image"] is None and row["gradcam"] is None for row in found["rows"])
    assert list(tmp_path.iterdir()) == []
    assert shorten("a" + " " * 5000) == "a…"


def test_pictures_are_small_jpegs_in_the_bundles_samples_folder(tmp_path):
    found = single(tmp_path, picture=grey)
    assert [row["image"] for row in found["rows"]] == [f"samples/0{n}.jpg" for n in range(4)]
    assert all(row["text"] is None for row in found["rows"])
    with Image.open(tmp_path / "samples/00.jpg") as hardest:
        assert hardest.format == "JPEG"
        assert hardest.size == (LONGEST_SIDE // 2, LONGEST_SIDE)
        assert abs(np.asarray(hardest).mean() - 160) < 2


def test_heat_maps_are_laid_over_the_first_pictures_for_the_answer_given(tmp_path):
    asked = []

    def heat(item, output):
        asked.append((item, output))
        warm = np.zeros((3, 3), dtype=np.float32)
        warm[0, 0] = 1.0
        return warm

    found = single(tmp_path, picture=grey, heat=heat, gradcam=2)
    assert asked == [("160", 2), ("60", 1)]
    assert [row["gradcam"] for row in found["rows"]] == ["samples/00-cam.jpg", "samples/01-cam.jpg", None, None]
    assert [row["gradcam_of"] for row in found["rows"]] == ["dark", "crack", None, None]
    with Image.open(tmp_path / "samples/00-cam.jpg") as laid, Image.open(tmp_path / "samples/00.jpg") as plain:
        difference = np.abs(np.asarray(laid).astype(int) - np.asarray(plain).astype(int)).sum(axis=2)
    assert difference[:40, :20].mean() > 60
    assert difference[-40:, -20:].mean() < 12


def test_a_network_without_a_heat_map_leaves_only_the_picture(tmp_path):
    found = single(tmp_path, picture=grey, heat=lambda item, output: None, gradcam=4)
    assert all(row["gradcam"] is None and row["gradcam_of"] is None for row in found["rows"])
    assert len(list((tmp_path / "samples").iterdir())) == 4


def test_multi_label_rows_join_their_labels_and_name_the_decision_that_is_furthest_off(tmp_path):
    logits = np.array([[3.0, -2.0, -4.0], [-3.0, -5.0, -6.0], [2.0, 1.0, -1.0]])
    rows = split(["a", "b", "c"], np.array([[1, 1, 0], [0, 0, 0], [1, 1, 0]], dtype=np.float32))
    found = collect_samples(tmp_path, rows, logits, np.array([3.0, 0.5, 1.0]), 3, target="multi_label", labels=NAMES)
    assert found["misclassified"] == 1
    hardest, *_, easiest = found["rows"]
    assert (hardest["truth"], hardest["answer"], hardest["about"]) == ("ok, crack", "ok", "crack")
    assert hardest["score"] == pytest.approx(1 / (1 + np.exp(2)))
    assert (easiest["truth"], easiest["answer"]) == ("", "")


def test_regression_rows_are_numbers_and_none_is_misclassified(tmp_path):
    rows = split(["a", "b"], np.array([0.333333, 1.0], dtype=np.float32))
    found = collect_samples(
        tmp_path, rows, np.array([[0.3], [0.2]]), np.array([0.03, 0.8]), 2, target="regression", labels=()
    )
    assert found["misclassified"] is None
    assert [(row["truth"], row["answer"], row["score"]) for row in found["rows"]] == [
        ("1", "0.2", None),
        ("0.3333", "0.3", None),
    ]
    assert found["rows"][0]["wrong"] is None


def test_scores_of_huge_logits_are_finite(tmp_path):
    for target, labels in (("single_label", [0]), ("multi_label", [[0.0, 1.0, 0.0]])):
        rows = split(["a"], np.asarray(labels))
        logits = np.array([[-1e5, 1e5, 3.0]], dtype=np.float32)
        (row,) = collect_samples(tmp_path, rows, logits, np.ones(1), 1, target=target, labels=NAMES)["rows"]
        assert 0 <= row["score"] <= 1


def test_every_target_has_its_answers():
    from finetune.recipe.task_names import MODALITY_AND_TARGET

    # A language model has no hardest rows to show: its own texts are shown, before training and after it.
    assert {*TARGETS, "next_token"} == {target for _, target in MODALITY_AND_TARGET.values()}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "samples").write_text("in the way", encoding="utf-8")
    with pytest.raises(BundleError, match="samples: cannot be written"):
        single(tmp_path, picture=grey)


def test_colours_rise_in_lightness_and_no_heat_leaves_the_picture_as_it_is():
    ramp = colours(np.linspace(0, 1, 64))
    lightness = ramp @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(pixels, np.zeros((4, 4), dtype=np.float32)), pixels)
