"""The whole story on small real convolutional networks: pictures in, verified bundle out, for every target."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_images import SIZE, write_class_folders, write_convnet, write_image_recipe, write_picture_table

from finetune import Predictor, Report, load_recipe, run
from finetune.bundle import Bundle
from finetune.cli import main
from finetune.errors import DataError, Interrupted, RecipeError
from finetune.release.card import validate_card
from finetune.train.augment import AugmentedImages
from finetune.train.events import Event, Notice, PhaseStarted, StepEnded
from finetune.train.job import Moment


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_convnet(tmp_path_factory.mktemp("convnet"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("pictures"), 150)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, convnet: Path, pictures: Path) -> Path:
    """A bundle that the pipeline made from pictures in class folders; tests must not change it."""
    folder = tmp_path_factory.mktemp("run")
    return run(load_recipe(write_image_recipe(folder, convnet, pictures), [f"output={folder / 'bundle'}"])).bundle


def test_training_learns_what_the_labels_follow_from(bundle: Path) -> None:
    assert Report.open(bundle).test > 0.8


def test_the_bundle_holds_its_files_and_loads_back_with_timm_and_transformers(bundle: Path) -> None:
    import timm
    import torch
    from transformers import AutoModelForImageClassification

    opened = Bundle.open(bundle)
    assert {"model/config.json", "model/model.safetensors", "onnx/model.onnx", "preprocess.json", "report.html"} <= set(
        opened.files
    )
    assert "tokenizer.json" not in opened.files
    pictures = [np.full((40, 50, 3), 10 * turn, np.uint8) for turn in range(4)]
    wanted = Predictor(bundle, which="onnx").logits(pictures)
    pixels = torch.from_numpy(opened.encoder().collate(pictures)["pixel_values"])
    with torch.no_grad():
        through_timm = timm.create_model(f"local-dir:{bundle / 'model'}", pretrained=True).eval()(pixels)
        through_auto = AutoModelForImageClassification.from_pretrained(bundle / "model").eval()(pixel_values=pixels)
    np.testing.assert_allclose(through_timm.numpy(), wanted, atol=1e-4)
    np.testing.assert_allclose(through_auto.logits.numpy(), wanted, atol=1e-4)


def test_the_report_shows_pictures_sizes_and_the_three_forms(bundle: Path) -> None:
    report = Report.open(bundle).data
    assert report["data"]["pixels"] == {"height": SIZE, "width": SIZE}
    assert len(report["samples"]["rows"]) == 4
    assert all((bundle / row["image"]).is_file() for row in report["samples"]["rows"])
    assert sum(row["gradcam"] is not None for row in report["samples"]["rows"]) == 2
    assert report["export"]["onnx"]["max_abs_diff"] <= 1e-4
    assert report["export"]["int8"]["calibration"]["rows"] >= 100
    assert set(report["baselines"]) == {"majority", "pixels_logreg"}
    assert "data:image/jpeg;base64" in (bundle / "report.html").read_text("utf-8")
    assert validate_card((bundle / "README.md").read_text("utf-8")) == []


def test_predict_answers_for_files_folders_and_globs(bundle: Path, pictures: Path, capsys: Any) -> None:
    assert main(["predict", str(bundle), str(pictures / "rows" / "*.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 50
    assert sum('"label": "rows"' in line for line in lines) > 40


def test_a_bundle_checks_out_and_a_changed_picture_is_noticed(bundle: Path, capsys: Any) -> None:
    assert main(["check", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "ok    parity" in out
    sample = next((bundle / "samples").iterdir())
    before = sample.read_bytes()
    try:
        sample.write_bytes(before + b"x")
        assert main(["check", str(bundle)]) == 2
    finally:
        sample.write_bytes(before)


def test_card_and_report_can_be_written_again(bundle: Path) -> None:
    before = (bundle / "report.html").read_bytes()
    assert main(["card", str(bundle)]) == 0
    assert (bundle / "report.html").read_bytes() == before


def test_an_efficientnet_unfreezes_by_relative_gradients_and_recalibrates(tmp_path: Path, pictures: Path) -> None:
    backbone = write_convnet(tmp_path / "net", "test_efficientnet")
    recipe = load_recipe(
        write_image_recipe(tmp_path, backbone, pictures),
        [
            f"output={tmp_path / 'bundle'}", "transfer.unfreeze=auto", "transfer.auto_groups=2", "transfer.batchnorm=recalibrate",
            "transfer.epochs=1", "train.augment.mixup=0.2", "train.augment.cutmix=1.0", "export.int8.mode=off", "evaluation.gradcam=0",
        ],
    )  # fmt: skip
    report = run(recipe).data
    choice = report["transfer"]["choice"]
    assert len(choice["chosen"]) == 2
    assert report["transfer"]["phases"][1]["trainable"] == [
        group["name"] for group in report["transfer"]["groups"] if group["name"] in {*choice["chosen"], "head"}
    ]
    assert report["transfer"]["batchnorm"] == "recalibrate"
    assert report["transfer"]["recalibration"]["rows"] > 0


def test_small_pictures_come_first_if_a_phase_says_so(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[int, set[int]] = {0: set(), 1: set()}
    draw = AugmentedImages.batch

    def look(self: AugmentedImages, rows: Any, moment: Moment) -> Any:
        drawn = draw(self, rows, moment)
        sizes[moment.phase].add(drawn[0]["pixel_values"].shape[-1])
        return drawn

    monkeypatch.setattr(AugmentedImages, "batch", look)
    file = write_image_recipe(tmp_path, write_convnet(tmp_path / "net"), pictures)
    settings = yaml.safe_load(file.read_text("utf-8"))
    settings["transfer"] = {"phases": [{"trainable": "all", "image_size": 32}, {"trainable": 2}]}
    file.write_text(yaml.safe_dump(settings), "utf-8")
    events: list[Event] = []
    small = ["export.int8.mode=off", "evaluation.gradcam=0", "evaluation.baselines=false"]
    recipe = load_recipe(file, [f"output={tmp_path / 'bundle'}", *small])
    report = run(recipe, callbacks=[events.append]).data
    assert [phase["image_size"] for phase in report["transfer"]["phases"]] == [32, None]
    assert [event.image_size for event in events if isinstance(event, PhaseStarted)] == [32, None]
    told = [event.message for event in events if isinstance(event, Notice) and "this phase's size" in event.message]
    assert len(told) == 1
    assert sizes == {0: {32}, 1: {SIZE}}
    assert report["data"]["pixels"] == {"height": SIZE, "width": SIZE}


def test_pictures_of_a_size_that_the_network_cannot_take_are_refused(tmp_path: Path, pictures: Path) -> None:
    backbone = write_convnet(tmp_path / "net", "test_vit", 160)
    config = json.loads((backbone / "config.json").read_text("utf-8"))
    config["model_args"] = {"dynamic_img_size": False}
    (backbone / "config.json").write_text(json.dumps(config), "utf-8")
    file = write_image_recipe(tmp_path, backbone, pictures)
    with pytest.raises(RecipeError, match=r"^data\.image_size: this backbone takes no pictures of 48×48"):
        run(load_recipe(file, [f"output={tmp_path / 'bundle'}", "data.image_size=48"]))
    settings = yaml.safe_load(file.read_text("utf-8"))
    settings["transfer"] = {"phases": [{"trainable": "all", "image_size": 48}, {"trainable": 1}]}
    file.write_text(yaml.safe_dump(settings), "utf-8")
    with pytest.raises(
        RecipeError, match=r"^transfer\.phases\[0\]\.image_size: this backbone takes no pictures of 48×48"
    ):
        run(load_recipe(file, [f"output={tmp_path / 'bundle'}"]))


def test_a_transformers_image_classifier_runs_from_a_local_folder(tmp_path: Path, pictures: Path) -> None:
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorFast

    backbone = tmp_path / "net"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        ResNetForImageClassification(ResNetConfig(**shape)).save_pretrained(backbone)
    ViTImageProcessorFast(size={"height": SIZE, "width": SIZE}).save_pretrained(backbone)
    (backbone / "README.md").write_text("---\nlicense: apache-2.0\n---\n", "utf-8")
    path = write_image_recipe(tmp_path, backbone, pictures)
    settings = [f"output={tmp_path / 'bundle'}", "transfer.epochs=1", "export.int8.mode=off", "data.limit=60"]
    report = run(load_recipe(path, settings))
    assert report.data["backbone"]["architecture"] == "ResNetForImageClassification"
    assert (report.bundle / "model" / "preprocessor_config.json").is_file()


def test_a_number_is_learned_in_its_own_unit_with_an_interval(tmp_path: Path, convnet: Path) -> None:
    table = write_picture_table(tmp_path / "data", 120)
    recipe = load_recipe(
        write_image_recipe(tmp_path, convnet, table, "image_regression"),
        [f"output={tmp_path / 'bundle'}", "data.label_column=bright", "export.int8.mode=off"],
    )
    report = run(recipe)
    assert report.data["metrics"]["test"]["mae"]["value"] < report.data["baselines"]["mean"]["mae"]
    answer = Predictor(report.bundle).predict([Image.open(table.parent / "pictures" / "000.png")])[0]
    assert answer.low < answer.value < answer.high
    assert report.data["calibration"]["interval"] == pytest.approx(answer.high - answer.value, rel=1e-4)


def test_pictures_count_by_their_weights_when_the_best_weights_are_chosen(tmp_path: Path, convnet: Path) -> None:
    """A third of the labels is wrong and weighs next to nothing."""
    data = write_picture_table(tmp_path, 120)
    lines = data.read_text("utf-8").splitlines()
    table = [line.split(",") for line in lines[1:]]
    counted = [
        ",".join([path, "b" if number % 3 else "a", "0.01" if number % 3 == 2 else "1"])
        for number, (path, *_) in enumerate(table)
    ]
    data.write_text("\n".join(["image,label,sure", *counted]) + "\n", "utf-8")
    report = run(
        load_recipe(
            write_image_recipe(tmp_path, convnet, data),
            [f"output={tmp_path / 'bundle'}", "data.weight_column=sure", "transfer.epochs=2", "evaluation.gradcam=0"],
        )
    )
    measured = report.data["metrics"]["validation"]
    best = max(record["validation_metric"] for record in report.data["history"])
    assert measured["torch"]["accuracy"]["value"] == pytest.approx(best)
    weights = report.data["audit"]["weights"]
    assert weights["rows"] == [{"weight": 0.01, "rows": 40}, {"weight": 1.0, "rows": 80}]
    assert measured["torch"]["effective_rows"] < 0.8 * measured["torch"]["rows"]


def test_several_labels_a_picture(tmp_path: Path, convnet: Path) -> None:
    table = write_picture_table(tmp_path / "data", 120)
    recipe = load_recipe(
        write_image_recipe(tmp_path, convnet, table, "image_multi_label_classification"),
        [f"output={tmp_path / 'bundle'}", "data.label_columns=[striped, lined]", "export.int8.mode=off"],
    )
    report = run(recipe)
    assert report.data["data"]["labels"] == ["striped", "lined"]
    assert report.data["metrics"]["test"]["label_accuracy"]["value"] > 0.7
    answers = Predictor(report.bundle).predict(sorted((table.parent / "pictures").glob("*.png"))[:6])
    assert all(set(answer.labels) <= {"striped", "lined"} for answer in answers)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_a_run_that_was_stopped_sees_the_same_pictures_when_it_goes_on(
    tmp_path: Path, convnet: Path, pictures: Path, memory_format: str
) -> None:
    path = write_image_recipe(tmp_path, convnet, pictures)
    settings = [
        "transfer.epochs=1", "train.augment.color_jitter=0.2", "train.augment.random_erasing=0.5", "export.int8.mode=off",
        "evaluation.gradcam=0", "data.limit=90", f"train.memory_format={memory_format}",
    ]  # fmt: skip
    steps: list[Event] = []
    stopped = load_recipe(path, [*settings, f"output={tmp_path / 'stopped'}"])
    with pytest.raises(Interrupted):
        run(
            stopped,
            callbacks=[lambda event: steps.append(event) if isinstance(event, StepEnded) else None],
            stop=lambda: len(steps) >= 7,
        )
    resumed = run(stopped, resume=True)
    straight = run(load_recipe(path, [*settings, f"output={tmp_path / 'straight'}"]))
    weights = "model/model.safetensors"
    assert (resumed.bundle / weights).read_bytes() == (straight.bundle / weights).read_bytes()


@pytest.mark.parametrize("unreadable", ["refuse", "skip"])
def test_unreadable_pictures_are_named_and_refused_or_skipped(tmp_path: Path, convnet: Path, unreadable: str) -> None:
    data = write_class_folders(tmp_path / "data", 60)
    (data / "dots" / "000.png").write_bytes((data / "dots" / "000.png").read_bytes()[:200])
    (data / "rows" / "notes.png").write_text("no picture", "utf-8")
    recipe = load_recipe(
        write_image_recipe(tmp_path, convnet, data),
        [
            f"output={tmp_path / 'b'}", f"data.unreadable={unreadable}", "transfer.epochs=1", "export.int8.mode=off",
            "evaluation.gradcam=0",
        ],
    )  # fmt: skip
    if unreadable == "refuse":
        with pytest.raises(DataError, match=r"000\.png"):
            run(recipe)
        return
    audit = run(recipe).data["audit"]
    assert audit["images"]["unreadable"] == 2
    assert [place.partition(":")[0] for place in audit["images"]["unreadable_places"]] == [
        "dots/000.png",
        "rows/notes.png",
    ]


def test_two_processes_train_one_convnet(tmp_path: Path, convnet: Path, pictures: Path) -> None:
    path = write_image_recipe(tmp_path, convnet, pictures)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", "-m", "finetune", "run", str(path),
        f"output={tmp_path / 'bundle'}", "data.limit=60", "transfer.epochs=1", "train.device=cpu", "export.int8.mode=off",
        "evaluation.gradcam=0", "train.memory_format=channels_last", "--quiet",
    ]  # fmt: skip
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=alone, timeout=280)
    assert done.returncode == 0, done.stderr
    assert Report.open(tmp_path / "bundle").data["environment"]["processes"] == 2
