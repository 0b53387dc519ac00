"""Fine-tune a pretrained model from one recipe, and ship it verified.

    recipe = finetune.load_recipe("recipes/text_cls.yaml", ["seed=1"])
    report = finetune.run(recipe)
    finetune.Predictor(report.bundle).predict("...")
    finetune.Generator(report.bundle).generate("...")  # of a language model's bundle

Names are loaded when first used, so importing this package is instant and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.errors import FinetuneError
    from finetune.pipeline import run
    from finetune.preflight import preflight as validate
    from finetune.recipe import Recipe, load_recipe
    from finetune.result import Report
    from finetune.serve import (
        Generation,
        Generator,
        MultiLabelPrediction,
        Prediction,
        Predictor,
        RegressionPrediction,
    )

__version__ = "0.1.0"
__all__ = [
    "FinetuneError",
    "Generation",
    "Generator",
    "MultiLabelPrediction",
    "Prediction",
    "Predictor",
    "Recipe",
    "RegressionPrediction",
    "Report",
    "load_recipe",
    "run",
    "validate",
]

_HOMES = {
    "FinetuneError": ("finetune.errors", "FinetuneError"),
    "Generation": ("finetune.serve", "Generation"),
    "Generator": ("finetune.serve", "Generator"),
    "MultiLabelPrediction": ("finetune.serve", "MultiLabelPrediction"),
    "Prediction": ("finetune.serve", "Prediction"),
    "Predictor": ("finetune.serve", "Predictor"),
    "Recipe": ("finetune.recipe", "Recipe"),
    "RegressionPrediction": ("finetune.serve", "RegressionPrediction"),
    "Report": ("finetune.result", "Report"),
    "load_recipe": ("finetune.recipe", "load_recipe"),
    "run": ("finetune.pipeline", "run"),
    "validate": ("finetune.preflight", "preflight"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'finetune' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
