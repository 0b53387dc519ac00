"""The recipe's sections about what is measured, shipped, allowed and said."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune.recipe.settings import Count, Fraction, Positive, Settings


class GeneralSettings(Settings):
    """Texts of another domain than the training texts, on which forgetting is measured before and after training."""

    source: str = Field(min_length=1)
    """As `data.source`: local file or folder, hub id, or `package:NAME/path`."""
    text_column: str = "text"
    """Column with the text."""
    limit: Count = 40
    """At most this many texts, drawn by the seed."""


class GenerationSettings(Settings):
    """Sample generations before and after training, for the report."""

    prompts: tuple[str, ...] = ()
    """Fixed prompts; the first words of some validation texts when there are none."""
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] = 48
    """Longest continuation in tokens."""


class MemorisationSettings(Settings):
    """Whether sampling reproduces training text (Carlini et al. 2023): beginnings of training texts are continued and compared."""

    samples: Annotated[int, Field(ge=0, le=10_000)] = 16
    """Training texts whose beginnings are continued; 0 for no check."""
    prompt_tokens: Count = 32
    """Tokens of each beginning."""
    ngram: Count = 16
    """Length in tokens from which a run of words found in the training text counts as reproduced."""
    max_new_tokens: Count = 48
    """Longest continuation in tokens."""

    @model_validator(mode="after")
    def _runs_fit(self) -> MemorisationSettings:
        if self.samples and self.max_new_tokens < self.ngram:
            raise ValueError(
                "continuations of max_new_tokens tokens hold no run of ngram; raise max_new_tokens or lower ngram"
            )
        return self


class EvaluationSettings(Settings):
    """What is measured, and by what the best weights are chosen."""

    metric: str = "accuracy"
    """Built-in metric on validation rows that chooses the best weights, ends phases early, and is gated on export. When absent
    `accuracy`, for multi-label tasks `f1_micro`, for regression `mae`."""
    metrics: tuple[str, ...] = ("accuracy", "f1_macro", "f1_micro", "precision_macro", "recall_macro")
    """Metrics to report: built-in names, or `evaluate:NAME_OR_PATH` for the evaluate library. When absent those that are usual
    for the task."""
    calibration: bool = True
    """Fit a temperature on validation rows and report the calibration error before and after; for regression, an interval that
    holds 90 % of the answers."""
    calibration_bins: Annotated[int, Field(ge=2, le=100)] = 15
    """Equal-width confidence bins of the expected calibration error."""
    baselines: bool = True
    """Measure simple baselines on the same splits: the majority (or mean), and TF-IDF or small grey pixels with a linear model."""
    samples: Annotated[int, Field(ge=0, le=200)] = 24
    """Hardest test rows to show in the report."""
    gradcam: Annotated[int, Field(ge=0, le=24)] = 6
    """Image tasks: how many of them get a Grad-CAM overlay (Selvaraju et al. 2017)."""
    general: GeneralSettings | None = None
    """Language tasks: texts of another domain, on which forgetting is measured."""
    generation: GenerationSettings = GenerationSettings()
    """Language tasks: sample generations."""
    memorisation: MemorisationSettings = MemorisationSettings()
    """Language tasks: whether training text is reproduced."""


class Int8Settings(Settings):
    """8-bit ONNX, chosen by measurement."""

    mode: Literal["auto", "off"] = "auto"
    """`auto` builds the candidates, measures them on validation rows and keeps the best that passes; `off` builds none."""
    cpu: Literal["native", "avx2", "avx512", "vnni", "amx", "arm64"] = "native"
    """Processor that int8 is chosen for; `native` is this machine's. Speed gates hold only for this machine's."""
    calibration_rows: Annotated[int, Field(ge=100, le=100_000)] = 256
    """Image tasks: training images that static quantisation sees to find the range of each activation."""
    max_drop: Fraction = 0.01
    """Most that `evaluation.metric` may fall below fp32, as a fraction (0.01 is one point)."""
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.97
    """Least share of validation rows on which int8 and fp32 give the same answer (regression: within 5 % of the labels' spread)."""


class ExportSettings(Settings):
    """ONNX and 8-bit forms, and the gates they must pass."""

    tolerance: Positive = 1e-4
    """Largest difference allowed between the logits of torch and of fp32 ONNX."""
    max_drop: Fraction = 0.01
    """Most that `evaluation.metric` of fp32 ONNX may fall below torch, as a fraction."""
    int8: Int8Settings = Int8Settings()
    """8-bit ONNX."""
    prompt_tokens: Annotated[int, Field(ge=1, le=8192)] = 64
    """Language tasks: length of the prompt with which time to first token and tokens a second are measured."""
    bitsandbytes: bool = False
    """Also measure the torch model with bitsandbytes int8 weights: a memory saving; on CPUs it is slower."""


class LicenseAssertion(Settings):
    """What the user says a licence is, and why."""

    id: str = Field(min_length=1)
    """Hub licence id or SPDX id (`apache-2.0`, `cc-by-nc-4.0`), or `other`."""
    family: (
        Literal[
            "permissive", "public_domain", "attribution", "share_alike", "copyleft", "non_commercial", "no_derivatives"
        ]
        | None
    ) = None
    """For `other`: the policy family that the licence belongs to."""
    name: str | None = None
    """For `other`: the licence's name."""
    link: str | None = None
    """For `other`: where the licence can be read."""
    reason: str = Field(min_length=8)
    """Where the user read it; it is printed on the card."""


class LicenseSettings(Settings):
    """What the result is for; checked before training against the licences of backbone and data."""

    use: Literal["research", "internal", "commercial"]
    """`research`: non-commercial, results may be published; `internal`: in one organisation's own business; `commercial`: shipped to others."""
    backbone: LicenseAssertion | None = None
    """Licence of the backbone, when its own metadata does not say."""
    data: LicenseAssertion | None = None
    """Licence of the data, when its own metadata does not say."""
    reviewed: str | None = Field(default=None, min_length=8)
    """Who reviewed the points that the policy sends to review, and what they decided; without it a review refuses the run."""


class CardSettings(Settings):
    """Words for the model card that no program can know."""

    language: tuple[str, ...] = ("en",)
    """ISO 639-1 codes of the texts' languages."""
    tags: tuple[str, ...] = ()
    """Further tags of the card."""
    base_model: str | None = None
    """Hub id of the model that a local or packaged backbone is a copy of."""
    dataset_name: str | None = None
    """How people call the data set; its source when absent."""
    intended_use: str | None = None
    """What the model is meant for."""
    limitations: str | None = None
    """What it cannot do or was not tested on, beyond what was measured."""
