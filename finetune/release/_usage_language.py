"""The card's snippets for a model that writes: command line, Python without torch, transformers, plain ONNX Runtime."""

from __future__ import annotations

import shlex

from finetune.release._facts import Report, bundle_folder
from finetune.release._markdown import fenced

_ONNX = {"int8": "onnx/model.int8.onnx", "onnx": "onnx/model.onnx"}


def how_to_use(report: Report) -> str:
    """Every way to run the model, on a prompt of the report."""
    folder, chat = bundle_folder(report), _talks(report)
    prompt = "What is new?" if chat else "The news today is"
    return "\n\n".join(
        [
            "From the command line, streaming, without torch or transformers:",
            fenced("bash", _commands(shlex.quote(folder), shlex.quote(prompt), " --chat" if chat else "")),
            "The same from Python:",
            fenced("python", _generator(folder, prompt, chat)),
            "With transformers:",
            fenced("python", _transformers(f"{folder}/model", prompt, chat)),
            "With ONNX Runtime and tokenizers alone; the first call reads the prompt, each further one a token:",
            fenced("python", _session(folder, _ONNX[report["export"]["served"]], prompt, chat)),
        ]
    )


def _talks(report: Report) -> bool:
    """Whether the model was taught to answer through its chat template."""
    data, kept = report["recipe"].get("data", {}), (report.get("language") or {}).get("unchanged") or {}
    return bool(data.get("messages_column") or (data.get("prompt_column") and "chat_template" in kept))


def _commands(folder: str, prompt: str, chat: str) -> str:
    sampled = "--temperature 0.8 --top-p 0.95 --seed 1"
    return (
        f"finetune predict {folder} --prompt {prompt}{chat} --max-new-tokens 64\n"
        f"finetune predict {folder} --prompt {prompt}{chat} --max-new-tokens 64 {sampled}"
    )


def _generator(folder: str, prompt: str, chat: bool) -> str:
    asked = repr([{"role": "user", "content": prompt}]) if chat else repr(prompt)
    return (
        f"import finetune\n\ngenerator = finetune.Generator({folder!r})\n"
        f"for piece in generator.stream({asked}, max_new_tokens=64):\n    print(piece, end='', flush=True)"
    )


def _transformers(folder: str, prompt: str, chat: bool) -> str:
    asked = repr([{"role": "user", "content": prompt}])
    batch = (
        f"tokenizer.apply_chat_template({asked}, add_generation_prompt=True, return_tensors='pt', return_dict=True)"
        if chat
        else f"tokenizer({prompt!r}, return_tensors='pt')"
    )
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder!r}  # on the Hub: the repository's id, with subfolder="model"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
batch = {batch}
ids = model.generate(**batch, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(ids[0], skip_special_tokens=True))"""


def _session(folder: str, file: str, prompt: str, chat: bool) -> str:
    written = "  # a conversation has to be written as the chat template says" if chat else ""
    return f"""import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file({folder + "/tokenizer.json"!r})
session = ort.InferenceSession({folder + "/" + file!r}, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
caches = [one for one in session.get_inputs() if one.name.startswith("past.")]
past = {{one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32) for one in caches}}
ids = tokenizer.encode({prompt!r}).ids{written}
step, seen = list(ids), 0
for _ in range(64):
    mask, places = np.ones((1, seen + len(step)), np.int64), np.arange(seen, seen + len(step)).reshape(1, -1)
    feed = {{"input_ids": np.array([step]), "attention_mask": mask, "position_ids": places, **past}}
    found = dict(zip(names, session.run(names, feed)))
    past = {{name: found[name.replace("past.", "present.")] for name in past}}
    seen += len(step)
    step = [int(found["logits"][0, -1].argmax())]
    ids += step
print(tokenizer.decode(ids))"""
