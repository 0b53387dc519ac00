from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, ENDS, LLAMA3, MARKS, MISTRAL, SPECIAL, TEMPLATES
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import make_documents

from finetune.errors import DataError
from finetune.preprocess.language import IGNORED, Conversation, LanguageEncoder, LanguagePreprocess

SHORT = [("user", "How are you?"), ("assistant", "Well, thanks 🚢."), ("user", "é\n\n"), ("assistant", "So — am I")]
LONG = [*SHORT, ("user", "x"), ("assistant", "No.\nYes."), ("user", "again"), ("assistant", " and again")]
TRIMMED = ("llama3", "gemma")
Encoders = Callable[[str], LanguageEncoder]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=list(MARKS), show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([*make_documents(60), "assistant user system model\n"], trainer)
    path = tmp_path_factory.mktemp("chat") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def encoder_of(tokenizer_file: Path) -> Encoders:
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(tokenizer_file))

    def make(template: str, end: str = "</s>") -> LanguageEncoder:
        ends = (known.token_to_id(end),)
        return LanguageEncoder(
            tokenizer_file, LanguagePreprocess(256, 0, 1, ends, chat_template=template, special=SPECIAL)
        )

    return make


@pytest.fixture(scope="module")
def theirs(tokenizer_file: Path) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), **SPECIAL)


