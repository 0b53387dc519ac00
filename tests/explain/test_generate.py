from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_decoders import CONTEXT, KINDS, VOCABULARY, some_prompts, tiny_decoder
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from finetune.errors import RecipeError, TrainingError
from finetune.explain.generate import generate_greedy, sample, shares

PROMPTS = some_prompts((1, 9, 4, 9))


def of_transformers(model: Any, prompts: list[list[int]], new: int, eos: list[int] | None) -> list[list[int]]:
    """What model.generate says after each prompt, padded on the left in one batch; without the token that ended it."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    found = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=new, eos_token_id=eos, pad_token_id=0
    )
    new_ids = found[:, longest:].tolist()
    ends = [next((at for at, token in enumerate(row) if token in (eos or ())), len(row)) for row in new_ids]
    return [row[:end] for row, end in zip(new_ids, ends, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_generation_is_that_of_transformers_alone_and_in_a_padded_batch(kind: str) -> None:
    model = tiny_decoder(kind)
    model.generation_config.eos_token_id = None
    alone = [generate_greedy(model, [prompt], max_new_tokens=25)[0] for prompt in PROMPTS]
    assert alone[:2] == [of_transformers(model, [prompt], 25, None)[0] for prompt in PROMPTS[:2]]
    together = generate_greedy(model, PROMPTS, max_new_tokens=25)
    assert together == of_transformers(model, PROMPTS, 25, None)
    assert together == alone
    assert len({tuple(row) for row in alone}) == len(PROMPTS)
    assert max(len(set(row)) for row in alone) > 3


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_continuation_ends_before_any_of_the_end_tokens_while_others_go_on(kind: str) -> None:
    model = tiny_decoder(kind)
    model.generation_config.eos_token_id = None
    free = generate_greedy(model, PROMPTS, max_new_tokens=16)
    ends = [free[1][3], free[3][7]]
    cut = generate_greedy(model, PROMPTS, max_new_tokens=16, eos_token_ids=ends)
    assert cut == of_transformers(model, PROMPTS, 16, ends)
    assert len({len(row) for row in cut}) > 1
    for row, whole in zip(cut, free, strict=True):
        assert row == whole[: len(row)]
        assert not set(row) & set(ends)
        assert len(row) == 16 or whole[len(row)] in ends


def test_it_stops_asking_the_network_when_every_continuation_has_ended() -> None:
    model, calls = tiny_decoder("gpt2"), []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    model.generation_config.eos_token_id = None
    everything = tuple(range(VOCABULARY))
    assert generate_greedy(model, PROMPTS, max_new_tokens=16, eos_token_ids=everything) == [[]] * 4
    assert len(calls) == 1
    assert len(generate_greedy(model, PROMPTS[:1], max_new_tokens=3)[0]) == 3
    assert len(calls) == 4
    assert generate_greedy(model, [], max_new_tokens=3) == []
    assert len(calls) == 4
    handle.remove()


def test_the_batch_size_changes_nothing_and_order_is_kept() -> None:
    model = tiny_decoder("llama")
    greedy = [generate_greedy(model, PROMPTS, max_new_tokens=12, batch_size=size) for size in (1, 2, 4)]
    assert greedy[0] == greedy[1] == greedy[2]
    drawn = [sample(model, PROMPTS, max_new_tokens=12, seed=3, batch_size=size) for size in (1, 2, 4)]
    assert drawn[0] == drawn[1] == drawn[2]


def test_sampling_depends_on_the_seed_and_the_place_alone() -> None:
    model = tiny_decoder("gpt2")
    torch.manual_seed(1)
    first = sample(model, [PROMPTS[1]] * 2, max_new_tokens=12, seed=7)
    torch.manual_seed(2)
    assert sample(model, [PROMPTS[1]] * 2, max_new_tokens=12, seed=7) == first
    assert first[0] != first[1]
    assert sample(model, [PROMPTS[1]] * 2, max_new_tokens=12, seed=8) != first
    greedy = generate_greedy(model, [PROMPTS[1]], max_new_tokens=12)[0]
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}):
        assert sample(model, [PROMPTS[1]] * 2, max_new_tokens=12, seed=7, **narrow) == [greedy, greedy]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7, "top_k": None, "top_p": None},
        {"temperature": 1.0, "top_k": 5, "top_p": None},
        {"temperature": 1.3, "top_k": None, "top_p": 0.8},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.6},
        {"temperature": 1.0, "top_k": 500, "top_p": 1.0},
    ],
)
def test_shares_are_those_of_transformers_processors(settings: dict[str, Any]) -> None:
    logits = torch.randn(16, 50, generator=torch.Generator().manual_seed(0)) * 3
    expected = TemperatureLogitsWarper(settings["temperature"])(None, logits)
    if settings["top_k"]:
        expected = TopKLogitsWarper(settings["top_k"])(None, expected)
    if settings["top_p"] and settings["top_p"] < 1:
        expected = TopPLogitsWarper(settings["top_p"])(None, expected)
    expected = expected.softmax(dim=-1)
    found = shares(logits, **settings)
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found.float(), expected, atol=1e-6, rtol=0)


def test_equal_logits_at_the_edge_of_the_top_k_all_stay_and_the_likeliest_is_never_lost() -> None:
    edge = shares(torch.tensor([[2.0, 1.0, 1.0, 0.0]]), top_k=2)
    assert (edge > 0).tolist() == [[True, True, True, False]]
    sure = shares(torch.tensor([[50.0, 0.0, 0.0]]), top_p=0.01)
    assert sure.tolist() == [[1.0, 0.0, 0.0]]


class Coin(torch.nn.Module):
    """A model without weights that always says: one half 1, three eighths 2, one eighth 4, never anything else."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.log(torch.tensor([0.0, 0.5, 0.375, 0.0, 0.125, 0.0]))
        return SimpleNamespace(logits=logits.expand(len(input_ids), 1, 6), past_key_values=None)


