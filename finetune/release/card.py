"""The model card: complete Hub-style Markdown, a pure function of report.json.

It is built in Python. No template is rendered, so no card of an untrusted repository can run code, and every word that
comes from data or recipe is escaped where it is put.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from finetune.release import _data_section, _forms, _limits, _measured, _procedure, _provenance, _usage
from finetune.release._card_checks import validate_card
from finetune.release._facts import (
    Report,
    dataset_name,
    hub_repo,
    metadata,
    metric_in_sentence,
    metric_values,
    served_name,
)
from finetune.release._kinds import kind_of, modality_of, target_of
from finetune.release._markdown import code, front_matter, interval, megabytes, number, text

_SECTIONS = (
    ("Results", _measured.results),
    ("How to use", _usage.how_to_use),
    ("Intended use", _usage.intended_use),
    ("Training data", _data_section.training_data),
    ("Training procedure", _procedure.training_procedure),
    ("Calibration", _measured.calibration),
    ("Exported forms", _forms.exported_forms),
    ("Environment", _provenance.environment),
    ("Limitations", _limits.limitations),
    ("Licence", _provenance.licence),
    ("Reproduce and cite", _provenance.reproduce),
)


def render_card(report: Report) -> str:
    """README.md of a bundle from report.json's content: front matter for the Hub, then the card."""
    sections = [f"## {title}\n\n{section(report)}" for title, section in _SECTIONS]
    body = "\n\n".join([f"# {text(report['run']['name'])}", _summary(report), *sections])
    return f"{front_matter(metadata(report))}\n{body}\n"


def _summary(report: Report) -> str:
    backbone, export, primary = report["backbone"], report["export"], report["metrics"]["primary"]
    repo = hub_repo(backbone)
    base = f"[{text(repo)}](https://huggingface.co/{repo})" if repo else code(backbone["name"])
    score = metric_values(report["metrics"]["test_served"]).get(primary)
    form = export["int8"] if export["served"] == "int8" else export["onnx"]
    words = modality_of(report)
    model = target_of(report).model.format(labels=len(report["data"]["labels"]))
    lines = [text(report["run"]["description"])] if report["run"]["description"].strip() else []
    pace = _PACE.get(kind_of(report)[0], _time_for_one)(report, form)
    lines.append(
        f"{words.a.capitalize()} {model}, fine-tuned from {base} ({text(backbone['architecture'])}, "
        f"{number(backbone['parameters'] / 1e6, 1)} million parameters) on {text(dataset_name(report))}. "
        f"As it is served ({served_name(report)}, {megabytes(form['size_bytes'])}) its {text(metric_in_sentence(report, primary))} is {interval(score)} "
        f"on {number(report['metrics']['test_served']['rows'])} untouched test {words.row}s, and {pace} on {text(export['measured_on'])}."
    )
    judged = report["license"]
    lines.append(
        f"> [!{'NOTE' if judged['verdict'] == 'allow' else 'IMPORTANT'}]\n> Licence: {text(judged['sentence'])} See [Licence](#licence)."
    )
    lines += [f"> [!WARNING]\n> {text(warning)}" for warning in judged.get("warnings", ())]
    return "\n\n".join(lines)


def _time_for_one(report: Report, form: Mapping[str, Any]) -> str:
    return f"one {modality_of(report).one} takes {number(form['latency_ms']['1'], 1)} ms"


def _tokens_per_second(report: Report, form: Mapping[str, Any]) -> str:
    return f"it writes {number(form['tokens_per_second'], 1)} tokens a second, the first after {number(form['ms_first_token'], 0)} ms,"


_PACE: dict[str, Callable[[Report, Mapping[str, Any]], str]] = {"language": _tokens_per_second}
"""How fast the served form is, where it is not told by the time for one input."""


__all__ = ["render_card", "validate_card"]