def as_dicts(messages: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("messages", [SHORT[:1], SHORT, LONG])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_rendered_as_transformers_renders_it(
    encoder_of: Encoders, theirs: Any, name: str, messages: list[tuple[str, str]], add_generation_prompt: bool
) -> None:
    encoder = encoder_of(TEMPLATES[name])
    wanted = {"chat_template": TEMPLATES[name], "add_generation_prompt": add_generation_prompt}
    expected = theirs.apply_chat_template(as_dicts(messages), tokenize=False, **wanted)
    assert encoder.render_chat(messages, add_generation_prompt=add_generation_prompt) == expected
    assert encoder.render_chat(as_dicts(messages), add_generation_prompt=add_generation_prompt) == expected
    ids = theirs.apply_chat_template(as_dicts(messages), tokenize=True, return_dict=False, **wanted)
    assert encoder.tokens(expected) == ids
    if add_generation_prompt:
        assert encoder.chat_ids(messages) == ids


@pytest.mark.parametrize("name", ["chatml", "llama3", "zephyr", "modern"])
def test_a_system_prompt_is_rendered_as_transformers_renders_it(encoder_of: Encoders, theirs: Any, name: str) -> None:
    messages = [("system", "Be brief & kind."), *SHORT]
    expected = theirs.apply_chat_template(as_dicts(messages), chat_template=TEMPLATES[name], tokenize=False)
    assert encoder_of(TEMPLATES[name]).render_chat(messages, add_generation_prompt=False) == expected


@settings(max_examples=40)
@given(contents=st.lists(st.text(max_size=30), min_size=2, max_size=2), name=st.sampled_from(sorted(TEMPLATES)))
def test_any_text_in_a_conversation_becomes_the_tokens_of_transformers(
    encoder_of: Encoders, theirs: Any, contents: list[str], name: str
) -> None:
    messages = list(zip(("user", "assistant"), contents, strict=True))
    (sequence,) = encoder_of(TEMPLATES[name], ENDS[name]).encode([Conversation(tuple(messages))])
    expected = theirs.apply_chat_template(
        as_dicts(messages), chat_template=TEMPLATES[name], tokenize=True, return_dict=False
    )
    assert sequence.ids == expected
    (said,) = spoken(encoder_of(TEMPLATES[name], ENDS[name]), messages)
    answer = contents[1].strip() if name in TRIMMED else contents[1]
    assert said.endswith(answer + ENDS[name])
    assert not said.removesuffix(answer + ENDS[name]).strip()  # a line break that merged with the answer's first


def spoken(encoder: LanguageEncoder, messages: list[tuple[str, str]]) -> list[str]:
    """The texts of the runs of targets that are not ignored."""
    (sequence,) = encoder.encode([Conversation(tuple(messages))])
    runs: list[list[int]] = [[]]
    for following, target in zip([*sequence.ids[1:], IGNORED], sequence.targets, strict=True):
        if target == IGNORED:
            runs.append([])
        else:
            assert target == following
            runs[-1].append(target)
    assert sequence.targets[-1] == IGNORED
    return [encoder.decode(run, special=True) for run in runs if run]


@pytest.mark.parametrize("name", TEMPLATES)
def test_exactly_the_answers_and_what_ends_them_are_learned(encoder_of: Encoders, name: str) -> None:
    # The trim filter of some templates takes the blank; the model then sees none either.
    answers = [content for role, content in LONG if role == "assistant"]
    if name in TRIMMED:
        answers = [answer.strip() for answer in answers]
    said = [f"{answer}{ENDS[name]}" for answer in answers]
    assert spoken(encoder_of(TEMPLATES[name], ENDS[name]), LONG) == said


def test_a_token_that_reaches_into_an_answer_is_learned(tokenizer_file: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.add_tokens(["\n\n"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    end = (tokenizer.token_to_id("<|im_end|>"),)
    settings = LanguagePreprocess(256, 0, None, end, chat_template=CHATML)
    encoder = LanguageEncoder(tmp_path / "tokenizer.json", settings)
    assert spoken(encoder, [("user", "a"), ("assistant", "\nWell.")]) == ["\n\nWell.<|im_end|>"]


def test_without_a_known_end_all_that_a_message_adds_is_learned(encoder_of: Encoders) -> None:
    assert spoken(encoder_of(CHATML, "</s>"), SHORT[:2]) == ["Well, thanks 🚢.<|im_end|>\n"]


def test_a_template_may_mark_what_is_learned_where_prefixes_would_fail(encoder_of: Encoders) -> None:
    template = (
        "{% for m in messages %}{{ loop.length }}{{ m.role }}:"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    assert spoken(encoder_of(template), SHORT) == ["Well, thanks 🚢.</s>", "So — am I</s>"]


def test_a_template_that_renders_earlier_messages_otherwise_is_refused(encoder_of: Encoders) -> None:
    counted = encoder_of("{% for m in messages %}{{ loop.length }}{{ m.role }}:{{ m.content }}</s>{% endfor %}")
    with pytest.raises(DataError, match=r"conversation 1: .*message 2 of 4 in another way.*generation"):
        counted.encode(["a document", Conversation(tuple(SHORT))])
    last_alone = encoder_of("{% for m in messages %}{{ m.content }}{% if loop.last %}</s>{% endif %}{% endfor %}")
    with pytest.raises(DataError, match="in another way"):
        last_alone.encode([Conversation(tuple(SHORT))])


def test_a_template_that_changes_what_it_marks_is_refused(encoder_of: Encoders) -> None:
    template = "{% for m in messages %}{% filter reverse %}{% generation %}{{ m.content }}{% endgeneration %}{% endfilter %}{% endfor %}"
    with pytest.raises(DataError, match="changes what stands between"):
        encoder_of(template).encode([Conversation.pair("a", "b")])


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (MISTRAL, [("assistant", "a")], "refuses a conversation of assistant .*must alternate"),
        ("{{ messages[9].content }}", SHORT, "refuses a conversation of user, assistant, user, assistant"),
        ("{{ 1 / 0 }}", SHORT, "division by zero"),
        ("{{ ''.__class__.__mro__ }}", SHORT, "unsafe"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", SHORT, "private name"),
        ("{{ messages.append(1) }}", SHORT, "'append' of 'list' object is unsafe"),
    ],
)  # fmt: skip
def test_what_a_template_refuses_is_said_in_one_sentence(
    encoder_of: Encoders, template: str, messages: list[tuple[str, str]], said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        encoder_of(template).render_chat(messages, add_generation_prompt=False)
    assert "\n" not in str(caught.value)


def test_a_template_that_is_no_jinja_is_refused_when_the_encoder_is_made(encoder_of: Encoders) -> None:
    with pytest.raises(DataError, match=r"no valid Jinja \(line 2"):
        encoder_of("{% for m in messages %}\n{{ m.role }")


def test_special_tokens_without_a_text_are_undefined_in_the_template(tokenizer_file: Path) -> None:
    template = "{% if bos_token is defined %}{{ bos_token }}{% endif %}{{ messages[0].content }}"
    encoder = LanguageEncoder(
        tokenizer_file, LanguagePreprocess(8, 0, chat_template=template, special={"bos_token": None})
    )
    assert encoder.render_chat([("user", "hi")], add_generation_prompt=False) == "hi"


def test_threads_render_and_mask_the_same(encoder_of: Encoders) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for name in ("llama3", "modern"):
        encoder = encoder_of(TEMPLATES[name], ENDS[name])
        conversations = [Conversation.pair(f"q{n}", f"answer {n} " * (n % 7)) for n in range(60)]
        alone = [encoder.encode([conversation])[0].targets for conversation in conversations]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(encoder.encode, ([conversation] for conversation in conversations)))
        assert [rows[0].targets for rows in together] == alone


def test_llama3_and_mistral_begin_once_with_their_bos_token(encoder_of: Encoders) -> None:
    for template in (LLAMA3, MISTRAL):
        (sequence,) = encoder_of(template).encode([Conversation.pair("a", "b")])
        assert sequence.ids.count(1) == 1
        assert sequence.ids[0] == 1
