from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "datasets", "numpy", "pyarrow", "onnxruntime", "sklearn")


def test_the_recipe_layer_imports_no_heavy_library() -> None:
    code = f"import sys, finetune.recipe; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
