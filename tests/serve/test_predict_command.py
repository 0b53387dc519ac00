"""`finetune predict` on bundles of every kind: what it prints, its exit codes, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.cli import main


@pytest.fixture
def scans(tmp_path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for index, name in enumerate(["a.png", "b.png", "c.jpg"]):
        array = np.random.default_rng(index).integers(0, 256, (10, 11, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / name)
    return folder


def fails(capsys, arguments: list) -> str:
    assert main(["predict", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("finetune: ")
    return line


def test_images_folders_and_patterns_are_answered_a_line_each(image_bundle, scans, capsys):
    assert main(["predict", str(image_bundle), str(scans / "b.png"), str(scans), f"{scans}/*.png"]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    names = ["b.png", "a.png", "b.png", "c.jpg", "a.png", "b.png"]
    assert [line["image"] for line in lines] == [str(scans / name) for name in names]
    assert list(lines[0]) == ["image", "label", "score", "probabilities"]
    assert err == ""


def test_an_unreadable_image_is_named_at_the_end_and_costs_no_other_answer(image_bundle, scans, tmp_path, capsys):
    (scans / "b.png").write_bytes(b"no picture")
    (scans / "d.png").write_bytes(b"")
    assert main(["predict", str(image_bundle), str(scans)]) == 2
    out, err = capsys.readouterr()
    assert ["error" in json.loads(line) for line in out.splitlines()] == [False, True, False, True]
    assert err.startswith(f"finetune: 2 of 4 images have no answer, the first: {scans / 'b.png'}: this is no image")
    assert len(err.splitlines()) == 1
    assert main(["predict", str(image_bundle), str(scans), "--output", str(tmp_path / "out.jsonl")]) == 2
    out, err = capsys.readouterr()
    assert out == f"4 rows -> {tmp_path / 'out.jsonl'}\n"
    assert "2 of 4 images have no answer" in err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 4
    line = fails(capsys, [image_bundle, scans, "--output", tmp_path / "strict.jsonl", "--unreadable", "refuse"])
    assert "b.png" in line
    assert not (tmp_path / "strict.jsonl").exists()


def test_a_table_of_paths_is_an_input_of_an_image_bundle(image_bundle, scans, tmp_path, capsys):
    (scans / "in.csv").write_text("file,id\na.png,1\nc.jpg,2\n")
    arguments = ["--input", str(scans / "in.csv"), "--output", str(tmp_path / "out.csv"), "--image-column", "file"]
    assert main(["predict", str(image_bundle), *arguments, "--prefix", "p_", "--batch-size", "1"]) == 0
    assert (tmp_path / "out.csv").read_text().startswith("file,id,p_label,p_score,")
    assert capsys.readouterr().out == f"2 rows -> {tmp_path / 'out.csv'}\n"


def test_images_may_be_named_between_options_and_after_them(image_bundle, scans, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(scans)
    (scans / "b.png").rename("-b.png")
    out = tmp_path / "out.csv"
    arguments = ["--batch-size", "1", image_bundle, "--output", out, "a.png", "--prefix", "p_", "c.jpg", "--", "-b.png"]
    assert main(["predict", *map(str, arguments)]) == 0
    assert capsys.readouterr().out == f"3 rows -> {out}\n"
    assert [line.split(",")[0] for line in out.read_text().splitlines()] == ["image", "a.png", "c.jpg", "-b.png"]


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("single_label", ["label", "score", "probabilities"]),
        ("multi_label", ["labels", "probabilities"]),
        ("regression", ["value", "low", "high"]),
    ],
)
def test_every_target_prints_its_own_fields(make_bundle, scans, capsys, target, fields):
    assert main(["predict", str(make_bundle(target=target, interval=0.5)), "--text", "ball", "--text", "money"]) == 0
    texts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["predict", str(make_bundle(image=True, target=target)), str(scans / "a.png")]) == 0
    (image,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [text["text"] for text in texts] == ["ball", "money"]
    assert list(texts[0]) == ["text", *fields]
    assert list(image) == ["image", *fields]


def test_a_wrong_combination_is_one_sentence(bundle, image_bundle, language_bundle, scans, tmp_path, capsys):
    table = ["--input", scans / "in.csv"]
    out = ["--output", tmp_path / "out.csv"]
    (scans / "in.csv").write_text("text\nball\n")
    refused = [
        ([bundle], f"{bundle}: this bundle reads texts; give one with --text"),
        ([image_bundle], "this bundle reads images; name image files, folders or quoted patterns after it"),
        ([language_bundle], "this bundle continues a prompt; give one with --prompt"),
        ([tmp_path / "nowhere"], "not a bundle"),
        ([image_bundle, scans, *table, *out], "only one of them"),
        ([bundle, "--text", "a", *table, *out], "only one of them"),
        ([image_bundle, *table], "--input needs --output"),
        ([bundle, "--text", "a", *out], "--output goes with --input or with images"),
        ([bundle, scans / "a.png"], "reads texts, not images; give them with --text or --input"),
        ([bundle, scans, *out], "reads texts, not images; give them with --text or --input"),
        ([image_bundle, "--text", "ball"], "reads images, not texts; name image files"),
        ([image_bundle, *table, *out], "name the column with --image-column (image_column in Python)"),
        ([image_bundle, f"{scans}/*.gif"], "*.gif: no file matches this pattern"),
        ([image_bundle, tmp_path / "nowhere"], "nowhere: no such file or folder"),
        ([image_bundle, "a sentence. " * 40], "cannot be read"),
        ([image_bundle, scans, "--output", tmp_path / "out.xlsx"], "extension '.xlsx' is not known"),
        ([image_bundle, scans, "--batch-size", "0"], "predict: --batch-size is 0; it must be at least 1"),
        ([bundle, "--input", "gone.csv", *out], "gone.csv: no such file; name a table of texts, such as a .csv"),
        ([bundle, "--input", scans, *out], "extension '' is not known"),
        ([bundle, "--form", "torch"], "argument --form: invalid choice: 'torch'"),
        ([bundle, "--txt", "a"], "predict: unknown argument '--txt'; see finetune predict --help"),
    ]
    for arguments, words in refused:
        assert words in fails(capsys, arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scans"]
