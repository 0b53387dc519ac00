"""Where a model or a data set comes from: hub id@revision, local folder or file, or a path inside an installed package.

Nothing here imports torch, runs code that came with a model, or opens a pickle. A hub model is downloaded once by
`local_model`; from there on every source is a local path.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from finetune.errors import SourceError
from finetune.gguf_metadata import GGUF_SUFFIX
from finetune.model_files import (
    MODEL_FILES,
    PICKLE_FILES,
    WEIGHT_SUFFIXES,
    check_gguf,
    check_model_files,
    check_weight_file,
    first_line,
    has_pickle,
    has_safetensors,
    is_timm_config,
    read_json_object,
    refuse_unsafe_config,
    wants_code,
)

__all__ = [
    "Kind",
    "Source",
    "check_bare_weights",
    "check_model_files",
    "find_source",
    "hub_card_metadata",
    "local_model",
]

# Only top-level files of a hub model are downloaded: no second copy of the weights in another format.
_SUBFOLDERS = "*/*"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_ID_LENGTH = 96
_DATA_SUFFIXES = {".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt"}
_HUB_TIMEOUT_S = 10.0
T = TypeVar("T")
Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Source:
    """A found model or data set. `path` is None only while it lives on the hub alone; `files` are its file names.

    A file of bare weights or a GGUF file is of the kind `file` wherever it lies; `package` then still names the package it
    came with.
    """

    name: str
    kind: Literal["package", "folder", "file", "hub"]
    path: Path | None
    revision: str | None = None
    package: str | None = None
    files: tuple[str, ...] = ()

    @property
    def is_gguf(self) -> bool:
        """Whether it is one GGUF file, which holds a whole language model: configuration, weights and tokenizer."""
        return self.kind == "file" and self.files[0].endswith(GGUF_SUFFIX)


def find_source(name: str, *, revision: str | None = None, kind: Kind) -> Source:
    """Find a source without loading it; SourceError names what is missing, or unsafe, and how to mend it."""
    if not name.strip() or "\0" in name:
        raise SourceError(f"{name!r} names nothing; give a folder, package:NAME/path, or a hub id such as owner/name")
    path = None if name.startswith("package:") else _existing(name)
    if path is None and not name.startswith("package:"):
        return _on_hub(name, *_hub_id(name, revision, kind), kind)
    if revision is not None:
        raise SourceError(
            f"'{name}' is on this machine, where revision '{revision}' means nothing; remove the revision"
        )
    if path is None:
        source = _in_package(name)
    else:
        source = Source(name, "folder" if path.is_dir() else "file", path.resolve(), files=_names(path))
    if kind == "model" and source.path is not None:
        if source.path.is_dir():
            refuse_unsafe_config(name, source.path)
        elif source.path.suffix in (*WEIGHT_SUFFIXES, GGUF_SUFFIX):
            return replace(source, kind="file")
        else:
            raise SourceError(
                f"backbone '{name}' is a file; give the folder that holds config.json and model.safetensors, a file of bare weights ({', '.join(WEIGHT_SUFFIXES)}), or a GGUF file ({GGUF_SUFFIX})"
            )
    return source


def check_bare_weights(
    source: Source, *, architecture: str | None, rename: str | Mapping[str, str] | None, allow_pickle: bool,
    language: bool = False,
) -> None:  # fmt: skip
    """Refuse what the recipe says of a file of bare weights when it does not fit, or the backbone is a model folder.

    language: whether a language model is asked for, which alone may be a GGUF file.
    """
    if source.is_gguf:
        check_gguf(source.name, architecture=architecture, rename=rename, language=language)
    elif source.kind == "file":
        check_weight_file(
            source.name, source.files[0], architecture=architecture, rename=rename, allow_pickle=allow_pickle
        )
    elif architecture is not None or rename is not None:
        key = "architecture" if architecture is not None else "rename"
        raise SourceError(
            f"backbone.{key}: only a file of bare weights needs it, and '{source.name}' is a model folder; remove the key"
        )


def local_model(source: Source, *, allow_pickle: bool) -> Path:
    """The folder of a model's files, downloaded if need be; refuses pickles and models that bring their own code.

    A file of bare weights, or a GGUF file, is given as it is.
    """
    path = source.path
    if source.kind == "file" and path is not None:
        return path
    if path is None:
        from huggingface_hub import snapshot_download

        wanted = [*MODEL_FILES, *(PICKLE_FILES if allow_pickle else ())]
        hub_name = source.name.partition("@")[0]
        path = Path(
            _ask_hub(
                source.name,
                lambda: snapshot_download(
                    hub_name, revision=source.revision, allow_patterns=wanted, ignore_patterns=_SUBFOLDERS
                ),
            )
        )
    check_model_files(source.name, _names(path), allow_pickle=allow_pickle)
    refuse_unsafe_config(source.name, path)
    return path


def hub_card_metadata(source: Source, kind: Kind) -> dict[str, object]:
    """The hub's card metadata of a source that has no local path."""
    info = _hub_info(source.name, source.name.partition("@")[0], source.revision, kind)
    return dict(info.card_data.to_dict()) if info.card_data else {}


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # too long a name, the home folder of nobody
        return None


