import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoders import Setting, judge

from finetune.errors import ExportError, GateError
from finetune.export import EXPORTS, ExportPlan, ExportRequest, ExportResult, choose, dynamic, export_all, stages
from finetune.export.choose import Form, Limits, Trial, Yardstick, open_form
from finetune.export.dynamic import most_sensitive_layer
from finetune.export.parity import predict_rows
from finetune.export.quantize import candidates
from finetune.export.verdict import decide, pick
from finetune.hardware import cpu, int8_target
from finetune.runtime import open_session, run_logits

NATIVE = int8_target(cpu().flags)
FOREIGN = "arm64" if NATIVE != "arm64" else "vnni"


@pytest.fixture
def ready(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Exporting is replaced by a copy of the exported file, and measuring speed by two calls, to save time."""

    def copy(model: object, examples: object, path: Path, *, axes: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(setting.onnx, path)

    monkeypatch.setattr(stages, "export_onnx", copy)
    set_speeds(monkeypatch, onnx=2.0, default=1.0)
    return setting


def set_speeds(monkeypatch: pytest.MonkeyPatch, default: float, **latency: float) -> None:
    def speeds(_: object, forms: dict[str, Any], seconds: float = 1.0) -> dict[str, Any]:
        single = {name: latency.get(name, default) for name in forms}
        return {
            n: {"latency_ms": {"1": ms, "32": 32 * ms}, "throughput": {"1": 1000 / ms, "32": 1000 / ms}}
            for n, ms in single.items()
        }

    monkeypatch.setattr(Yardstick, "speed", speeds)


def run(setting: Setting, folder: Path, **changes: Any) -> ExportResult:
    """Export with `changes` to the plan, to the judge (score, higher_is_better) and to the request."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"int8_max_drop": 0.2, "int8_min_agreement": 0.7}
    plan |= {key: changes.pop(key) for key in list(changes) if key in ExportPlan.__dataclass_fields__}
    values: dict[str, Any] = {
        "module": setting.model,
        "folder": folder,
        "rows": setting.rows,
        "labels": setting.labels,
        "encoder": setting.encoder,
        "plan": ExportPlan(**plan),  # type: ignore[arg-type]
        "judge": judge(**{key: changes.pop(key) for key in ("score", "higher_is_better") if key in changes}),
        "answers": setting.logits,
        "model_folder": setting.model_folder,
        "progress": lambda line: None,
    }
    return export_all(ExportRequest(**values | changes), EXPORTS["text"])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_whole_export_measures_every_stage_and_serves_what_it_says(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    speed = Yardstick.speed
    monkeypatch.setattr(Yardstick, "speed", lambda self, forms: speed(self, forms, seconds=0.05))
    result = run(setting, tmp_path, progress=lines.append)
    report: Any = result.report
    json.dumps(report, allow_nan=False)
    assert files(tmp_path) == ["onnx/model.int8.onnx", "onnx/model.onnx"]
    for form, path in {"onnx": "onnx/model.onnx", "int8": "onnx/model.int8.onnx"}.items():
        section = report[form]
        assert section["path"] == path
        assert section["size_bytes"] == (tmp_path / path).stat().st_size
        assert {"latency_ms", "throughput", "agreement", "max_abs_diff", "batch_invariant"} <= set(section)
    assert report["onnx"]["max_abs_diff"] < 1e-4 > report["onnx"]["shapes_max_abs_diff"]
    assert report["onnx"]["batch_invariant"] is True
    assert report["int8"]["batch_invariant"] is False
    assert report["torch"]["size_bytes"] == (setting.model_folder / "model.safetensors").stat().st_size
    assert report["cpu_target"] == NATIVE
    assert report["measured_on"] == cpu().model
    assert report["served"] == ("int8" if report["int8"]["passed"] else "onnx")
    assert [row["name"] for row in report["candidates"]] == [c.name for c in candidates(NATIVE)]
    assert np.abs(result.logits["onnx"] - setting.logits).max() == pytest.approx(report["onnx"]["max_abs_diff"])
    assert len(lines) >= 4


def test_int8_is_evaluated_row_by_row_as_it_is_served(ready: Setting, tmp_path: Path) -> None:
    result = run(ready, tmp_path)
    session = open_session(tmp_path / "onnx/model.int8.onnx")
    alone = [run_logits(session, ready.encoder.collate([row])) for row in ready.rows]
    assert np.array_equal(result.logits["int8"], np.concatenate(alone))
    together = predict_rows(lambda batch: run_logits(session, batch), ready.encoder, ready.rows, 32)
    assert not np.allclose(together, result.logits["int8"], atol=1e-4)


def test_fp32_that_differs_from_torch_is_refused(
    ready: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "run_logits", lambda session, batch: run_logits(session, batch) + np.float32(0.01))
    with pytest.raises(GateError, match=r"differs from torch by at most 0\.01 \(limit 0\.0001\)"):
        run(ready, tmp_path)


def test_logits_of_lower_precision_do_not_fail_parity(ready: Setting, tmp_path: Path) -> None:
    rounded = ready.logits.round(2)
    assert np.abs(rounded - ready.logits).max() > 1e-4
    report: Any = run(ready, tmp_path, answers=rounded).report
    assert report["onnx"]["max_abs_diff"] < 1e-4


def test_every_form_is_scored_with_the_weights_of_the_rows(ready: Setting, tmp_path: Path) -> None:
    weights, seen = np.arange(1.0, len(ready.labels) + 1), []

    def score(logits: np.ndarray, labels: np.ndarray, counted: np.ndarray | None) -> float:
        seen.append(counted)
        return float(np.average(logits.argmax(axis=1) == labels, weights=counted))

    report: Any = run(ready, tmp_path, score=score, weights=weights).report
    assert len(seen) >= 2 + len(report["candidates"])
    assert all(counted is weights for counted in seen)


def test_fp32_that_scores_worse_than_torch_is_refused(ready: Setting, tmp_path: Path) -> None:
    def unlucky(logits: np.ndarray, labels: np.ndarray, weights: None) -> float:
        return 1.0 if logits is ready.logits else 0.9

    with pytest.raises(GateError, match=r"accuracy falls by 0\.1000 from torch to fp32 ONNX"):
        run(ready, tmp_path, score=unlucky)


def test_a_metric_that_falls_when_better_is_gated_the_right_way(ready: Setting, tmp_path: Path) -> None:
    def loss(logits: np.ndarray, labels: np.ndarray, weights: None) -> float:
        return 1.0 if logits is ready.logits else 0.9

    run(ready, tmp_path / "better", score=loss, higher_is_better=False)
    with pytest.raises(GateError, match="worsens by"):
        run(
            ready,
            tmp_path / "worse",
            score=lambda logits, labels, weights: -loss(logits, labels, weights),
            higher_is_better=False,
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_export_error(
    ready: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    spoilt = ready.logits.copy()
    spoilt[3, 1] = value
    with pytest.raises(ExportError, match="trained model gives logits that are not finite"):
        run(ready, tmp_path / "torch", answers=spoilt)
    monkeypatch.setattr(choose, "run_logits", lambda session, batch: run_logits(session, batch) * np.float32(value))
    with pytest.raises(ExportError, match="fp32 ONNX gives logits that are not finite"):
        run(ready, tmp_path / "onnx")


def test_int8_that_is_not_faster_is_kept_but_not_served(
    ready: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speeds(monkeypatch, onnx=1.0, default=1.0)
    result = run(ready, tmp_path)
    report: Any = result.report
    assert files(tmp_path) == ["onnx/model.int8.onnx", "onnx/model.onnx"]
    assert report["served"] == "onnx"
    assert report["int8"]["passed"] is False
    assert "only 1.00 times as fast as fp32" in report["served_reason"]
    assert [gate["passed"] for gate in report["gates"] if gate["name"] == "int8_speed"] == [False]
    assert not any(row["passed"] for row in report["candidates"])
    assert set(result.logits) == {"onnx", "int8"}


def test_for_another_processor_speed_does_not_decide(
    ready: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speeds(monkeypatch, onnx=1.0, default=50.0)
    report: Any = run(ready, tmp_path, int8_cpu=FOREIGN).report
    assert report["cpu_target"] == FOREIGN
    assert report["served"] == "int8"
    assert f"chosen for {FOREIGN}, which is not this machine's processor" in report["served_reason"]
    assert "int8_speed" not in [gate["name"] for gate in report["gates"]]


def test_when_none_passes_gentler_candidates_are_tried_and_fp32_is_served(ready: Setting, tmp_path: Path) -> None:
    result = run(ready, tmp_path, int8_max_drop=-2.0)  # nothing can gain two points of accuracy
    report: Any = result.report
    plain = [candidate.name for candidate in candidates(NATIVE)]
    names = [row["name"] for row in report["candidates"]]
    assert names[:2] == plain
    assert names[2] == f"{plain[0]}, head fp32"
    assert names[3] in {f"{plain[0]}, bert.encoder.layer.{i} fp32" for i in (0, 1)} | {
        f"{plain[0]}, {name} fp32" for name in ("bert.pooler.dense", "classifier")
    }
    assert report["served"] == "onnx"
    assert report["int8"] is None
    assert set(result.logits) == {"onnx"}
    assert files(tmp_path) == ["onnx/model.onnx"]
    assert "no int8 candidate passes the quality gates" in report["served_reason"]
    assert [gate["passed"] for gate in report["gates"] if gate["name"] == "int8_metric_drop"] == [False]


def test_agreement_is_gated_apart_from_the_metric(ready: Setting, tmp_path: Path) -> None:
    report: Any = run(ready, tmp_path, score=lambda logits, labels, weights: 1.0, int8_min_agreement=1.01).report
    assert report["int8"] is None
    assert all("agrees with fp32 on" in row["reason"] for row in report["candidates"])


def test_a_candidate_that_cannot_be_loaded_is_reported_and_another_serves(
    ready: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dynamic.quantize_dynamic_int8

    def first_is_broken(fp32: Path, out: Path, candidate: Any) -> None:
        real(fp32, out, candidate)
        if candidate == candidates(NATIVE)[0]:
            out.write_bytes(b"no model")

    monkeypatch.setattr(dynamic, "quantize_dynamic_int8", first_is_broken)
    report: Any = run(ready, tmp_path).report
    broken, other = report["candidates"]
    assert broken["passed"] is False
    assert "cannot open it" in broken["reason"]
    assert broken["latency_ms"] is broken["metric"] is broken["size_bytes"] is None
    assert report["int8"]["name"] == other["name"]


def test_int8_without_any_buildable_candidate_serves_fp32_with_the_reasons(
    ready: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fp32: Path, out: Path, candidate: Any) -> None:
        raise ExportError("an operator is unknown")

    monkeypatch.setattr(dynamic, "quantize_dynamic_int8", refuse)
    report: Any = run(ready, tmp_path).report
    assert report["int8"] is None
    assert "no int8 candidate could be built" in report["served_reason"]
    assert "an operator is unknown" in report["served_reason"]


def test_int8_off_builds_none_and_says_so(ready: Setting, tmp_path: Path) -> None:
    report: Any = run(ready, tmp_path, int8_mode="off").report
    assert report["candidates"] == []
    assert report["int8"] is None
    assert "export.int8.mode is off" in report["served_reason"]
    assert files(tmp_path) == ["onnx/model.onnx"]


def test_rows_and_logits_must_match(ready: Setting, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="60 rows, 60 labels and 59 logits"):
        run(ready, tmp_path, answers=ready.logits[:-1])


def test_missing_bitsandbytes_is_said_before_anything_is_built(
    ready: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"finetune-recipes\[bitsandbytes\]"):
        run(ready, tmp_path, bitsandbytes=True)
    assert files(tmp_path) == []


def form(name: str, size: int) -> Form:
    return Form(name, Path(name), lambda batch: np.zeros((1, 2), np.float32), False, np.zeros((4, 2), np.float32), size)


def trial(name: str, *, size: int = 100, drop: float = 0.0, agreement: float = 1.0, reason: str = "") -> Trial:
    return Trial(name, form(name, size), drop, agreement, reason)


def test_pick_takes_the_fastest_that_passes() -> None:
    trials = [trial("slow"), trial("fast", drop=0.009), trial("wrong", reason="it agrees too little")]
    chosen = pick(trials, {"slow": 2.0, "fast": 1.0, "wrong": 0.1})
    assert chosen is trials[1]


def test_pick_takes_the_smaller_of_equally_fast_ones() -> None:
    trials = [trial("large", size=200), trial("small", size=100), trial("slow", size=10)]
    assert pick(trials, {"large": 1.0, "small": 1.02, "slow": 1.5}) is trials[1]


def test_pick_without_speed_goes_by_quality_then_size() -> None:
    trials = [trial("worse", drop=0.01, size=1), trial("large", size=200), trial("small", size=100)]
    assert pick(trials, None) is trials[2]
    assert pick([trial("wrong", reason="too bad"), Trial("broken", None, 0.0, 1.0, "no file")], None) is None


def test_decision_names_ratio_and_size() -> None:
    speeds = {name: {"latency_ms": {"1": ms}} for name, ms in {"onnx": 3.0, "a": 2.0}.items()}
    limits = Limits(0.01, 0.97)
    choice = decide([trial("a", size=25)], form("onnx", 100), speeds, limits, judge(), target="avx2", native="avx2")
    assert choice.served
    assert choice.reason == (
        "int8 (a) is served: it passes the quality gates, is 1.50 times as fast as fp32 ONNX at batch 1, and has 25% of the size."
    )


def test_most_sensitive_layer_is_the_one_that_moves_the_logits_most(
    ready: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yardstick = Yardstick(ready.encoder, ready.rows, ready.labels, judge(), EXPORTS["text"])
    fp32 = open_form("fp32", ready.onnx, yardstick)
    real = dynamic.quantize_dynamic_int8

    def second_block_is_bad(fp32_path: Path, out: Path, candidate: Any) -> None:
        real(fp32_path, out, candidate)
        if "bert.encoder.layer.1" not in candidate.spared:
            import onnx

            proto = onnx.load(str(out))
            scale = next(t for t in proto.graph.initializer if t.name.endswith("_scale"))
            scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * 9, scale.name))
            onnx.save(proto, str(out))

    monkeypatch.setattr(dynamic, "quantize_dynamic_int8", second_block_is_bad)
    assert most_sensitive_layer(fp32, candidates("avx2")[0], tmp_path, yardstick, rows=4) == "bert.encoder.layer.1"
