"""Offline checks of a model card: the Hub's own validation needs a network, this needs only a YAML parser."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from finetune.errors import nearest
from finetune.release._facts import REPO_ID
from finetune.release._hub_ids import HUB_LICENSES
from finetune.release._markdown import NOT_FINITE

REQUIRED_KEYS = ("language", "license", "library_name", "pipeline_tag", "tags", "metrics", "model-index")
REQUIRED_SECTIONS = (
    "Results",
    "How to use",
    "Intended use",
    "Training data",
    "Training procedure",
    "Calibration",
    "Exported forms",
    "Environment",
    "Limitations",
    "Licence",
    "Reproduce and cite",
)
_PIPELINES = (
    "text-classification",
    "token-classification",
    "image-classification",
    "image-feature-extraction",
    "text-generation",
    "feature-extraction",
    "sentence-similarity",
)
_LARGEST_FRONT_MATTER = 200_000  # characters

_CODES = (
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu fa ff fi "
    "fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw "
    "ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro "
    "ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh "
    "yi yo za zh zu"
)
ISO_639_1 = frozenset(_CODES.split())
_LANGUAGE_WORDS = ("code", "multilingual")


def validate_card(card: str) -> list[str]:
    """Problems of a model card, one sentence each; empty when it is sound. Reads nothing but the text."""
    split = re.match(r"---[ \t]*\r?\n(?P<yaml>.*?)(?:^|\n)---[ \t]*(?:\r?\n|$)(?P<body>.*)", card, re.DOTALL)
    if split is None:
        return ["the card does not begin with YAML front matter between two lines of ---"]
    metadata = _parse(split["yaml"])
    if isinstance(metadata, str):
        return [metadata]
    return [*_metadata_problems(metadata), *_body_problems(split["body"])]


def _parse(front: str) -> dict[str, Any] | str:
    if len(front) > _LARGEST_FRONT_MATTER:
        return f"the front matter is longer than {_LARGEST_FRONT_MATTER} characters"
    try:
        # Aliases can make a small text expand to gigabytes, and no card needs one.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(front, Loader=yaml.SafeLoader)):
            return "the front matter uses YAML aliases; write the values out"
        parsed = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return f"the front matter is not valid YAML: {' '.join(str(error).split())}"
    return parsed if isinstance(parsed, dict) else "the front matter is not a mapping of keys to values"


def _metadata_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    for key in REQUIRED_KEYS:
        # Only what is read in a language has one.
        needed = key != "language" or not str(metadata.get("pipeline_tag")).startswith("image-")
        if needed and metadata.get(key) in (None, "", []):
            yield f"front matter: {key} is missing"
    yield from _license_problems(metadata)
    yield from _language_problems(_as_list(metadata.get("language")))
    for key in ("base_model", "datasets"):
        for value in _as_list(metadata.get(key)):
            if not isinstance(value, str) or not REPO_ID.fullmatch(value):
                yield f"front matter: {key}: {value!r} is not an id of the Hub (owner/name)"
    for key in ("tags", "metrics"):
        values = metadata.get(key)
        if values is not None and not (
            isinstance(values, list) and all(isinstance(value, str) and value.strip() for value in values)
        ):
            yield f"front matter: {key} must be a list of words"
    pipeline = metadata.get("pipeline_tag")
    if pipeline and pipeline not in _PIPELINES:
        yield f"front matter: pipeline_tag: {pipeline!r} is not a known task{nearest(str(pipeline), _PIPELINES)}"
    if metadata.get("model-index"):
        yield from _index_problems(metadata["model-index"])


def _license_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    value = metadata.get("license")
    if not value:
        return
    if not isinstance(value, str) or value not in HUB_LICENSES:
        yield f"front matter: license: {value!r} is not a licence id of the Hub{nearest(str(value), HUB_LICENSES) if len(str(value)) < 80 else ''}"
        return
    given = [key for key in ("license_name", "license_link") if metadata.get(key)]
    if value == "other":
        yield from (
            f"front matter: license: other needs {key}" for key in ("license_name", "license_link") if key not in given
        )
    else:
        yield from (f"front matter: {key} belongs to license: other only, not to {value}" for key in given)


def _language_problems(languages: Sequence[Any]) -> Iterator[str]:
    for value in languages:
        if isinstance(value, bool):
            yield "front matter: language: an unquoted 'no' is read as false; write \"no\""
        elif not isinstance(value, str) or not (
            value in ISO_639_1 or value in _LANGUAGE_WORDS or re.fullmatch("[a-z]{3}", value)
        ):
            yield f"front matter: language: {value!r} is not an ISO 639 code such as en"


def _index_problems(index: Any) -> Iterator[str]:
    if not isinstance(index, list):
        yield "front matter: model-index must be a list"
        return
    for place, model in _places("model-index", index):
        if (
            not isinstance(model, Mapping)
            or not _word(model.get("name"))
            or not isinstance(model.get("results"), list)
            or not model["results"]
        ):
            yield f"front matter: {place} needs a name and a list of results"
            continue
        for where, result in _places(f"{place}.results", model["results"]):
            yield from _result_problems(where, result)


def _result_problems(where: str, result: Any) -> Iterator[str]:
    if not isinstance(result, Mapping):
        yield f"front matter: {where} must be a mapping"
        return
    for part, keys in (("task", ("type",)), ("dataset", ("type", "name"))):
        section = result.get(part)
        for key in keys:
            if not isinstance(section, Mapping) or not _word(section.get(key)):
                yield f"front matter: {where}.{part}.{key} is missing"
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        yield f"front matter: {where}.metrics must be a list with at least one entry"
        return
    for place, metric in _places(f"{where}.metrics", metrics):
        if not isinstance(metric, Mapping) or not _word(metric.get("type")):
            yield f"front matter: {place}.type is missing"
        elif (
            isinstance(metric.get("value"), bool)
            or not isinstance(metric.get("value"), int | float)
            or not math.isfinite(metric["value"])
        ):
            yield f"front matter: {place}.value: {metric.get('value')!r} is not a finite number"


def _body_problems(body: str) -> Iterator[str]:
    lines, closed = _outside_fences(body)
    if not closed:
        yield "a code block is not closed"
    for section in REQUIRED_SECTIONS:
        content = _section(lines, section)
        if content is None:
            yield f"section '{section}' is missing"
        elif not content:
            yield f"section '{section}' is empty"
    if not any(line.startswith("# ") for line in lines):
        yield "the title is missing"
    if any(NOT_FINITE in line for line in lines):
        yield "a number in the card is NaN or infinite"
    yield from _table_problems(lines)


def _section(lines: Sequence[str], title: str) -> str | None:
    """Text of a section, with a mark for each code block; None when there is no such heading."""
    if f"## {title}" not in lines:
        return None
    rest = lines[lines.index(f"## {title}") + 1 :]
    end = next((index for index, line in enumerate(rest) if line.startswith("## ")), len(rest))
    return "".join(rest[:end]).strip()


def _table_problems(lines: Sequence[str]) -> Iterator[str]:
    width = 0
    for line in lines:
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) - 1
        width = width or cells
        if cells != width:
            yield f"a table row has {cells} cells where its header has {width}: {line[:80]}"


def _outside_fences(body: str) -> tuple[list[str], bool]:
    """Lines outside code blocks (one mark stands for each block), and whether the last block is closed."""
    lines: list[str] = []
    fence = ""
    for line in body.splitlines():
        mark = re.match("`{3,}", line)
        if fence:
            if mark and len(mark[0]) >= len(fence) and not line.strip("` \t"):
                fence = ""
        elif mark:
            fence = mark[0]
            lines.append("(code)")
        else:
            lines.append(line)
    return lines, not fence


def _places(prefix: str, entries: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{prefix}[{index}]", entry) for index, entry in enumerate(entries))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _word(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
