"""Where a model or a data set comes from: hub id@revision, local folder or file, or a path inside an installed package.

Nothing here imports torch, runs code that came with a model, or opens a pickle. A hub model is downloaded once by
`local_model`; from there on every source is a local path.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from finetune.errors import SourceError

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "README.md", "LICENSE*")
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model-*.bin")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_DATA_SUFFIXES = {".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt"}
_HUB_TIMEOUT_S = 10.0
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """A found model or data set. `path` is None only while it lives on the hub alone; `files` are its top-level names."""

    name: str
    kind: Literal["package", "folder", "file", "hub"]
    path: Path | None
    revision: str | None = None
    package: str | None = None
    files: tuple[str, ...] = ()


def find_source(name: str, *, revision: str | None = None, kind: Literal["model", "dataset"]) -> Source:
    """Find a source without loading it; SourceError names what is missing and how to get it."""
    if name.startswith("package:"):
        return _in_package(name)
    path = Path(name).expanduser()
    if path.exists():
        if kind == "model" and not path.is_dir():
            raise SourceError(
                f"backbone '{name}' is a file; give the folder that holds config.json and model.safetensors"
            )
        return Source(name, "folder" if path.is_dir() else "file", path.resolve(), files=_names(path))
    hub_name, _, at = name.partition("@")
    if name.startswith((".", "/", "~")) or path.suffix.lower() in _DATA_SUFFIXES or not _HUB_ID.fullmatch(hub_name):
        what = "backbone" if kind == "model" else "data source"
        raise SourceError(f"{what} '{name}': no such file or folder, and it is not a hub id such as owner/name")
    if at and revision and at != revision:
        raise SourceError(f"'{name}' and revision '{revision}' disagree; give the revision once")
    return _on_hub(name, hub_name, at or revision, kind)


def local_model(source: Source, *, allow_pickle: bool) -> Path:
    """The folder of a model's files, downloaded if need be; refuses pickles and models that bring their own code."""
    path = source.path
    if path is None:
        from huggingface_hub import snapshot_download

        patterns = [*MODEL_FILES, *(PICKLE_FILES if allow_pickle else ())]
        hub_name = source.name.partition("@")[0]
        path = Path(
            _ask_hub(
                source.name, lambda: snapshot_download(hub_name, revision=source.revision, allow_patterns=patterns)
            )
        )
    check_model_files(source.name, _names(path), allow_pickle=allow_pickle)
    config = json.loads((path / "config.json").read_text("utf-8"))
    if "auto_map" in config:
        raise SourceError(
            f"backbone '{source.name}' wants to run code of its own (auto_map in config.json); finetune never runs it, choose another backbone"
        )
    return path


def check_model_files(name: str, files: Iterable[str], *, allow_pickle: bool) -> None:
    """Refuse a model folder that cannot be loaded safely, by its file names alone."""
    names = set(files)
    if "config.json" not in names:
        raise SourceError(f"backbone '{name}' has no config.json, so it is not a transformers model folder")
    code = sorted(n for n in names if n.endswith(".py") and n != "__init__.py")
    if code:
        raise SourceError(
            f"backbone '{name}' brings code of its own ({code[0]}); finetune never runs it, choose another backbone"
        )
    if any(n.endswith(".safetensors") for n in names):
        return
    if not any(PurePosixPath(n).match(p) for n in names for p in PICKLE_FILES):
        raise SourceError(f"backbone '{name}' holds no weights (model.safetensors)")
    if not allow_pickle:
        raise SourceError(
            f"backbone '{name}' has its weights only as a pickle, which can run code when it is opened; "
            "choose a revision with safetensors, or set backbone.allow_pickle to convert it in a process of its own"
        )