def test_tokens_are_drawn_as_often_as_the_model_says() -> None:
    drawn = np.array(sample(Coin(), [[1]] * 40, max_new_tokens=250, seed=0, batch_size=40))
    counts = np.bincount(drawn.ravel(), minlength=6)
    assert counts[[0, 3, 5]].tolist() == [0, 0, 0]
    # Within four standard deviations of 10,000 independent draws.
    np.testing.assert_allclose(counts[[1, 2, 4]] / 10_000, [0.5, 0.375, 0.125], atol=0.02)


def test_a_chance_at_the_very_end_draws_a_token_that_the_model_would_say(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(random=lambda: 1.0)
    monkeypatch.setattr("finetune.explain.generate.np.random.default_rng", lambda _: stream)
    assert sample(Coin(), [[1]], max_new_tokens=2) == [[4, 4]]
    stream.random = lambda: 0.0
    assert sample(Coin(), [[1]], max_new_tokens=2) == [[1, 1]]


# transformers 5.23 gives these methods new names; 5.5 has only the old ones.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_modes_and_gradients_are_as_before_even_with_gradient_checkpointing_on() -> None:
    model = tiny_decoder("llama")
    expected = generate_greedy(model, PROMPTS, max_new_tokens=12)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    model.model.layers[0].eval()
    modes = [child.training for child in model.modules()]
    assert generate_greedy(model, PROMPTS, max_new_tokens=12) == expected
    assert [child.training for child in model.modules()] == modes
    ids = torch.tensor([PROMPTS[1]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning:transformers")
def test_a_network_with_adapters_is_continued_as_its_merged_self() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        tiny_decoder("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    found = generate_greedy(model, PROMPTS, max_new_tokens=12)
    with model.disable_adapter():
        assert generate_greedy(model, PROMPTS, max_new_tokens=12) != found
    assert generate_greedy(model.merge_and_unload(), PROMPTS, max_new_tokens=12) == found


@pytest.mark.parametrize("call", [generate_greedy, sample])
def test_what_cannot_be_continued_is_said_in_one_sentence(call: Any) -> None:
    model = tiny_decoder("gpt2")
    with pytest.raises(RecipeError, match="an empty prompt cannot be continued"):
        call(model, [[1], []], max_new_tokens=3)
    longest = some_prompts((CONTEXT - 3,))
    assert len(call(model, longest, max_new_tokens=3)[0]) == 3
    with pytest.raises(RecipeError, match=f"93 tokens and 4 new ones are more than the {CONTEXT}"):
        call(model, longest, max_new_tokens=4)
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="NaN or infinite"):
        call(model, [[1]], max_new_tokens=3)


@pytest.mark.parametrize(
    "bad", [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_sampling_out_of_range_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(bad))):
        sample(Coin(), [[1]], max_new_tokens=1, **bad)
