from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finetune import bundle as contract
from finetune.bundle import Bundle, free_bytes, publish, require_space, seal, start, write_json, write_preprocessing
from finetune.bundle.preprocessing import read_labels
from finetune.errors import BundleError
from finetune.preprocess import ImageEncoder, ImagePreprocess, LanguagePreprocess, TextPreprocess

TEXT = TextPreprocess(16, ("input_ids", "attention_mask"), 0)
IMAGE = ImagePreprocess(crop=(8, 6), resize=9, mean=(0.1, 0.2, 0.3))
LANGUAGE = LanguagePreprocess(
    16, 0, eos_token_ids=(0, 2), chat_template="{{ messages[0].content }}", special={"eos_token": "<|end|>"}
)
FACTS = {"name": "tiny", "served": "onnx/model.onnx", "batch_invariant": True, "seed": 3}


class Killed(BaseException):
    """Stands for the process going away: nothing below may rely on catching it."""


def fill(partial: Path, weights: bytes = b"weights") -> Path:
    """The files of a bundle; nothing here runs the model, so any bytes serve as ONNX."""
    (partial / "onnx").mkdir()
    (partial / "onnx/model.onnx").write_bytes(weights)
    (partial / "tokenizer.json").write_text("{}")
    write_json(partial / "labels.json", ["no", "yes"])
    write_preprocessing(partial, task="text_classification", target="single_label", preprocess=TEXT, temperature=1.5)
    write_json(partial / "report.json", {"format": 1, "metrics": {"accuracy": 0.5}})
    return partial


def make(target: Path, weights: bytes = b"weights", *, overwrite: bool = False) -> Path:
    partial = fill(start(target), weights)
    seal(partial, FACTS)
    publish(partial, target, overwrite)
    return target


@pytest.fixture
def path(tmp_path) -> Path:
    return make(tmp_path / "exports" / "run")


def weights_of(target: Path) -> bytes:
    Bundle.open(target)
    return (target / "onnx/model.onnx").read_bytes()


def test_a_bundle_reads_back_as_it_was_written(path):
    bundle = Bundle.open(path)
    assert bundle.labels == ("no", "yes")
    assert bundle.preprocess == TEXT
    assert bundle.temperature == 1.5
    assert bundle.served == "onnx/model.onnx"
    assert bundle.report["metrics"] == {"accuracy": 0.5}
    assert bundle.recipe_path == path / "recipe.yaml"
    assert {key: bundle.manifest[key] for key in FACTS} == FACTS
    assert bundle.files == ["labels.json", "onnx/model.onnx", "preprocess.json", "report.json", "tokenizer.json"]
    assert sorted(os.listdir(path.parent)) == ["run"]  # noqa: PTH208


def test_the_manifest_names_hash_and_size_of_every_file(path):
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["files"]["onnx/model.onnx"] == {
        "sha256": hashlib.sha256(b"weights").hexdigest(),
        "bytes": 7,
    }
    on_disk = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}


# What is wrong with a bundle is said ----------------------------------------------------------------------------------


def alter(path: Path) -> None:
    (path / "onnx/model.onnx").write_bytes(b"weightS")


def truncate(path: Path) -> None:
    (path / "onnx/model.onnx").write_bytes(b"weight")


def remove(path: Path) -> None:
    (path / "report.json").unlink()


def add(path: Path) -> None:
    (path / "onnx/extra.data").write_bytes(b"")


def link(path: Path) -> None:
    (path / "report.json").rename(path.parent / "elsewhere.json")
    (path / "report.json").symlink_to(path.parent / "elsewhere.json")


def link_folder(path: Path) -> None:
    (path / "onnx").rename(path.parent / "elsewhere")
    (path / "onnx").symlink_to(path.parent / "elsewhere")


def link_extra(path: Path) -> None:
    (path / "more").symlink_to(path.parent)


def hard_link(path: Path) -> None:
    os.link(path / "onnx/model.onnx", path.parent / "writable-elsewhere")


