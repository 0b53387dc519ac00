"""The whole story on a small real encoder: recipe in, verified bundle out."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune import Predictor, Report, load_recipe, run
from finetune.bundle import Bundle
from finetune.errors import BundleError, GateError, Interrupted, LicenseError, RecipeError
from finetune.release.card import validate_card
from finetune.train.events import (
    EpochEnded,
    Event,
    Notice,
    PhaseStarted,
    StageEnded,
    StageStarted,
    StepEnded,
    TrainingResumed,
)

EXPECTED_FILES = {
    "model/config.json", "model/model.safetensors", "model/tokenizer.json", "onnx/model.onnx", "preprocess.json", "tokenizer.json",
    "labels.json", "recipe.yaml", "README.md", "LICENSE", "NOTICE", "report.html", "report.json",
}  # fmt: skip


def test_the_bundle_holds_every_promised_file_and_its_hashes(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert set(bundle.files) >= EXPECTED_FILES
    assert {"recipe_hash", "data_fingerprint", "seed", "packages", "cpu", "git_commit", "batch_invariant"} <= set(
        bundle.manifest
    )


def test_the_report_has_its_stable_keys(tiny_bundle: Path) -> None:
    data = Report.open(tiny_bundle).data
    assert set(data["metrics"]["validation"]) == {"torch", "onnx", "int8"}
    assert {"size_bytes", "latency_ms", "throughput", "agreement", "max_abs_diff"} <= set(data["export"]["onnx"])
    assert {"accuracy", "f1_macro", "per_class", "confusion"} <= set(data["metrics"]["test"])
    assert data["license"]["components"][1]["license"] == "cc0-1.0"
    assert {"audit", "training", "export", "total"} <= set(data["timings_s"])
    assert data["baselines"]["majority"]["accuracy"] == pytest.approx(1 / 3, abs=0.05)


def test_training_learns_what_the_labels_follow_from(tiny_bundle: Path) -> None:
    assert Report.open(tiny_bundle).test > 0.9


def test_the_torch_form_loads_with_auto_classes_and_agrees_with_the_served_fp32(tiny_bundle: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = ["we saw the ship near a crane", "butter and onion", "x"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_bundle / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_bundle / "model").eval()
    assert model.config.id2label == {0: "harbour", 1: "kitchen", 2: "orchard"}
    with torch.no_grad():
        wanted = model(
            **tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="pt")
        ).logits.numpy()
    np.testing.assert_allclose(Predictor(tiny_bundle, which="onnx").logits(texts), wanted, atol=1e-4)


def test_prediction_tokens_equal_the_saved_tokenizers_token_by_token(tiny_bundle: Path) -> None:
    from transformers import AutoTokenizer

    from finetune.preprocess import TextEncoder

    texts = ["", "ship", "the old quay " * 30, "Crème brûlée 🍮 number 7", "tide\tanchor\n\nbuoy"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_bundle / "model")
    encoder = TextEncoder(tiny_bundle / "tokenizer.json", Bundle.open(tiny_bundle).preprocess)
    wanted = tokenizer(texts, padding=True, truncation=True, max_length=24, return_tensors="np")
    for name, array in encoder(texts).items():
        np.testing.assert_array_equal(array, wanted[name])


def test_every_form_predicts_and_probabilities_are_calibrated_by_the_recorded_temperature(tiny_bundle: Path) -> None:
    predictor = Predictor(tiny_bundle)
    answer = predictor.predict("the ship and the buoy near the quay")[0]
    assert answer.label == "harbour"
    logits = predictor.logits(["the ship and the buoy near the quay"])[0].astype(float)
    scaled = np.exp(logits / json.loads((tiny_bundle / "preprocess.json").read_text())["temperature"])
    assert answer.score == pytest.approx(float((scaled / scaled.sum()).max()))


def test_the_card_is_valid_and_names_the_measured_result(tiny_bundle: Path) -> None:
    card = (tiny_bundle / "README.md").read_text("utf-8")
    assert validate_card(card) == []
    assert "model-index" in card


def test_each_phase_proves_what_moved(tiny_bundle: Path) -> None:
    phases = Report.open(tiny_bundle).data["transfer"]["phases"]
    assert [phase["check"]["moved"] for phase in phases] == [
        ["head"], ["block 1", "head"], ["block 0", "block 1", "head"], ["embeddings", "block 0", "block 1", "head"],
    ]  # fmt: skip
    assert phases[0]["check"]["frozen"] == ["embeddings", "block 0", "block 1"]


def test_the_same_recipe_gives_the_same_weights_bit_for_bit(
    tiny_bundle: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    again = run(load_recipe(tiny_recipe, [f"output={tmp_path / 'again'}"])).bundle
    for name in ("model/model.safetensors", "onnx/model.onnx"):
        assert (again / name).read_bytes() == (tiny_bundle / name).read_bytes()


def test_another_seed_gives_other_weights(tiny_bundle: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    other = run(load_recipe(tiny_recipe, [f"output={tmp_path / 'other'}", "seed=4", *QUICK])).bundle
    assert (other / "model/model.safetensors").read_bytes() != (tiny_bundle / "model/model.safetensors").read_bytes()


QUICK = ["transfer.unfreeze=head_only", "export.int8.mode=off", "evaluation.baselines=false"]


def test_a_run_reports_its_stages_phases_and_epochs_to_callbacks(tiny_recipe: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    run(load_recipe(tiny_recipe, [f"output={tmp_path / 'b'}", *QUICK]), callbacks=[events.append])
    started = [event.stage for event in events if isinstance(event, StageStarted)]
    assert started == ["checks", "data", "model", "training", "evaluation", "export", "evaluation", "report"]
    assert len([event for event in events if isinstance(event, StageEnded)]) == len(started)
    assert len([event for event in events if isinstance(event, PhaseStarted)]) == 1
    assert len([event for event in events if isinstance(event, EpochEnded)]) == 1
    lines = (tmp_path / ".state" / "b" / "history.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["phase_name"] == "head"


def test_a_run_leaves_the_callers_generators_and_loggers_alone(tiny_recipe: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    before = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state(), logging.getLogger().level)  # type: ignore[union-attr]
    verbosity = transformers.logging.get_verbosity()
    run(load_recipe(tiny_recipe, [f"output={tmp_path / 'b'}", *QUICK]))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tobytes() == before[1]  # type: ignore[union-attr]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert logging.getLogger().level == before[3]
    assert transformers.logging.get_verbosity() == verbosity
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_prints_nothing(tiny_recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(load_recipe(tiny_recipe, [f"output={tmp_path / 'b'}", *QUICK]))
    assert capfd.readouterr() == ("", "")


def test_an_interrupted_run_resumes_to_the_same_bits(tiny_bundle: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe, [f"output={tmp_path / 'b'}"])
    asked = iter([False] * 40)
    with pytest.raises(Interrupted):
        run(recipe, stop=lambda: next(asked, True))
    assert not (tmp_path / "b").exists()
    resumed = run(recipe, resume=True).bundle
    assert (resumed / "model/model.safetensors").read_bytes() == (tiny_bundle / "model/model.safetensors").read_bytes()


def test_a_stopped_run_is_kept_until_it_is_resumed_or_overwritten(tiny_recipe: Path, tmp_path: Path) -> None:
    """And a run that shall replace a finished one can be stopped and resumed as well, with both flags."""
    recipe = load_recipe(tiny_recipe, [f"output={tmp_path / 'b'}", *QUICK])
    checkpoints = tmp_path / ".state" / "b" / "checkpoints"

    def stopped(after: int, **options: bool) -> list[Event]:
        events: list[Event] = []
        with pytest.raises(Interrupted, match="after writing a checkpoint"):
            run(recipe, **options, callbacks=[events.append], stop=lambda: steps(events) >= after)
        return events

    def steps(events: list[Event]) -> int:
        return sum(isinstance(event, StepEnded) for event in events)

    told = stopped(2, resume=True)
    assert Notice(f"nothing to resume in {tmp_path / '.state' / 'b'}, so it starts from the beginning") in told
    kept = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    with pytest.raises(BundleError, match="holds an unfinished run, which ended after 3 steps, in phase 1"):
        run(recipe)
    with pytest.raises(RecipeError, match="seed was 3 and is 4; restore it"):
        run(load_recipe(tiny_recipe, [f"output={tmp_path / 'b'}", *QUICK, "seed=4"]), resume=True)
    assert {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()} == kept
    assert not any(isinstance(event, TrainingResumed) for event in stopped(3, overwrite=True))
    events: list[Event] = []
    run(recipe, resume=True, callbacks=[events.append])
    assert [event.step for event in events if isinstance(event, TrainingResumed)] == [4]
    stopped(2, overwrite=True)
    events.clear()
    run(recipe, overwrite=True, resume=True, callbacks=[events.append])
    assert [event.step for event in events if isinstance(event, TrainingResumed)] == [3]
    run(recipe, resume=True, callbacks=[events.append])
    assert "complete already" in str(events[-1])


def test_a_run_that_fails_before_its_first_checkpoint_does_not_stand_in_the_way(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(tiny_recipe, [f"output={tmp_path / 'b'}", *QUICK])

    def fails(*_: Any, **__: Any) -> None:
        raise BundleError("not this time")

    with monkeypatch.context() as patch:
        patch.setattr("finetune.pipeline.fit", fails)
        with pytest.raises(BundleError, match="not this time"):
            run(recipe)
    assert (tmp_path / ".state" / "b").is_dir()
    run(recipe)


def test_resuming_a_finished_run_returns_its_result(tiny_bundle: Path, tiny_recipe: Path) -> None:
    manifest = (tiny_bundle / "manifest.json").stat().st_mtime_ns
    events: list[Event] = []
    report = run(load_recipe(tiny_recipe, [f"output={tiny_bundle}"]), resume=True, callbacks=[events.append])
    assert events == [Notice(f"{tiny_bundle}: this run was complete already, so nothing was done")]
    assert report.bundle == tiny_bundle
    assert (tiny_bundle / "manifest.json").stat().st_mtime_ns == manifest


def test_a_bundle_is_not_replaced_unasked(tiny_bundle: Path, tiny_recipe: Path) -> None:
    with pytest.raises(BundleError, match="already exists; pass --overwrite"):
        run(load_recipe(tiny_recipe, [f"output={tiny_bundle}"]))


def test_a_failed_gate_leaves_no_bundle_but_keeps_the_training(tiny_recipe: Path, tmp_path: Path) -> None:
    overrides = [f"output={tmp_path / 'b'}", *QUICK]
    with pytest.raises(GateError, match="fp32 ONNX"):
        run(load_recipe(tiny_recipe, [*overrides, "export.tolerance=1e-30"]))
    assert not (tmp_path / "b").exists()
    events: list[Event] = []
    run(load_recipe(tiny_recipe, overrides), resume=True, callbacks=[events.append])
    assert (tmp_path / "b" / "manifest.json").exists()
    assert not any(isinstance(event, EpochEnded) for event in events), "the finished training was done again"


def test_a_licence_that_forbids_the_use_stops_before_training(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        tiny_recipe, [f"output={tmp_path / 'b'}", "license.use=commercial", "license.data.id=cc-by-nc-4.0"]
    )
    events: list[Event] = []
    with pytest.raises(LicenseError, match="commercial use is not allowed"):
        run(recipe, callbacks=[events.append])
    assert [event.stage for event in events if isinstance(event, StageStarted)] == ["checks"]


def test_a_killed_report_stage_leaves_no_half_bundle(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import finetune.delivery as delivery

    def full(*_: Any, **__: Any) -> None:
        raise BundleError("the disk is full")

    monkeypatch.setattr(delivery.assembly, "finish_bundle", full)
    with pytest.raises(BundleError, match="disk is full"):
        run(load_recipe(tiny_recipe, [f"output={tmp_path / 'b'}", *QUICK]))
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("kind", ["distilbert"])
def test_other_encoders_run_too(kind: str, tiny_recipe: Path, tmp_path: Path) -> None:
    from tiny_project import write_backbone

    backbone = write_backbone(tmp_path / kind, kind)
    overrides = [f"backbone.name={backbone}", f"output={tmp_path / 'b'}", "export.int8.mode=off"]
    report = run(load_recipe(tiny_recipe, overrides))
    assert report.data["backbone"]["architecture"] == "DistilBertForSequenceClassification"
    assert [group["name"] for group in report.data["transfer"]["groups"]] == [
        "embeddings",
        "block 0",
        "block 1",
        "head",
    ]


@pytest.mark.timeout(300)
def test_two_processes_make_one_bundle(tiny_recipe: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", "-m", "finetune", "run", str(tiny_recipe),
        f"output={tmp_path / 'b'}", "transfer.epochs=1", "export.int8.mode=off", "evaluation.baselines=false",
    ]  # fmt: skip
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=alone, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "b")]
    report = Report.open(tmp_path / "b")
    assert report.data["environment"]["processes"] == 2
    assert [phase["check"]["moved"][0] for phase in report.data["transfer"]["phases"]] == [
        "head",
        "block 1",
        "block 0",
        "embeddings",
    ]


def test_tensorboard_events_are_written_on_request(tiny_recipe: Path, tmp_path: Path) -> None:
    run(load_recipe(tiny_recipe, [f"output={tmp_path / 'b'}", *QUICK, "train.tensorboard=true"]))
    assert list((tmp_path / ".state" / "b" / "events").glob("events.out.tfevents.*"))
