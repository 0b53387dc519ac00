"""The recipe's types. Every field is described here once: the JSON Schema, the docs and the errors use these words."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Schedule = Literal["slanted_triangular", "one_cycle", "cosine", "linear", "constant"]

BUILTIN_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "f1_micro",
    "precision_macro",
    "precision_micro",
    "recall_macro",
    "recall_micro",
    "loss",
)


class Settings(BaseModel):
    """Base of every section: frozen, unknown keys refused, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BackboneSettings(Settings):
    """The pretrained model that the run starts from."""

    name: str = Field(min_length=1)
    """Hub id (`distilbert/distilbert-base-uncased`), local folder, or `package:NAME/path` inside an installed package."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; may also be written `id@revision`. The commit it resolves to is recorded."""
    allow_pickle: bool = False
    """Accept a checkpoint that exists only as a pickle: its tensors are converted in a process of its own."""


class HeadSettings(Settings):
    """The new head that replaces the pretrained one."""

    dropout: Fraction | None = None
    """Dropout before the classifier; the backbone's own value when absent."""


class SplitSettings(Settings):
    """Where training, validation and test rows come from: shares of one table, or tables that the user names."""

    train: Share | str = 0.8
    """Share of the rows, or a file, folder or hub split name holding the training rows."""
    validation: Share | str = 0.1
    """Share of the rows (of the training rows if `train` is named), or a file, folder or split name."""
    test: Share | str = 0.1
    """Share of the rows (of the training rows if `train` is named), or a file, folder or split name."""
    stratify: bool = True
    """Keep the share of each label alike in every split."""

    @model_validator(mode="after")
    def _shares_fit(self) -> SplitSettings:
        shares = [v for v in (self.train, self.validation, self.test) if isinstance(v, float | int)]
        if len(shares) == 3 and abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"the shares add up to {sum(shares):g}, not 1")
        if len(shares) < 3 and sum(shares) > 1 + 1e-6:
            raise ValueError(f"the shares add up to {sum(shares):g}, more than 1")
        if isinstance(self.train, str) and sum(shares) >= 1:
            raise ValueError("the validation and test shares leave no training rows")
        if (
            isinstance(self.train, float | int)
            and len(shares) < 3
            and not (isinstance(self.test, str) and len(shares) == 2)
        ):
            raise ValueError("name a table for train too, or give shares for train and validation")
        return self


class AuditSettings(Settings):
    """What to do about duplicates, leaks and conflicting labels before training."""

    near_duplicate_similarity: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Jaccard similarity of word 8-grams from which two texts count as near duplicates."""
    exact_duplicates: Literal["keep", "drop"] = "keep"
    """`drop` keeps the first row of each group of identical texts; `keep` only holds the group in one split."""
    leaks: Literal["warn", "refuse"] = "refuse"
    """What to do when splits that the user named share exact or near duplicates."""
    conflicts: Literal["warn", "refuse", "drop"] = "warn"
    """What to do when identical texts carry different labels; `drop` removes every such row."""


class DataSettings(Settings):
    """The labelled rows."""

    source: str = Field(min_length=1)
    """Hub id (`id@revision`), local file or folder, or `package:NAME/path` inside an installed package."""
    config: str | None = None
    """Configuration (subset) name of a hub data set."""
    format: Literal["auto", "folder", "csv", "tsv", "jsonl", "parquet", "hub"] = "auto"
    """How the source is laid out; `auto` decides from names. `folder` is one folder per class with a text per file."""
    text_column: str = "text"
    """Column with the text to classify."""
    label_column: str = "label"
    """Column with the label, a string or an integer."""
    labels: tuple[str, ...] | None = Field(default=None, min_length=2)
    """Label names in index order; found in the data, sorted, when absent."""
    encoding: str = "utf-8"
    """Encoding of text, CSV and TSV files; several, separated by commas, are tried in turn on each file."""
    max_length: Annotated[int, Field(ge=4, le=131072)] = 128
    """Longest input in tokens, special tokens included; longer texts are truncated, and the share is reported."""
    limit: Count | None = None
    """Use at most this many rows (seeded sample, before splitting); for trial runs."""
    splits: SplitSettings = SplitSettings()
    """Where training, validation and test rows come from."""
    audit: AuditSettings = AuditSettings()
    """What to do about duplicates, leaks and conflicting labels."""


class L2SPSettings(Settings):
    """L2-SP (Li, Grandvalet, Davoine 2018): pull pretrained weights to their start, new weights to zero.

    The convention is the paper's: Ω = α/2·‖w − w⁰‖² + β/2·‖w_new‖². Biases and normalisation weights are left out.
    """

    coupling: Literal["off", "loss", "decoupled"] = "off"
    """`loss` adds the gradient of Ω to the loss's; `decoupled` applies it after the step as AdamW does its decay."""
    alpha: Annotated[float, Field(ge=0)] = 0.1
    """α, strength of the pull to the pretrained weights."""
    beta: Annotated[float, Field(ge=0)] = 0.01
    """β, strength of the pull of new weights to zero."""


