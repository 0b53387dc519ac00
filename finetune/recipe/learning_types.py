"""The recipe's sections about the network and how it learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune.recipe.settings import Count, Fraction, ImageSize, Positive, Probability, Schedule, Settings, WholeShare


class BackboneSettings(Settings):
    """The pretrained model that the run starts from."""

    name: str = Field(min_length=1)
    """Hub id (`distilbert/distilbert-base-uncased`, `timm/resnet18.a1_in1k`), local folder, or `package:NAME/path` inside an
    installed package. A file of bare weights is possible with `architecture`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; may also be written `id@revision`. The commit it resolves to is recorded."""
    allow_pickle: bool = False
    """Accept a checkpoint that exists only as a pickle: its tensors are converted in a process of its own."""
    architecture: str | None = Field(default=None, min_length=1)
    """For a file of bare weights: the timm architecture that they belong to (`tf_efficientnet_lite0`)."""
    rename: Literal["in_order"] | dict[str, str] | None = None
    """For a file of bare weights: how its tensors get the architecture's names. `in_order` pairs both lists one by one; a mapping
    of regular expressions to replacements is applied to each name in turn. Each tensor must be used once, with its shape; only the
    whole classifier may be lacking."""
    drop_path: Fraction | None = None
    """Stochastic depth of timm models, the largest share of dropped residual branches; none when absent."""


class HeadSettings(Settings):
    """The new head that replaces the pretrained one."""

    dropout: Fraction | None = None
    """Dropout before the classifier; the backbone's own value when absent."""


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
    image_size: ImageSize | None = None
    """Image tasks: height and width of the images that the phase trains and validates on, `data.image_size` when absent. Small
    ones cost little (progressive resizing); the last phase, the test and what is shipped see the full size."""


class AdapterSettings(Settings):
    """Low-rank adapters (LoRA, Hu et al. 2022; DoRA, Liu et al. 2024) beside frozen weights, merged into them on export."""

    kind: Literal["none", "lora", "dora"] = "none"
    """`none` trains the weights themselves; `dora` also learns the magnitude of each weight's columns."""
    rank: Count = 8
    """Rank r of each update B·A."""
    alpha: Positive = 16.0
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout before A."""
    targets: Literal["auto"] | tuple[str, ...] = "auto"
    """Names (endings) of the linear layers that get an adapter; `auto` is every linear layer of every block."""
    base: Literal["fp32", "int8", "nf4"] = "fp32"
    """Form of the frozen weights in memory (QLoRA, Dettmers et al. 2023), by bitsandbytes; int8 and nf4 need a GPU."""

    @model_validator(mode="after")
    def _kind_is_said(self) -> AdapterSettings:
        others = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if self.kind == "none" and others:
            raise ValueError(f"{others[0]} means nothing without an adapter; set kind to lora or dora")
        return self


class TransferSettings(Settings):
    """What trains when, and how far each part may move."""

    unfreeze: Literal["gradual", "lp_ft", "head_only", "full", "auto"] | None = None
    """`gradual` (Howard & Ruder 2018), `lp_ft` (Kumar et al. 2022), `head_only`, `full`, or `auto`, the layer groups
    with the largest relative gradients (Lee et al. 2022); `gradual` if no `phases` are given."""
    phases: tuple[PhaseSettings, ...] | None = Field(default=None, min_length=1)
    """Explicit phases instead of `unfreeze`."""
    head_epochs: Count = 1
    """Most epochs of the first phase, in which only the head trains (gradual, lp_ft, head_only, auto)."""
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
    auto_groups: Count = 3
    """Layer groups below the head that `auto` picks."""
    batchnorm: Literal["freeze", "train", "recalibrate"] = "train"
    """Batch normalisation of layers that train: `freeze` keeps its statistics and weights, `train` lets both learn, `recalibrate`
    trains and at the end re-estimates the statistics on training rows. Frozen layers never change, whatever stands here."""
    l2sp: L2SPSettings = L2SPSettings()
    """Pull towards the pretrained weights."""
    adapter: AdapterSettings = AdapterSettings()
    """Language tasks: adapters beside frozen weights."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> TransferSettings:
        if self.phases is not None and self.unfreeze is not None:
            raise ValueError("give either unfreeze or phases, not both")
        return self


class AugmentSettings(Settings):
    """Random changes to training images (torchvision's transforms); each depends on (seed, phase, epoch, row) alone."""

    horizontal_flip: Probability = 0.5
    """Probability of a mirror image."""
    vertical_flip: Probability = 0.0
    """Probability of turning an image upside down."""
    quarter_turns: bool = False
    """Turn by a random multiple of 90°, for pictures without an up."""
    random_resized_crop: Annotated[tuple[WholeShare, ...], Field(min_length=2, max_length=2)] | None = (0.5, 1.0)
    """Least and greatest share of the image's area to cut out and resize; null resizes and crops as in evaluation."""
    color_jitter: Fraction = 0.0
    """Strength of random changes to brightness, contrast and saturation."""
    rand_augment: Annotated[int, Field(ge=1, le=30)] | None = None
    """Magnitude of RandAugment (Cubuk et al. 2020), two operations per image; none when absent."""
    random_erasing: Probability = 0.0
    """Probability of erasing a rectangle (Zhong et al. 2020)."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """α of mixup (Zhang et al. 2018); 0 for none."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """α of CutMix (Yun et al. 2019); 0 for none. With mixup as well, each step uses one of them at random."""

    @model_validator(mode="after")
    def _crop_rises(self) -> AugmentSettings:
        if self.random_resized_crop is not None and self.random_resized_crop[0] > self.random_resized_crop[1]:
            raise ValueError("random_resized_crop: the first share must not be above the second")
        return self


class TrainSettings(Settings):
    """The optimizer and the loop."""

    batch_size: Count = 32
    """Rows per optimizer step, over all processes and accumulation steps together."""
    accumulation: Count = 1
    """Parts that a step is computed in, to save memory; the result is the same, but for batch normalisation that trains, which
    sees a part at a time."""
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
    """Weight of each label in the loss; `balanced` is n / (labels · count), and for multi-label tasks negatives / positives."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the forward pass; `auto` is bf16 where the hardware has it, else fp32."""
    bucket_by_length: bool = True
    """Text and language tasks: batch texts of like length together, so that less padding is computed."""
    augment: AugmentSettings = AugmentSettings()
    """Image tasks: random changes to training images."""
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=64)] = "auto"
    """Image tasks: processes that read and augment images ahead of the step; `auto` is none on a CPU, which the step itself fills,
    and one per two cores, at most 8, beside a GPU."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Image tasks: how weights and activations of convolutions lie in memory while training. `auto` is `channels_last` on a CPU for
    networks with depthwise convolutions (EfficientNet, MobileNet) under `transfer.batchnorm: freeze`, which are faster so, and
    `contiguous` for others."""
    checkpoint_every_steps: Count | None = None
    """Also write a checkpoint every so many steps, not only after each epoch."""
    gradient_checkpointing: bool = False
    """Language tasks: compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    memory: Literal["refuse", "warn"] = "refuse"
    """Language tasks: what to do when the estimate of weights, gradients, optimizer and activations is more than the machine has free."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` is what Accelerate finds; `cpu` keeps to the processor."""
    tensorboard: bool = False
    """Write TensorBoard events to the run's state folder."""
