"""Image data sets in every layout, with the mistakes that come with them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, local, picture
from PIL import Image, ImageEnhance

from finetune.data import Inspection, LabelledData, images, inspect_data, near_images, prepare_data
from finetune.data.pictures import Picture, look_at
from finetune.data.tone_correlation import tone_correlation
from finetune.errors import DataError
from finetune.preprocess.image_file import ImageFile, open_image
from finetune.recipe.types import DataSettings
from finetune.sources import Source, find_source
from finetune.tasks import TASKS

TASK = TASKS["image_classification"]
HALF = {"train": 0.5, "validation": 0.25, "test": 0.25}


def settings(path: Path | str, **data: Any) -> DataSettings:
    return DataSettings.model_validate({"source": str(path), "splits": HALF, **data}, strict=False)


def prepare(path: Path, task: str = "image_classification", **data: Any) -> LabelledData:
    return prepare_data(TASKS[task], settings(path, **data), local(path), {}, 0)


def look(path: Path, task: str = "image_classification", **data: Any) -> Inspection:
    return inspect_data(TASKS[task], settings(path, **data), local(path))


def refused(path: Path, *words: str, early: bool = True, **data: Any) -> None:
    """Refused in one sentence when loading, and by the early look as well."""
    for call in (prepare, look) if early else (prepare,):
        with pytest.raises(DataError) as caught:
            call(path, **data)
        for word in words:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixteen pictures in the folder `pictures`, in several formats."""
    (tmp_path / "pictures").mkdir()
    for number in range(16):
        kind = ("PNG", "BMP", "PNG", "TIFF")[number % 4]
        suffix = {"PNG": "png", "BMP": "BMP", "TIFF": "tif"}[kind]
        (tmp_path / "pictures" / f"{number:02d}.{suffix}").write_bytes(encoded(picture(number), kind))
    return tmp_path


@pytest.fixture
def table(folder: Path) -> Callable[..., Path]:
    """A CSV file with the pictures' paths and the labels 0 and 1 by turns, plus rows that a test adds."""

    def write(*more: str, header: str = "image,label", prefix: str = "pictures/", name: str = "d.csv") -> Path:
        names = sorted(path.name for path in (folder / "pictures").iterdir())
        rows = [f"{prefix}{name},{number % 2}" for number, name in enumerate(names)]
        (folder / name).write_text("\n".join([header, *rows, *more]) + "\n")
        return folder / name

    return write


def pixels(data: LabelledData) -> dict[bytes, int]:
    """Label index by pixels, over all splits."""
    parts = (data.train, data.validation, data.test)
    return {
        open_image(item).tobytes(): int(label)
        for part in parts
        for item, label in zip(part.inputs, part.labels, strict=True)
    }


def expected() -> dict[bytes, int]:
    return {picture(number).convert("RGB").tobytes(): number % 2 for number in range(16)}


