"""The command line: parse, call, print. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import argparse
import errno
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from finetune.errors import FinetuneError, Interrupted

if TYPE_CHECKING:
    from finetune.serve import Outcome, Predictor

TRAIN_PACKAGES = {"torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "datasketch", "sklearn", "scipy", "onnx", "onnxscript", "jinja2", "rich", "safetensors", "huggingface_hub", "license_expression", "matplotlib", "pyarrow"}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 something to mend, 3 a gate refused, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options) or 0)
    except Interrupted as error:
        return _fail(f"{error}; {_how_to_resume(options)}", error.exit_code)
    except FinetuneError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {_how_to_resume(options)}", Interrupted.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in TRAIN_PACKAGES:
            raise
        return _fail(f"this command needs the package {error.name}; run pip install 'finetune-recipes[train]'", 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return _fail(
            f"{error.filename or 'the disk'}: {error.strerror}; free some space or mend the permissions, then run again",
            2,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune", description="One recipe in, one fine-tuned, verified, licensed, servable bundle out."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int | None], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.set_defaults(command=command, name=name)
        return sub

    run = add("run", _run, "run a recipe from data to bundle")
    _recipe_arguments(run)
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint of this run")
    run.add_argument("--overwrite", action="store_true", help="replace a bundle that is already there")
    run.add_argument("--quiet", "-q", action="store_true", help="print the bundle's path only")

    validate = add("validate", _validate, "tell everything that can be known about a recipe without training")
    _recipe_arguments(validate)

    schema = add("schema", _schema, "print the recipe's JSON Schema, for editors")
    schema.add_argument("--output", "-o", type=Path, help="write to this file instead")

    new = add("new", _new, "write a commented starter recipe for some data")
    new.add_argument("data", help="folder with a folder per class, CSV, TSV, JSON lines or Parquet file, or hub id")
    new.add_argument("--output", "-o", type=Path, help="write to this file instead of printing")
    new.add_argument("--text-column", help="column with the text")
    new.add_argument("--image-column", help="column with the path or the bytes of an image")
    new.add_argument("--label-column", help="column with the label")

    predict = add("predict", _predict, "answer texts or images with a bundle")
    predict.add_argument("bundle", type=Path)
    predict.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image files, folders of them, or quoted patterns such as 'scans/*.png'",
    )
    predict.add_argument("--text", action="append", help="a text to answer; may be given several times")
    predict.add_argument(
        "--input", type=Path, help="CSV, TSV, JSON lines, Parquet or text file of texts, or of paths of images"
    )
    predict.add_argument("--output", type=Path, help="file for the answers; its ending says the format")
    predict.add_argument("--text-column", default="text", help="column with the text (default: text)")
    predict.add_argument(
        "--image-column", default="image", help="column with the image's path, relative to the table (default: image)"
    )
    predict.add_argument("--prefix", default="", help="put before the names of the added columns")
    predict.add_argument(
        "--unreadable",
        choices=("report", "refuse"),
        default="report",
        help="an image that cannot be read: go on, and name it in the output (default), or end there",
    )
    predict.add_argument("--batch-size", type=int, default=32, help="rows per batch (default: 32)")
    predict.add_argument(
        "--form",
        choices=("served", "onnx", "int8"),
        default="served",
        help="which form answers (default: the one the bundle serves)",
    )

    export = add("export", _export, "build and measure a bundle's ONNX and int8 forms again")
    export.add_argument("bundle", type=Path)
    export.add_argument("overrides", nargs="*", metavar="export.KEY=VALUE", help="for example export.int8.cpu=vnni")

    card = add("card", _card, "write a bundle's model card and HTML report again")
    card.add_argument("bundle", type=Path)

    check = add("check", _check, "verify a bundle: bytes, card, licences, parity")
    check.add_argument("bundle", type=Path)
    check.add_argument(
        "--use",
        choices=("research", "internal", "commercial"),
        help="judge the licences for this use instead of the recipe's",
    )
    return parser


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="override a key, for example seed=1 or output=DIR"
    )


def _run(options: argparse.Namespace) -> None:
    from finetune.console import Console
    from finetune.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    with _StopOnSignal() as stop, Console(quiet=options.quiet) as console:
        console.say("loading torch and transformers")
        from finetune.pipeline import run

        report = run(recipe, resume=options.resume, overwrite=options.overwrite, callbacks=[console], stop=stop)
        console.summarise(report)
    if console.main_process:
        print(report.bundle)


def _validate(options: argparse.Namespace) -> None:
    from finetune.preflight import preflight
    from finetune.recipe import load_recipe
    from finetune.summary import describe_checked

    recipe = load_recipe(options.recipe, options.overrides)
    print(describe_checked(recipe, preflight(recipe, overwrite=True)))


def _schema(options: argparse.Namespace) -> None:
    from finetune.recipe import json_schema

    _write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", options.output)


def _new(options: argparse.Namespace) -> None:
    from finetune.recipe import starter_recipe

    _write(
        starter_recipe(
            options.data,
            text_column=options.text_column,
            image_column=options.image_column,
            label_column=options.label_column,
        ),
        options.output,
    )


def _predict(options: argparse.Namespace) -> int:
    from finetune.serve import Predictor

    ways = {"text": _predict_texts, "images": _predict_images, "input": _predict_table}
    given = [way for way in ways if getattr(options, way)]
    if len(given) != 1:
        return _fail("predict: give either --text or --input, or images after the bundle, and only one of them", 2)
    if options.input and not options.output:
        return _fail("predict: --input needs --output, a file whose ending says the format", 2)
    if options.text and options.output:
        return _fail("predict: --output goes with --input or with images; the answers to --text are printed", 2)
    predictor = Predictor(options.bundle, which=options.form)
    wrong = {
        ("images", "text"): "this bundle reads texts, not images; give them with --text or --input",
        ("text", "image"): "this bundle reads images, not texts; name image files, folders or quoted patterns after it",
    }
    if (given[0], predictor.modality) in wrong:
        return _fail(f"{options.bundle}: {wrong[given[0], predictor.modality]}", 2)
    outcome = ways[given[0]](predictor, options)
    if options.output:
        print(f"{outcome.rows:,} rows -> {options.output}")
    if outcome.unreadable:
        return _fail(f"{outcome.unreadable:,} of {outcome.rows:,} images have no answer, the first: {outcome.first}", 2)
    return 0


def _predict_texts(predictor: Predictor, options: argparse.Namespace) -> Outcome:
    from finetune.serve import Outcome

    for text, answer in zip(options.text, predictor.predict(options.text, options.batch_size), strict=True):
        print(json.dumps({"text": text, **asdict(answer)}, ensure_ascii=False))
    return Outcome(len(options.text))


def _predict_images(predictor: Predictor, options: argparse.Namespace) -> Outcome:
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


def _predict_table(predictor: Predictor, options: argparse.Namespace) -> Outcome:
    from finetune.serve import predict_file

    return predict_file(
        predictor, options.input, options.output,
        text_column=options.text_column, image_column=options.image_column,
        batch_size=options.batch_size, prefix=options.prefix, unreadable=options.unreadable,
    )  # fmt: skip


def _export(options: argparse.Namespace) -> None:
    from finetune.console import Console

    with Console() as console:
        from finetune.upkeep import export_again

        report = export_again(options.bundle, options.overrides, callbacks=[console])
        console.summarise(report)
    print(report.bundle)


def _card(options: argparse.Namespace) -> None:
    from finetune.upkeep import rewrite_documents

    rewrite_documents(options.bundle)
    print(options.bundle / "README.md")


def _check(options: argparse.Namespace) -> int:
    from finetune.upkeep import check_bundle

    findings = check_bundle(options.bundle, use=options.use)
    for finding in findings:
        print(
            f"{'ok  ' if finding.passed else 'skip' if finding.passed is None else 'FAIL'}  {finding.name}: {finding.sentence}"
        )
    return 3 if any(finding.passed is False for finding in findings) else 0


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
    elif output.exists():
        raise FinetuneError(f"{output}: already exists; remove it or name another file with --output")
    else:
        from finetune.disk import writing

        with writing(output):
            output.write_text(text, encoding="utf-8")
        print(output)


def _fail(message: str, code: int) -> int:
    print(f"finetune: {message}", file=sys.stderr)
    return code


def _how_to_resume(options: argparse.Namespace) -> str:
    if options.name != "run":
        return "nothing was written"
    command = " ".join(["finetune run", str(options.recipe), *options.overrides, "--resume"])
    return f"go on with: {command}"


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"finetune {version('finetune-recipes')}"
    except PackageNotFoundError:
        return "finetune (not installed)"


class _StopOnSignal:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop at the next step boundary; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def __enter__(self) -> _StopOnSignal:
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nstopping at the next step boundary; press Ctrl-C again to stop at once", file=sys.stderr)
