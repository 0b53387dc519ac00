"""The whole story on a small real language model: texts in, verified bundle out, that goes on with a prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_language import make_documents, news, write_language_backbone

from finetune import Generator, Report, load_recipe, run
from finetune.bundle import Bundle
from finetune.cli import main
from finetune.errors import FinetuneError, Interrupted, TrainingError
from finetune.model.quiet import quiet_transformers
from finetune.release.card import validate_card
from finetune.train.events import Event, Notice, StepEnded

RECIPE = """\
name: tiny_language
task: causal_lm
seed: 3
backbone: {{name: {backbone}}}
data:
  source: {data}
  max_length: 48
transfer: {{unfreeze: full, epochs: 3, learning_rate: 3.0e-3, decay: 0.9}}
train: {{batch_size: 8}}
evaluation:
  generation: {{max_new_tokens: 8}}
  memorisation: {{samples: 4, prompt_tokens: 6, ngram: 4, max_new_tokens: 8}}
export: {{prompt_tokens: 8, int8: {{max_drop: 0.9, min_agreement: 0.0}}}}
license:
  use: research
  data: {{id: cc0-1.0, reason: "made up by the test itself"}}
"""


def write_recipe(folder: Path, backbone: Path, data: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "language.yaml"
    path.write_text(RECIPE.format(backbone=backbone, data=data), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 that was pretrained briefly on real texts."""
    folder = tmp_path_factory.mktemp("gpt2")
    return write_language_backbone(folder, "gpt2", train_steps=60, documents=news("business", 200))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    for number, text in enumerate(news("tech", 120)):
        (folder / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("general")
    for number, text in enumerate(news("sports", 12)):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, backbone: Path, documents: Path, general: Path) -> Path:
    """A bundle that the pipeline made from a folder of texts; tests must not change it."""
    folder = tmp_path_factory.mktemp("run")
    told: list[Event] = []
    recipe = load_recipe(
        write_recipe(folder, backbone, documents),
        [f"output={folder / 'bundle'}", f"evaluation.general.source={general}"],
    )
    report = run(recipe, callbacks=[told.append])
    words = [event.message for event in told if isinstance(event, Notice)]
    assert any("training tokens" in text and "cut off" in text for text in words)
    assert any("memory" in text for text in words)
    return report.bundle


def test_training_lowers_perplexity_and_shows_what_was_forgotten(bundle: Path) -> None:
    report = Report.open(bundle).data
    before, after = report["language"]["before"], report["language"]["after"]
    assert after["test"]["perplexity"]["value"] < 0.9 * before["test"]["perplexity"]["value"]
    assert after["test"] == report["metrics"]["test"]
    assert before["general"]["tokens"] == after["general"]["tokens"] > 0
    assert report["baselines"]["unigram"]["perplexity"] > after["test"]["perplexity"]["value"]


def test_the_report_tells_of_tokens_generations_memorisation_and_what_stayed(bundle: Path) -> None:
    report = Report.open(bundle).data
    tokens = report["data"]["tokens"]
    assert tokens["train"]["documents"] + tokens["validation"]["documents"] + tokens["test"]["documents"] == 120
    assert all({"tokens", "truncated_share", "masked_share"} <= set(facts) for facts in tokens.values())
    assert len(report["language"]["generations"]) == 4
    assert report["language"]["memorisation"]["samples"] == 4
    assert {"generation_config.json", "chat_template"} <= set(report["language"]["unchanged"])
    assert report["export"]["greedy"]["identical"] is True
    assert all(report["export"][form]["tokens_per_second"] > 0 for form in ("torch", "onnx"))
    assert validate_card((bundle / "README.md").read_text("utf-8")) == []


