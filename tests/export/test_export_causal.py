import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported_decoders import ExportedDecoder
from onnx import numpy_helper
from tiny_language import shared_bundle, write_language_bundle

from finetune.errors import ExportError, GateError
from finetune.export import ExportPlan, ExportRequest, ExportResult, causal, causal_trials, export_causal, judge_by
from finetune.export.causal_int8 import GENTLER, CausalCandidate, causal_candidates
from finetune.export.causal_measure import answers_of
from finetune.hardware import cpu, int8_target
from finetune.runtime import CachedDecoder, open_session

NATIVE = int8_target(cpu().flags)
FOREIGN = "arm64" if NATIVE != "arm64" else "vnni"
NAMES = [candidate.name for candidate in causal_candidates(NATIVE)]
BLOCKS, UNPACKED, DYNAMIC, FOUR = NAMES


@pytest.fixture
def ready(llama: ExportedDecoder, monkeypatch: pytest.MonkeyPatch) -> ExportedDecoder:
    """Exporting is replaced by a copy of the exported file, and measuring speed by numbers, to save time."""
    copy_in_place_of_export(monkeypatch, llama)
    monkeypatch.setattr(causal, "GREEDY_TOKENS", 6)
    set_speeds(monkeypatch, {"onnx": 2.0})
    return llama


def copy_in_place_of_export(monkeypatch: pytest.MonkeyPatch, made: ExportedDecoder) -> None:
    def copy(model: object, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made.onnx, path)

    monkeypatch.setattr(causal, "export_cached", copy)


def set_speeds(monkeypatch: pytest.MonkeyPatch, latency: dict[str, float], default: float = 1.0) -> None:
    def speeds(forms: dict[str, Any], prompt: np.ndarray) -> dict[str, Any]:
        answers = {name: latency.get(name, default) for name in forms}
        return {
            name: {
                "ms_first_token": ms,
                "tokens_per_second": 1 / ms,
                "latency_ms": {"1": ms},
                "throughput": {"1": 1 / ms},
            }
            for name, ms in answers.items()
        }

    monkeypatch.setattr(causal, "measure_generation", speeds)