def _in_package(name: str) -> Source:
    package, _, inside = name.removeprefix("package:").partition("/")
    module = package.replace("-", "_")
    try:
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    if spec is None:
        dist = package.replace("_", "-")
        raise SourceError(f"'{name}': the package {package} is not installed; run pip install {dist}")
    if not spec.submodule_search_locations:
        raise SourceError(f"'{name}': {package} is a single module, so there are no files inside it")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (root / inside).resolve()
    if not path.is_relative_to(root):
        raise SourceError(f"'{name}' leads out of the package {package}")
    if not path.exists():
        raise SourceError(f"'{name}': the package {package} has no '{inside}'")
    return Source(name, "package", path, package=_distribution(module), files=_names(path))


def _names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(p.name for p in path.iterdir())) if path.is_dir() else (path.name,)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _distribution(module: str) -> str:
    """The distribution that a module came with, and its version: `scikit-learn 1.7.0` for sklearn."""
    try:
        return f"{module.replace('_', '-')} {importlib.metadata.version(module)}"
    except importlib.metadata.PackageNotFoundError:
        name = importlib.metadata.packages_distributions().get(module, [None])[0]
        return f"{name} {importlib.metadata.version(name)}" if name else module


def _hub_id(name: str, revision: str | None, kind: Kind) -> tuple[str, str | None]:
    """Hub id and revision of a name such as owner/name@revision."""
    hub_name, _, at = name.partition("@")
    is_path = name.startswith((".", "/", "~")) or PurePosixPath(name).suffix.lower() in _DATA_SUFFIXES
    if is_path or not _HUB_ID.fullmatch(hub_name) or len(hub_name) > _HUB_ID_LENGTH:
        what = "backbone" if kind == "model" else "data source"
        raise SourceError(f"{what} '{name[:200]}': no such file or folder, and it is not a hub id such as owner/name")
    if at and revision and at != revision:
        raise SourceError(f"'{name}' and revision '{revision}' disagree; give the revision once")
    return hub_name, at or revision


def _on_hub(name: str, hub_name: str, revision: str | None, kind: Kind) -> Source:
    cached, whole = _cached(hub_name, revision) if kind == "model" else (None, False)
    if cached is None or not whole:
        try:
            info = _hub_info(name, hub_name, revision, kind)
        except SourceError:
            if cached is None:
                raise
        else:
            if kind == "model" and (info.config or {}).get("auto_map"):
                raise wants_code(name, "config.json")
            return Source(name, "hub", None, revision=info.sha, files=tuple(f.rfilename for f in info.siblings or ()))
    refuse_unsafe_config(name, cached)
    return Source(name, "hub", cached, revision=cached.name, files=_names(cached))


def _hub_info(name: str, hub_name: str, revision: str | None, kind: Kind) -> Any:
    from huggingface_hub import HfApi

    api = HfApi()
    ask = api.model_info if kind == "model" else api.dataset_info
    # The hub has old models without an owner, such as gpt2, but none of timm's.
    bare = kind == "model" and "/" not in hub_name
    hint = f"; a network of timm is named by its weights, such as timm/{hub_name}.a1_in1k" if bare else ""
    return _ask_hub(name, lambda: ask(hub_name, revision=revision, timeout=_HUB_TIMEOUT_S), hint)


def _cached(hub_name: str, revision: str | None) -> tuple[Path | None, bool]:
    """A snapshot in the local hub cache that has a model's weights, and whether all its files are there.

    Another program may have fetched the weights without the tokenizer (for pictures, the image processor, which timm keeps
    in config.json) or the card: not whole, but better than nothing when the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    whole = True
    try:
        found: str | None = snapshot_download(
            hub_name, revision=revision, allow_patterns=list(MODEL_FILES), ignore_patterns=_SUBFOLDERS,
            local_files_only=True,
        )  # fmt: skip
    except LocalEntryNotFoundError as error:
        whole, found = False, getattr(error, "snapshot_path", None)
    except HFValidationError:
        found = None
    if found is None:
        return None, False
    path = Path(found)
    names = _names(path)
    index = path / "model.safetensors.index.json"
    shards = set(read_json_object(index).get("weight_map", {}).values()) if index.is_file() else set()
    if "config.json" not in names or not (has_safetensors(names) or has_pickle(names)) or shards - set(names):
        return None, False
    prepares = any(
        fnmatch(n, p) for n in names for p in ("tokenizer.json", "vocab.*", "*.model", "preprocessor_config.json")
    )
    prepares = prepares or is_timm_config(read_json_object(path / "config.json"))
    return path, whole and prepares and "README.md" in names


def _ask_hub(name: str, call: Callable[[], T], hint: str = "") -> T:
    """Run a hub call and turn its many failures into one sentence each; hint: what a name that is not found may be instead."""
    from huggingface_hub import errors as hub

    try:
        return call()
    except hub.GatedRepoError as error:
        raise SourceError(f"'{name}' is gated on the hub; accept its terms there and run hf auth login") from error
    except hub.RevisionNotFoundError as error:
        raise SourceError(f"'{name}': the hub has no such revision") from error
    except hub.RepositoryNotFoundError as error:
        raise SourceError(
            f"'{name}': no such local path, and the hub has no such repository (or it is private){hint}"
        ) from error
    except (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError) as error:
        raise SourceError(
            f"'{name}': no such local path, not in the local cache, and the hub is not reachable; go online or give a local folder{hint}"
        ) from error
    except hub.HFValidationError as error:
        raise SourceError(f"'{name}': no such local path, and not a valid hub id ({first_line(error)})") from error
    except Exception as error:  # the hub client, its HTTP library and its download engine share no base class
        raise SourceError(
            f"'{name}' cannot be had from the hub ({first_line(error)}); check the network or give a local folder{hint}"
        ) from error
