import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_encoders import MAX_LENGTH, Setting, build
from torch import nn

from finetune.errors import ExportError
from finetune.export import onnx as export_module
from finetune.export.onnx import OPSET, evaluating_on_cpu, export_onnx
from finetune.export.parity import check_shapes
from finetune.export.stages import torch_predict
from finetune.export.text import shape_examples
from finetune.preprocess import Encoded, TextEncoder
from finetune.runtime import open_session, run_logits

AXES = {0: ("batch", 65536), 1: ("length", MAX_LENGTH)}


def worst_difference(model: nn.Module, path: Path, encoder: TextEncoder, rows: list[Encoded]) -> float:
    session = open_session(path)
    shapes = [(1, 1), (3, 5), (2, MAX_LENGTH)]
    plain = [
        {"input_ids": np.full(shape, 7, dtype=np.int64), "attention_mask": np.ones(shape, dtype=np.int64)}
        for shape in shapes
    ]
    examples = [*plain, *shape_examples(encoder, rows)]
    with evaluating_on_cpu(model):
        return check_shapes(torch_predict(model), lambda batch: run_logits(session, batch), examples)


def test_bert_file_equals_torch_at_every_shape(setting: Setting) -> None:
    assert worst_difference(setting.model, setting.onnx, setting.encoder, setting.rows) < 1e-5


@pytest.mark.parametrize("architecture", ["distilbert", "roberta", "modernbert"])
def test_other_encoders_export_and_equal_torch_at_every_shape(
    architecture: str, encoder: TextEncoder, rows: list[Encoded], tmp_path: Path
) -> None:
    model = build(architecture)
    export_onnx(model, encoder.collate(rows[:2]), tmp_path / "model.onnx", axes=AXES)
    assert worst_difference(model, tmp_path / "model.onnx", encoder, rows) < 1e-5


def test_export_is_silent_and_leaves_the_model_as_it_was(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = build("bert")
    model.train()
    model.bert.embeddings.eval()  # as a frozen layer group is
    modes = {name: module.training for name, module in model.named_modules()}
    attention = model.config._attn_implementation
    level = logging.getLogger("torch.onnx").level
    with caplog.at_level(logging.WARNING):
        export_onnx(model, setting.encoder.collate(setting.rows[:2]), tmp_path / "m.onnx", axes=AXES)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.config._attn_implementation == attention
    assert logging.getLogger("torch.onnx").level == level


def test_signature_has_named_inputs_with_shared_dynamic_axes_and_one_output(setting: Setting) -> None:
    graph = onnx.load(str(setting.onnx)).graph
    shapes = {v.name: [d.dim_param for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert shapes == {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]}
    assert [value.name for value in graph.output] == ["logits"]
    assert [entry.version for entry in onnx.load(str(setting.onnx)).opset_import if entry.domain == ""] == [OPSET]


def test_file_holds_no_path_of_the_machine_that_made_it(setting: Setting) -> None:
    content = setting.onnx.read_bytes()
    assert b".py" not in content
    assert b"site-packages" not in content


def test_nodes_are_named_after_their_modules(setting: Setting) -> None:
    names = [node.name for node in onnx.load(str(setting.onnx)).graph.node]
    assert any(name.startswith("bert.encoder.layer.1.output.dense/MatMul") for name in names)
    assert len(set(names)) == len(names)


def test_weights_lie_in_one_file_below_the_limit_and_beside_it_above(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [path.name for path in setting.onnx.parent.iterdir()] == ["model.onnx"]
    monkeypatch.setattr(export_module, "ONE_FILE_BYTES", 1000)
    path = tmp_path / "big" / "model.onnx"
    export_module.save_onnx(onnx.load(str(setting.onnx)), path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    batch = setting.encoder.collate(setting.rows[:3])
    assert np.array_equal(run_logits(open_session(path), batch), run_logits(open_session(setting.onnx), batch))


def test_model_that_cannot_be_traced_is_an_export_error_naming_it(setting: Setting, tmp_path: Path) -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(np.asarray(input_ids.tolist(), dtype=np.float32)) * self.weight

    with pytest.raises(ExportError, match="Untraceable cannot be exported") as caught:
        export_onnx(Untraceable(), setting.encoder.collate(setting.rows[:2]), tmp_path / "m.onnx", axes=AXES)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()


def test_single_row_as_example_is_refused(setting: Setting, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"at least \(2, 2\)"):
        export_onnx(setting.model, setting.encoder.collate(setting.rows[:1]), tmp_path / "m.onnx", axes=AXES)


def test_further_outputs_are_refused(setting: Setting, tmp_path: Path) -> None:
    model: Any = build("bert")
    model.config.output_hidden_states = True
    with pytest.raises(ExportError, match="switch hidden states"):
        export_onnx(model, setting.encoder.collate(setting.rows[:2]), tmp_path / "m.onnx", axes=AXES)
