"""What the card says of language models alone: what taught what, forgetting, memorisation, speed in tokens, limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from finetune.release._facts import Report, adapter_of, dataset_name, hub_repo, metric_name
from finetune.release._markdown import bullets, code, counted, interval, number, share, table, text

_KINDS = {"lora": "LoRA", "dora": "DoRA"}
_BASES = {"fp32": "32-bit floats", "int8": "8-bit integers (bitsandbytes)", "nf4": "4-bit NormalFloat (bitsandbytes)"}
_OVERLONG = {
    "split": "split into pieces, each seen alone",
    "truncate": "cut off at the end",
    "refuse": "refused",
}


def tokens(report: Report) -> Iterator[str]:
    """Documents, tokens and blocks of each split, with what was cut off, masked and padded."""
    rows = [
        [
            split.capitalize(),
            *[number(found.get(key)) for key in ("documents", "tokens", "blocks", "split_documents")],
            *[share(found.get(key)) for key in ("truncated_share", "masked_share", "padding_share")],
        ]
        for split, found in report["data"]["tokens"].items()
        if isinstance(found, Mapping)
    ]
    header = ["Split", "Documents", "Tokens", "Blocks", "Split documents", "Cut off", "Without loss", "Padding"]
    yield table(header, rows)


def taught(report: Report) -> str:
    """Which data taught the model what: the base model's own, ours, and those that only measured."""
    base, data = hub_repo(report["backbone"]), text(dataset_name(report))
    named = f"[{text(base)}](https://huggingface.co/{base})" if base else code(report["backbone"]["name"])
    own = report["backbone"].get("datasets") or ()
    learned = [
        f"The language itself, its general knowledge, and any skill in following instructions come from {named}; {_pretraining(own)}.",
        f"{_objective(report)} from the training rows of {data}.",
        f"Validation rows of {data} taught nothing; they chose the weights and the exported form. Test rows taught and chose nothing.",
    ]
    source = (report.get("language") or {}).get("general_source")
    if source:
        learned.append(f"{code(source)} taught nothing; it only measured what was forgotten.")
    kept = (report.get("language") or {}).get("unchanged") or {}
    if kept:
        parts = ", ".join(code(name) for name in kept)
        learned.append(f"Taken over from the base model unchanged, which is checked by hash: {parts}.")
    return "What taught what:\n\n" + bullets(learned)


def _pretraining(datasets: Any) -> str:
    """What the base model's card says that it learned from."""
    if not datasets:
        return "what that was trained on is for its own card to say, and is not recorded here"
    return f"its card names {', '.join(code(one) for one in datasets)} as what it was trained on"


def _objective(report: Report) -> str:
    """What our data taught, by how they were read."""
    data = report["recipe"].get("data", {})
    if data.get("messages_column"):
        return "What the assistant says comes"
    return "How prompts are answered comes" if data.get("prompt_column") else "Subject and manner of the domain come"


def before_and_after(report: Report) -> Iterator[str]:
    """Perplexity and accuracy before and after, in the domain and out of it, and the memorisation check."""
    language = report["language"]
    rows = [
        [
            f"{place}: {text(metric_name(report, metric))}",
            interval(before.get(metric)),
            interval(after.get(metric)),
            _change(metric, before.get(metric), after.get(metric)),
        ]
        for key, place in (("test", "Test split"), ("general", "General texts"))
        if (before := language["before"].get(key)) and (after := language["after"].get(key))
        for metric in ("perplexity", "accuracy")
        if after.get(metric)
    ]
    yield "### Before and after training"
    yield "The same sequences of tokens, in PyTorch, by the base model and by this one."
    yield table(["Measure", "Before", "After", "Change"], rows)
    yield _forgetting(language)
    yield "### Memorisation"
    yield _memorisation(language.get("memorisation"))


def _change(metric: str, before: Any, after: Any) -> str:
    old, new = _value(before), _value(after)
    if old is None or new is None or (metric == "perplexity" and not old):
        return "–"
    return f"{100 * (new / old - 1):+.1f} %" if metric == "perplexity" else f"{100 * (new - old):+.1f} points"


def _value(measured: Any) -> float | None:
    return measured.get("value") if isinstance(measured, Mapping) else None


