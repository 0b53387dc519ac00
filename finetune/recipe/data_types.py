"""The recipe's data section: where labelled rows come from, and what to do about bad ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from finetune.recipe.settings import Count, ImageSize, Positive, Settings, Share


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
    image_distance: Annotated[int, Field(ge=0, le=16)] = 4
    """Image tasks: most bits in which the 64-bit perceptual hashes of near duplicates may differ; pairs are then confirmed on pixels."""
    exact_duplicates: Literal["keep", "drop"] = "keep"
    """`drop` keeps the first row of each group of identical inputs; `keep` only holds the group in one split."""
    leaks: Literal["warn", "refuse"] = "refuse"
    """What to do when splits that the user named share exact or near duplicates."""
    conflicts: Literal["warn", "refuse", "drop"] = "warn"
    """What to do when identical inputs carry different labels; `drop` removes every such row."""


class DataSettings(Settings):
    """The labelled rows."""

    source: str = Field(min_length=1)
    """Hub id (`id@revision`), local file or folder, or `package:NAME/path` inside an installed package."""
    config: str | None = None
    """Configuration (subset) name of a hub data set."""
    format: Literal["auto", "folder", "csv", "tsv", "jsonl", "parquet", "hub"] = "auto"
    """How the source is laid out; `auto` decides from names. `folder` is one folder per class with a text or image per file."""
    text_column: str = "text"
    """Text and language tasks: column with the text."""
    image_column: str = "image"
    """Image tasks: column with a path, or with the encoded bytes (Parquet, hub)."""
    image_root: str | None = None
    """Image tasks: folder that relative paths start from; the table's own folder when absent."""
    label_column: str = "label"
    """Column with the label, a string or an integer; several labels for multi-label tasks, a number for regression."""
    label_columns: tuple[str, ...] | None = Field(default=None, min_length=2)
    """Multi-label tasks: one column of 0 and 1 per label, instead of `label_column`."""
    label_separator: str = Field(default=",", min_length=1)
    """Multi-label tasks: what stands between the labels of one row where they are written as one text."""
    label_map: dict[str, str] | None = Field(default=None, min_length=1)
    """Label name of each value of the label column; values with the same name are merged. Every value must be named."""
    weight_column: str | None = Field(default=None, min_length=1)
    """Column with how much a row counts in the loss and in the metrics: a positive number, of which only ratios matter. For labels
    that an expert was unsure of, or samples that stand for unequally many."""
    weight_map: dict[str, Positive] | None = Field(default=None, min_length=1)
    """Weight of each value of the weight column, where the values are not the weights. Every value must be named."""
    labels: tuple[str, ...] | None = Field(default=None, min_length=2)
    """Label names in index order; found in the data, sorted, when absent."""
    stratify_by: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Columns whose combined values keep their share in every split, instead of the label alone."""
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Column names of CSV and TSV files that have no header line."""
    delimiter: Literal["comma", "semicolon", "tab", "whitespace"] | None = None
    """What separates the fields of CSV and TSV files; what the format says when absent."""
    encoding: str = "utf-8"
    """Encoding of text, CSV and TSV files; several, separated by commas, are tried in turn on each file."""
    prompt_column: str | None = None
    """Language tasks: column with a prompt, whose answer is in `answer_column`; the loss is on the answers only."""
    answer_column: str | None = None
    """Language tasks: column with the answer to `prompt_column`."""
    messages_column: str | None = None
    """Language tasks: column with a conversation, a list of {"role", "content"}; the loss is on what the assistant says."""
    packing: bool = True
    """Language tasks: fill blocks of `max_length` tokens with whole documents or conversations, each of which sees only itself."""
    overlong: Literal["split", "truncate", "refuse"] = "split"
    """Language tasks: what to do with more than `max_length` tokens; `split` makes several pieces of a document (a conversation
    is never split, so it is refused), `truncate` cuts the end off."""
    max_length: Annotated[int, Field(ge=4, le=131072)] = 128
    """Text and language tasks: longest input in tokens, special tokens included. Longer texts are truncated, and the share is
    reported; of language tasks it is the length of a block."""
    image_size: ImageSize | None = None
    """Image tasks: height and width in pixels that the network sees; the backbone's own when absent."""
    image_crop: Annotated[float, Field(ge=0.1, le=1)] | None = None
    """Image tasks: share of each edge that the centre crop keeps, 1 for the whole picture; the backbone's own when absent, which
    often cuts the border away."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Image tasks: what to do about files that are truncated, too large or no images; either way they are named."""
    max_pixels: Annotated[int, Field(ge=4096, le=2**31 - 1)] = 50_000_000
    """Image tasks: an image with more pixels than this is not decoded (a small file can hold billions)."""
    limit: Count | None = None
    """Use at most this many rows (seeded sample, before splitting); for trial runs."""
    splits: SplitSettings = SplitSettings()
    """Where training, validation and test rows come from."""
    audit: AuditSettings = AuditSettings()
    """What to do about duplicates, leaks and conflicting labels."""