def pipe(path: Path) -> None:
    (path / "report.json").unlink()
    os.mkfifo(path / "report.json")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (alter, r"'onnx/model\.onnx' was changed"),
        (truncate, r"'onnx/model\.onnx' was changed"),
        (remove, r"'report\.json' is missing"),
        (add, r"'onnx/extra\.data' does not belong"),
        (link, r"'report\.json' is a symbolic link"),
        (link_folder, "'onnx' is a symbolic link"),
        (link_extra, "'more' is a symbolic link"),
        (hard_link, r"'onnx/model\.onnx' has hard links"),
        (pipe, r"'report\.json' is not a regular file"),
    ],
)
def test_damage_is_named_by_open_and_by_verify(path, damage, words):
    opened = Bundle.open(path)
    opened.verify()
    damage(path)
    with pytest.raises(BundleError, match=words):
        Bundle.open(path)
    with pytest.raises(BundleError, match=words):
        opened.verify()


def test_some_files_can_be_verified_alone(path):
    bundle = Bundle.open(path)
    (path / "report.json").write_text("altered")
    bundle.verify_files(["onnx/model.onnx", "tokenizer.json"])
    with pytest.raises(BundleError, match=r"'report\.json' was changed"):
        bundle.verify_files(["onnx/model.onnx", "report.json"])
    with pytest.raises(BundleError, match=r"has no 'onnx/model\.int8\.onnx'"):
        bundle.verify_files(["onnx/model.int8.onnx"])
    link_folder(path)
    with pytest.raises(BundleError, match="'onnx' is a symbolic link"):
        bundle.verify_files(["onnx/model.onnx"])


def edit(path: Path, name: str, **changes: object) -> None:
    document = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps(document | changes))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "manifest.json",
            {"format": 2},
            r"format 2 is newer than this version of finetune reads \(1\); update finetune",
        ),
        ("manifest.json", {"format": "1"}, "states no format"),
        ("manifest.json", {"format": 0}, "states no format"),
        ("manifest.json", {"files": ["a"]}, "lists no files"),
        ("manifest.json", {"files": {"a": 1}}, "lists no files"),
        ("manifest.json", {"files": {"../secret": {}}}, r"lists '\.\./secret'"),
        ("manifest.json", {"files": {"/etc/passwd": {}}}, "lists '/etc/passwd'"),
        ("manifest.json", {"files": {"a//b": {}}}, "lists 'a//b'"),
        ("manifest.json", {"files": {"a\\b": {}}}, "no plain path"),
        ("manifest.json", {"files": {}}, r"preprocess\.json is missing"),
        ("manifest.json", {"served": "../../other.onnx"}, "must say which ONNX file is 'served'"),
        ("manifest.json", {"served": "onnx/model.int8.onnx"}, r"onnx/model\.int8\.onnx is missing"),
        ("manifest.json", {"batch_invariant": "yes"}, "whether it is 'batch_invariant'"),
        ("preprocess.json", {"format": 2}, "format 2 is newer"),
        ("preprocess.json", {"task": None}, "names no task"),
        (
            "preprocess.json",
            {"target": "single_lable"},
            "target 'single_lable' is not known; did you mean 'single_label'",
        ),
        ("preprocess.json", {"target": ["single_label"]}, "is not known"),
        ("preprocess.json", {"image": {}}, "must have one section of text, image, language, but has 2"),
        ("preprocess.json", {"interval": -1}, "interval must be null or a number"),
        ("preprocess.json", {"interval": math.inf}, "interval must be null or a number"),
        ("preprocess.json", {"interval": "1"}, "interval must be null or a number"),
        ("preprocess.json", {"temperature": 0}, "temperature must be a number above zero"),
        ("preprocess.json", {"temperature": math.nan}, "temperature must be a number above zero"),
        ("preprocess.json", {"temperature": True}, "temperature must be a number above zero"),
        ("preprocess.json", {"text": None}, "not an object"),
        ("preprocess.json", {"target": "next_token"}, "reads text cannot answer with next_token"),
    ],
)
def test_a_document_that_cannot_be_right_is_refused(path, name, changes, words):
    edit(path, name, **changes)
    with pytest.raises(BundleError, match=words):
        Bundle.open(path, verify=False)