class PhaseSettings(Settings):
    """One explicit phase; what is absent falls back to `transfer` and `train`."""

    name: str | None = None
    """Name in logs and the report."""
    trainable: Count | Literal["all"]
    """How many layer groups train, counted from the head (1 is the head alone)."""
    epochs: Count = 1
    """Most epochs that the phase may run."""
    learning_rate: Positive | None = None
    """Learning rate of the head's group, η₀."""
    decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor α between the rates of neighbouring layer groups."""
    schedule: Schedule | None = None
    """Learning-rate schedule over the phase."""
    patience: Count | None = None
    """End the phase after this many epochs without improvement of `evaluation.metric`."""


class TransferSettings(Settings):
    """What trains when, and how far each part may move."""

    unfreeze: Literal["gradual", "lp_ft", "head_only", "full"] | None = None
    """`gradual` (Howard & Ruder 2018), `lp_ft` (Kumar et al. 2022), `head_only`, `full`; `gradual` if no `phases` are given."""
    phases: tuple[PhaseSettings, ...] | None = Field(default=None, min_length=1)
    """Explicit phases instead of `unfreeze`."""
    head_epochs: Count = 1
    """Most epochs of the first phase, in which only the head trains (gradual, lp_ft, head_only)."""
    epochs: Count = 1
    """Most epochs of every other phase."""
    step: Count = 1
    """Layer groups that each phase of `gradual` adds."""
    depth: Count | Literal["all"] = "all"
    """Layer groups that ever train, head included (gradual, lp_ft, full)."""
    learning_rate: Positive = 2e-4
    """η₀, the learning rate of the head's group."""
    head_learning_rate: Positive | None = None
    """η₀ of phases that train the head alone; `learning_rate` when absent."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    """α of discriminative learning rates η_l = η₀·α^(L−l); 1 gives every group the same rate."""
    patience: Count | None = None
    """End a phase after this many epochs without improvement of `evaluation.metric`."""
    l2sp: L2SPSettings = L2SPSettings()
    """Pull towards the pretrained weights."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> TransferSettings:
        if self.phases is not None and self.unfreeze is not None:
            raise ValueError("give either unfreeze or phases, not both")
        return self


class TrainSettings(Settings):
    """The optimizer and the loop."""

    batch_size: Count = 32
    """Rows per optimizer step, over all processes and accumulation steps together."""
    accumulation: Count = 1
    """Parts that a step is computed in, to save memory; the result is the same."""
    eval_batch_size: Count = 64
    """Rows per forward pass when evaluating."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (betas 0.9, 0.999) or SGD with momentum 0.9."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Decoupled (AdamW) or coupled (SGD) weight decay, not on biases and normalisation weights; 0.01, or 0 under L2-SP."""
    schedule: Schedule = "slanted_triangular"
    """Learning-rate schedule over each phase."""
    warmup: Fraction = 0.1
    """Share of a phase's steps in which the rate rises."""
    clip_norm: Positive | None = 1.0
    """Largest gradient norm; null for no clipping."""
    label_smoothing: Fraction = 0.0
    """Share of the target spread over all labels."""
    class_weights: Literal["none", "balanced"] | dict[str, Positive] = "none"
    """Weight of each label in the loss; `balanced` is n / (labels · count)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; `auto` is bf16 where the hardware has it, else fp32."""
    bucket_by_length: bool = True
    """Batch texts of like length together, so that less padding is computed."""
    checkpoint_every_steps: Count | None = None
    """Also write a checkpoint every so many steps, not only after each epoch."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` is what Accelerate finds; `cpu` keeps to the processor."""
    tensorboard: bool = False
    """Write TensorBoard events to the run's state folder."""


