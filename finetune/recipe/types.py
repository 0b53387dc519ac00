"""The whole recipe. Every field is described here and in the sections' modules once: JSON Schema, docs and errors use these words."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from finetune.recipe.data_types import AuditSettings, DataSettings, SplitSettings
from finetune.recipe.learning_types import (
    AdapterSettings,
    AugmentSettings,
    BackboneSettings,
    HeadSettings,
    L2SPSettings,
    PhaseSettings,
    TrainSettings,
    TransferSettings,
)
from finetune.recipe.result_types import (
    CardSettings,
    EvaluationSettings,
    ExportSettings,
    GeneralSettings,
    GenerationSettings,
    Int8Settings,
    LicenseAssertion,
    LicenseSettings,
    MemorisationSettings,
)
from finetune.recipe.settings import Settings
from finetune.recipe.task_names import Task
from finetune.recipe.task_rules import check_task, with_task_defaults

__all__ = [
    "AdapterSettings",
    "AuditSettings",
    "AugmentSettings",
    "BackboneSettings",
    "CardSettings",
    "DataSettings",
    "EvaluationSettings",
    "ExportSettings",
    "GeneralSettings",
    "GenerationSettings",
    "HeadSettings",
    "Int8Settings",
    "L2SPSettings",
    "LicenseAssertion",
    "LicenseSettings",
    "MemorisationSettings",
    "PhaseSettings",
    "Recipe",
    "Settings",
    "SplitSettings",
    "TrainSettings",
    "TransferSettings",
]


class Recipe(Settings):
    """Everything one run depends on. Two runs of one recipe on one machine give the same weights."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """Name of the run and of its bundle, `exports/<name>`."""
    description: str = ""
    """One or two sentences for the report and the card."""
    task: Task
    """What is learned, from what: `text_…` or `image_…`, then `classification` (one label a row), `multi_label_classification` (any
    number of labels) or `regression` (a number); or `causal_lm`, to go on with a text."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the splits, the new head, dropout and the order of batches."""
    output: str | None = None
    """Folder of the bundle; `exports/<name>` when absent."""
    backbone: BackboneSettings
    """The pretrained model that the run starts from."""
    data: DataSettings
    """The rows to learn from."""
    head: HeadSettings = HeadSettings()
    """The new head that replaces the pretrained one."""
    transfer: TransferSettings = TransferSettings()
    """What trains when, and how far each part may move."""
    train: TrainSettings = TrainSettings()
    """The optimizer and the loop."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """What is measured, and by what the best weights are chosen."""
    export: ExportSettings = ExportSettings()
    """ONNX and 8-bit forms, and the gates they must pass."""
    license: LicenseSettings
    """What the result is for."""
    card: CardSettings = CardSettings()
    """Words for the model card that no program can know."""

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Recipe:
        # Frozen for everyone else; here the recipe is still being made, and what it leaves open follows from its task.
        self.__dict__["evaluation"] = with_task_defaults(self.task, self.evaluation)
        check_task(self)
        if self.transfer.l2sp.coupling != "off" and self.train.weight_decay:
            raise ValueError(
                "train.weight_decay: L2-SP takes the place of weight decay; remove it or set transfer.l2sp.coupling to off"
            )
        _check_adapter(self)
        rates = [self.transfer.learning_rate, self.transfer.head_learning_rate or 0.0]
        rates += [phase.learning_rate or 0.0 for phase in self.transfer.phases or ()]
        strength = max(self.transfer.l2sp.alpha, self.transfer.l2sp.beta)
        if self.transfer.l2sp.coupling == "decoupled" and max(rates) * strength >= 1:
            raise ValueError(
                "transfer.l2sp: learning rate · alpha (or beta) must stay below 1, or each step would jump past the pretrained weights"
            )
        return self


def _check_adapter(recipe: Recipe) -> None:
    """ValueError for what means nothing beside an adapter, or cannot be had where the recipe wants to train."""
    adapter, l2sp = recipe.transfer.adapter, recipe.transfer.l2sp
    # The default asks for nothing: a bundle's own recipe has it written out.
    if adapter.kind != "none" and l2sp.coupling != "off" and l2sp.alpha not in (0, L2SPSettings().alpha):
        raise ValueError(
            "transfer.l2sp.alpha: an adapter leaves the pretrained weights where they are, so nothing is pulled back to them; "
            "remove it (beta pulls the adapter to zero)"
        )
    if adapter.base != "fp32" and recipe.train.device == "cpu":
        raise ValueError(
            f"transfer.adapter.base: {adapter.base} weights need a GPU, and train.device is cpu; set it to fp32, or let train.device choose"
        )