LABELS_OF_TARGETS = {
    "single_label": ([{}, [], ["one"], ["a", "a"], ["a", 1]], [["a", "b"]], "at least 2 names, all different"),
    "multi_label": ([{}, [], ["a", "a"], [None]], [["a"], ["a", "b"]], "at least 1 names, all different"),
    "regression": ([{}, ["one"], ["a", "b"]], [[]], "an empty list"),
}


@pytest.mark.parametrize("target", LABELS_OF_TARGETS)
def test_a_target_has_as_many_label_names_as_it_can_answer_with(path, target):
    refused, accepted, words = LABELS_OF_TARGETS[target]
    edit(path, "preprocess.json", target=target)
    for labels in refused:
        (path / "labels.json").write_text(json.dumps(labels))
        with pytest.raises(BundleError, match=words):
            Bundle.open(path, verify=False)
    for labels in accepted:
        (path / "labels.json").write_text(json.dumps(labels))
        bundle = Bundle.open(path, verify=False)
        assert (bundle.labels, bundle.outputs) == (tuple(labels), len(labels) or 1)


def test_a_bundle_from_before_there_were_targets_still_opens(path):
    """Such a preprocess.json has neither target nor interval."""
    document = {"format": 1, "task": "text_classification", "text": TEXT.to_json(), "temperature": 2.5}
    (path / "preprocess.json").write_text(json.dumps(document))
    seal(path, FACTS)
    bundle = Bundle.open(path)
    assert (bundle.target, bundle.modality, bundle.preprocess) == ("single_label", "text", TEXT)
    assert (bundle.temperature, bundle.interval) == (2.5, None)


def test_an_image_bundle_needs_no_tokenizer_and_keeps_its_interval(tmp_path):
    partial = fill(start(tmp_path / "run"))
    (partial / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        seal(partial, FACTS)
    write_preprocessing(partial, task="image_regression", target="regression", preprocess=IMAGE, interval=0.25)
    write_json(partial / "labels.json", [])
    seal(partial, FACTS)
    publish(partial, tmp_path / "run")
    bundle = Bundle.open(tmp_path / "run")
    assert (bundle.task, bundle.modality, bundle.target) == ("image_regression", "image", "regression")
    assert (bundle.preprocess, bundle.interval, bundle.temperature) == (IMAGE, 0.25, 1.0)
    assert isinstance(bundle.encoder(), ImageEncoder)
    assert bundle.encoder().settings == IMAGE


def test_a_language_bundle_has_no_labels_and_keeps_its_chat_template(tmp_path):
    partial = fill(start(tmp_path / "run"))
    write_preprocessing(partial, task="causal_lm", target="next_token", preprocess=LANGUAGE)
    with pytest.raises(BundleError, match="must be an empty list for the target next_token"):
        read_labels(partial, "next_token")
    write_json(partial / "labels.json", [])
    seal(partial, FACTS)
    publish(partial, tmp_path / "run")
    bundle = Bundle.open(tmp_path / "run")
    assert (bundle.task, bundle.modality, bundle.target, bundle.labels) == ("causal_lm", "language", "next_token", ())
    assert bundle.preprocess == LANGUAGE
    with pytest.raises(BundleError, match=r"tokenizer\.json: "):
        bundle.encoder()
    edit(tmp_path / "run", "preprocess.json", target="regression")
    with pytest.raises(BundleError, match="reads language cannot answer with regression"):
        Bundle.open(tmp_path / "run", verify=False)


def test_a_bundle_whose_tokenizer_is_not_in_the_manifest_does_not_open(path):
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["tokenizer.json"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        Bundle.open(path, verify=False)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]"])
def test_a_manifest_that_is_no_json_object_is_refused(path, content):
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json: (not valid JSON|not a finetune file)"):
        Bundle.open(path)


@pytest.mark.parametrize("where", ["nothing", "empty", "file"])
def test_what_is_no_bundle_is_refused(tmp_path, where):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path / where)


