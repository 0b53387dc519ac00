"""`finetune predict --prompt`: what is streamed, how it ends, what is refused."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import finetune
from finetune.cli import main
from finetune.runtime import CachedDecoder
from finetune.serve import Generator


def predict(*arguments) -> int:
    return main(["predict", *map(str, arguments)])


def fails(capsys, arguments: list) -> str:
    assert predict(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("finetune: ")
    return line


def test_a_continuation_is_printed_and_ends_with_a_line_break(language_bundle, capsys):
    wanted = Generator(language_bundle).generate("The old ship", max_new_tokens=20).text
    assert predict(language_bundle, "--prompt", "The old ship", "--max-new-tokens", 20) == 0
    assert capsys.readouterr() == (wanted + "\n", "")


def test_every_setting_reaches_the_model(language_bundle, capsys):
    settings = {
        "max_new_tokens": 30, "temperature": 1.2, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 3,
        "stop": ["old", "ship"],
    }  # fmt: skip
    wanted = Generator(language_bundle).generate("We saw", **settings).text
    flags = ["--max-new-tokens", 30, "--temperature", 1.2, "--top-k", 40, "--top-p", 0.9, "--repetition-penalty", 1.3]
    assert predict(language_bundle, "--prompt", "We saw", *flags, "--seed", 3, "--stop", "old", "--stop", "ship") == 0
    assert capsys.readouterr().out == wanted + "\n"


def test_the_generation_config_is_not_applied_unasked(language_bundle, capsys):
    """The bundle's own proposes sampling at temperature 0.7."""
    assert '"do_sample": true' in (language_bundle / "model/generation_config.json").read_text()
    assert predict(language_bundle, "--prompt", "We saw", "--seed", 1) == 0
    assert predict(language_bundle, "--prompt", "We saw", "--seed", 2) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "not applied" in " ".join(capsys.readouterr().out.split())


def test_pieces_are_flushed_one_by_one(language_bundle, monkeypatch):
    class Terminal(io.StringIO):
        flushed: list[str] = []  # noqa: RUF012

        def flush(self) -> None:
            self.flushed.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert predict(language_bundle, "--prompt", "The old ship", "--max-new-tokens", 12) == 0
    pieces = list(Generator(language_bundle).stream("The old ship", max_new_tokens=12))
    assert Terminal.flushed == ["".join(pieces[: n + 1]) for n in range(len(pieces))] + ["".join(pieces) + "\n"]


def test_a_prompt_may_come_from_a_file_or_standard_input(language_bundle, tmp_path, capsys, monkeypatch):
    (tmp_path / "p.txt").write_bytes("\ufeffThe old\r\nship 🚢\r\n".encode())
    assert predict(language_bundle, "--prompt-file", tmp_path / "p.txt") == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("The old\nship 🚢\n".encode())))
    assert predict(language_bundle, "--prompt-file", "-") == 0
    assert predict(language_bundle, "--prompt", "The old\nship 🚢") == 0
    out = capsys.readouterr().out
    assert out == out[: len(out) // 3] * 3


def test_a_chat_prompt_goes_through_the_template(language_bundle, capsys):
    chat = [{"role": "user", "content": "Where?"}]
    wanted = Generator(language_bundle).generate(chat, max_new_tokens=8).text
    assert predict(language_bundle, "--prompt", "Where?", "--chat", "--max-new-tokens", 8) == 0
    assert capsys.readouterr().out == wanted + "\n"
    assert wanted != Generator(language_bundle).generate("Where?", max_new_tokens=8).text


def test_ctrl_c_ends_with_what_was_said_so_far(language_bundle, capsys, monkeypatch):
    said, step, steps = (
        Generator(language_bundle).generate("The old ship", max_new_tokens=40).text,
        CachedDecoder.step,
        [],
    )

    def interrupted(self, *arguments):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(CachedDecoder, "step", interrupted)
    # A shell that starts the tests in the background lets them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert predict(language_bundle, "--prompt", "The old ship", "--max-new-tokens", 40) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.endswith("\n")
    assert 0 < len(out) < len(said)
    assert said.startswith(out.removesuffix("\n"))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_without_the_signs_shows_question_marks(reciting, encoding):
    talker = reciting("née 🚢.")
    done = subprocess.run(
        [sys.executable, "-m", "finetune", "predict", str(talker._bundle.path), "--prompt", "Go"],
        capture_output=True, check=True, cwd=Path(finetune.__file__).parents[1], timeout=120,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.stdout.decode(encoding) == {"utf-8": "née 🚢.\n", "ascii": "n?e ?.\n"}[encoding]


def test_a_wrong_combination_is_one_sentence(
    language_bundle, bundle, image_bundle, make_language_bundle, tmp_path, capsys
):
    prompt = [language_bundle, "--prompt", "We saw"]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "in.csv").write_text("text\nball\n")
    table = ["--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv"]
    refused = [
        ([bundle, "--prompt", "a"], "answers texts and continues no prompt"),
        ([image_bundle, "--prompt", "a"], "answers images and continues no prompt"),
        ([language_bundle, "--text", "a"], "continues a prompt, given with --prompt"),
        ([language_bundle, *table], "continues a prompt, given with --prompt"),
        ([language_bundle, tmp_path / "in.csv"], "continues a prompt, given with --prompt"),
        ([language_bundle], "this bundle continues a prompt; give one with --prompt or --prompt-file"),
        ([*prompt, "--text", "a"], "only one of them"),
        ([*prompt, "--prompt-file", "-"], "only one of them"),
        ([*prompt, "--output", tmp_path / "out.txt"], "a continuation is printed, so use > FILE"),
        ([bundle, "--text", "a", "--temperature", "1"], "--temperature goes with --prompt"),
        ([bundle, "--text", "a", "--max-new-tokens", "1"], "--max-new-tokens goes with --prompt"),
        ([bundle, "--text", "a", "--chat"], "--chat goes with --prompt"),
        ([*prompt, "--top-k", "3"], "top_k needs a temperature above 0"),
        ([*prompt, "--max-new-tokens", "0"], "max_new_tokens is 0"),
        ([*prompt, "--max-new-tokens", "500"], "max_new_tokens can be at most"),
        ([*prompt, "--stop", ""], "none of them empty"),
        ([*prompt, "--form", "int8"], "the bundle has no onnx/model.int8.onnx"),
        ([language_bundle, "--prompt", ""], "the prompt is empty"),
        ([language_bundle, "--prompt", "a \udcff"], "half of a surrogate pair"),
        ([language_bundle, "--prompt-file", tmp_path / "nowhere"], "nowhere: cannot be read"),
        ([language_bundle, "--prompt-file", tmp_path / "latin.txt"], "latin.txt: not UTF-8 text (byte 0xe9)"),
        ([make_language_bundle(chat=False), "--prompt", "a", "--chat"], "the model has no chat template"),
        ([tmp_path, "--prompt", "a"], "not a bundle"),
    ]
    for arguments, words in refused:
        assert words in fails(capsys, arguments)
    assert not (tmp_path / "out.csv").exists()
