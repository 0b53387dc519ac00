"""`finetune predict`: answers of a classifier's or regressor's bundle, or the continuation that a language model's gives."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import BundleError, DataError, Interrupted

if TYPE_CHECKING:
    from finetune.serve import Outcome, Predictor

# What --prompt takes; absent ones are those of Generator.stream.
SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "stop", "seed")
WAYS = ("text", "images", "input", "prompt", "prompt_file")
READS = {
    "text": "this bundle reads texts; give one with --text, or a table of them with --input and --output",
    "image": (
        "this bundle reads images; name image files, folders or quoted patterns after it, or a table of them with --input "
        "and --output"
    ),
    "language": "this bundle continues a prompt; give one with --prompt or --prompt-file",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments: those of every bundle, of tables and images, and of language models."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "images",
        nargs="*",
        default=[],
        metavar="IMAGE",
        help="image files, folders of them, or quoted patterns such as 'scans/*.png'",
    )
    parser.add_argument("--text", action="append", help="a text to answer; may be given several times")
    parser.add_argument(
        "--input", type=Path, help="CSV, TSV, JSON lines, Parquet or text file of texts, or of paths of images"
    )
    parser.add_argument("--output", type=Path, help="file for the answers; its ending says the format")
    parser.add_argument("--text-column", default="text", help="column with the text (default: text)")
    parser.add_argument(
        "--image-column", default="image", help="column with the image's path, relative to the table (default: image)"
    )
    parser.add_argument("--prefix", default="", help="put before the names of the added columns")
    parser.add_argument(
        "--unreadable",
        choices=("report", "refuse"),
        default="report",
        help="an image that cannot be read: go on, and name it in the output (default), or end there",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="rows per batch (default: 32)")
    parser.add_argument(
        "--form",
        choices=("served", "onnx", "int8"),
        default="served",
        help="which form answers (default: the one the bundle serves)",
    )
    _add_language_arguments(parser)


def _add_language_arguments(parser: argparse.ArgumentParser) -> None:
    language = parser.add_argument_group(
        "language models",
        "The continuation is printed as it comes. Each time the most probable token is taken unless --temperature is given; "
        "the sampling settings in the model's generation_config.json are not applied.",
    )
    language.add_argument("--prompt", help="a text to go on with")
    language.add_argument(
        "--prompt-file",
        help="UTF-8 file with the prompt, - for standard input; a line break at its end is no part of it",
    )
    language.add_argument(
        "--chat",
        action="store_true",
        default=None,
        help="put the prompt as a user's message, by the model's chat template",
    )
    language.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="longest continuation in tokens (default: 64)"
    )
    language.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="draw tokens at random, the wilder the higher; 0 for none (default)",
    )
    language.add_argument("--top-k", type=int, metavar="K", help="draw from the K most probable tokens only")
    language.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the fewest tokens that are together this probable"
    )
    language.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="above 1: make what was said before less probable (default: 1)",
    )
    language.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; may be given several times"
    )
    language.add_argument("--seed", type=int, metavar="N", help="the same seed draws the same text (default: 0)")


def predict(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code. FinetuneError for arguments that do not go together."""
    given = [way for way in WAYS if getattr(options, way) not in (None, [])]
    if not given:
        raise DataError(f"{options.bundle}: {_what_it_reads(options.bundle)}")
    if len(given) != 1:
        raise DataError(
            "predict: give either --text or --input, or images after the bundle, or --prompt or --prompt-file, and only one of them"
        )
    if options.batch_size < 1:
        raise DataError(f"predict: --batch-size is {options.batch_size}; it must be at least 1")
    if given[0] in ("prompt", "prompt_file"):
        return _continue(options)
    for name in ("chat", *SAMPLING):
        if getattr(options, name) is not None:
            raise DataError(
                f"predict: --{name.replace('_', '-')} goes with --prompt or --prompt-file, for language models"
            )
    if options.input and not options.output:
        raise DataError("predict: --input needs --output, a file whose ending says the format")
    if options.text and options.output:
        raise DataError("predict: --output goes with --input or with images; the answers to --text are printed")
    return _answer(options, given[0])


def _what_it_reads(path: Path) -> str:
    from finetune.bundle import Bundle

    return READS[Bundle.open(path, verify=False).modality]


def _continue(options: argparse.Namespace) -> int:
    """Print a continuation piece by piece."""
    from finetune.serve import Generator

    if options.output:
        raise DataError("predict: --output goes with --input or with images; a continuation is printed, so use > FILE")
    prompt = options.prompt if options.prompt is not None else _read_prompt(options.prompt_file)
    settings = {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
    generator = Generator(options.bundle, which=options.form)
    pieces = generator.stream([("user", prompt)] if options.chat else prompt, **settings)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no sign for a character shows a question mark
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        return Interrupted.exit_code  # the text so far is there, so nothing needs to be said
    print(flush=True)
    return 0


def _read_prompt(name: str) -> str:
    """The text of a file, or of standard input, without the line break at its end."""
    place = "standard input" if name == "-" else name
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error.strerror or error}); name a file with the prompt") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(f"{place}: not UTF-8 text (byte 0x{byte:02x}); save the prompt as UTF-8") from error
    return text.replace("\r\n", "\n").removesuffix("\n")


def _answer(options: argparse.Namespace, way: str) -> int:
    """Print or write the answers of a classifier or regressor."""
    from finetune.serve import Predictor

    predictor = Predictor(options.bundle, which=options.form)
    wrong = {
        ("images", "text"): "this bundle reads texts, not images; give them with --text or --input",
        ("text", "image"): "this bundle reads images, not texts; name image files, folders or quoted patterns after it",
    }
    if (way, predictor.modality) in wrong:
        raise BundleError(f"{options.bundle}: {wrong[way, predictor.modality]}")
    ways: dict[str, Callable[[Predictor, argparse.Namespace], Outcome]] = {
        "text": _answer_texts, "images": _answer_images, "input": _answer_table,
    }  # fmt: skip
    outcome = ways[way](predictor, options)
    if options.output:
        print(f"{outcome.rows:,} rows -> {options.output}")
    if outcome.unreadable:
        raise DataError(f"{outcome.unreadable:,} of {outcome.rows:,} images have no answer, the first: {outcome.first}")
    return 0


def _answer_texts(predictor: Predictor, options: argparse.Namespace) -> Outcome:
    from finetune.serve import Outcome

    for text, answer in zip(options.text, predictor.predict(options.text, options.batch_size), strict=True):
        print(json.dumps({"text": text, **asdict(answer)}, ensure_ascii=False))
    return Outcome(len(options.text))


def _answer_images(predictor: Predictor, options: argparse.Namespace) -> Outcome:
    from finetune.serve import Outcome, predict_images, stream_images

    if options.output:
        return predict_images(
            predictor, options.images, options.output,
            batch_size=options.batch_size, prefix=options.prefix, unreadable=options.unreadable,
        )  # fmt: skip
    rows, failed, first = 0, 0, None
    for line in stream_images(predictor, options.images, options.batch_size, unreadable=options.unreadable):
        print(json.dumps(line, ensure_ascii=False))
        rows += 1
        if "error" in line:
            failed, first = failed + 1, first or str(line["error"])
    return Outcome(rows, failed, first)


def _answer_table(predictor: Predictor, options: argparse.Namespace) -> Outcome:
    from finetune.serve import predict_file

    return predict_file(
        predictor, options.input, options.output,
        text_column=options.text_column, image_column=options.image_column,
        batch_size=options.batch_size, prefix=options.prefix, unreadable=options.unreadable,
    )  # fmt: skip