# Sealing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "words"),
    [(link, "symbolic link"), (link_folder, "symbolic link"), (hard_link, "hard links"), (pipe, "regular file")],
)
def test_links_and_special_files_cannot_be_sealed(tmp_path, damage, words):
    partial = fill(start(tmp_path / "run"))
    damage(partial)
    with pytest.raises(BundleError, match=words):
        seal(partial, FACTS)
    assert not (partial / "manifest.json").exists()


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (FACTS | {"files": {}}, "own key 'files'"),
        (FACTS | {"served": "onnx/model.int8.onnx"}, "is missing from the bundle"),
        ({"name": "tiny"}, "must say which ONNX file is 'served'"),
        (FACTS | {"drop": float("nan")}, "the value at 'drop' is not a finite number"),
    ],
)
def test_facts_that_cannot_be_true_are_refused(tmp_path, facts, words):
    partial = fill(start(tmp_path / "run"))
    with pytest.raises(BundleError, match=words):
        seal(partial, facts)


# Whole or absent ------------------------------------------------------------------------------------------------------


def fail_at(monkeypatch, name: str, call: int, error: BaseException) -> list[int]:
    """Make os.<name> raise `error` at its `call`-th use; the returned list counts the uses."""
    real, count = getattr(os, name), []

    def wrapper(*arguments, **options):
        count.append(1)
        if len(count) == call:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, wrapper)
    return count


@pytest.mark.parametrize(
    ("error", "seen", "words"),
    [
        (Killed(), Killed, ""),
        (OSError(errno.EIO, "Input/output error"), BundleError, "cannot be written"),
        (OSError(errno.ENOSPC, "No space left"), BundleError, "the disk is full"),
    ],
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_publish_that_fails_at_any_step_leaves_everything_as_it_was(tmp_path, step, error, seen, words, overwrite):
    target = tmp_path / "run"
    if overwrite:
        make(target, b"old")
    partial = fill(start(target), b"new")
    seal(partial, FACTS)
    call = 0
    while True:
        call += 1
        with pytest.MonkeyPatch.context() as patch:
            count = fail_at(patch, step, call, error)
            try:
                publish(partial, target, overwrite)
            except (Killed, BundleError) as caught:
                said = caught
            else:
                break
        assert isinstance(said, seen)
        assert words in str(said)
        assert len(count) >= call
        assert weights_of(partial) == b"new"
        if overwrite:
            assert weights_of(target) == b"old"
        else:
            assert not target.exists()
        assert not (tmp_path / ".run.old").exists()
    assert call > (2 if step == "replace" and overwrite else 1)
    assert weights_of(target) == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_publish_whose_process_vanishes_leaves_the_target_whole_or_absent_and_the_next_one_mends_it(tmp_path, step):
    """The process exits before the first rename, between the two, and after both; nothing can be put back in time."""
    target = make(tmp_path / "run", b"old")
    partial = fill(start(target), b"new")
    seal(partial, FACTS)
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from finetune.bundle import publish\n"
        "steps, replace, rmdir = [], os.replace, os.rmdir\n"
        "def vanish(real):\n"
        "    def call(*a, **k):\n"
        "        steps.append(1)\n"
        "        if len(steps) == int(sys.argv[3]):\n"
        "            os._exit(9)\n"
        "        return real(*a, **k)\n"
        "    return call\n"
        "os.replace, os.unlink = vanish(replace), vanish(os.unlink)\n"
        "publish(Path(sys.argv[1]), Path(sys.argv[2]), overwrite=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(partial), str(target), str(step)], check=False)
    assert done.returncode == 9
    assert {1: b"old", 2: None, 3: b"new"}[step] == (weights_of(target) if target.exists() else None)
    if step == 2:
        with pytest.raises(BundleError, match="already exists"):
            make(target, b"newest")
        assert weights_of(target) == b"old"
    make(target, b"newest", overwrite=True)
    assert weights_of(target) == b"newest"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_every_file_and_folder_is_on_disk_before_the_rename_and_the_rename_after_it(tmp_path, monkeypatch):
    target = tmp_path / "run"
    partial = fill(start(target))
    seal(partial, FACTS)
    inside = {partial.stat().st_ino, *(path.stat().st_ino for path in partial.rglob("*"))}
    events: list[int | str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: events.append(os.fstat(handle).st_ino) or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda *names: events.append("rename") or replace(*names))
    publish(partial, target)
    renamed = events.index("rename")
    assert set(events[:renamed]) == inside
    assert events[renamed + 1 :] == [tmp_path.stat().st_ino]


def test_an_existing_target_is_kept_unless_overwriting_is_allowed(path):
    with pytest.raises(BundleError, match="already exists"):
        make(path, b"new")
    assert weights_of(path) == b"weights"
    make(path, b"new", overwrite=True)
    assert weights_of(path) == b"new"


def test_what_is_no_bundle_is_never_overwritten(tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "one.jpg").write_text("precious")
    (tmp_path / "link").symlink_to(photographs)
    (tmp_path / "file").write_text("precious")
    for name, words in (
        ("photographs", "is no bundle"),
        ("link", "is a link or a file"),
        ("file", "is a link or a file"),
    ):
        with pytest.raises(BundleError, match=words):
            make(tmp_path / name, overwrite=True)
    assert (photographs / "one.jpg").read_text() == (tmp_path / "file").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty", overwrite=True)


def test_an_unsealed_folder_is_not_published(tmp_path):
    with pytest.raises(BundleError, match="not sealed"):
        publish(fill(start(tmp_path / "run")), tmp_path / "run")


def test_an_old_bundle_that_cannot_be_removed_is_a_warning_beside_the_new_one(path, monkeypatch, caplog):
    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied")

    partial = fill(start(path), b"new")
    seal(partial, FACTS)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    publish(partial, path, overwrite=True)
    assert weights_of(path) == b"new"
    assert "could not be removed" in caplog.text


def test_start_clears_what_a_killed_run_left_and_makes_parents(tmp_path):
    target = tmp_path / "a" / "b" / "run"
    (start(target) / "left.over").write_text("x")
    assert list(start(target).iterdir()) == []


def test_an_output_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written"):
        start(tmp_path / "file" / "run")


# Disk -----------------------------------------------------------------------------------------------------------------


def test_space_is_asked_for_in_one_sentence(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**9, 10**9 - 5_000_000, 5_000_000))
    require_space(tmp_path / "not" / "there" / "yet", 5_000_000, "the bundle")
    assert free_bytes(tmp_path) == 5_000_000
    with pytest.raises(BundleError, match=r"the bundle needs 200 MB at .*, but only 5 MB are free; free some space"):
        require_space(tmp_path, 200_000_000, "the bundle")


