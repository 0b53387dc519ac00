"""The command line: parse, call, print. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import argparse
import errno
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from finetune import predict_command
from finetune.errors import FinetuneError, Interrupted

TRAIN_PACKAGES = {"torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "datasketch", "sklearn", "scipy", "onnx", "onnxscript", "jinja2", "rich", "safetensors", "huggingface_hub", "license_expression", "matplotlib", "pyarrow", "peft", "gguf"}  # fmt: skip


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

    predict_command.add_arguments(
        add("predict", predict_command.predict, "answer texts or images, or continue a prompt, with a bundle")
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
