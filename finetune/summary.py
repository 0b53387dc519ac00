"""What `finetune validate` prints: a checked recipe in a few plain lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from finetune.preflight import Checked
from finetune.recipe import Recipe


def describe_checked(recipe: Recipe, checked: Checked) -> str:
    """One line per fact, aligned; ends with the verdict."""
    seen = checked.inspection
    facts = [
        ("backbone", _source(checked.backbone.name, checked.backbone.package, checked.backbone.revision)),
        ("data", _source(checked.data.name, checked.data.package, checked.data.revision)),
        ("rows", f"{seen.rows:,}" if seen.rows is not None else "known when loaded"),
        *LEARNED.get(recipe.task, _labelled)(recipe, checked),
        ("licence", checked.license["sentence"]),
        ("output", str(checked.workspace.bundle)),
    ]
    if checked.plan is not None:
        facts += [(f"phase {i + 1}", _phase(checked, i)) for i in range(len(checked.plan.phases))]
    facts += [("note", note) for note in checked.notes]
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {text}" for name, text in facts]
    return "\n".join([*lines, f"{recipe.name}: ready to run"])


def _labelled(recipe: Recipe, checked: Checked) -> list[tuple[str, str]]:
    column = recipe.data.weight_column
    return [("labels", _labels(checked)), *([("weights", f"rows count by '{column}'")] if column else [])]


def _continued(recipe: Recipe, checked: Checked) -> list[tuple[str, str]]:
    """What a language model learns from the rows, how they are cut, and beside which weights."""
    data, adapter, general = recipe.data, recipe.transfer.adapter, recipe.evaluation.general
    packed = "packed with whole documents" if data.packing else "one document or conversation each"
    facts = [
        ("learns", _objective(recipe)),
        ("blocks", f"up to {data.max_length} tokens, {packed}; longer: {data.overlong}"),
    ]
    if adapter.kind != "none":
        targets = "every linear layer of every block" if adapter.targets == "auto" else ", ".join(adapter.targets)
        facts.append(
            (
                "adapter",
                f"{adapter.kind}, rank {adapter.rank}, alpha {adapter.alpha:g}, {adapter.base} base, on {targets}",
            )
        )
    facts.append(("forgetting", f"measured on {general.source}" if general else "not measured (evaluation.general)"))
    return facts


def _objective(recipe: Recipe) -> str:
    if recipe.data.messages_column:
        return f"what the assistant says in '{recipe.data.messages_column}'"
    if recipe.data.prompt_column:
        return f"'{recipe.data.answer_column}' as the answer to '{recipe.data.prompt_column}'"
    return "to continue the texts"


LEARNED: dict[str, Callable[[Recipe, Checked], list[tuple[str, str]]]] = {"causal_lm": _continued}
"""What a task learns from its rows, where that is not labels."""


def _labels(checked: Checked) -> str:
    if checked.task.target.name == "regression":
        return "a number each"
    labels = checked.inspection.labels or ()
    # A comma or a line break of a label's own would look like the list's.
    told = (json.dumps(label, ensure_ascii=False) if _ODD.search(label) else label for label in labels)
    return ", ".join(told) if labels else "known when loaded"


_ODD = re.compile(r'^\s|\s$|[,"\n\r\t]')


def _source(name: str, package: str | None, revision: str | None) -> str:
    return name + (f" ({package})" if package else f" at {revision}" if revision else "")


def _phase(checked: Checked, index: int) -> str:
    assert checked.plan is not None
    phase = checked.plan.phases[index]
    rates = [rate for rate in phase.learning_rates if rate]
    span = f"{rates[-1]:.1e}" if len(rates) == 1 else f"{rates[0]:.1e} to {rates[-1]:.1e}"
    steps = f", {checked.steps[index]} steps" if checked.steps else ""
    size = f", images of {phase.image_size}×{phase.image_size}" if phase.image_size else ""
    return f"{phase.name}: {phase.count} layer group{'s' if phase.count > 1 else ''}, up to {phase.epochs} epoch{'s' if phase.epochs > 1 else ''}{steps}, rates {span}, {phase.schedule}{size}"
