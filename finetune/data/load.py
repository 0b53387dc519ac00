"""Rows from files, folders and the hub.

The datasets library is imported when a hub data set is loaded, and lives with its cache, under the revision. Local files
never pass through it, so neither a full home folder nor a stale copy can get in the way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.layout import Layout, find_layout
from finetune.data.read import Collected, Reading, read_rows, reading_of
from finetune.data.rows import Rows
from finetune.data.tables import require_columns
from finetune.errors import DataError, SourceError, nearest
from finetune.recipe.types import DataSettings
from finetune.sources import Source
from finetune.tasks import TaskSpec

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


def load_tables(task: TaskSpec, settings: DataSettings, source: Source, named: Mapping[str, Source | str]) -> Tables:
    """Load every table that the recipe asks for. `named` holds, for a named split, its Source or hub split name."""
    refuse_format(settings, source)
    reading = reading_of(task, settings)
    wanted, shares = wanted_tables(settings)
    origins = split_origins(wanted, named)
    paths = [origin.path for origin in origins.values() if isinstance(origin, Source) and origin.path]
    hub = _load_hub(settings, source) if _needs_hub(source, origins, wanted) else None
    rows = {}
    for role in wanted:
        origin = origins.get(role)
        if isinstance(origin, Source) and origin.path is not None:
            rows[role] = read_local(reading, settings, origin.path, called=origin.name)
        elif hub is not None:
            rows[role] = _hub_rows(reading, source, hub, origin if isinstance(origin, str) else None)
        elif source.path is not None and origin is None:
            rows[role] = read_local(reading, settings, source.path, paths, source.name)
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


def read_local(
    reading: Reading, settings: DataSettings, path: Path, exclude: Collection[Path] = (), called: str | None = None
) -> Rows:
    """The rows of a local file or folder, in a fixed order; `exclude` are paths that belong to other splits, `called` is how the
    user wrote the path."""
    return read_rows(local_layout(reading, settings, path, exclude, called), reading)


def local_layout(
    reading: Reading, settings: DataSettings, path: Path, exclude: Collection[Path] = (), called: str | None = None
) -> Layout:
    """Which files a local file or folder is read from."""
    wanted = "auto" if settings.format == "hub" else settings.format
    return find_layout(path, wanted, exclude, reading.modality.class_files, called)


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


def _hub_rows(reading: Reading, source: Source, hub: Mapping[str, Any], split: str | None) -> Rows:
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
    return _table_rows(reading, hub[split], f"{source.name.partition('@')[0]}/{split}", notes)


def _table_rows(reading: Reading, table: Any, name: str, notes: tuple[str, ...]) -> Rows:
    """Rows of a `datasets.Dataset`. Images stay encoded: the library would decode every one, and in ways of its own."""
    from datasets import Image

    columns = reading.columns
    require_columns(table.column_names, columns, name)
    all_columns = tuple(table.column_names)
    table = table.select_columns(list(dict.fromkeys(column for _, column in columns.by_key)))
    for column, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(column, Image(decode=False))
    names = {column: _class_names(feature) for column, feature in table.features.items()}
    rows = Collected(reading, columns=all_columns)
    number = 0
    for batch in table.iter(batch_size=1000):
        for cells in zip(*batch.values(), strict=True):
            number += 1
            row = {column: _named(cell, names[column]) for column, cell in zip(batch, cells, strict=True)}
            rows.add(columns.pick(row, f"{name}:{number}"), reading.root)
    if not rows.labels:
        raise DataError(f"{name} holds no rows; name another split under data.splits, or give another data.source")
    order = names[columns.labels[0]] if len(columns.labels) == 1 else None
    return rows.rows(notes, tuple(order) if order else None)


def _class_names(feature: Any) -> list[str] | None:
    """The names of a ClassLabel, or of the ClassLabel in a list."""
    names: list[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def _named(cell: object, names: list[str] | None) -> object:
    """The names of ClassLabel indices; −1 stands for an unlabelled row by the hub's convention."""
    if isinstance(cell, list):
        return [_named(item, names) for item in cell]
    if names is None or not isinstance(cell, int):
        return cell
    return names[cell] if cell >= 0 else None
