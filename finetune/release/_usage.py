"""Sections of the card about using the model: snippets for every way to run it, and what it is meant for."""

from __future__ import annotations

import shlex
from collections.abc import Callable

from finetune.release import _usage_language
from finetune.release._facts import Report, bundle_folder
from finetune.release._kinds import is_timm, kind_of, modality_of
from finetune.release._markdown import code, fenced, number, text


def how_to_use(report: Report) -> str:
    """Snippets for the lean runtime, the command line, and the library that trained the model."""
    modality, target = kind_of(report)
    if modality in _GENERATING:
        return _GENERATING[modality](report)
    folder = bundle_folder(report)
    shown = _LIBRARIES["timm" if is_timm(report) else modality](report, f"{folder}/model", _DECODED[target](report))
    given, fields, without = _INPUTS[modality], _FIELDS[target], _WITHOUT[target]
    runtime = (
        f"import finetune\n\npredictor = finetune.Predictor({folder!r})\n"
        f"for prediction in predictor.predict([{given}]):\n    print({fields})"
    )
    return "\n\n".join(
        [
            f"Without torch or transformers (ONNX Runtime, {without}):",
            fenced("python", runtime),
            "From the command line, one input or many:",
            fenced("bash", _COMMANDS[modality].format(bundle=shlex.quote(folder))),
            *shown,
        ]
    )


_GENERATING: dict[str, Callable[[Report], str]] = {"language": _usage_language.how_to_use}
"""Models that write instead of answering are used in another way."""
_INPUTS = {"text": "'a text to classify', 'another'", "image": "'one.jpg', 'another.png'"}
_FIELDS = {
    "single_label": "prediction.label, prediction.score",
    "multi_label": "prediction.labels, prediction.probabilities",
    "regression": "prediction.value, prediction.low, prediction.high",
}
_WITHOUT = {
    "single_label": "calibrated scores",
    "multi_label": "calibrated probabilities",
    "regression": "with an interval where there is one",
}
_COMMANDS = {
    "text": "finetune predict {bundle} --text 'a text to classify'\nfinetune predict {bundle} --input texts.csv --output predictions.csv",
    "image": "finetune predict {bundle} one.jpg more-images/ 'scans/*.png'\nfinetune predict {bundle} more-images/ --output predictions.csv",
}


def _probabilities(report: Report, function: str) -> str:
    """The line from `logits` to `probabilities`, with the temperature that makes them so."""
    temperature = float((report["calibration"] or {}).get("temperature", 1.0))
    scaled = "" if report["calibration"] is None else "  # T makes the scores probabilities (see Calibration)"
    return f"probabilities = (logits / {temperature:.6g}).{function}{scaled}"


def _single_label(report: Report) -> str:
    return (
        f"{_probabilities(report, 'softmax(dim=-1)')}\nprint(names[int(probabilities.argmax())], "
        "float(probabilities.max()))"
    )


def _multi_label(report: Report) -> str:
    return (
        f"{_probabilities(report, 'sigmoid()')}\n"
        "print({names[k]: float(p) for k, p in enumerate(probabilities) if p > 0.5})"
    )


def _regression(report: Report) -> str:
    half = (report["calibration"] or {}).get("interval")
    within = "" if half is None else f"  # the truth lies within ± {float(half):.4g} in about 9 of 10 cases"
    return f"print(float(logits[0])){within}"


_DECODED: dict[str, Callable[[Report], str]] = {
    "single_label": _single_label,
    "multi_label": _multi_label,
    "regression": _regression,
}


def _names(report: Report) -> str:
    """The line that gives label names, if there are any."""
    return "" if kind_of(report)[1] == "regression" else "names = model.config.id2label\n"


def _with_tokenizer(report: Report, folder: str, decoded: str) -> list[str]:
    body = f"""import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = {folder!r}  # on the Hub: the repository's id, with subfolder="model"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
batch = tokenizer(["a text to classify"], truncation=True, max_length={int(report["data"]["max_length"])}, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits[0]
{_names(report)}{decoded}"""
    return ["With transformers:", fenced("python", body)]


def _with_image_processor(report: Report, folder: str, decoded: str) -> list[str]:
    body = f"""import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

folder = {folder!r}  # on the Hub: the repository's id, with subfolder="model"
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModelForImageClassification.from_pretrained(folder).eval()
batch = processor(Image.open("one.jpg").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits[0]
{_names(report)}{decoded}"""
    return ["With transformers:", fenced("python", body)]


def _with_timm(report: Report, folder: str, decoded: str) -> list[str]:
    labels = "" if kind_of(report)[1] == "regression" else f"names = {[str(x) for x in report['data']['labels']]!r}\n"
    body = f"""import timm
import torch
from PIL import Image

model = timm.create_model({"local-dir:" + folder!r}, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
batch = transform(Image.open("one.jpg").convert("RGB")).unsqueeze(0)
with torch.no_grad():
    logits = model(batch)[0]
{labels}{decoded}"""
    loaded = f"from transformers import AutoModelForImageClassification\n\nmodel = AutoModelForImageClassification.from_pretrained({folder!r}).eval()"
    return [
        "With timm:",
        fenced("python", body),
        "The same folder also loads with transformers, which wraps the timm model:",
        fenced("python", loaded),
    ]


_LIBRARIES: dict[str, Callable[[Report, str, str], list[str]]] = {
    "text": _with_tokenizer,
    "image": _with_image_processor,
    "timm": _with_timm,
}


def intended_use(report: Report) -> str:
    """What the model is meant for, in the user's words if given, and what its licences allow."""
    stated = report["recipe"].get("card", {}).get("intended_use")
    labels = ", ".join(text(label) for label in report["data"]["labels"][:30])
    more = f", and {len(report['data']['labels']) - 30} more" if len(report["data"]["labels"]) > 30 else ""
    lines = [text(stated)] if stated else []
    lines.append(_ANSWERS[kind_of(report)[1]].format(input=modality_of(report).a, labels=f"{labels}{more}"))
    lines.append(f"Built for {code(report['license']['use'])} use. {text(report['license']['sentence'])}")
    seen = report["data"].get("pixels")
    if seen:
        lines.append(f"It sees pictures of {number(seen['height'])} × {number(seen['width'])} pixels (height × width).")
    return "\n\n".join(lines)


_ANSWERS = {
    "single_label": "It assigns one of these labels to {input}: {labels}.",
    "multi_label": "It assigns any number of these labels to {input}, or none: {labels}.",
    "regression": "It answers {input} with a number.",
    "next_token": "It continues a prompt token by token, in the manner of its training texts.",
}
