"""Sections of the card about what was measured: results, calibration, exported forms, limitations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune.release._facts import Report, metric_in_sentence, metric_name, metric_values, served_name
from finetune.release._markdown import bullets, code, counted, interval, megabytes, number, share, table, text

_MOST_CLASSES = 30
_MOST_CONFUSION = 12


def results(report: Report) -> str:
    """Test results of the torch and the served model beside the baselines, then per label."""
    test, served = report["metrics"]["test"], report["metrics"]["test_served"]
    baselines = report["baselines"] or {}
    names = {"tfidf_logreg": "TF-IDF + logistic regression", "majority": "Majority label"}
    shown = [key for key in names if key in baselines]
    rows = [
        [
            text(metric_name(metric)),
            interval(values),
            interval(served.get(metric)),
            *[interval(baselines[key].get(metric)) for key in shown],
        ]
        for metric, values in metric_values(test).items()
    ]
    header = ["Metric", "PyTorch", f"Served ({served_name(report)})", *[names[key] for key in shown]]
    parts = [
        f"Measured once, on {number(test['rows'])} test rows that no training or selection step has seen. "
        "In parentheses: 95 % confidence intervals (Wilson for accuracy, bootstrap over rows for the rest).",
        table(header, rows),
        _did_it_pay(report),
        *_per_label(test, report["data"]["labels"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _did_it_pay(report: Report) -> str:
    primary = report["metrics"]["primary"]
    ours = metric_values(report["metrics"]["test"]).get(primary)
    baseline = ((report["baselines"] or {}).get("tfidf_logreg") or {}).get(primary)
    baseline = baseline.get("value") if isinstance(baseline, Mapping) else baseline
    if ours is None or baseline is None or ours["value"] is None or primary == "loss":
        return ""
    gain, low = ours["value"] - baseline, ours.get("low")
    name = metric_name(primary)
    if gain <= 0:
        return f"{name} is not above the TF-IDF baseline ({number(gain * 100, 1)} points): on these data the simpler model does as well."
    doubt = (
        "; the baseline lies inside the interval, so the gain may be chance"
        if low is not None and baseline >= low
        else ""
    )
    return f"{name} is {number(gain * 100, 1)} points above the TF-IDF baseline{doubt}."


def _per_label(test: Mapping[str, Any], labels: list[str]) -> Iterator[str]:
    scores = test.get("per_class") or {}
    ordered = (
        sorted(scores, key=lambda label: (scores[label]["f1"], label))[:_MOST_CLASSES]
        if len(scores) > _MOST_CLASSES
        else list(scores)
    )
    yield "### Per label"
    if len(ordered) < len(scores):
        yield f"The {_MOST_CLASSES} labels with the lowest F1 of {len(scores)}; all of them are in `report.html`."
    rows = [
        [
            text(label),
            *[number(scores[label][key]) for key in ("precision", "recall", "f1")],
            number(scores[label]["support"]),
        ]
        for label in ordered
    ]
    yield table(["Label", "Precision", "Recall", "F1", "Rows"], rows)
    confusion = test.get("confusion")
    if confusion and len(labels) <= _MOST_CONFUSION:
        yield "Confusion matrix on the test rows (PyTorch); rows are the true labels, columns the predicted ones:"
        yield table(
            ["True \\ predicted", *map(text, labels)],
            [[text(label), *map(number, row)] for label, row in zip(labels, confusion, strict=True)],
        )


def calibration(report: Report) -> str:
    """Calibration before and after temperature scaling, measured on test."""
    measured = report["calibration"]
    if measured is None:
        return "Calibration was not measured in this run; treat the scores as a ranking, not as probabilities."
    rows = [
        [name, number(measured[f"{key}_before"], 4), number(measured[f"{key}_after"], 4)]
        for name, key in (
            ("Expected calibration error", "ece"),
            ("Negative log-likelihood (nats)", "nll"),
            ("Brier score", "brier"),
        )
    ]
    return (
        f"One temperature, T = {number(measured['temperature'])}, was fitted on the validation rows (Guo et al. 2017) and is applied by "
        "`finetune.Predictor`. It changes probabilities, never the predicted label. Measured on the test rows:\n\n"
        + table(["Measure", "Before", f"After (T = {number(measured['temperature'])})"], rows)
    )


def exported_forms(report: Report) -> str:
    """Torch, ONNX fp32 and int8 side by side on the same validation rows, and the gates."""
    export, validation, primary = report["export"], report["metrics"]["validation"], report["metrics"]["primary"]
    forms: list[tuple[str, str, Mapping[str, Any] | None]] = [
        ("PyTorch fp32 (`model/`)", "torch", export["torch"]),
        ("ONNX fp32 (`onnx/model.onnx`)", "onnx", export["onnx"]),
        ("ONNX int8 (`onnx/model.int8.onnx`)", "int8", export["int8"]),
        ("PyTorch with bitsandbytes int8 weights", "bitsandbytes", export.get("bitsandbytes")),
    ]
    rows = [
        _form_row(name, form, _form_score(validation, key, form, primary))
        for name, key, form in forms
        if form is not None
    ]
    header = [
        "Form",
        f"{metric_name(primary)}, validation",
        "Same label as PyTorch",
        "Largest logit difference",
        "Size",
        "Latency, batch 1",
        "Batch 32",
        "Rows/s, batch 32",
    ]
    parts = [
        f"All forms were measured on the same validation rows and on this processor: {text(export['measured_on'])}. Speeds differ elsewhere.",
        table([text(cell) for cell in header], rows),
        f"Served: **{served_name(report)}**. {text(export['served_reason'])}",
    ]
    if export["int8"]:
        parts.append(f"int8 was built for {code(export['cpu_target'])} processors with {text(export['int8']['name'])}.")
    if export.get("bitsandbytes"):
        note = (
            export["bitsandbytes"].get("note")
            or "Its weights take less memory; on processors without its kernels it is slower."
        )
        parts.append(f"bitsandbytes: {text(note)}")
    parts.append(bullets(f"{'✔' if gate['passed'] else '✘'} {text(gate['sentence'])}" for gate in export["gates"]))
    return "\n\n".join(part for part in parts if part)


def _form_score(validation: Mapping[str, Any], key: str, form: Mapping[str, Any], primary: str) -> Any:
    if key == "bitsandbytes":
        return form.get("metric")
    return (validation.get(key) or {}).get(primary)


def _form_row(name: str, form: Mapping[str, Any], score: Any) -> list[str]:
    return [
        name,
        interval(score),
        share(form.get("agreement")) if "agreement" in form else "–",
        f"{form['max_abs_diff']:.1e}" if isinstance(form.get("max_abs_diff"), int | float) else "–",
        megabytes(form["size_bytes"]),
        f"{number(form['latency_ms']['1'], 1)} ms",
        f"{number(form['latency_ms']['32'], 1)} ms",
        number(form["throughput"]["32"], 1),
    ]


def limitations(report: Report) -> str:
    """What the model cannot do or was not tested on, as far as the run itself can tell."""
    return bullets(_limits(report))


def _limits(report: Report) -> Iterator[str]:
    data, test, card = report["data"], report["metrics"]["test"], report["recipe"].get("card", {})
    if card.get("limitations"):
        yield text(card["limitations"])
    yield f"Every input gets one of the {len(data['labels'])} labels, also a text that fits none of them."
    yield f"Only texts like those of its data set (language: {', '.join(map(text, card.get('language', ('en',))))}) were tested; other kinds, sources and times were not."
    truncated = data["tokens"]["truncated_share"]
    if truncated:
        yield f"Only the first {number(data['max_length'])} tokens of a text are read; that cut {share(truncated)} of the rows."
    primary = metric_values(test).get(report["metrics"]["primary"])
    if primary and primary.get("low") is not None and primary.get("high") is not None:
        yield (
            f"{number(test['rows'])} test rows leave {text(metric_in_sentence(report['metrics']['primary']))} uncertain: "
            f"{number(primary['low'])} to {number(primary['high'])} with 95 % confidence."
        )
    scores = test.get("per_class") or {}
    if scores:
        weakest = min(scores, key=lambda label: (scores[label]["f1"], label))
        yield f"The weakest label is {text(weakest)} (F1 {number(scores[weakest]['f1'])} on {number(scores[weakest]['support'])} test rows)."
    if report["audit"].get("conflicting_label_groups"):
        yield f"The data hold {counted(report['audit']['conflicting_label_groups'], 'group')} of identical texts with different labels."
    served = report["export"]["int8"] if report["export"]["served"] == "int8" else report["export"]["onnx"]
    if served.get("batch_invariant") is False:
        yield "The served file gives slightly different scores in different batches; `finetune.Predictor` therefore runs texts one by one."
    yield "Social bias of the backbone and the data was not measured; do not decide about people with it without doing so."