class EvaluationSettings(Settings):
    """What is measured, and by what the best weights are chosen."""

    metric: str = "accuracy"
    """Built-in metric on validation rows that chooses the best weights, ends phases early, and is gated on export."""
    metrics: tuple[str, ...] = ("accuracy", "f1_macro", "f1_micro", "precision_macro", "recall_macro")
    """Metrics to report: built-in names, or `evaluate:NAME_OR_PATH` for the evaluate library."""
    calibration: bool = True
    """Fit a temperature on validation rows and report the calibration error before and after."""
    calibration_bins: Annotated[int, Field(ge=2, le=100)] = 15
    """Equal-width confidence bins of the expected calibration error."""
    baselines: bool = True
    """Measure a majority and a TF-IDF + logistic regression baseline on the same splits."""

    @field_validator("metric")
    @classmethod
    def _metric_is_built_in(cls, value: str) -> str:
        if value not in BUILTIN_METRICS:
            from finetune.errors import nearest

            raise ValueError(f"unknown metric '{value}'{nearest(value, BUILTIN_METRICS)}")
        return value

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        from finetune.errors import nearest

        for value in values:
            if value not in BUILTIN_METRICS and not re.fullmatch(r"evaluate:.+", value):
                raise ValueError(f"unknown metric '{value}'{nearest(value, BUILTIN_METRICS)}")
        return values


class Int8Settings(Settings):
    """8-bit ONNX, chosen by measurement."""

    mode: Literal["auto", "off"] = "auto"
    """`auto` builds the candidates, measures them on validation rows and keeps the best that passes; `off` builds none."""
    cpu: Literal["native", "avx2", "avx512", "vnni", "amx", "arm64"] = "native"
    """Processor that int8 is chosen for; `native` is this machine's. Speed gates hold only for this machine's."""
    max_drop: Fraction = 0.01
    """Most that `evaluation.metric` may fall below fp32, as a fraction (0.01 is one point)."""
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.97
    """Least share of validation rows on which int8 and fp32 predict the same label."""


class ExportSettings(Settings):
    """ONNX and 8-bit forms, and the gates they must pass."""

    tolerance: Positive = 1e-4
    """Largest difference allowed between the logits of torch and of fp32 ONNX."""
    max_drop: Fraction = 0.01
    """Most that `evaluation.metric` of fp32 ONNX may fall below torch, as a fraction."""
    int8: Int8Settings = Int8Settings()
    """8-bit ONNX."""
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


class Recipe(Settings):
    """Everything one run depends on. Two runs of one recipe on one machine give the same weights."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    """Name of the run and of its bundle, `exports/<name>`."""
    description: str = ""
    """One or two sentences for the report and the card."""
    task: Literal["text_classification"]
    """What is learned."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the splits, the new head, dropout and the order of batches."""
    output: str | None = None
    """Folder of the bundle; `exports/<name>` when absent."""
    backbone: BackboneSettings
    """The pretrained model that the run starts from."""
    data: DataSettings
    """The labelled rows."""
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
        if self.transfer.l2sp.coupling != "off" and self.train.weight_decay:
            raise ValueError(
                "train.weight_decay: L2-SP takes the place of weight decay; remove it or set transfer.l2sp.coupling to off"
            )
        rates = [self.transfer.learning_rate, self.transfer.head_learning_rate or 0.0]
        rates += [phase.learning_rate or 0.0 for phase in self.transfer.phases or ()]
        strength = max(self.transfer.l2sp.alpha, self.transfer.l2sp.beta)
        if self.transfer.l2sp.coupling == "decoupled" and max(rates) * strength >= 1:
            raise ValueError(
                "transfer.l2sp: learning rate · alpha (or beta) must stay below 1, or each step would jump past the pretrained weights"
            )
        return self
