"""The bundle's LICENSE and NOTICE: which terms the model is under, whose work it builds on, and their own legal texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import LicenseError
from finetune.release.policy import FAMILIES, title_of
from finetune.release.shown_data import describe_samples, passages_shown

_NAMES = ("license", "licence", "copying", "notice", "use_policy", "acceptable_use_policy")
_SUFFIXES = ("", ".txt", ".md", ".rst")
_LARGEST = 1_000_000  # bytes; the longest licences are a tenth of this
_RULE = "=" * 78


def upstream_texts(folder: Path | None) -> dict[str, str]:
    """Legal texts at the top of a model's or a data set's folder: file name → text, sorted by name.

    Licences ask that these go with the model: LICENSE, LICENCE, COPYING, NOTICE and use policies, plain or .txt, .md, .rst.
    Raises LicenseError for one that is no text of at most 1 MB, because leaving it out would drop somebody's notice.
    """
    if folder is None or not folder.is_dir():
        return {}
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        stem, suffix = path.stem.lower(), path.suffix.lower()
        if (
            not path.is_file()
            or suffix not in _SUFFIXES
            or not any(stem == name or stem.startswith((f"{name}-", f"{name}_")) for name in _NAMES)
        ):
            continue
        if path.stat().st_size > _LARGEST:
            raise LicenseError(
                f"{path}: a legal text of more than {_LARGEST} bytes cannot go into the bundle; shorten or rename it"
            )
        try:
            found[path.name] = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise LicenseError(
                f"{path}: this legal text is not UTF-8, so it cannot go into the bundle; convert it"
            ) from error
    return found


def bundle_license_text(
    license_report: Mapping[str, Any], upstream: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    """The text of the bundle's LICENSE.

    `license_report` is what `judge` returned; `upstream` maps a role (`backbone`, `data`) to that part's `upstream_texts`.
    Where neither the part nor this package has the text of a licence, the file says where to read it.
    """
    given = upstream or {}
    components = license_report["components"]
    lines = [
        f"This model is offered under: {_headline(license_report)}.",
        "",
        license_report["sentence"],
        f"Intended use when it was built: {license_report['use']}.",
        "",
        "It was made from:",
        *[_part_line(part) for part in components],
    ]
    if license_report["obligations"]:
        lines += [
            "",
            "Whoever uses or passes on this model must:",
            *[f"  - {duty}" for duty in license_report["obligations"]],
        ]
    blocks = ["\n".join(lines)]
    texts = [
        (part, name, text)
        for part in components
        for name, text in given.get(part["role"], {}).items()
        if _is_license(name)
    ]
    blocks += [_block(f"{name} of the {part['role']} {part['name']}", text) for part, name, text in texts]
    covered = {part["role"] for part, _, _ in texts}
    missing = [part for part in components if part["role"] not in covered]
    if any(part["license"] == "apache-2.0" for part in missing):
        blocks.append(
            _block("Apache License 2.0", (Path(__file__).parent / "apache-2.0.txt").read_text(encoding="utf-8"))
        )
    blocks += [
        _block(_title(part), f"Read it at {part['link']}")
        for part in missing
        if part["license"] != "apache-2.0" and part["link"]
    ]
    return "\n\n".join(blocks) + "\n"


def notice_text(
    license_report: Mapping[str, Any],
    report: Mapping[str, Any],
    upstream: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """The text of the bundle's NOTICE: credits, the statement of changes, assertions, and upstream NOTICE files.

    `report` is report.json's content (its `run`, `backbone`, `samples` and `language` are read); `upstream` as in `bundle_license_text`.
    """
    run, components = report["run"], license_report["components"]
    lines = [
        f"{run['name']}",
        f"Fine-tuned on {str(run['created'])[:10]} from {report['backbone']['name']}; the weights were changed by training.",
        "",
        "This model builds on:",
        *[_part_line(part) for part in components],
        "",
        "Evidence:",
        *[f"  - {part['role']} {part['name']}: {part['evidence']}" for part in components],
    ]
    lines += _redistributed(components, describe_samples(report.get("samples"), passages_shown(report)))
    if license_report.get("warnings"):
        lines += ["", "Warnings:", *[f"  - {warning}" for warning in license_report["warnings"]]]
    if license_report["reviewed"]:
        lines += ["", f"Review: {license_report['reviewed']}"]
    marks = _quoted_marks([duty for part in components for duty in part["obligations"]])
    if marks:
        lines += ["", *marks]
    blocks = ["\n".join(lines)]
    for part in components:
        for name, text in (upstream or {}).get(part["role"], {}).items():
            if not _is_license(name):
                blocks.append(_block(f"{name} of the {part['role']} {part['name']}", text))
    return "\n\n".join(blocks) + "\n"


def _redistributed(components: Sequence[Mapping[str, Any]], shown: str) -> list[str]:
    """Whose work the rows `shown` in the bundle are: they are data, not weights."""
    data = [part for part in components if part["role"] == "data"]
    if not shown or not data:
        return []
    changed = "shrunk, and some of them overlaid with heat maps" if "pictures" in shown else "shortened"
    return [
        "",
        f"This bundle redistributes data: the {shown}, {changed}, under the data's own terms:",
        *[_part_line(part) for part in data],
    ]


def _headline(license_report: Mapping[str, Any]) -> str:
    bundle_id = license_report["bundle_license"]
    if bundle_id != "other":
        return f"{title_of(bundle_id)} ({bundle_id})"
    link = license_report["bundle_license_link"]
    return f"{license_report['bundle_license_name']}" + (f" ({link})" if link and link != "LICENSE" else "")


def _part_line(part: Mapping[str, Any]) -> str:
    link = f", {part['link']}" if part["link"] else ""
    return f"  - {part['role']} {part['name']}: {_title(part)}{link}"


def _title(part: Mapping[str, Any]) -> str:
    if part["license"] != "other":
        return title_of(part["license"])
    return part["license_name"] or FAMILIES["unknown"].title


def _is_license(name: str) -> bool:
    return not name.lower().startswith("notice")


def _quoted_marks(duties: Sequence[str]) -> list[str]:
    """Notice lines and marks that a licence prescribes word by word; the policy quotes them with “ and ”."""
    return list(dict.fromkeys(duty.split("“", 1)[1].split("”", 1)[0] for duty in duties if "“" in duty))


def _block(title: str, text: str) -> str:
    return f"{_RULE}\n{title}\n{_RULE}\n\n{text.strip(chr(10))}"
