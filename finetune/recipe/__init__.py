"""The recipe: what the user asks for, as frozen types, from strict YAML. Imports no torch."""

from finetune.recipe.identity import dump_recipe, recipe_hash, training_hash
from finetune.recipe.load import load_recipe, parse_overrides
from finetune.recipe.schema import json_schema
from finetune.recipe.starter import starter_recipe
from finetune.recipe.types import (
    AuditSettings,
    AugmentSettings,
    BackboneSettings,
    CardSettings,
    DataSettings,
    EvaluationSettings,
    ExportSettings,
    HeadSettings,
    Int8Settings,
    L2SPSettings,
    LicenseAssertion,
    LicenseSettings,
    PhaseSettings,
    Recipe,
    SplitSettings,
    TrainSettings,
    TransferSettings,
)

__all__ = [
    "AuditSettings",
    "AugmentSettings",
    "BackboneSettings",
    "CardSettings",
    "DataSettings",
    "EvaluationSettings",
    "ExportSettings",
    "HeadSettings",
    "Int8Settings",
    "L2SPSettings",
    "LicenseAssertion",
    "LicenseSettings",
    "PhaseSettings",
    "Recipe",
    "SplitSettings",
    "TrainSettings",
    "TransferSettings",
    "dump_recipe",
    "json_schema",
    "load_recipe",
    "parse_overrides",
    "recipe_hash",
    "starter_recipe",
    "training_hash",
]
