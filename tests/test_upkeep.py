"""Checks of a finished bundle that the command line's tests do not reach."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_language import make_documents, shared_bundle

from finetune.bundle import seal
from finetune.disk import read_json
from finetune.errors import BundleError
from finetune.upkeep import check_bundle, export_again


def test_exporting_again_is_refused_when_the_data_have_changed(tmp_path: Path, tiny_backbone: Path) -> None:
    from tiny_project import make_rows, write_csv, write_recipe

    from finetune import load_recipe, run

    data = write_csv(tmp_path / "rows.csv", make_rows(120))
    recipe = write_recipe(tmp_path, tiny_backbone, data)
    quick = ["transfer.unfreeze=head_only", "export.int8.mode=off", "evaluation.baselines=false", "export.max_drop=0.9"]
    bundle = run(load_recipe(recipe, [f"output={tmp_path / 'b'}", *quick])).bundle
    write_csv(data, make_rows(123, seed=1))
    with pytest.raises(BundleError, match="data have changed"):
        export_again(bundle, [])
    assert all(finding.passed for finding in check_bundle(bundle))


def test_a_language_model_is_compared_with_torch_at_once_and_token_by_token(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers

    from finetune import runtime
    from finetune.modality import MODALITIES
    from finetune.model.quiet import quiet_transformers

    probes = SimpleNamespace(probes=lambda bundle: ["a", *make_documents(3), "longer than the context " * 50])
    monkeypatch.setitem(MODALITIES, "language", probes)
    path = shared_bundle(tmp_path_factory.getbasetemp())

    def parity(bundle: Path) -> tuple[bool | None, str]:
        (found,) = [finding for finding in check_bundle(bundle) if finding.name == "parity"]
        return found.passed, found.sentence

    passed, sentence = parity(path)
    assert passed, sentence
    assert sentence.endswith("on 5 probe inputs (limit 0.0001)")
    with monkeypatch.context() as patch:  # a step that forgets where it is
        step = runtime.CachedDecoder.step
        patch.setattr(
            runtime.CachedDecoder,
            "step",
            lambda self, ids, cache: step(self, ids, runtime.replace(cache, positions=cache.positions - 1)),
        )
        assert not parity(path)[0]
    other = shutil.copytree(path, tmp_path / "other")
    with quiet_transformers():
        model = transformers.GPT2LMHeadModel.from_pretrained(other / "model", local_files_only=True)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[0] += 1  # the final norm would take the same away from all
    model.save_pretrained(other / "model")
    manifest = read_json(other / "manifest.json")
    assert isinstance(manifest, dict)
    seal(other, {key: value for key, value in manifest.items() if key not in ("format", "files")})
    assert not parity(other)[0]
