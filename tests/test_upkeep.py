"""Checks of a finished bundle that the command line's tests do not reach."""

from __future__ import annotations

from pathlib import Path

import pytest

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
