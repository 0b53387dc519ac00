"""Images as the data layer sees them: reading a cell, readability, identity, near duplicates, description."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.examined import Examined
from finetune.data.layout import ClassFiles, DataFile
from finetune.data.near_images import near_image_pairs
from finetune.data.pictures import Picture, look_at_all
from finetune.data.rows import Input
from finetune.errors import DataError
from finetune.preprocess.image_file import IMAGE_SUFFIXES, ImageFile, absence, open_image
from finetune.recipe.types import DataSettings
from finetune.sources import find_source

IMAGE_FILES = ClassFiles(IMAGE_SUFFIXES, "image files such as .jpg or .png")
_SIZES = 10
_LOOKED_FOR = 20_000  # files whose existence is checked early: more would take longer than a check may
_OPENED = 32  # images opened early, spread over the rows …
_OPENING_SECONDS = 1.0  # … and no new one after this time, since photographs can take a tenth of a second each


def image_root(settings: DataSettings) -> Path | None:
    """The folder of data.image_root; DataError when there is no such folder."""
    root = settings.image_root
    if root is None:
        return None
    try:
        path = find_source(root, kind="dataset").path if root.startswith("package:") else Path(root).expanduser()
        found = path is not None and path.is_dir()
    except (OSError, RuntimeError):  # a folder that we may not enter, the home folder of nobody
        found = False
    if not found:
        raise DataError(f"data.image_root: '{root}' is no folder; give the folder that the images' paths start from")
    return path


def image_cell(cells: Sequence[object], place: str, root: Path | None) -> tuple[Input, str]:
    """The image of a row of a table: a path relative to `root`, encoded bytes, or the hub's {bytes, path}; and its place.

    A missing one is an image without bytes, which is found to be unreadable with the others.
    """
    (value,) = cells
    name = value.get("path") if isinstance(value, Mapping) else value
    data = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(name, str) and name.strip() and "\0" not in name:
        place = f"{place} ({name.strip()})"
        if not isinstance(data, bytes):
            return ImageFile(place, path=_resolved(name.strip(), root, place)), place
    known = not isinstance(value, Mapping) or {"path", "bytes"} & set(value)
    if known and (data is None or isinstance(data, bytes | str)):
        return ImageFile(place, data=data if isinstance(data, bytes) else b""), place
    raise DataError(
        f"{place}: the image is of type {type(value).__name__}, neither a path nor encoded bytes; check data.image_column"
    )


def _resolved(name: str, root: Path | None, place: str) -> Path:
    path = Path(name)
    if root is None and not path.is_absolute():
        raise DataError(f"{place}: the path is relative, but the table has no folder; set data.image_root")
    return path if root is None else root / path


def image_file(file: DataFile, encoding: str, fallback: list[str]) -> Input:
    """An image of a class folder, not opened."""
    return ImageFile(file.place, path=file.path)


def image_is_empty(image: Input) -> bool:
    """Never: an image without content is unreadable, and named as such."""
    return False


def examine_images(images: Sequence[Input], settings: DataSettings) -> Examined:
    """Open every image once. Two are identical if their size and all RGB pixels are."""
    found = look_at_all(_files(images), settings.max_pixels)
    pictures: dict[str, Picture] = {}
    for look in found:
        if isinstance(look, Picture):
            pictures.setdefault(look.identity, look)
    identities = tuple(look.identity if isinstance(look, Picture) else None for look in found)
    return Examined(identities, {row: look for row, look in enumerate(found) if isinstance(look, str)}, pictures)


def _files(images: Sequence[Input]) -> list[ImageFile]:
    return [image for image in images if isinstance(image, ImageFile)]


def near_images(identities: Sequence[str], examined: Examined, settings: DataSettings) -> list[tuple[int, int, float]]:
    """Pairs of distinct images that show the same picture."""
    return near_image_pairs([examined.pictures[name] for name in identities], settings.audit.image_distance)


def describe_images(images: Sequence[Input], identities: Sequence[str], examined: Examined) -> dict[str, Any]:
    """Unreadable images, and the sizes (width × height) and colour modes of the rows that are used."""
    sizes = Counter("{}x{}".format(*examined.pictures[name].size) for name in identities)
    common = dict(sizes.most_common(_SIZES))
    if others := sizes.total() - sum(common.values()):
        common["others"] = others
    modes = Counter(examined.pictures[name].mode for name in identities)
    return {
        "characters": None,
        "images": {
            "unreadable": len(examined.reasons),
            "unreadable_places": [reason.partition("; ")[0] for reason in examined.reasons.values()],
            "sizes": common,
            "modes": dict(modes.most_common()),
        },
    }


def judge_unreadable(
    reasons: Sequence[str], images: Sequence[Input], settings: DataSettings, which: str = "images"
) -> list[str]:
    """A warning that names those of the images that are unreadable, or DataError when the recipe refuses them or none is left."""
    if not reasons:
        return []
    shown = ", ".join(reason.partition("; ")[0] for reason in reasons[:3])
    text = f"{len(reasons)} of {len(images)} {which} cannot be read: {shown}{', …' if len(reasons) > 3 else ''}"
    tabled = not all(map(_of_class_folder, _files(images)))
    if len(reasons) == len(images):
        raise DataError(f"{text}; {'check data.image_column and data.image_root' if tabled else 'replace them'}")
    if settings.unreadable == "refuse":
        also = " check data.image_root," if tabled else ""
        raise DataError(f"{text}; mend or remove them,{also} or set data.unreadable to skip")
    return [f"{text}; their rows are left out"]


def _of_class_folder(file: ImageFile) -> bool:
    """Whether a file's place is its folder and name; an image of a table is placed by its row."""
    return file.path is not None and file.path.parts[-2:] == Path(file.place).parts


def glance_at_images(images: Sequence[Input], settings: DataSettings) -> list[str]:
    """What a look at a few images says before all are opened: missing files, and files that are no images.

    Existence is checked for up to 20,000 rows, content for up to 32, both spread evenly. Returns sentences for the user.
    """
    files = _files(images)
    looked_for = _spread(files, _LOOKED_FOR)
    absent = [absence(file) for file in looked_for]
    notes = judge_unreadable([reason for reason in absent if reason is not None], looked_for, settings)
    there = [file for file, reason in zip(looked_for, absent, strict=True) if reason is None]
    started = time.perf_counter()
    reasons: list[str] = []
    opened: list[ImageFile] = []
    for file in _spread(there, _OPENED):
        if time.perf_counter() - started > _OPENING_SECONDS:
            break
        opened.append(file)
        try:
            open_image(file, settings.max_pixels)
        except DataError as error:
            reasons.append(str(error))
    return notes + judge_unreadable(reasons, opened, settings, which="images that were opened")


def _spread(files: Sequence[ImageFile], limit: int) -> list[ImageFile]:
    count = min(limit, len(files))
    return [files[at * len(files) // count] for at in range(count)]
