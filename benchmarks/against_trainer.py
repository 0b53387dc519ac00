"""`finetune run recipes/text_cls.yaml` against the stock Hugging Face Trainer, on the same leak-free splits.

    python benchmarks/against_trainer.py [--epochs 1] [KEY=VALUE ...]

The Trainer fine-tunes the whole network (AdamW, 5e-5, linear decay, batches of 16, 128 tokens), as its text
classification example does. It stops at a trained network; the recipe's time covers audit, training, evaluation,
ONNX and int8 export, and the report. Each runs in a process of its own, one after the other. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).parent.parent / "recipes" / "text_cls.yaml"


def train_with_trainer(epochs: int, overrides: list[str]) -> None:
    """Run in the child: prints one line of JSON."""
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    from finetune import load_recipe
    from finetune.data import prepare_data
    from finetune.preflight import find_data
    from finetune.sources import find_source
    from finetune.tasks import TASKS

    recipe = load_recipe(RECIPE, overrides)
    data = prepare_data(TASKS[recipe.task], recipe.data, *find_data(recipe), recipe.seed)
    folder = find_source(recipe.backbone.name, kind="model").path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(data.labels))

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __init__(self, split: object) -> None:
            self.ids = tokenizer(list(split.inputs), truncation=True, max_length=128)  # type: ignore[attr-defined]
            self.labels = split.labels  # type: ignore[attr-defined]

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, i: int) -> dict[str, object]:
            return {**{k: v[i] for k, v in self.ids.items()}, "labels": int(self.labels[i])}

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out, num_train_epochs=epochs, learning_rate=5e-5, per_device_train_batch_size=16, seed=0, save_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model, arguments, train_dataset=Rows(data.train), processing_class=tokenizer)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        logits = trainer.predict(Rows(data.test)).predictions
    print(json.dumps({"training_s": seconds, "test": float((np.argmax(logits, 1) == data.test.labels).mean())}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=1, help="epochs of the Trainer")
    parser.add_argument(
        "overrides", nargs="*", help="override recipe keys for both, such as data.limit=200 for a trial"
    )
    parser.add_argument("--trainer-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trainer_only:
        train_with_trainer(options.epochs, options.overrides)
        return
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "finetune",
                "run",
                str(RECIPE),
                *options.overrides,
                f"output={folder}/bundle",
                "--quiet",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        ours_s = time.perf_counter() - began
        ours = json.loads(Path(folder, "bundle", "report.json").read_text("utf-8"))
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "--trainer-only", "--epochs", str(options.epochs), *options.overrides],
            check=True,
            capture_output=True,
            text=True,
        )
        theirs_s = time.perf_counter() - began
        theirs = json.loads(done.stdout.strip().splitlines()[-1])
    training = ours["timings_s"]["training"]
    print(f"{ours['environment']['cpu']['model']}, {ours['environment']['cpu']['cores']} cores, {platform.system()}\n")
    print("| | training | whole command | test accuracy |")
    print("|---|---|---|---|")
    print(
        f"| finetune, recipes/text_cls.yaml | {training:.0f} s | {ours_s:.0f} s | {ours['metrics']['test']['accuracy']['value']:.4f} |"
    )
    print(
        f"| Trainer, {options.epochs} epoch | {theirs['training_s']:.0f} s | {theirs_s:.0f} s | {theirs['test']:.4f} |"
    )
    print(f"| ratio | {training / theirs['training_s']:.2f} | {ours_s / theirs_s:.2f} | |")


if __name__ == "__main__":
    main()