def read_card_metadata(path: Path | None) -> dict[str, object]:
    """The YAML front matter of `path`/README.md; empty when there is none."""
    if path is None:
        return {}
    card = (path if path.is_dir() else path.parent) / "README.md"
    if not card.is_file():
        return {}
    match = re.match(r"\A\ufeff?---\s*\n(.*?)\n---\s*(\n|\Z)", card.read_text("utf-8", errors="replace"), re.DOTALL)
    if not match:
        return {}
    import yaml

    try:
        data = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        raise SourceError(
            f"{card}: its metadata block is not valid YAML; mend it or assert the licence in the recipe"
        ) from error
    return {str(k): v for k, v in data.items()} if isinstance(data, dict) else {}


def hub_card_metadata(source: Source, kind: Literal["model", "dataset"]) -> dict[str, object]:
    """The hub's card metadata of a source that has no local path."""
    from huggingface_hub import HfApi

    hub_name = source.name.partition("@")[0]
    api = HfApi()
    ask = api.model_info if kind == "model" else api.dataset_info
    info: Any = _ask_hub(source.name, lambda: ask(hub_name, revision=source.revision, timeout=_HUB_TIMEOUT_S))
    return dict(info.card_data.to_dict()) if info.card_data else {}


def _in_package(name: str) -> Source:
    package, _, inside = name.removeprefix("package:").partition("/")
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            f"'{name}': the package {package} is not installed; run pip install {package.replace('_', '-')}"
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (root / inside).resolve()
    if not path.is_relative_to(root):
        raise SourceError(f"'{name}' leads out of the package {package}")
    if not path.exists():
        raise SourceError(f"'{name}': the package {package} has no '{inside}'")
    return Source(name, "package", path, package=_distribution(module), files=_names(path))


def _names(path: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in path.iterdir())) if path.is_dir() else (path.name,)


def _distribution(module: str) -> str:
    try:
        return f"{module.replace('_', '-')} {importlib.metadata.version(module)}"
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(module, [module])
        return names[0]


def _on_hub(name: str, hub_name: str, revision: str | None, kind: Literal["model", "dataset"]) -> Source:
    from huggingface_hub import HfApi, snapshot_download

    if kind == "model" and (
        cached := _cached(lambda: snapshot_download(hub_name, revision=revision, local_files_only=True))
    ):
        return Source(name, "hub", cached, revision=cached.name, files=_names(cached))
    api = HfApi()
    ask = api.model_info if kind == "model" else api.dataset_info
    info: Any = _ask_hub(name, lambda: ask(hub_name, revision=revision, timeout=_HUB_TIMEOUT_S))
    return Source(name, "hub", None, revision=info.sha, files=tuple(f.rfilename for f in info.siblings or ()))


def _cached(snapshot: Callable[[], str]) -> Path | None:
    """A complete snapshot in the local hub cache; None when the cache does not hold the model's weights."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot())
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    weights = any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin"))
    return path if weights and (path / "config.json").exists() else None


def _ask_hub(name: str, call: Callable[[], T]) -> T:
    """Run a hub call and turn its many failures into one sentence each.

    The base class of HfHubHTTPError is the HTTP library's own error, whichever library this hub client uses.
    """
    from huggingface_hub import errors as hub

    failures: tuple[type[BaseException], ...] = (*hub.HfHubHTTPError.__bases__, OSError)
    try:
        return call()
    except hub.GatedRepoError as error:
        raise SourceError(f"'{name}' is gated on the hub; accept its terms there and run hf auth login") from error
    except hub.RevisionNotFoundError as error:
        raise SourceError(f"'{name}': the hub has no such revision") from error
    except hub.RepositoryNotFoundError as error:
        raise SourceError(
            f"'{name}': no such local path, and the hub has no such repository (or it is private)"
        ) from error
    except (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError) as error:
        raise SourceError(
            f"'{name}' is not in the local cache and the hub is not reachable; go online or give a local folder"
        ) from error
    except failures as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(
            f"'{name}' cannot be had from the hub ({reason}); check the network or give a local folder"
        ) from error