def test_a_disk_that_fills_up_while_sealing_is_one_sentence(tmp_path, monkeypatch):
    partial = fill(start(tmp_path / "run"))
    fail_at(monkeypatch, "fsync", 1, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(BundleError, match="the disk is full"):
        seal(partial, FACTS)


@pytest.mark.parametrize(
    ("content", "place"),
    [({"a": [0, {"b": math.inf}]}, "a.1.b"), ({"loss": math.nan}, "loss"), ([1.0, -math.inf], "1"), (math.nan, ".")],
)
def test_a_number_that_json_cannot_hold_is_named_by_its_key(tmp_path, content, place):
    with pytest.raises(BundleError, match=f"the value at '{place}' is not a finite number"):
        write_json(tmp_path / "report.json", content)
    assert not (tmp_path / "report.json").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=JSON)
@example(content={"undecodable": "caf\udce9.txt"})
def test_any_json_value_survives_writing_undecodable_file_names_included(tmp_path, content):
    write_json(tmp_path / "x.json", content)
    assert json.loads((tmp_path / "x.json").read_bytes()) == content


def test_json_keeps_the_order_of_keys_and_readable_letters(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": "é"})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "é"\n}\n'


def test_file_names_are_the_documented_ones():
    assert (contract.ONNX, contract.INT8, contract.MANIFEST) == (
        "onnx/model.onnx",
        "onnx/model.int8.onnx",
        "manifest.json",
    )
