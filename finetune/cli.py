"""The command line: parse, call, print. Imports nothing heavy until a command needs it."""

from __future__ import annotations

import argparse
import errno
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from finetune import predict_command
from finetune.arguments import Parser
from finetune.errors import BundleError, FinetuneError, Interrupted

TRAIN_PACKAGES = {"torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "datasketch", "sklearn", "scipy", "onnx", "onnxscript", "jinja2", "rich", "safetensors", "huggingface_hub", "license_expression", "matplotlib", "pyarrow", "peft", "gguf"}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 something to mend, 3 a gate refused, 130 interrupted."""
    try:
        options = _parser().parse_args(arguments)
    except FinetuneError as error:
        return _fail(str(error), error.exit_code)
    try:
        return int(options.command(options) or 0)
    except Interrupted as error:
        return _fail(f"{error}; {_how_to_go_on(options)}", error.exit_code)
    except BundleError as error:  # mostly a disk that is full
        kept = _resumable(options) and options.trains
        more = f"; the training so far is kept, so {_how_to_go_on(options)}" if kept else ""
        return _fail(f"{error}{more}", error.exit_code)
    except FinetuneError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {_how_to_go_on(options)}", Interrupted.exit_code)
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
        place = error.filename or (options.workspace.bundle.parent if "workspace" in options else "the disk")
        again = _how_to_go_on(options) if _resumable(options) else "run again"
        return _fail(f"{place}: {error.strerror}; free some space or mend the permissions, then {again}", 2)


def _parser() -> Parser:
    parser = Parser(
        prog="finetune", description="One recipe in, one fine-tuned, verified, licensed, servable bundle out."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int | None], summary: str) -> Parser:
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        sub.set_defaults(command=command, name=name)
        assert isinstance(sub, Parser)
        return sub

    run = add("run", _run, "run a recipe from data to bundle")
    _recipe_arguments(run)
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint of this run")
    run.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a bundle that is already there, and without --resume discard an unfinished run",
    )
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

    predict = add("predict", predict_command.predict, "answer texts or images, or continue a prompt, with a bundle")
    predict_command.add_arguments(predict)
    predict.gathers = "images"

    export = add("export", _export, "build and measure a bundle's ONNX and int8 forms again")
    export.add_argument("bundle", type=Path)
    export.add_argument(
        "overrides", nargs="*", default=[], metavar="export.KEY=VALUE", help="for example export.int8.cpu=vnni"
    )
    export.gathers = "overrides"

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


def _recipe_arguments(parser: Parser) -> None:
    parser.add_argument("recipe", type=Path)
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="override a key, for example seed=1 or output=DIR"
    )
    parser.gathers = "overrides"


def _run(options: argparse.Namespace) -> None:
    from finetune.console import Console
    from finetune.preflight import check_place
    from finetune.recipe import load_recipe
    from finetune.train.events import Event, StageStarted
    from finetune.workspace import Workspace

    recipe = load_recipe(options.recipe, options.overrides)
    options.workspace, options.trains = Workspace.of(recipe.name, recipe.output), False

    check_place(recipe, resume=options.resume, overwrite=options.overwrite)  # before the wait for torch

    def note(event: Event) -> None:
        options.trains |= isinstance(event, StageStarted) and event.stage == "training"

    with _StopOnSignal() as stop, Console(quiet=options.quiet) as console:
        console.say("loading torch and transformers")
        from finetune.pipeline import run

        report = run(recipe, resume=options.resume, overwrite=options.overwrite, callbacks=[console, note], stop=stop)
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
        from finetune.disk import write_whole

        write_whole(output, text)
        print(output)


def _fail(message: str, code: int) -> int:
    print(f"finetune: {message}", file=sys.stderr)
    return code


def _resumable(options: argparse.Namespace) -> bool:
    """Whether a run left a checkpoint of its own; before it trains anew, one that is there is another run's."""
    return "workspace" in options and (options.trains or options.resume) and options.workspace.how_far is not None


def _how_to_go_on(options: argparse.Namespace) -> str:
    if options.name != "run":
        return "nothing was written"
    command = ["finetune", "run", str(options.recipe), *options.overrides, *(["--overwrite"] * options.overwrite)]
    if _resumable(options):
        return f"go on with: {shlex.join([*command, '--resume'])}"
    return f"there is no checkpoint yet, so start again with: {shlex.join(command)}"


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
