"""Cards of models and data: front matter is read, or refused in one sentence; a GGUF file may speak for itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from gguf_headers import gguf_header
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import one_sentence, refused

from finetune.errors import SourceError
from finetune.source_cards import find_card, read_card_metadata


def card(folder: Path, content: str | bytes) -> Path:
    (folder / "README.md").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.mark.parametrize(
    "content",
    [
        "---\nlicense: mit\n---\n# Title\n",
        "\ufeff---\nlicense: mit\n---\n",
        "---\r\nlicense: mit\r\n---\r\ntext",
        "---  \nlicense: mit\n---",
        b"---\nlicense: mit\n---\nbroken \xff\xfe bytes below",
    ],
)
def test_front_matter_is_read(tmp_path: Path, content: str | bytes) -> None:
    assert read_card_metadata(card(tmp_path, content)) == {"license": "mit"}


@pytest.mark.parametrize(
    "content",
    ["", "# Title\n---\nlicense: mit\n---\n", "---\nlicense: mit\n", "----\nlicense: mit\n----\n", "---\n- a\n---\n",
     "---\njust words\n---\n", "---\n---\n", "---\n\n---\n"],
)  # fmt: skip
def test_a_card_without_front_matter_has_no_metadata(tmp_path: Path, content: str) -> None:
    assert read_card_metadata(card(tmp_path, content)) == {}


def test_no_card_no_metadata(tmp_path: Path) -> None:
    assert read_card_metadata(None) == {}
    assert read_card_metadata(tmp_path) == {}
    assert read_card_metadata(tmp_path / "absent") == {}


def test_a_data_file_has_the_card_beside_it(tmp_path: Path) -> None:
    card(tmp_path, "---\nlicense: cc0-1.0\ntags: [a, b]\n1: 2\n---\n")
    (tmp_path / "rows.csv").touch()
    assert read_card_metadata(tmp_path / "rows.csv") == {"license": "cc0-1.0", "tags": ["a", "b"], "1": 2}


@pytest.mark.parametrize(
    "block",
    ["license: [mit", "a: b: c", "license: !!python/object/apply:os.system [true]", "when: 2024-13-45", "\tx: 1",
     "? [a]\n: b", "a: {", "a: [b, {c: d]"],
)  # fmt: skip
@pytest.mark.parametrize("fast", [True, False])
def test_broken_front_matter_is_one_sentence_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str, fast: bool
) -> None:
    if not fast:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)  # as where PyYAML was built without libyaml
    message = refused(lambda: read_card_metadata(card(tmp_path, f"---\n{block}\n---\n")))
    assert message.startswith(f"{tmp_path / 'README.md'}: its metadata block is not valid YAML")


def test_an_alias_bomb_in_a_card_is_refused(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    message = refused(lambda: read_card_metadata(card(tmp_path, "---\n" + "\n".join(lines) + "\n---\n")))
    assert "has aliases or is nested too deep" in message


@pytest.mark.parametrize("fast", [True, False])
def test_deep_nesting_in_a_card_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    if not fast:
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert read_card_metadata(card(tmp_path, f"---\na: {'[' * 20}{']' * 20}\n---\n"))
    message = refused(lambda: read_card_metadata(card(tmp_path, f"---\na: {'[' * 200_000}{']' * 200_000}\n---\n")))
    assert "has aliases or is nested too deep" in message


@settings(deadline=None, max_examples=60)
@given(block=st.text(alphabet="abc:-[]{}&*!|>'\"#%@ \n\t0123é", max_size=40))
def test_any_front_matter_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, block: str) -> None:
    folder = card(tmp_path_factory.mktemp("card"), f"---\n{block}\n---\n")
    try:
        assert isinstance(read_card_metadata(folder), dict)
    except SourceError as error:
        one_sentence(error)


def test_the_licence_of_a_gguf_file_is_in_its_metadata_unless_a_card_says_it(tmp_path: Path) -> None:
    gguf = gguf_header(tmp_path / "model.gguf")
    assert read_card_metadata(gguf) == {"license": "apache-2.0"}
    assert find_card(gguf) is None
    card(tmp_path, "---\nlicense: mit\n---\n")
    assert read_card_metadata(gguf) == {"license": "mit"}
    assert find_card(gguf) == tmp_path / "README.md"


def test_notes_that_lie_beside_a_gguf_file_do_not_hide_what_it_says(tmp_path: Path) -> None:
    gguf = gguf_header(card(tmp_path, "# What I downloaded\n") / "model.gguf")
    assert read_card_metadata(gguf) == {"license": "apache-2.0"}
    assert find_card(gguf) is None


def test_a_file_that_only_calls_itself_gguf_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK")
    assert "is not readable as GGUF" in refused(lambda: read_card_metadata(path))
