"""Tables of labelled texts from files, folders and the hub, as `datasets.Dataset` with text, label and place.

The datasets library is imported when a table is loaded. Local files never pass through its cache, so neither a full home
folder nor a stale copy can get in the way; hub data sets live in the cache under their revision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.layout import find_layout
from finetune.data.read import Columns, as_label, as_text, read_rows, require_columns
from finetune.data.rows import Rows
from finetune.errors import DataError, SourceError, nearest
from finetune.recipe.types import DataSettings
from finetune.sources import Source

POOL = "pool"  # the table whose rows are divided by shares


@dataclass(frozen=True)
class Tables:
    """One loaded table per named split, and the pool that the shares are taken from, if there is one."""

    rows: Mapping[str, Rows]
    shares: Mapping[str, float]

    @property
    def named(self) -> bool:
        """Whether the user named any split."""
        return set(self.rows) != {POOL}


def wanted_tables(settings: DataSettings) -> tuple[dict[str, str | None], dict[str, float]]:
    """Which tables a recipe needs (role → the name in the recipe, None for the whole source), and the pool's shares.

    A share is of the pool's rows. With a named `train` table the pool is that table; with a named `test` table and shares
    for the rest, train and validation divide the pool in proportion to their shares.
    """
    splits = settings.splits
    values: dict[str, float | str] = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    tables: dict[str, str | None] = {name: value for name, value in values.items() if isinstance(value, str)}
    shares = {name: float(value) for name, value in values.items() if not isinstance(value, str)}
    if not shares:
        return tables, {}
    whole = sum(shares.values()) if "train" in shares else 1.0
    pool = tables.pop("train", None)
    # One fixed order: it is the order in which splits take their groups.
    return {POOL: pool, **tables}, {name: shares[name] / whole for name in ("test", "validation") if name in shares}


def load_tables(settings: DataSettings, source: Source, named: Mapping[str, Source | str]) -> Tables:
    """Load every table that the recipe asks for. `named` holds, for a named split, its Source or hub split name."""
    refuse_format(settings, source)
    wanted, shares = wanted_tables(settings)
    origins = split_origins(wanted, named)
    paths = [origin.path for origin in origins.values() if isinstance(origin, Source) and origin.path]
    hub = _load_hub(settings, source) if _needs_hub(source, origins, wanted) else None
    rows = {}
    for role in wanted:
        origin = origins.get(role)
        if isinstance(origin, Source) and origin.path is not None:
            rows[role] = _through_datasets(read_local(settings, origin.path))
        elif hub is not None:
            rows[role] = _hub_rows(settings, source, hub, origin if isinstance(origin, str) else None)
        elif source.path is not None and origin is None:
            rows[role] = _through_datasets(read_local(settings, source.path, paths))
        else:
            raise SourceError(f"data.splits.{role}: '{wanted[role]}' is not a local file or folder of {source.name}")
    return Tables(rows, shares)


def refuse_format(settings: DataSettings, source: Source) -> None:
    """DataError when data.format speaks of files but the source is on the hub."""
    if source.path is None and settings.format not in ("auto", "hub"):
        raise DataError(
            f"data.format is {settings.format}, but '{source.name}' is a hub data set; set data.format to auto or hub"
        )


def split_origins(wanted: Mapping[str, str | None], named: Mapping[str, Source | str]) -> dict[str, Source | str]:
    """Where each named table comes from; the pool of a named `train` is found under that name."""
    origins: dict[str, Source | str] = {}
    for role, name in wanted.items():
        split = "train" if role == POOL else role
        if name is not None:
            if split not in named:
                raise SourceError(f"data.splits.{split}: '{name}' was not found; give a file, a folder or a hub split")
            origins[role] = named[split]
    return origins


def read_local(settings: DataSettings, path: Path, exclude: Collection[Path] = ()) -> Rows:
    """The rows of a local file or folder, in a fixed order; `exclude` are paths that belong to other splits."""
    wanted = "auto" if settings.format == "hub" else settings.format
    columns = Columns(settings.text_column, settings.label_column)
    return read_rows(find_layout(path, wanted, exclude), columns, settings.encoding)


def _through_datasets(rows: Rows) -> Rows:
    """The rows as a typed in-memory table of the datasets library, which refuses what is not text."""
    from datasets import Dataset, Features, Value

    features = Features({name: Value("large_string") for name in ("text", "label", "place")})
    table = Dataset.from_dict({"text": rows.texts, "label": rows.labels, "place": rows.places}, features=features)
    texts, labels, places = (tuple(table[name][:]) for name in ("text", "label", "place"))
    return Rows(rows.columns, texts, labels, places, notes=rows.notes)


def _needs_hub(source: Source, origins: Mapping[str, Source | str], wanted: Mapping[str, str | None]) -> bool:
    return source.path is None and any(not isinstance(origins.get(role), Source) for role in wanted)


def _load_hub(settings: DataSettings, source: Source) -> Mapping[str, Any]:
    """All splits of a hub data set at the source's revision; SourceError with the hub's reason when it cannot be had."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    # OSError covers an unreachable hub and a full disk, ValueError an unknown configuration, RuntimeError a loading script.
    failures: tuple[type[Exception], ...] = (
        datasets.exceptions.DatasetsError,
        *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)),
        OSError,
        ValueError,
        RuntimeError,
    )
    name = source.name.partition("@")[0]
    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(name, settings.config, revision=source.revision)
    except failures as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise SourceError(
            f"the data set '{source.name}' cannot be loaded from the hub ({reason}); "
            "check its name, data.config and the network, or give a local file"
        ) from error
    return loaded


def _hub_rows(settings: DataSettings, source: Source, hub: Mapping[str, Any], split: str | None) -> Rows:
    """Rows of one hub split; without a name the one split there is, or `train`, with a note on the others."""
    notes: tuple[str, ...] = ()
    if split is None:
        split = "train" if "train" in hub else next(iter(hub))
        others = sorted(set(hub) - {split})
        if others and split != "train":
            raise DataError(f"'{source.name}' has the splits {', '.join(sorted(hub))}; name them under data.splits")
        if others:
            notes = (f"only the split 'train' is used; name {', '.join(others)} under data.splits to use them",)
    elif split not in hub:
        raise DataError(f"'{source.name}' has no split '{split}'{nearest(split, hub)}")
    table = hub[split]
    name = f"{source.name.partition('@')[0]}/{split}"
    columns = Columns(settings.text_column, settings.label_column)
    require_columns(table.column_names, columns, name)
    names = getattr(table.features[columns.label], "names", None)
    places = tuple(f"{name}:{number}" for number in range(1, len(table) + 1))
    texts = tuple(as_text(text, place) for text, place in zip(table[columns.text][:], places, strict=True))
    labels = tuple(
        as_label(_class_name(label, names), place) for label, place in zip(table[columns.label][:], places, strict=True)
    )
    if not labels:
        raise DataError(f"{name} holds no rows")
    order = tuple(names) if names else None
    return Rows(tuple(table.column_names), texts, labels, places, label_order=order, notes=notes)


def _class_name(label: object, names: list[str] | None) -> object:
    """The name of a ClassLabel index; −1 stands for an unlabelled row by the hub's convention."""
    if names is None or not isinstance(label, int):
        return label
    return names[label] if label >= 0 else None
