"""The command line: exit codes, one clear sentence for each mistake, and what each command prints."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_project import write_csv

from finetune.cli import main
from finetune.errors import BundleError, Interrupted
from finetune.train.events import StageStarted

Edit = Callable[[Path, pytest.MonkeyPatch], list[str]]


def _fails(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command that must fail with exit code 2 and one line; returns that line."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("finetune: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    assert out == ""
    return lines[0]


def _rows(folder: Path, text: str) -> list[str]:
    path = folder / "bad.csv"
    path.write_text(text, encoding="utf-8")
    return [f"data.source={path}"]


def _many(label: Callable[[int], str]) -> str:
    return "text,label\n" + "".join(f"some words about number {i},{label(i)}\n" for i in range(40))


def _empty(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    return _rows(folder, "")


def _missing_column(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    return _rows(folder, _many(lambda i: str(i % 2)).replace("text,label", "text,lable"))


def _one_class(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    return _rows(folder, _many(lambda _: "same"))


def _single_row_class(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    return _rows(folder, _many(lambda i: "rare" if i == 7 else "ab"[i % 2]))


def _not_utf8(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    path = folder / "latin.csv"
    path.write_bytes("text,label\ncaf\u00e9 au lait,a\nthe,b\n".encode("latin-1"))
    return [f"data.source={path}"]


def _no_backbone(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    return [f"backbone.name={folder / 'nowhere'}"]


def _hub_unreachable(_: Path, patch: pytest.MonkeyPatch) -> list[str]:
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return ["backbone.name=distilbert/distilbert-base-uncased"]


def _copy_of_backbone(folder: Path) -> Path:
    original = next(
        line.split("name: ")[1].rstrip("}")
        for line in (folder / "recipe.yaml").read_text().splitlines()
        if line.startswith("backbone")
    )
    return Path(shutil.copytree(original, folder / "copy"))


def _pickle_only(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    copy = _copy_of_backbone(folder)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    return [f"backbone.name={copy}"]


def _remote_code(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    copy = _copy_of_backbone(folder)
    (copy / "modeling_mine.py").write_text("raise SystemExit('this ran')")
    return [f"backbone.name={copy}"]


def _auto_map(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    copy = _copy_of_backbone(folder)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling_mine.Mine"}}))
    return [f"backbone.name={copy}"]


def _unwritable_output(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    (folder / "file").write_text("in the way")
    return [f"output={folder / 'file' / 'bundle'}"]


def _full_disk(_: Path, patch: pytest.MonkeyPatch) -> list[str]:
    usage = namedtuple("usage", "total used free")
    patch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    return []


def _too_long(_: Path, __: pytest.MonkeyPatch) -> list[str]:
    return ["data.max_length=4096"]


def _too_deep(_: Path, __: pytest.MonkeyPatch) -> list[str]:
    return ["transfer.depth=9"]


def _leaking_splits(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    rows = [(f"row about thing {i} and thing {i + 1} with more words to fill it", "ab"[i % 2]) for i in range(40)]
    train, test = write_csv(folder / "train.csv", rows), write_csv(folder / "test.csv", rows[:6])
    return [f"data.source={train}", f"data.splits={{train: {train}, validation: 0.2, test: {test}}}"]


MISTAKES: dict[str, tuple[Edit, str]] = {
    "no such backbone": (_no_backbone, "no such file or folder"),
    "hub unreachable": (_hub_unreachable, "the hub is not reachable"),
    "missing column": (_missing_column, "data.label_column"),
    "one class only": (_one_class, "'same'"),
    "a class with one sample": (_single_row_class, "'rare'"),
    "empty file": (_empty, "bad.csv"),
    "not UTF-8": (_not_utf8, "data.encoding"),
    "negative rate": (lambda *_: ["transfer.learning_rate=-1"], "transfer.learning_rate"),
    "unknown metric": (lambda *_: ["evaluation.metric=acuracy"], "did you mean 'accuracy'?"),
    "unknown key": (lambda *_: ["transfer.unfreze=full"], "did you mean 'unfreeze'?"),
    "output not writable": (_unwritable_output, "cannot be written"),
    "disk nearly full": (_full_disk, "are free"),
    "a pickle-only checkpoint": (_pickle_only, "backbone.allow_pickle"),
    "remote code": (_remote_code, "code of its own"),
    "remote code in config.json": (_auto_map, "auto_map"),
    "inputs longer than the backbone's": (_too_long, "at most 64"),
    "deeper than the backbone": (_too_deep, "only 4 layer groups"),
    "leaks between the user's splits": (_leaking_splits, "data.audit.leaks"),
    "a licence that nobody named": (lambda *_: ["license.data=null"], "license.data"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_exit_code_2(
    mistake: str, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit, words = MISTAKES[mistake]
    license_kept = ["license.data={id: cc0-1.0, reason: made up by the test}"] if "license.data" not in words else []
    overrides = [f"output={tmp_path / 'b'}", *edit(tmp_path, monkeypatch), *license_kept]
    assert words in _fails(capsys, ["run", str(tiny_recipe), *overrides])
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- list\n", "mapping"),
        ("a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi")), "values"),
        ("name: [unclosed\n", "recipe.yaml"),
        ("", "empty"),
    ],
    ids=["not a mapping", "alias bomb", "broken YAML", "empty"],
)  # fmt: skip
def test_an_unusable_recipe_file_ends_in_one_sentence(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert words in _fails(capsys, ["validate", str(path)])


def test_a_missing_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in _fails(capsys, ["run", str(tmp_path / "nowhere.yaml")])


def test_validate_tells_labels_phases_and_licence(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tiny_recipe)]) == 0
    out = capsys.readouterr().out
    assert "harbour, kitchen, orchard" in out
    assert "phase 4" in out
    assert out.rstrip().endswith("tiny: ready to run")


def test_what_answers_at_once_imports_nothing_heavy(tiny_recipe: Path) -> None:
    program = (
        "import sys; from finetune.cli import main; main(['validate', sys.argv[1]]);"
        "print(sorted({'torch', 'transformers', 'datasets', 'sklearn', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tiny_recipe)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_schema_and_new_write_files_and_never_replace_them(
    tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema, recipe = tmp_path / "schema.json", tmp_path / "new.yaml"
    assert main(["schema", "--output", str(schema)]) == 0
    assert json.loads(schema.read_text())["title"] == "Recipe"
    assert main(["new", str(tiny_data), "--output", str(recipe)]) == 0
    capsys.readouterr()
    assert "already exists" in _fails(capsys, ["new", str(tiny_data), "--output", str(recipe)])


def test_predict_prints_a_line_of_json_for_each_text(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["predict", str(tiny_bundle), "--text", "ship tide anchor cargo", "--text", "apple pear blossom bee"]) == 0
    )
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["label"] for answer in answers] == ["harbour", "orchard"]


def test_predict_reads_a_table_and_writes_parquet(tiny_bundle: Path, tiny_data: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    assert (
        main(
            [
                "predict",
                str(tiny_bundle),
                "--input",
                str(tiny_data),
                "--output",
                str(tmp_path / "out.parquet"),
                "--prefix",
                "p_",
            ]
        )
        == 0
    )
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert len(table["p_label"]) == 240
    assert {"text", "label", "p_score", "p_probability_harbour"} <= set(table)


def test_predict_wants_either_texts_or_a_file(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "reads texts; give one with --text" in _fails(capsys, ["predict", str(tiny_bundle)])
    assert "needs --output" in _fails(capsys, ["predict", str(tiny_bundle), "--input", "x.csv"])


def test_check_passes_a_sound_bundle_and_refuses_an_altered_one(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tiny_bundle)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["ok", "bytes:"],
        ["ok", "card:"],
        ["ok", "licences:"],
        ["ok", "parity:"],
    ]
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    with (copy / "labels.json").open("a") as file:
        file.write(" ")
    assert "labels.json" in _fails(capsys, ["check", str(copy)])


def test_check_for_another_use_judges_the_recorded_licences(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(tiny_bundle), "--use", "commercial"]) == 0
    assert "Commercial use" in capsys.readouterr().out


def test_card_and_export_write_a_bundle_again_in_place(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    before = (copy / "README.md").read_bytes()
    assert main(["card", str(copy)]) == 0
    assert (copy / "README.md").read_bytes() == before
    assert main(["export", str(copy), "export.int8.mode=off"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(copy)
    assert not (copy / "onnx/model.int8.onnx").exists()
    assert main(["check", str(copy)]) == 0
    assert json.loads((copy / "report.json").read_text())["recipe"]["export"]["int8"]["mode"] == "off"


def test_export_changes_nothing_but_export(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "only export.* can change" in _fails(capsys, ["export", str(tiny_bundle), "seed=4"])


@pytest.mark.timeout(300)
def test_ctrl_c_stops_with_a_checkpoint_and_says_how_to_go_on(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        sys.executable, "-m", "finetune", "run", str(tiny_recipe), f"output={tmp_path / 'b'}",
        "transfer.unfreeze=full", "transfer.epochs=500", "export.int8.mode=off", "evaluation.baselines=false",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "epoch 2:" in line:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("finetune: stopped")
    assert last.endswith("--resume")
    assert "Traceback" not in said + err
    assert any((tmp_path / ".state" / "b" / "checkpoints").iterdir())
    assert last.endswith(f"; go on with: {shlex.join(['finetune', *command[3:], '--resume'])}")
    kept = _fails(capsys, command[3:])
    assert "holds an unfinished run" in kept
    assert "the training so far" not in kept


Ran = Callable[..., str]


@pytest.fixture
def ends_in(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ran:
    """Call `finetune run` with a run that ends in an error in some stage, with a checkpoint or none; its last line."""

    def call(error: BaseException, *options: str, stage: str = "training", checkpoint: bool = True) -> str:
        def run(*_: object, callbacks: Sequence[Callable[[object], None]], **__: object) -> None:
            for callback in callbacks:
                callback(StageStarted(stage))
            if checkpoint:
                path = tmp_path / ".state" / "b" / "checkpoints" / "000000"
                path.mkdir(parents=True)
                (path / "manifest.json").write_text("{}")
            raise error

        monkeypatch.setattr("finetune.pipeline.run", run)
        main(["run", str(tiny_recipe), *options, f"output={tmp_path / 'b'}"])
        return capsys.readouterr().err.splitlines()[-1]

    return call


def test_a_full_disk_names_the_place_and_how_to_go_on(ends_in: Ran, tmp_path: Path) -> None:
    line = ends_in(OSError(errno.ENOSPC, "No space left on device"))
    assert line.startswith(f"finetune: {tmp_path}: No space left on device; free some space")
    assert line.endswith(" --resume")


def test_a_checkpoint_that_could_not_be_written_leaves_the_one_before(ends_in: Ran) -> None:
    line = ends_in(BundleError("x: the disk is full; free some space"))
    assert "free some space; the training so far is kept, so go on with: finetune run " in line
    assert line.endswith(" --resume")


@pytest.mark.parametrize("error", [Interrupted("stopped before training"), KeyboardInterrupt()])
def test_a_stop_without_a_checkpoint_does_not_promise_to_go_on(ends_in: Ran, error: BaseException) -> None:
    line = ends_in(error, "--overwrite", checkpoint=False)
    assert "; there is no checkpoint yet, so start again with: finetune run " in line
    assert line.endswith(" --overwrite")


def test_a_stop_before_training_does_not_offer_another_runs_checkpoint(ends_in: Ran) -> None:
    assert ends_in(Interrupted("stopped before data"), "--overwrite", stage="checks").endswith(" --overwrite")


def test_overrides_may_stand_after_options(ends_in: Ran) -> None:
    line = ends_in(Interrupted("stopped"), "seed=1", "--quiet", "export.int8.mode=off", "--overwrite")
    assert " seed=1 export.int8.mode=off output=" in line
    assert line.endswith(" --overwrite --resume")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "run: the following arguments are required: recipe; see finetune run --help"),
        (["run", "a.yaml", "--frist", "x=1"], "run: unknown argument '--frist'; see finetune run --help"),
        (["card", "a", "b"], "card: unknown argument 'b'; see finetune card --help"),
        (["rum"], "argument COMMAND: invalid choice: 'rum'"),
        (["--loud", "run", "a.yaml"], "unknown argument '--loud'; see finetune --help"),
        ([], "the following arguments are required: COMMAND; see finetune --help"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in _fails(capsys, arguments)


def test_a_file_that_the_disk_had_no_room_for_does_not_stand_in_the_way(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "new.yaml"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("finetune.disk.os.fsync", full)
        assert f"{recipe}: the disk is full" in _fails(capsys, ["new", str(tiny_data), "-o", str(recipe)])
    assert list(tmp_path.iterdir()) == []
    assert main(["new", str(tiny_data), "-o", str(recipe)]) == 0
    assert recipe.read_text().startswith("#")
