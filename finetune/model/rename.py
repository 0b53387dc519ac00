"""Foreign weights as a checkpoint of a timm architecture: every tensor is used once, with its shape, or it is an error.

A classifier may be lacking, if all of it is: training begins with a new one in any case.

Renaming by position trusts that both lists name the same layers in the same order. Shapes and counts are checked, which
tells most mistakes, but not two layers of one shape that changed places: only a result can tell that.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence, Set
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from finetune.errors import SourceError, nearest
from finetune.model.pickles import convert_weights
from finetune.model.timm_groups import classifier_parameters
from finetune.model_files import LEGAL_FILES, check_weight_file, first_line

Rename = Literal["in_order"] | Mapping[str, str] | None
Tensors = Mapping[str, torch.Tensor]
_COUNTER = "num_batches_tracked"


def checkpoint_from_weights(weights: Path, into: Path, *, architecture: str, rename: Rename) -> Path:
    """Turn a file of bare weights into a folder that timm and transformers load; returns `into`.

    weights: .safetensors, or a pickle, which is read in a process of its own; architecture: timm's name of the network;
    rename: `in_order` pairs the file's tensors with the architecture's one by one, a mapping of regular expressions to
    replacements is applied to each name in turn, None keeps the names. A counter of batches that an old file lacks is 0.
    Where the file has nothing of the classifier, the folder is of a network without one (num_classes 0), as timm saves it.
    SourceError for an architecture that timm does not know, and naming a tensor that has no place, no partner, a place
    that is taken, or another shape.
    """
    check_weight_file(str(weights), weights.name, architecture=architecture, rename=rename, allow_pickle=True)
    into.mkdir(parents=True, exist_ok=True)
    name = _known(architecture)
    found = _read(weights, into)
    network, body = _network(name, None), _network(name, 0)
    if not network.num_classes:  # an architecture without a classifier unless one is asked for, as the file may bring
        network = _network(name, 1)
    names = [list(each.state_dict()) for each in (network, body)]
    sources = _in_order(weights, found, *names) if rename == "in_order" else _by_name(weights, found, rename or {})
    classifier = set(names[0]).difference(names[1])
    headless = classifier.isdisjoint(sources)
    classes = _classes(network, found, sources)
    if classes != network.num_classes:
        network = _network(name, classes)
    _check(weights, name, found, sources, network.state_dict(), spare=classifier if headless else frozenset())
    if headless:
        network = body
    tensors = {
        name: found[sources[name]].contiguous() if name in sources else torch.zeros_like(value, device="cpu")
        for name, value in network.state_dict().items()
    }
    save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    (into / "config.json").write_text(json.dumps(_config(name, architecture, network), indent=2), "utf-8")
    for path in weights.parent.iterdir():
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in LEGAL_FILES):
            shutil.copyfile(path, into / path.name)
    return into


def _read(weights: Path, into: Path) -> dict[str, torch.Tensor]:
    """The file's tensors, in its own order if it has one."""
    file = weights
    if weights.suffix != ".safetensors":
        file = into / "weights.safetensors"
        convert_weights(str(weights), [weights], file)
    try:
        with safe_open(file, framework="pt") as opened:
            order = json.loads((opened.metadata() or {}).get("order", "null")) or list(opened.keys())
            return {name: opened.get_tensor(name) for name in order}
    except (SafetensorError, OSError, ValueError) as error:
        raise SourceError(
            f"backbone '{weights}' is not readable as safetensors ({first_line(error)}); take a whole copy"
        ) from error
    finally:
        if file != weights:
            file.unlink(missing_ok=True)


def _known(architecture: str) -> str:
    """The architecture's name without a tag; SourceError when timm has no such network, or no such tag of it."""
    import timm

    name, _, tag = architecture.partition(".")
    if not timm.is_model(name):
        raise SourceError(
            f"backbone.architecture: timm has no network '{architecture}'{nearest(name, timm.list_models())}"
        )
    tagged = timm.list_pretrained(f"{name}.*")
    if tag and architecture not in tagged:
        raise SourceError(f"backbone.architecture: timm has no weights '{architecture}'{nearest(architecture, tagged)}")
    return name