def test_the_bundle_goes_on_with_a_prompt_as_torch_does(bundle: Path, capsys: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompt = "The old ship"
    assert main(["predict", str(bundle), "--form", "onnx", "--prompt", prompt, "--max-new-tokens", "6"]) == 0
    said = capsys.readouterr().out.rstrip("\n")
    generator = Generator(bundle, which="onnx")
    found = generator.generate(prompt, max_new_tokens=6)
    assert found.text == said
    model = AutoModelForCausalLM.from_pretrained(bundle / "model").eval()
    ids = torch.tensor([generator.prompt_ids(prompt)])
    wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert list(found.tokens) == wanted[0, ids.shape[1] :].tolist()[: len(found.tokens)]


def test_a_bundle_checks_out(bundle: Path, capsys: Any) -> None:
    assert main(["check", str(bundle)]) == 0
    assert "parity" in capsys.readouterr().out
    assert Bundle.open(bundle).modality == "language"


def test_adapters_are_saved_in_pefts_format_and_merged(tmp_path: Path, backbone: Path, documents: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe = load_recipe(
        write_recipe(tmp_path, backbone, documents),
        [
            f"output={tmp_path / 'bundle'}", "transfer.unfreeze=gradual", "transfer.epochs=1", "transfer.adapter.kind=lora",
            "transfer.adapter.rank=4", "transfer.learning_rate=0.01", "export.int8.mode=off",
            "evaluation.memorisation.samples=0", "train.gradient_checkpointing=true",
        ],
    )  # fmt: skip
    report = run(recipe)
    assert report.data["transfer"]["adapter"]["rank"] == 4
    assert len(report.data["transfer"]["phases"]) > 1
    assert report.data["language"]["memorisation"] is None
    base = AutoModelForCausalLM.from_pretrained(backbone)
    with quiet_transformers():  # peft asks for an attribute under a name that transformers has given up
        with_adapter = PeftModel.from_pretrained(base, report.bundle / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(report.bundle / "model").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(with_adapter(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)


def test_answers_alone_are_learned_from_conversations(tmp_path: Path, backbone: Path) -> None:
    rows = [
        {"question": f"Which word comes {n} times?", "reply": f"{text.split()[0]} comes {n} times."}
        for n, text in enumerate(make_documents(60, seed=4))
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = load_recipe(
        write_recipe(tmp_path, backbone, data),
        [
            f"output={tmp_path / 'bundle'}", "data.prompt_column=question", "data.answer_column=reply", "data.max_length=96",
            "transfer.epochs=1", "export.int8.mode=off", "evaluation.memorisation.samples=0",
        ],
    )  # fmt: skip
    report = run(recipe).data
    assert 0.3 < report["data"]["tokens"]["train"]["masked_share"] < 0.95


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, backbone: Path, documents: Path) -> None:
    path = write_recipe(tmp_path, backbone, documents)
    settings = ["transfer.epochs=1", "transfer.adapter.kind=dora", "export.int8.mode=off", "evaluation.memorisation.samples=0", "data.limit=60"]  # fmt: skip
    steps: list[Event] = []
    stopped = load_recipe(path, [*settings, f"output={tmp_path / 'stopped'}"])
    with pytest.raises(Interrupted):
        run(
            stopped,
            callbacks=[lambda event: steps.append(event) if isinstance(event, StepEnded) else None],
            stop=lambda: len(steps) >= 2,
        )
    resumed = run(stopped, resume=True)
    straight = run(load_recipe(path, [*settings, f"output={tmp_path / 'straight'}"]))
    weights = "model/model.safetensors"
    assert (resumed.bundle / weights).read_bytes() == (straight.bundle / weights).read_bytes()


def test_what_does_not_fit_into_memory_is_refused_before_training(
    tmp_path: Path, backbone: Path, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune import hardware

    monkeypatch.setattr(hardware, "available_memory", lambda: 1_000)
    recipe = load_recipe(write_recipe(tmp_path, backbone, documents), [f"output={tmp_path / 'bundle'}"])
    with pytest.raises(TrainingError, match=r"train\.memory: warn"):
        run(recipe)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("evaluation.generation.max_new_tokens=2000", "evaluation.generation: "),
        ("evaluation.memorisation.prompt_tokens=200", "evaluation.memorisation: 200 tokens of a beginning"),
        ("evaluation.general.source={empty}", "evaluation.general"),
        ("data.max_length=4096", "data.max_length: 4096 tokens, but this backbone takes at most 128"),
        ("transfer.adapter.targets=[nothing_such]", "transfer.adapter.targets"),
    ],
)
def test_what_cannot_be_asked_at_the_end_is_refused_before_training(
    tmp_path: Path, backbone: Path, documents: Path, setting: str, sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    wanted = setting.format(empty=tmp_path / "empty")
    adapter = ["transfer.adapter.kind=lora"] if "adapter" in setting else []
    # A borrowed prompt is cut to fit; one that the recipe writes is not.
    prompts = ["evaluation.generation.prompts=[The old ship]"]
    recipe = load_recipe(
        write_recipe(tmp_path, backbone, documents), [f"output={tmp_path / 'bundle'}", wanted, *adapter, *prompts]
    )
    told: list[Event] = []
    with pytest.raises(FinetuneError, match=sentence):
        run(recipe, callbacks=[told.append])
    assert not any(isinstance(event, StepEnded) for event in told)


def test_forms_can_be_built_and_measured_again(tmp_path: Path, bundle: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    assert main(["export", str(copy), "export.int8.mode=off"]) == 0
    report = Report.open(copy).data
    assert report["export"]["served"] == "onnx"
    assert report["language"] == Report.open(bundle).data["language"]