def run(made: ExportedDecoder, folder: Path, **changes: Any) -> ExportResult:
    """Export with `changes` to the plan and to the request."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"int8_max_drop": 0.2, "int8_min_agreement": 0.5}
    plan |= {key: changes.pop(key) for key in list(changes) if key in ExportPlan.__dataclass_fields__}
    prompts = [row.ids[:6] for row in made.rows if len(row.ids) > 6][:2]
    values: dict[str, Any] = {
        "module": made.model,
        "folder": folder,
        "rows": made.rows,
        "labels": causal_trials.NO_LABELS,
        "encoder": None,
        "plan": ExportPlan(**plan),  # type: ignore[arg-type]
        "judge": judge_by("next_token", "perplexity", made.tallies),
        "answers": made.tallies,
        "model_folder": made.model_folder,
        "progress": lambda line: None,
    }
    return export_causal(ExportRequest(**values | changes), prompts)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def gates(report: Any) -> dict[str, bool]:
    return {gate["name"]: gate["passed"] for gate in report["gates"]}


def test_whole_export_measures_every_form_and_serves_what_it_says(
    gpt2: ExportedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    copy_in_place_of_export(monkeypatch, gpt2)
    result = run(gpt2, tmp_path, progress=lines.append, prompt_tokens=8)
    report: Any = result.report
    json.dumps(report, allow_nan=False)
    assert "onnx/model.onnx" in files(tmp_path)
    assert report["greedy"] == {"prompts": 2, "tokens": 200, "identical": True, "ties": 0}
    assert report["torch"]["size_bytes"] == (gpt2.model_folder / "model.safetensors").stat().st_size
    for form in filter(None, (report["onnx"], report["int8"])):
        assert form["size_bytes"] == (tmp_path / form["path"]).stat().st_size
        assert {"agreement", "max_abs_diff", "batch_invariant", "step_invariant"} <= set(form)
    for row in (report["torch"], report["onnx"], *report["candidates"]):
        assert row["ms_first_token"] > 0 < row["tokens_per_second"]
        assert row["latency_ms"]["1"] > row["ms_first_token"]
    assert report["onnx"]["max_abs_diff"] < 1e-4 > report["onnx"]["shapes_max_abs_diff"]
    assert report["onnx"]["agreement"] == 1.0
    assert report["onnx"]["batch_invariant"] is report["onnx"]["step_invariant"] is True
    assert report["measured_on"] == cpu().model
    assert report["served"] == ("int8" if report["int8"] and report["int8"]["passed"] else "onnx")
    assert {row["name"] for row in report["candidates"]} >= set(NAMES)
    assert np.allclose(result.logits["onnx"], gpt2.tallies, rtol=1e-5)
    assert report["prompt_tokens"] == 8
    assert len(lines) >= 8


def test_served_int8_is_the_fastest_that_passes_and_is_measured_on_all_texts(
    ready: ExportedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speeds(monkeypatch, {"onnx": 2.0, BLOCKS: 1.0, UNPACKED: 1.9, FOUR: 0.1}, default=1.5)
    result = run(ready, tmp_path)
    report: Any = result.report
    assert report["served"] == "int8"
    assert report["int8"]["name"] == BLOCKS
    assert "is 2.00 times as fast as fp32 ONNX for a prompt and its continuation" in report["served_reason"]
    found = answers_of(CachedDecoder(open_session(tmp_path / "onnx/model.int8.onnx")), ready.rows)
    assert np.array_equal(result.logits["int8"], found.tallies)
    row = next(row for row in report["candidates"] if row["name"] == BLOCKS)
    assert row["metric"] == pytest.approx(np.exp(found.tallies[:, 0].sum() / found.tallies[:, 1].sum()))
    assert gates(report) == dict.fromkeys(
        ["onnx_parity", "onnx_greedy", "onnx_metric_drop", "int8_metric_drop", "int8_agreement", "int8_speed"], True
    )


def test_four_bits_are_measured_but_never_served(
    ready: ExportedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speeds(monkeypatch, {"onnx": 2.0, FOUR: 0.1}, default=5.0)
    report: Any = run(ready, tmp_path, int8_min_agreement=0.0, int8_max_drop=1.0).report
    four = next(row for row in report["candidates"] if row["name"] == FOUR)
    assert four["passed"] is False
    assert four["reason"].startswith("it is measured for information only")
    assert four["tokens_per_second"] == 10
    assert report["served"] == "onnx"


def test_equally_fast_and_smaller_is_served_and_slower_is_kept_but_not_served(
    ready: ExportedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speeds(monkeypatch, {"onnx": 2.0, UNPACKED: 2.02}, default=3.0)
    report: Any = run(ready, tmp_path / "tie").report
    assert report["served"] == "int8"
    assert report["int8"]["name"] == UNPACKED
    set_speeds(monkeypatch, {"onnx": 2.0, UNPACKED: 2.2}, default=3.0)
    report = run(ready, tmp_path / "slow").report
    assert report["served"] == "onnx"
    assert gates(report)["int8_speed"] is False
    assert "onnx/model.int8.onnx" in files(tmp_path / "slow")
    assert not any(row["passed"] for row in report["candidates"])


def test_for_another_processor_speed_does_not_decide(
    ready: ExportedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speeds(monkeypatch, {"onnx": 1.0}, default=50.0)
    report: Any = run(ready, tmp_path, int8_cpu=FOREIGN).report
    assert report["served"] == "int8"
    assert "int8_speed" not in gates(report)


def test_when_none_passes_a_gentler_one_is_tried_and_fp32_is_served(ready: ExportedDecoder, tmp_path: Path) -> None:
    report: Any = run(ready, tmp_path, int8_min_agreement=1.01).report
    assert [row["name"] for row in report["candidates"]] == [*NAMES, GENTLER.name]
    assert all("its next token is fp32's in" in row["reason"] for row in report["candidates"])
    assert report["int8"] is None
    assert report["served"] == "onnx"
    assert files(tmp_path) == ["onnx/model.onnx"]
    assert "no int8 candidate passes the quality gates" in report["served_reason"]


def test_one_that_passes_on_the_sample_but_not_on_all_texts_gives_way_to_the_next(
    ready: ExportedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speeds(monkeypatch, {"onnx": 2.0, BLOCKS: 1.0}, default=1.5)
    real = causal_trials.answers_of

    def worse_on_all(decoder: Any, rows: Any, **more: Any) -> Any:
        found = real(decoder, rows, **more)
        if len(rows) == len(ready.rows):
            tallies = found.tallies * [1.5 if not called else 1, 1, 1]
            called.append(len(rows))
            return type(found)(tallies, found.choices, found.logits)
        return found

    called: list[int] = []
    monkeypatch.setattr(causal_trials, "answers_of", worse_on_all)
    report: Any = run(ready, tmp_path).report
    assert len(called) == 2
    first = report["candidates"][0]
    assert first["name"] == BLOCKS
    assert first["passed"] is False
    assert "the perplexity worsens by" in first["reason"]
    assert report["int8"]["name"] not in (BLOCKS, FOUR)
    assert report["served"] == "int8"


def test_a_candidate_that_cannot_be_built_is_reported_and_another_serves(
    ready: ExportedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = causal_trials.quantize_causal

    def first_is_broken(fp32: Path, out: Path, candidate: CausalCandidate) -> None:
        real(fp32, out, candidate)
        if candidate.name == BLOCKS:
            out.write_bytes(b"no model")

    monkeypatch.setattr(causal_trials, "quantize_causal", first_is_broken)
    report: Any = run(ready, tmp_path).report
    broken = report["candidates"][0]
    assert broken["name"] == BLOCKS
    assert "cannot open it" in broken["reason"]
    assert broken["metric"] is broken["ms_first_token"] is broken["size_bytes"] is None
    assert report["served"] == "int8"


def test_int8_off_builds_none_and_says_so(ready: ExportedDecoder, tmp_path: Path) -> None:
    report: Any = run(ready, tmp_path, int8_mode="off").report
    assert report["candidates"] == []
    assert report["int8"] is None
    assert "export.int8.mode is off" in report["served_reason"]


def other_weights(path: Path, scale: float) -> None:
    proto = onnx.load(str(path))
    tensor = next(each for each in proto.graph.initializer if each.name.endswith("norm.weight"))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(scale), tensor.name))
    onnx.save(proto, str(path))


def test_fp32_that_differs_from_torch_is_refused(
    ready: ExportedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = causal.export_cached

    def spoilt(model: Any, path: Path) -> None:
        real(model, path)
        other_weights(path, 1.01)

    monkeypatch.setattr(causal, "export_cached", spoilt)
    with pytest.raises(GateError, match=r"export refused: fp32 ONNX differs from torch by at most 0\.\d+"):
        run(ready, tmp_path)


def test_fp32_that_writes_another_text_is_refused(
    ready: ExportedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CachedDecoder.step

    def reversed_step(self: Any, ids: Any, cache: Any) -> Any:
        logits, after = step(self, ids, cache)
        return -logits, after

    monkeypatch.setattr(CachedDecoder, "step", reversed_step)
    with pytest.raises(
        GateError, match="fp32 ONNX writes other tokens than torch at 10 places of the 6 tokens after each of 2"
    ):
        run(ready, tmp_path)


def test_perplexity_worse_than_torchs_is_refused(ready: ExportedDecoder, tmp_path: Path) -> None:
    better = ready.tallies * [0.95, 1, 1]
    with pytest.raises(GateError, match=r"perplexity worsens by .* from torch to fp32 ONNX"):
        run(ready, tmp_path, answers=better)


def test_tallies_that_are_not_finite_or_do_not_fit_are_export_errors(ready: ExportedDecoder, tmp_path: Path) -> None:
    spoilt = ready.tallies.copy()
    spoilt[2, 0] = np.nan
    with pytest.raises(ExportError, match="trained model gives logits that are not finite"):
        run(ready, tmp_path, answers=spoilt)
    with pytest.raises(ExportError, match=r"12 texts and tallies of the shape \(11, 3\)"):
        run(ready, tmp_path, answers=ready.tallies[1:])


def test_weights_that_give_no_numbers_are_an_export_error(
    ready: ExportedDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = causal.export_cached

    def spoilt(model: Any, path: Path) -> None:
        real(model, path)
        other_weights(path, float("nan"))

    monkeypatch.setattr(causal, "export_cached", spoilt)
    with pytest.raises(ExportError, match="fp32 ONNX gives logits that are not finite on"):
        run(ready, tmp_path)


def test_bitsandbytes_is_measured_against_torch_when_asked_for(ready: ExportedDecoder, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    report: Any = run(ready, tmp_path, bitsandbytes=True, prompt_tokens=4).report
    row = report["bitsandbytes"]
    assert row["agreement"] > 0.7
    assert row["tokens_per_second"] > 0
    assert "validation tokens; a memory saving" in row["note"]


def test_exported_files_serve_from_a_bundle(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from finetune.serve.generator import Generator

    source = shared_bundle(tmp_path_factory.getbasetemp())
    made = tmp_path / "made"
    quantized = made / "model.int8.onnx"
    made.mkdir()
    causal_trials.quantize_causal(source / "onnx/model.onnx", quantized, causal_candidates(NATIVE)[0])
    bundle = write_language_bundle(
        tmp_path / "bundle", source.parent / "backbone", source / "onnx/model.onnx", int8_file=quantized,
        served="onnx/model.int8.onnx",
    )  # fmt: skip
    prompt = "The ship"
    fp32 = Generator(source).generate(prompt, max_new_tokens=6)
    int8 = Generator(bundle).generate(prompt, max_new_tokens=6)
    assert fp32.tokens
    assert len(int8.tokens) == len(fp32.tokens)