def _network(architecture: str, classes: int | None) -> Any:
    """The architecture without values."""
    import timm

    options = {} if classes is None else {"num_classes": classes}
    with torch.device("meta"):
        return timm.create_model(architecture, pretrained=False, **options)


def _in_order(weights: Path, found: Tensors, whole: Sequence[str], body: Sequence[str]) -> dict[str, str]:
    """Name in the architecture -> name in the file, by position; whole, body: its names with and without the classifier's."""
    for wanted in (whole, body):
        if len(found) == len(wanted):
            return dict(zip(wanted, found, strict=True))
    raise SourceError(
        f"backbone '{weights}' holds {len(found)} tensors, but the architecture {len(whole)}, or {len(body)} without its classifier, so they cannot be paired in order; give a mapping as backbone.rename"
    )


def _by_name(weights: Path, found: Tensors, rename: Mapping[str, str]) -> dict[str, str]:
    """Name in the architecture -> name in the file, by regular expressions."""
    sources: dict[str, str] = {}
    for name in found:
        new = name
        for pattern, replacement in rename.items():
            try:
                new = re.sub(pattern, replacement, new)
            except (re.error, IndexError) as error:
                raise SourceError(
                    f"backbone.rename: '{pattern}' to '{replacement}' is no regular expression with its replacement ({error})"
                ) from error
        if new in sources:
            raise SourceError(
                f"backbone '{weights}': backbone.rename maps both '{sources[new]}' and '{name}' to '{new}'; change the mapping"
            )
        sources[new] = name
    return sources


def _classes(network: Any, found: Tensors, sources: Mapping[str, str]) -> int:
    """How many labels the file's classifier knows; the architecture's own number when that cannot be told."""
    known = int(network.num_classes)
    wanted = network.state_dict()
    rows = set()
    for name in classifier_parameters(network):
        have, want = found.get(sources.get(name, "")), wanted[name]
        if have is not None and want.shape[0] == known and have.ndim == want.ndim and have.shape[1:] == want.shape[1:]:
            rows.add(have.shape[0])
    return rows.pop() if len(rows) == 1 else known


def _check(
    weights: Path, architecture: str, found: Tensors, sources: Mapping[str, str], wanted: Tensors, *, spare: Set[str],
) -> None:  # fmt: skip
    """Every tensor must be used once, with its shape; spare: names that the file may lack."""
    place = f"backbone '{weights}'"
    for name, source in sources.items():
        if name not in wanted:
            became = f", as '{name}'," if name != source else ""
            raise SourceError(
                f"{place}: tensor '{source}'{became} has no place in {architecture}{nearest(name, wanted) if len(wanted) < 2000 else ''}"
            )
        have, want = found[source], wanted[name]
        if have.shape != want.shape or have.is_floating_point() != want.is_floating_point():
            raise SourceError(
                f"{place}: tensor '{source}' is {_kind(have)}, but '{name}' of {architecture} is {_kind(want)}; check backbone.architecture and backbone.rename"
            )
    lacking: Sequence[str] = [
        name for name in wanted if name not in sources and name not in spare and not name.endswith(_COUNTER)
    ]
    if lacking:
        raise SourceError(
            f"{place} has no tensor for {len(lacking)} of {architecture}, such as '{lacking[0]}'; check backbone.architecture and backbone.rename"
        )


def _kind(tensor: torch.Tensor) -> str:
    shape = "×".join(map(str, tensor.shape)) or "a single value"
    return f"{shape} of {str(tensor.dtype).removeprefix('torch.')}"


def _config(name: str, tagged: str, network: Any) -> dict[str, Any]:
    """config.json as on the hub: what to build, and how its pictures were prepared (for weights of that tag, if any)."""
    import timm

    pretrained = timm.get_pretrained_cfg(tagged)
    settings = pretrained.to_dict(remove_source=True) if pretrained is not None else {}
    for key in ("architecture", "num_classes", "label_names", "label_descriptions", "label_offset", "custom_load"):
        settings.pop(key, None)
    return {
        "architecture": name,
        "num_classes": network.num_classes,
        "num_features": network.num_features,
        "pretrained_cfg": settings,
    }
