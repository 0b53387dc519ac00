"""Continuations from a language bundle: token for token torch's, whole characters, clear refusals."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_language import CHAT_TEMPLATE, CONTEXT, make_documents

import finetune
from finetune.errors import BundleError, DataError
from finetune.preprocess import Conversation
from finetune.preprocess.language import Sequence
from finetune.serve import Generator, Predictor

PROMPTS = ["The old ship", "We saw a", "日本 🚢", "Small apple branch. Number 7"]
CHAT = [{"role": "user", "content": "Where is the ship?"}]


@pytest.fixture(scope="module")
def generator(language_bundle) -> Generator:
    return Generator(language_bundle)


@pytest.fixture(scope="module")
def torch_model(language_bundle):
    import transformers

    from finetune.model.quiet import quiet_transformers

    with quiet_transformers():
        return transformers.GPT2LMHeadModel.from_pretrained(language_bundle / "model", local_files_only=True).eval()


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_tokens_are_those_of_torch(generator, torch_model, penalty):
    import torch

    for prompt in PROMPTS:
        ids = torch.tensor([generator.prompt_ids(prompt)])
        room = CONTEXT - ids.shape[1]
        wanted = torch_model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False, repetition_penalty=penalty,
            temperature=1.0, top_p=1.0,
        )  # fmt: skip
        found = generator.generate(prompt, max_new_tokens=room, repetition_penalty=penalty)
        assert list(found.tokens) == wanted[0, ids.shape[1] :].tolist()
        assert found.finish == ("eos" if found.tokens[-1] in (0, 2) else "length")


def test_pieces_joined_are_the_text_and_each_is_whole(generator):
    for seed in range(5):
        stream = generator.stream("We saw", max_new_tokens=60, temperature=1.5, seed=seed)
        pieces = []
        for piece in stream:
            assert stream.finish is None or len(stream.tokens) == 60 or stream.tokens[-1] in (0, 2)
            pieces.append(piece)
        whole = generator.generate("We saw", max_new_tokens=60, temperature=1.5, seed=seed)
        assert (whole.text, whole.tokens, whole.finish) == ("".join(pieces), tuple(stream.tokens), stream.finish)
        assert all(pieces)
        assert not whole.text.endswith("\ufffd")


def test_a_seed_gives_the_same_text_and_another_seed_another(generator):
    drawn = [generator.generate("We saw", temperature=1.0, top_p=0.95, seed=seed).text for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
    assert generator.generate("We saw", seed=5) == generator.generate("We saw", seed=6)


def test_many_threads_may_share_a_generator(generator):
    alone = [generator.generate(prompt, max_new_tokens=20, temperature=0.8, seed=1) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda p: generator.generate(p, max_new_tokens=20, temperature=0.8, seed=1), PROMPTS))
    assert beside == alone


def test_the_text_comes_whole_and_ends_where_it_should(reciting):
    said = "Ahoi 🚢! née\nUser: and more"
    talker = reciting(said)
    whole = talker.generate("Go", max_new_tokens=60)
    assert (whole.text, whole.finish, whole.tokens[-1]) == (said, "eos", 0)
    assert all("\ufffd" not in piece for piece in talker.stream("Go", max_new_tokens=60))
    cut = talker.generate("Go", stop=["\nUser:", "more"], max_new_tokens=60)
    assert (cut.text, cut.finish) == ("Ahoi 🚢! née", "stop")
    never = talker.generate("Go", stop=["absent", "and more!"], max_new_tokens=60)
    assert (never.text, never.finish) == (said, "eos")
    boat = len(talker.prompt_ids("Ahoi 🚢")) - 1
    short = talker.generate("Go", max_new_tokens=boat)
    assert (short.text, short.finish, len(short.tokens)) == ("Ahoi ", "length", boat)


def test_a_special_token_can_be_a_stop_string(reciting):
    talker = reciting("one<|im_start|>two")
    assert talker.generate("Go").text == "onetwo"
    cut = talker.generate("Go", stop=["<|im_start|>"])
    assert (cut.text, cut.finish, cut.tokens[-1]) == ("one", "stop", 1)


def test_a_conversation_is_put_in_the_words_of_the_chat_template(generator, language_bundle):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(language_bundle / "model", local_files_only=True)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    wanted = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert generator.prompt_ids(CHAT) == wanted
    assert generator.prompt_ids(Conversation((("user", CHAT[0]["content"]),))) == wanted
    assert generator.generate(CHAT, max_new_tokens=5).tokens


def test_tallies_are_the_losses_of_torch(generator, torch_model):
    import torch

    items = [*make_documents(5, seed=9), Conversation.pair("Where?", "At the quay. 🚢")]
    found = generator.tallies(items, batch_size=3)
    for item, (nats, count, right) in zip(items, found, strict=True):
        encoder = generator._chat_encoder if isinstance(item, Conversation) else generator._encoder
        (sequence,) = encoder.encode([item])
        targets = torch.tensor(sequence.targets)
        with torch.inference_mode():
            logits = torch_model(input_ids=torch.tensor([sequence.ids])).logits[0]
        wanted = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        assert count == (targets != -100).sum()
        assert nats == pytest.approx(float(wanted), rel=1e-5)
        assert right == (logits.argmax(dim=1) == targets).sum()


def test_a_packed_block_has_the_tallies_of_its_documents(generator):
    first, second = generator._encoder.encode(make_documents(2, seed=5))
    block = Sequence(
        first.ids + second.ids, first.targets + second.targets, [0] * len(first.ids) + [1] * len(second.ids), (0, 1)
    )
    both, alone = generator.tallies_of([block, second]), generator.tallies_of([first, second])
    np.testing.assert_allclose(both[0], alone.sum(axis=0), rtol=1e-6)


def test_a_form_that_is_not_batch_invariant_scores_one_at_a_time(generator, make_language_bundle, monkeypatch):
    sizes = []
    for invariant in (True, False):
        own = Generator(make_language_bundle(batch_invariant=invariant))
        monkeypatch.setattr(type(own._decoder), "tallies", lambda self, rows, encoder, size: sizes.append(size))
        own.tallies(["a", "b"], batch_size=4)
    assert sizes == [4, 1]


def refusals(generator):
    """What is asked for, the error, and words of its sentence."""
    return [
        (lambda: generator.stream(""), DataError, "the prompt is empty"),
        (lambda: generator.stream("a " * 200), DataError, "the prompt has 201 tokens, but the model takes 128"),
        (lambda: generator.stream("a", max_new_tokens=128), DataError, "max_new_tokens can be at most 127, not 128"),
        (lambda: generator.stream("a", max_new_tokens=0), DataError, "max_new_tokens is 0"),
        (lambda: generator.stream("a", max_new_tokens=2.5), DataError, "max_new_tokens is 2.5"),
        (lambda: generator.stream("a", temperature=-1), DataError, "temperature is -1"),
        (lambda: generator.stream("a", stop=""), DataError, "stop must be a list"),
        (lambda: generator.stream("a", stop=[""]), DataError, "none of them empty"),
        (lambda: generator.stream("half \ud800"), DataError, "half of a surrogate pair"),
        (lambda: generator.stream([{"role": "user"}]), DataError, 'must have a "role" and a "content"'),
        (lambda: generator.tallies(["a " * 200]), DataError, r"input 0 has \d+ tokens, but the model takes 128"),
        (lambda: generator.tallies(["a"], batch_size=0), DataError, "batch_size is 0"),
    ]


def test_what_cannot_be_used_is_one_sentence_before_anything_is_computed(generator, monkeypatch):
    monkeypatch.setattr(generator._decoder, "prefill", None)
    for ask, error, words in refusals(generator):
        with pytest.raises(error, match=words) as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_the_whole_context_can_be_used(generator):
    ids = generator.prompt_ids("The old ship")
    found = generator.generate("The old ship", max_new_tokens=CONTEXT - len(ids), temperature=3.0, seed=4)
    assert found.finish in ("length", "eos")


def test_each_kind_of_bundle_names_what_opens_it(language_bundle, bundle, image_bundle):
    with pytest.raises(
        BundleError, match=r"continues a prompt, given with --prompt; in Python open it with finetune\.Gen"
    ):
        Predictor(language_bundle)
    for path, kind in ((bundle, "texts"), (image_bundle, "images")):
        with pytest.raises(BundleError, match=rf"answers {kind} and continues no prompt; .* finetune\.Predictor"):
            Generator(path)


def test_a_file_without_a_cache_and_a_missing_form_are_one_sentence(make_language_bundle, bundle, language_bundle):
    with pytest.raises(BundleError, match="no language model with a key/value cache"):
        Generator(make_language_bundle(onnx_file=bundle / "onnx/model.onnx"))
    with pytest.raises(BundleError, match=r"has no onnx/model\.int8\.onnx"):
        Generator(language_bundle, which="int8")


def test_a_model_without_a_chat_template_takes_no_conversation(make_language_bundle):
    plain = Generator(make_language_bundle(chat=False))
    with pytest.raises(BundleError, match="no chat template, so it takes a plain prompt"):
        plain.stream(CHAT)
    assert plain.generate("We", max_new_tokens=3).tokens


def test_numbers_that_are_not_finite_end_in_one_sentence(reciting):
    talker = reciting("word", stubborn=float("nan"))
    with pytest.raises(BundleError, match="not finite; its weights are damaged"):
        talker.generate("Go")


BASE_INSTALL = """
import sys
absent = ("torch", "transformers", "jinja2", "onnx", "accelerate", "datasets", "sklearn", "scipy", "safetensors")
sys.modules.update(dict.fromkeys(absent))  # None: importing one fails as if it were not installed
import finetune
generator = finetune.Generator(sys.argv[1])
print(repr(generator.generate("The old ship", max_new_tokens=12).text))
try:
    generator.stream([("user", "hello")])
except finetune.FinetuneError as error:
    print(error)
"""


def test_the_base_install_continues_prompts_and_says_what_a_conversation_needs(language_bundle, generator):
    done = subprocess.run(
        [sys.executable, "-c", BASE_INSTALL, str(language_bundle)],
        capture_output=True, text=True, check=True, cwd=Path(finetune.__file__).parents[1], timeout=120,
    )  # fmt: skip
    text, sentence = done.stdout.splitlines()
    assert text == repr(generator.generate("The old ship", max_new_tokens=12).text)
    assert sentence.endswith("needs jinja2; run pip install jinja2")


def test_the_names_are_public():
    assert finetune.Generator is Generator
    assert finetune.Generation.__name__ == "Generation"
    assert {"Generation", "Generator"} <= set(finetune.__all__)