def test_a_folder_per_class_is_read_whatever_the_case_of_endings(folder: Path) -> None:
    for number, path in enumerate(sorted((folder / "pictures").iterdir())):
        (folder / "corpus" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        shutil.move(path, folder / "corpus" / str(number % 2) / path.name)
    (folder / "corpus" / "0" / "notes.txt").write_text("not a picture")
    (folder / "corpus" / "0" / ".hidden.png").write_text("not a picture")
    data = prepare(folder / "corpus")
    assert pixels(data) == expected()
    assert data.labels == ("0", "1")
    assert data.train.places[0].startswith(("0/", "1/"))
    assert any("0/notes.txt" in warning for warning in data.audit["warnings"])
    seen = look(folder / "corpus")
    assert (seen.rows, seen.labels) == (16, ("0", "1"))


def test_paths_in_a_table_start_from_its_folder_or_from_the_given_root(
    folder: Path, table: Callable[..., Path]
) -> None:
    data = prepare(table())
    assert pixels(data) == expected()
    assert "d.csv:2 (pictures/00.png)" in {*data.train.places, *data.validation.places, *data.test.places}
    bare = table(prefix="")
    assert pixels(prepare(bare, image_root=str(folder / "pictures"))) == expected()
    refused(bare, "16 of 16 images cannot be read", "d.csv:2 (00.png): there is no such file", "data.image_root")
    refused(bare, "data.image_root: 'nowhere' is no folder", image_root="nowhere")


def test_json_lines_and_tables_without_header_hold_paths_too(folder: Path, table: Callable[..., Path]) -> None:
    lines = [line.split(",") for line in table().read_text().split()[1:]]
    (folder / "d.jsonl").write_text("\n".join(json.dumps({"image": a, "label": int(b)}) for a, b in lines))
    (folder / "d.txt").write_text("\n".join(f"{a}   {b}\t" for a, b in lines))
    one = prepare(folder / "d.jsonl")
    two = prepare(folder / "d.txt", format="csv", delimiter="whitespace", columns=("image", "label"))
    assert pixels(one) == pixels(two) == expected()
    assert one.fingerprint == two.fingerprint == prepare(table()).fingerprint, "the same pixels, labels and splits"


def test_parquet_holds_encoded_bytes_or_the_hubs_pairs(folder: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = [encoded(picture(number)) for number in range(16)]
    labels = [number % 2 for number in range(16)]
    pairs = [{"bytes": one, "path": f"{n}.png"} for n, one in enumerate(data[:15])]
    pairs.append({"bytes": None, "path": "pictures/15.tif"})
    for name, column in (("bytes", data), ("pairs", pairs)):
        pq.write_table(pa.table({"image": column, "label": labels}), folder / f"{name}.parquet")
        assert pixels(prepare(folder / f"{name}.parquet")) == expected()
        assert look(folder / f"{name}.parquet").rows == 16
    pq.write_table(pa.table({"image": [1.5] * 16, "label": labels}), folder / "numbers.parquet")
    refused(folder / "numbers.parquet", "numbers.parquet:1", "type float", "data.image_column")
    (folder / "d.jsonl").write_text('{"image": {"url": "x"}, "label": 1}\n')
    refused(folder / "d.jsonl", "d.jsonl:1", "type dict", "data.image_column")


def test_a_missing_image_column_is_named(table: Callable[..., Path]) -> None:
    refused(
        table(header="picture,label"),
        "no column 'image' (its columns: picture, label)",
        "data.image_column",
        "data.columns",
    )
    assert pixels(prepare(table(header="picture,label"), image_column="picture")) == expected()
    refused(table(header="label,image"), "16 of 16 images cannot be read", "there is no such")


BROKEN: dict[str, Callable[[Path], object]] = {
    "there is no such file": lambda path: None,
    "is empty": lambda path: path.write_bytes(b""),
    "no image in a format": lambda path: path.write_text("this is text"),
    "damaged or cut off": lambda path: path.write_bytes(encoded(picture(99, (90, 90)))[:-600]),
    "more than the limit": lambda path: path.write_bytes(encoded(Image.new("1", (3000, 3000)))),
    "is a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_an_unreadable_image_is_refused_by_name_or_skipped_and_listed(
    folder: Path, table: Callable[..., Path], reason: str
) -> None:
    BROKEN[reason](folder / "pictures" / "broken.jpg")
    shutil.move(folder / "pictures", folder / "p")
    (folder / "pictures").mkdir()
    for path in (folder / "p").iterdir():
        if path.stem != "broken":
            shutil.move(path, folder / "pictures")
    path = table("p/broken.jpg,1")
    refused(
        path, "1 of 17 images", "cannot be read: d.csv:18 (p/broken.jpg)", reason, "data.unreadable", max_pixels=10**6
    )
    data = prepare(path, unreadable="skip", max_pixels=10**6)
    assert pixels(data) == expected()
    assert (data.audit["rows"], data.audit["rows_used"], data.audit["images"]["unreadable"]) == (17, 16, 1)
    assert data.audit["images"]["unreadable_places"][0].startswith("d.csv:18 (p/broken.jpg): ")
    assert any(reason in warning and "are left out" in warning for warning in data.audit["warnings"])
    assert any(reason in note for note in look(path, unreadable="skip", max_pixels=10**6).notes)


def test_settings_of_tables_are_not_named_where_class_folders_have_unreadable_images(tmp_path: Path) -> None:
    for label in ("x", "y"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "broken.png").write_text("no picture")
    refused(tmp_path, "2 of 2 images", "x/broken.png", "; replace them")
    (tmp_path / "y" / "whole.png").write_bytes(encoded(picture(1, (40, 40))))
    refused(tmp_path, "2 of 3 images", "; mend or remove them, or set data.unreadable to skip")
    (tmp_path / "z").mkdir()
    assert any(
        "the folder z/ holds no image files" in note
        for note in look(tmp_path, unreadable="skip", splits={"stratify": False}).notes
    )


def test_of_many_unreadable_images_three_are_named_and_all_are_counted(table: Callable[..., Path]) -> None:
    path = table(*(f"no/{number}.png,0" for number in range(5)))
    with pytest.raises(DataError) as caught:
        prepare(path)
    message = str(caught.value)
    assert "5 of 21 images" in message
    assert [f"no/{number}.png" in message for number in range(5)] == [True, True, True, False, False]
    assert caught.value.exit_code == 2
    assert len(prepare(path, unreadable="skip").audit["images"]["unreadable_places"]) == 5


@pytest.mark.parametrize("row", [",1", "  ,1"])
def test_a_row_without_an_image_is_unreadable(table: Callable[..., Path], row: str) -> None:
    refused(table(row), "1 of 17 images", "cannot be read: d.csv:18: the image is empty")


def test_one_class_an_empty_table_and_a_label_with_one_row_are_refused(
    folder: Path, table: Callable[..., Path]
) -> None:
    path = folder / "e.csv"
    path.write_text("")
    refused(path, "e.csv is empty")
    path.write_text("image,label\n")
    refused(path, "e.csv holds no rows; give a table with an image and a label")
    path.write_text("image,label\npictures/00.png,x\npictures/01.BMP,x\n")
    refused(path, "every row has the label 'x'")
    refused(table("pictures/00.png,9"), "only one row has the label '9'")


def test_copies_are_counted_grouped_and_conflicts_told(folder: Path, table: Callable[..., Path]) -> None:
    shutil.copy(folder / "pictures" / "00.png", folder / "copy.png")
    picture(2).resize((96, 80), Image.Resampling.BICUBIC).save(folder / "larger.png")
    picture(3).save(folder / "other format.bmp")
    path = table("copy.png,0", "larger.png,0", "other format.bmp,0")
    data = prepare(path)
    audit = data.audit
    assert (audit["exact_duplicate_groups"], audit["exact_duplicate_rows"]) == (2, 2)
    assert (audit["near_duplicate_groups"], audit["near_duplicate_rows"]) == (1, 1)
    assert audit["near_examples"][0]["places"] == ["d.csv:4 (pictures/02.png)", "d.csv:19 (larger.png)"]
    assert audit["conflicts"] == [
        {"places": ["d.csv:5 (pictures/03.tif)", "d.csv:20 (other format.bmp)"], "labels": ["1", "0"]}
    ]
    assert any(warning.startswith("1 image carries different labels") for warning in audit["warnings"])
    assert audit["leaks"] == {"train/validation": 0, "train/test": 0, "validation/test": 0}
    where = {place: part for part in (data.train, data.validation, data.test) for place in part.places}
    for one, other in (("2 (pictures/00.png", "18 (copy.png"), ("4 (pictures/02.png", "19 (larger.png")):
        assert where[f"d.csv:{one})"] is where[f"d.csv:{other})"]
    fewer = prepare(path, audit={"exact_duplicates": "drop", "conflicts": "drop"})
    assert (fewer.audit["rows_used"], fewer.audit["dropped_duplicates"]) == (16, 1)


def test_leaks_between_named_image_folders_are_refused(folder: Path) -> None:
    named = {}
    for at, split in enumerate(("train", "validation", "test")):
        for number in range(8 * at, 8 * at + 8):
            place = folder / split / str(number % 2)
            place.mkdir(parents=True, exist_ok=True)
            picture(number).save(place / f"{number}.png")
        named[split] = local(folder / split)
    picture(0).resize((24, 20), Image.Resampling.BICUBIC).save(folder / "test" / "0" / "small.png")
    wanted = settings(folder, splits={split: split for split in named})
    with pytest.raises(DataError, match=r"1 between train and test\), such as 0/small\.png and 0/0\.png .*data\.audit"):
        prepare_data(TASK, wanted, local(folder), named, 0)


def test_the_audit_is_json_and_says_sizes_and_modes(folder: Path, table: Callable[..., Path]) -> None:
    Image.new("CMYK", (20, 10), (0, 90, 90, 0)).save(folder / "cmyk.jpg")
    picture(77, (60, 30)).convert("P").save(folder / "palette.gif")
    audit = prepare(table("cmyk.jpg,0", "palette.gif,1")).audit
    assert json.loads(json.dumps(audit, allow_nan=False)) == audit
    assert audit["images"] == {
        "unreadable": 0,
        "unreadable_places": [],
        "sizes": {"48x40": 16, "20x10": 1, "60x30": 1},
        "modes": {"RGB": 16, "CMYK": 1, "P": 1},
    }
    assert (audit["characters"], audit["empty_texts"], audit["similarity_threshold"]) == (None, 0, 0.9983)


def test_the_limit_is_taken_before_images_are_opened(
    table: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[ImageFile] = []
    real = images.look_at_all
    monkeypatch.setattr(images, "look_at_all", lambda files, most: [opened.extend(files), *real(files, most)][1:])
    data = prepare(table(), limit=8)
    assert len(opened) == data.audit["rows_used"] == 8
    assert data.audit["labels"] == {"0": 4, "1": 4}
    assert data.audit["rows"] == 16


def test_the_early_look_opens_few_images_of_many(
    table: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(images, "open_image", lambda file, most: opened.append(file.place))
    assert look(table(*("pictures/00.png,0" for _ in range(200)))).rows == 216
    assert 1 <= len(opened) <= 32
    assert len(set(opened)) == len(opened)


def test_the_fingerprint_follows_pixels_not_file_names(folder: Path, table: Callable[..., Path]) -> None:
    before = prepare(table()).fingerprint
    picture(0).save(folder / "pictures" / "00.bmp")
    (folder / "pictures" / "00.png").unlink()
    assert prepare(table()).fingerprint == before
    picture(99).save(folder / "pictures" / "00.bmp")
    assert prepare(table()).fingerprint != before


@pytest.fixture
def elpv(monkeypatch: pytest.MonkeyPatch) -> Source:
    """The real table; pictures that are all different stand in for its images, whose decoding takes seconds."""
    pytest.importorskip("elpv_dataset")
    rng = np.random.default_rng(0)

    def stand_in(files: list[ImageFile], most: int) -> list[Picture]:
        return [Picture(file.place, rng.integers(0, 256, 4224, dtype=np.uint8), (300, 300), "L") for file in files]

    monkeypatch.setattr(images, "look_at_all", stand_in)
    return find_source("package:elpv_dataset/data/labels.csv", kind="dataset")


ELPV: dict[str, Any] = {
    "columns": ("image", "probability", "type"),
    "delimiter": "whitespace",
    "label_column": "probability",
    "stratify_by": ("probability", "type"),
    "splits": {"train": 0.675, "validation": 0.075, "test": 0.25},
}
DEFECTIVE = {"0.0": "functional", "0.3333333333333333": "defective", "0.6666666667": "defective", "1": "defective"}


def test_elpv_is_split_as_published(elpv: Source) -> None:
    chosen = settings(elpv.name, **ELPV, label_map=DEFECTIVE, labels=("functional", "defective"))
    seen = inspect_data(TASK, chosen, elpv)
    assert (seen.rows, seen.labels, seen.notes) == (2624, ("functional", "defective"), ())
    for seed in (0, 1):
        data = prepare_data(TASK, chosen, elpv, {}, seed)
        assert (len(data.train) + len(data.validation), len(data.test)) == (1968, 656)
        assert abs(len(data.validation) - 0.075 * 2624) < 1
        assert data.audit["labels"] == {"functional": 1508, "defective": 1116}
        assert data.audit["splits"]["test"]["labels"] == {"functional": 377, "defective": 279}


def test_elpv_as_a_regression_keeps_every_probability_in_proportion(elpv: Source) -> None:
    data = prepare_data(TASKS["image_regression"], settings(elpv.name, **ELPV), elpv, {}, 0)
    assert data.labels == ()
    assert data.test.labels.dtype == np.float32
    counts = Counter(round(float(value), 2) for value in data.test.labels)
    for value, rows in {0.0: 1508, 0.33: 295, 0.67: 106, 1.0: 715}.items():
        assert abs(counts[value] - rows / 4) <= 2
    assert data.audit["values"]["max"] == 1.0


@pytest.mark.slow
def test_of_elpv_copies_are_found_and_different_cells_are_not() -> None:
    """The numbers that docs/data.md gives of solar cells."""
    pytest.importorskip("elpv_dataset")
    source = find_source("package:elpv_dataset/data/labels.csv", kind="dataset")
    data = prepare_data(TASKS["image_regression"], settings(source.name, **ELPV), source, {}, 0)
    audit = data.audit
    assert (audit["exact_duplicate_rows"], audit["near_duplicate_groups"]) == (0, 0)
    assert audit["images"]["sizes"] == {"300x300": 2624}

    cells = [image for image in data.train.inputs if isinstance(image, ImageFile)]
    thumbnails = np.stack([look_at(cell, 10**6).thumbnail for cell in cells])
    near = list(near_images._candidates(near_images._signs(thumbnails), 4))
    fine, coarse = thumbnails[:, :4096], near_images._coarse(thumbnails)
    likest = max(tone_correlation(fine, a, b).max() for a, b in near)
    likest_coarse = max(tone_correlation(coarse, a, b).max() for a, b in near)
    assert sum(len(a) for a, _ in near) > 200, "many cells share a hash"
    assert 0.997 < likest < near_images.CORRELATION - 0.0002
    assert 0.998 < likest_coarse < near_images._COARSE - 0.0002
    originals = [open_image(cell) for cell in cells[:100]]
    looks = [look_at(cell, 10**6) for cell in cells[:100]]
    for change, least in COPIES.items():
        copies = [look_at(ImageFile("copy", data=change(image)), 10**6) for image in originals]
        found = near_images.near_image_pairs([*looks, *copies], 4)
        assert all(j == i + 100 for i, j, _ in found), "a copy belongs to its own original"
        assert len(found) >= least


# The bytes of a changed copy, and how many of a hundred must be found.
COPIES: dict[Callable[[Image.Image], bytes], int] = {
    lambda image: encoded(image.resize((150, 150), Image.Resampling.BILINEAR)): 98,
    lambda image: encoded(image.resize((224, 224), Image.Resampling.BICUBIC)): 98,
    lambda image: encoded(image, "JPEG", quality=75): 98,
    lambda image: encoded(image, "JPEG", quality=50): 96,
    lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.7)): 93,
    lambda image: encoded(ImageEnhance.Contrast(image).enhance(0.7)): 93,
}