def _forgetting(language: Mapping[str, Any]) -> str:
    before, after = (_value((language[when].get("general") or {}).get("perplexity")) for when in ("before", "after"))
    if not before or after is None:
        return "Forgetting was not measured: the recipe names no texts of another domain."
    far = f"{100 * abs(after / before - 1):.1f} %"
    if after <= before:
        return f"On texts of another domain the perplexity is {far} lower than before: they show no forgetting."
    return f"On texts of another domain the perplexity is {far} higher than before: that is the price in forgetting."


def _memorisation(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "It was not checked whether the model recites its training texts."
    return (
        f"The beginnings of {counted(found['samples'], 'training text')} were continued by sampling. Of the runs of {number(found['ngram'])} tokens "
        f"in what it wrote, {share(found['share'])} stand word for word in the training texts; before training "
        f"{share(found.get('base_share'))}. The longest such passage has {counted(found['longest'] or 0, 'token')}."
    )


SPEEDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "Time to first token": lambda form: (
        f"{number(form.get('ms_first_token'), 1)} ms" if form.get("ms_first_token") else "–"
    ),
    "Tokens per second": lambda form: number(form.get("tokens_per_second"), 1),
}
"""How fast a form writes, a column of the card's table each."""


def export_notes(report: Report) -> list[str]:
    """How speeds were measured, and whether ONNX writes what torch writes."""
    greedy, prompt = report["export"].get("greedy"), report["recipe"].get("export", {}).get("prompt_tokens")
    notes = (
        [f"The first token follows a prompt of {number(prompt)} tokens; the others follow one by one."]
        if prompt
        else []
    )
    if greedy and greedy.get("identical"):
        notes.append(
            f"Continuing {counted(greedy['prompts'], 'prompt')} greedily, ONNX fp32 wrote the same {number(greedy['tokens'])} tokens as PyTorch."
        )
    return notes


def settings(report: Report) -> dict[str, Any]:
    """Rows of the card's table of settings."""
    data, recipe, adapter = report["data"], report["recipe"], adapter_of(report)
    packed = "packed, each document sees only itself" if data.get("packing") else "one document or conversation each"
    shown = {
        "Blocks": f"at most {number(data['max_length'])} tokens, {packed}",
        "Longer documents": _OVERLONG.get(str(recipe.get("data", {}).get("overlong")), "split"),
        "Gradient checkpointing": "on" if recipe.get("train", {}).get("gradient_checkpointing") else "off",
        "Adapter": None,
    }
    if adapter:
        shown["Adapter"] = (
            f"{_KINDS.get(adapter['kind'], adapter['kind'])}, rank {adapter['rank']}, α = {adapter['alpha']:g}, "
            f"{number(adapter['parameters'])} parameters, merged into the weights afterwards"
        )
        shown["Weights beside the adapter"] = f"frozen, held in {_BASES.get(adapter['base'], adapter['base'])}"
    return shown


def limits_of_text(report: Report) -> Iterator[str]:
    """What any model that writes cannot do, and what was measured of it."""
    language, export = report["language"], report["export"]
    yield "It writes what is likely, not what is true: names, numbers and quotations may be invented. Check what it says."
    yield "Whatever the base model learned about refusing or following instructions may have been weakened; that was not measured."
    yield "Perplexity says how well it predicts texts like those of the test split, not how useful its texts are."
    recited = (language.get("memorisation") or {}).get("share")
    if recited:
        yield f"It recites training texts: {share(recited)} of the runs looked at. Texts that must not come out again do not belong in training."
    elif not language.get("memorisation"):
        yield "Whether it recites training texts was not checked."
    else:
        yield "That nothing was recited in a few samples does not mean that nothing can be."
    if export["served"] == "int8" and (export["int8"].get("agreement") or 1) < 1:
        yield (
            f"The served int8 form picks PyTorch's next token in {share(export['int8']['agreement'])} of the cases, so longer texts "
            "part from PyTorch's sooner or later."
        )


def limits_of_data(report: Report) -> Iterator[str]:
    """What the training texts leave open."""
    card, length = report["recipe"].get("card", {}), number(report["data"]["max_length"])
    languages = ", ".join(map(text, card.get("language", ("en",))))
    yield f"Only texts like those of its data set (language: {languages}) were tested; other kinds, sources and times were not."
    yield f"It was trained on blocks of at most {length} tokens; how it keeps to longer contexts was not tested."
