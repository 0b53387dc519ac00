import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_convnets import CLASSES, ENCODER, SIZE, Exported, pictures, timm_net, transformers_net
from tiny_encoders import judge

from finetune.errors import ExportError, GateError
from finetune.export import (
    EXPORTS,
    ExportKind,
    ExportPlan,
    ExportRequest,
    ExportResult,
    check_bitsandbytes,
    export_all,
    image,
    stages,
)
from finetune.export.choose import Yardstick
from finetune.export.convnet import is_convnet
from finetune.export.judge import Judge, judge_by
from finetune.export.onnx import export_onnx
from finetune.export.parity import Batch, Logits, check_shapes
from finetune.export.stages import torch_predict
from finetune.preprocess import ImageEncoder, ImageInput
from finetune.runtime import open_session, run_logits

KIND = EXPORTS["image"]


@pytest.fixture
def timed() -> list[list[str]]:
    """Names of the forms whose speed was measured, one list per measurement."""
    return []


@pytest.fixture
def ready(convnet: Exported, timed: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> Exported:
    """Exporting is replaced by a copy of the exported file, and measuring speed by fixed figures, to save time."""

    def copy(model: object, examples: object, path: Path, *, axes: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(convnet.path.read_bytes())

    def speeds(_: object, forms: dict[str, Any]) -> dict[str, Any]:
        timed.append(list(forms))
        single = {name: 2.0 if name == "onnx" else 1.0 for name in forms}
        return {n: {"latency_ms": {"1": ms, "32": ms}, "throughput": {"1": ms, "32": ms}} for n, ms in single.items()}

    monkeypatch.setattr(stages, "export_onnx", copy)
    monkeypatch.setattr(Yardstick, "speed", speeds)
    return convnet


def run(convnet: Exported, folder: Path, *, kind: ExportKind = KIND, **changes: Any) -> ExportResult:
    """Export with `changes` to the plan and to the request."""
    plan: dict[str, Any] = {"int8_max_drop": 0.2, "int8_min_agreement": 0.7}
    plan |= {key: changes.pop(key) for key in list(changes) if key in ExportPlan.__dataclass_fields__}
    values: dict[str, Any] = {
        "module": convnet.model,
        "folder": folder,
        "rows": convnet.rows,
        "labels": convnet.labels,
        "encoder": ENCODER,
        "plan": ExportPlan(**plan),
        "judge": judge(),
        "answers": convnet.logits,
        "model_folder": folder,
        "calibration": ENCODER.encode(pictures(120, seed=1)),
        "progress": lambda line: None,
    }
    return export_all(ExportRequest(**values | changes), kind)


def test_convnet_is_exported_calibrated_and_served_from_its_int8_file(
    ready: Exported, tmp_path: Path, timed: list[list[str]]
) -> None:
    result = run(ready, tmp_path, int8_cpu="native", calibration=ENCODER.encode(pictures(110, seed=1)))
    report: Any = result.report
    json.dumps(report, allow_nan=False)
    assert report["onnx"]["max_abs_diff"] < 1e-4 > report["onnx"]["shapes_max_abs_diff"]
    assert report["onnx"]["batch_invariant"] is report["int8"]["batch_invariant"] is True
    assert report["served"] == "int8"
    chosen = next(row for row in report["candidates"] if row["name"] == report["int8"]["name"])
    assert report["int8"]["calibration"] == {"rows": 110, "method": chosen["method"]}
    best = max(row["agreement"] for row in report["candidates"] if row["method"] == chosen["method"])
    assert report["int8"]["agreement"] <= best
    session = open_session(tmp_path / "onnx/model.int8.onnx")
    assert np.array_equal(run_logits(session, ENCODER.collate(ready.rows[:32])), result.logits["int8"][:32])


def test_every_calibration_method_is_tried_and_equal_kernels_are_timed_once(
    ready: Exported, tmp_path: Path, timed: list[list[str]]
) -> None:
    report: Any = run(ready, tmp_path, int8_cpu="avx2").report
    methods = [row["method"] for row in report["candidates"]]
    assert methods[:4] == ["percentile 99.99", "least squares", "entropy", "min-max"]
    assert len(methods) == 5
    assert len(timed[0]) == 2 + 2
    assert all(row["latency_ms"] is not None for row in report["candidates"])
    agreed = {row["method"]: row["agreement"] for row in report["candidates"][:4]}
    assert agreed[methods[4]] == max(agreed.values())


def test_dynamic_int8_is_never_offered_for_convnets(ready: Exported, tmp_path: Path) -> None:
    report: Any = run(ready, tmp_path, int8_min_agreement=1.01).report  # everything is tried, and nothing passes
    assert all(row["method"] for row in report["candidates"])
    assert report["int8"] is None
    assert report["served"] == "onnx"


def test_when_none_passes_the_most_sensitive_layers_stay_fp32(ready: Exported, tmp_path: Path) -> None:
    report: Any = run(ready, tmp_path, int8_cpu="avx2", int8_min_agreement=1.01).report
    names = [row["name"] for row in report["candidates"]]
    spared = [name.rsplit(", ", 1)[1] for name in names[5:]]
    assert len(spared) == 2  # of four layers one and two are left out
    first, second = (text.removesuffix(" fp32").split(" and ") for text in spared)
    assert len(first) == 1
    assert second[:1] == first
    assert {*second} <= {"stem.1", "blocks.0", "blocks.1", "head"}
    assert "no int8 candidate passes the quality gates" in report["served_reason"]


def test_calibration_sees_every_row_that_is_given_for_it_and_no_other(
    ready: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = ENCODER.encode(pictures(100, seed=1))
    seen: list[Any] = []

    class Spy(ImageEncoder):
        def collate(self, rows: Any) -> Any:
            if len(rows) == 1:
                seen.extend(rows)
            return super().collate(rows)

    spy: Any = Spy(ENCODER.settings)
    calibrated: list[int] = []
    real = KIND.try_int8

    def note(bench: Any, target: str, encoder: Any, rows: list[ImageInput]) -> None:
        seen.clear()
        real(bench, target, encoder, rows)
        calibrated.append(len(seen))

    kind = type(KIND)(**{**{f: getattr(KIND, f) for f in KIND.__dataclass_fields__}, "try_int8": note})
    report: Any = run(ready, tmp_path, kind=kind, encoder=spy, calibration=training).report
    assert calibrated == [100]
    assert {id(row) for row in seen} == {id(row) for row in training}
    assert report["int8"]["calibration"]["rows"] == 100


@pytest.mark.parametrize("rows", [0, 99])
def test_too_few_training_images_to_calibrate_on_leave_fp32(ready: Exported, tmp_path: Path, rows: int) -> None:
    report: Any = run(ready, tmp_path, calibration=ENCODER.encode(pictures(rows, seed=1))).report
    assert report["served"] == "onnx"
    assert report["int8"] is None
    assert f"its calibration needs at least 100 training images, and there are {rows}" in report["served_reason"]


def test_images_are_decoded_once_for_all_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[object] = []

    class Counting(ImageEncoder):
        def pixels(self, item: Any) -> Any:
            decoded.append(item)
            return super().pixels(item)

    rows = pictures(3)
    kept = image.KeptPixels(Counting(ENCODER.settings))
    for _ in range(3):
        assert np.array_equal(kept.collate(rows)["pixel_values"], ENCODER.collate(rows)["pixel_values"])
    assert len(decoded) == 3
    monkeypatch.setattr(image, "KEPT_BYTES", 2 * SIZE * SIZE * 3)
    decoded.clear()
    bounded = image.KeptPixels(Counting(ENCODER.settings))
    for _ in range(3):
        assert np.array_equal(bounded.collate(rows)["pixel_values"], ENCODER.collate(rows)["pixel_values"])
    assert len(decoded) == 3 + 2


def test_shapes_are_compared_on_real_images_and_on_black_and_white() -> None:
    rows = pictures(4)
    batches = [batch["pixel_values"] for batch in image.shape_examples(ENCODER, rows)]
    assert [batch.shape for batch in batches] == [(n, 3, SIZE, SIZE) for n in (1, 2, 3, 2)]
    assert all(batch.dtype == np.float32 for batch in batches)
    assert (batches[3][0] == -1).all()
    assert (batches[3][1] == 1).all()


def test_spread_rows_are_drawn_without_repeats_as_far_as_there_are_enough() -> None:
    rows = pictures(5)
    assert len({id(row) for row in image.spread_rows(ENCODER, rows, 5)}) == 5
    assert len(image.spread_rows(ENCODER, rows, 12)) == 12
    assert [id(row) for row in image.spread_rows(ENCODER, rows, 3)] == [
        id(row) for row in image.spread_rows(ENCODER, rows, 3)
    ]


def test_row_by_row_runs_each_image_alone() -> None:
    seen: list[tuple[int, ...]] = []

    def predict(batch: Batch) -> Logits:
        seen.append(batch["pixel_values"].shape)
        return batch["pixel_values"].mean(axis=(2, 3))

    batch = ENCODER.collate(pictures(3))
    assert np.array_equal(image.row_by_row(predict)(batch), batch["pixel_values"].mean(axis=(2, 3)))
    assert seen == [(1, 3, SIZE, SIZE)] * 3


def test_timm_network_exports_with_a_dynamic_batch_and_a_fixed_size(tmp_path: Path) -> None:
    model, rows, path = timm_net("test_efficientnet"), pictures(6), tmp_path / "model.onnx"
    export_onnx(model, image.example(ENCODER, rows), path, axes=image.axes(ENCODER))
    graph = onnx.load(str(path)).graph
    (pixels,) = graph.input
    sizes = pixels.type.tensor_type.shape.dim
    assert pixels.name == "pixel_values"
    assert sizes[0].dim_param == "batch"
    assert [size.dim_value for size in sizes[1:]] == [3, SIZE, SIZE]
    assert [value.name for value in graph.output] == ["logits"]
    assert "BatchNormalization" not in {node.op_type for node in graph.node}  # folded into the convolutions
    assert any(node.name.startswith("timm_model.blocks.1.0") for node in graph.node)
    session = open_session(path)
    examples = image.shape_examples(ENCODER, rows)
    assert check_shapes(torch_predict(model), lambda batch: run_logits(session, batch), examples) < 1e-4
    assert run_logits(session, examples[2]).shape == (3, CLASSES)
    assert is_convnet(path)


def test_vision_transformer_gets_the_dynamic_candidates_of_an_encoder(tmp_path: Path) -> None:
    model, rows = transformers_net("vit"), ENCODER.encode(pictures(12))
    logits = torch_predict(model)(ENCODER.collate(rows))
    exported = Exported(model, tmp_path, {}, rows, logits, logits.argmax(axis=1))
    lines: list[str] = []
    report: Any = run(
        exported,
        tmp_path,
        calibration=(),
        int8_cpu="avx2",
        int8_max_drop=1.0,
        int8_min_agreement=0.0,
        progress=lines.append,
    ).report
    assert not is_convnet(tmp_path / "onnx/model.onnx")
    assert [row["name"] for row in report["candidates"]] == ["u8s8 per-channel reduce-range", "u8u8 per-channel"]
    assert "calibration" not in report["int8"]
    assert report["int8"]["batch_invariant"] is False


def test_regression_is_gated_in_units_of_its_labels(ready: Exported, tmp_path: Path) -> None:
    """Logits in the labels' unit, thousands here, differ by more than 1e-4 through rounding alone."""
    labels = (1e6 * ready.logits[:, 0]).astype(np.float32)
    regression = judge_by("regression", "mae", labels)
    assert regression.unit == pytest.approx(labels.std(), rel=1e-5)
    rounded = ready.logits + np.float32(1e-3)  # is not within 1e-4, and the model itself decides
    unit = Judge("accuracy", judge().score, True, judge().agreement, judge().drop, unit=1e-3)
    with pytest.raises(GateError, match="of the labels' standard deviation"):
        run(ready, tmp_path, judge=unit, tolerance=1e-9, answers=rounded)
    run(
        ready,
        tmp_path,
        judge=Judge("accuracy", judge().score, True, judge().agreement, judge().drop, unit=1e3),
        tolerance=1e-7,
    )


def test_judges_measure_by_their_targets() -> None:
    labels = np.array([0.0, 10.0], np.float32)
    mae = judge_by("regression", "mae", labels)
    assert not mae.higher_is_better
    assert mae.change(mae.drop(1.0, 2.0, labels)) == "worsens by 0.2000"
    assert mae.change(mae.drop(2.0, 1.0, labels)) == "improves by 0.2000"
    assert mae.change(0.0) == "does not change"
    reference = np.array([[0.0], [10.0]], np.float32)
    assert mae.compare(reference, reference + np.float32(3), labels)["agreement"] == 0.0
    assert mae.compare(reference, reference + np.float32(0.1), labels)["agreement"] == 1.0
    single = judge_by("single_label", "accuracy", np.array([0, 1]))
    assert single.change(0.01) == "falls by 0.0100"
    assert single.unit == 1
    with pytest.raises(ExportError, match="'multi'; did you mean 'multi_label'"):
        judge_by("multi", "f1_micro", labels)


def test_bitsandbytes_is_refused_for_images_before_anything_is_loaded() -> None:
    with pytest.raises(ExportError, match=r"an image network has few of them; set export\.bitsandbytes to false"):
        check_bitsandbytes("image")
