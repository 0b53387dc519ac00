"""What a user reads after a plausible mistake: the exact sentence, with file, line, key path and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe import load_recipe

GOOD = """\
name: news
task: text_classification
seed: 0
backbone:
  name: distilbert/distilbert-base-uncased
data:
  source: data/news.csv
  splits:
    train: 0.8
transfer:
  learning_rate: 2e-4
train:
  batch_size: 32
evaluation:
  metric: accuracy
license:
  use: research
"""

# (what to replace in GOOD, by what, the sentence after the file's name)
MISTAKES = {
    "misspelt key": (
        "  learning_rate: 2e-4",
        "  unfreze: gradual",
        ":11: transfer.unfreze: unknown key; did you mean 'unfreeze'?",
    ),
    "misspelt section": (
        "backbone:",
        "bakcbone:",
        ":4: bakcbone: unknown key; did you mean 'backbone'?",
    ),
    "key of another section": (
        "  batch_size: 32",
        "  max_length: 64",
        ":13: train.max_length: unknown key; valid names: accumulation, augment, batch_size, bucket_by_length, "
        "checkpoint_every_steps, class_weights, clip_norm, device, eval_batch_size, gradient_checkpointing, label_smoothing, "
        "memory, memory_format, optimizer, "
        "precision, schedule, tensorboard, warmup, weight_decay, workers",
    ),
    "word for a number": (
        "2e-4",
        "fast",
        ":11: transfer.learning_rate: expected a number greater than 0, found the string 'fast'",
    ),
    "quoted number": (
        "batch_size: 32",
        "batch_size: '32'",
        ":13: train.batch_size: expected a whole number of at least 1, found the string '32'; remove the quotes",
    ),
    "negative rate": (
        "2e-4",
        "-2e-4",
        ":11: transfer.learning_rate: must be greater than 0, found -0.0002",
    ),
    "zero batch": (
        "batch_size: 32",
        "batch_size: 0",
        ":13: train.batch_size: must be at least 1, found 0",
    ),
    "broken whole number": (
        "batch_size: 32",
        "batch_size: 32.0",
        ":13: train.batch_size: expected a whole number of at least 1, found the number 32.0",
    ),
    "fraction of one or more": (
        "  batch_size: 32",
        "  warmup: 10",
        ":13: train.warmup: must be below 1, found 10",
    ),
    "yes for true": (
        "    train: 0.8",
        "    stratify: yes",
        ":9: data.splits.stratify: expected true or false, found the string 'yes'; write true",
    ),
    "number for a text": (
        "name: news",
        "name: 2024",
        ":1: name: expected text, found the number 2024; put it in quotes",
    ),
    "space in the name": (
        "name: news",
        "name: my news",
        ":1: name: the string 'my news' does not fit; use at most 80 letters, digits, '.', '_' and '-', "
        "the first a letter or digit",
    ),
    "misspelt choice": (
        "use: research",
        "use: comercial",
        ":17: license.use: expected one of 'research', 'internal', 'commercial', found the string 'comercial'; "
        "did you mean 'commercial'?",
    ),
    "unknown task": (
        "task: text_classification",
        "task: sentiment",
        ":2: task: expected one of 'text_classification', 'text_multi_label_classification', "
        "'text_regression', 'image_classification', 'image_multi_label_classification', 'image_regression', 'causal_lm', "
        "found the string 'sentiment'",
    ),
    "key for another kind of input": (
        "  batch_size: 32",
        "  batch_size: 32\n  augment: {vertical_flip: 0.5}",
        ":14: train.augment: it is for image tasks, and task is text_classification; remove it",
    ),
    "unknown metric": (
        "metric: accuracy",
        "metric: acuracy",
        ":15: evaluation.metric: unknown metric 'acuracy' for text_classification; did you mean 'accuracy'?",
    ),
    "missing section": (
        "license:\n  use: research\n",
        "",
        ":1: license: required, but missing; add it (a section with keys such as 'use')",
    ),
    "missing key": (
        "  name: distilbert/distilbert-base-uncased",
        "  revision: main",
        ":4: backbone.name: required, but missing; add it (text)",
    ),
    "empty section": (
        "  batch_size: 32\n",
        "",
        ":12: train: expected a section with keys such as 'batch_size', found nothing; give a value or remove the key",
    ),
    "text for a section": (
        "backbone:\n  name: distilbert/distilbert-base-uncased",
        "backbone: bert-base-uncased",
        ":4: backbone: expected a section with keys such as 'name', found the string 'bert-base-uncased'",
    ),
    "single value for a list": (
        "  metric: accuracy",
        "  metrics: accuracy",
        ":15: evaluation.metrics: expected a list of texts, found the string 'accuracy'; write [accuracy]",
    ),
    "numbers for label names": (
        "  source: data/news.csv",
        "  source: data/news.csv\n  labels:\n    - 0\n    - 1",
        ":9: data.labels[0]: expected text, found the number 0; put it in quotes; also wrong: data.labels[1] (line 10)",
    ),
    "shares that do not add up": (
        "    train: 0.8",
        "    train: 0.9",
        ":8: data.splits: the shares add up to 1.1, not 1",
    ),
    "share in per cent": (
        "    train: 0.8",
        "    train: 80",
        ":9: data.splits.train: must be below 1, found 80",
    ),
    "list for a share": (
        "    train: 0.8",
        "    train: [a.csv]",
        ":9: data.splits.train: expected a number greater than 0 and below 1 or text, found a list",
    ),
    "unfreeze and phases": (
        "  learning_rate: 2e-4",
        "  unfreeze: full\n  phases: [{trainable: 1}]",
        ":10: transfer: give either unfreeze or phases, not both",
    ),
    "neither count nor all": (
        "  learning_rate: 2e-4",
        "  phases:\n    - trainable: al",
        ":12: transfer.phases[0].trainable: expected a whole number of at least 1 or 'all', found the string 'al'; "
        "did you mean 'all'?",
    ),
    "no phases": (
        "  learning_rate: 2e-4",
        "  phases: []",
        ":11: transfer.phases: must not be an empty list; add an item or remove the key",
    ),
    "negative class weight": (
        "  batch_size: 32",
        "  class_weights: {sports: -1, tech: 2}",
        ":13: train.class_weights.sports: must be greater than 0, found -1",
    ),
    "misspelt class weights": (
        "  batch_size: 32",
        "  class_weights: balance",
        ":13: train.class_weights: expected one of 'none', 'balanced' or a mapping of names to numbers, "
        "found the string 'balance'; did you mean 'balanced'?",
    ),
    "L2-SP with weight decay": (
        "transfer:\n  learning_rate: 2e-4\ntrain:\n",
        "transfer:\n  l2sp: {coupling: loss}\ntrain:\n  weight_decay: 0.01\n",
        ":13: train.weight_decay: L2-SP takes the place of weight decay; remove it or set transfer.l2sp.coupling to off",
    ),
    "reason too short": (
        "  use: research",
        "  use: research\n  data: {id: mit, reason: site}",
        ":18: license.data.reason: needs at least 8 characters, found 4",
    ),
    "empty source": (
        "data/news.csv",
        "''",
        ":7: data.source: must not be empty",
    ),
    "infinite rate": (
        "2e-4",
        ".inf",
        ":11: transfer.learning_rate: '.inf' is not a finite number; write another value",
    ),
    "rate too large to be a number": (
        "2e-4",
        "2e+999",
        ":11: transfer.learning_rate: 2e+999 is too large for a number; write another value",
    ),
    "key given twice": (
        "seed: 0",
        "seed: 0\nname: other",
        ":4: name: given twice, first on line 1; remove one",
    ),
    "number as a label's key": (
        "  batch_size: 32",
        "  class_weights: {0: 1.5}",
        ":13: train.class_weights: a key must be text, found the number 0; put it in quotes: '0'",
    ),
    "tab for indentation": (
        "  name: distilbert",
        "\tname: distilbert",
        ":5: a tab stands where YAML wants spaces; replace it with spaces",
    ),
    "colon in a text": (
        "seed: 0",
        "description: note: this",
        ":3: a ':' where no key can be; mend the indentation or quote the text that holds it",
    ),
    "quote left open": (
        "name: news",
        "name: 'news",
        ":1: a quote is opened here and never closed; close it",
    ),
    "bracket left open": (
        "  metric: accuracy",
        "  metrics: [accuracy",
        ":16: a bracket is opened and never closed, or a comma is missing; mend the list or mapping",
    ),
    "crooked indentation": (
        "  learning_rate: 2e-4",
        "  learning_rate: 2e-4\n epochs: 1",
        ":12: the indentation does not fit the lines above; give keys of one section the same indentation",
    ),
    "colon forgotten": (
        "seed: 0",
        "seed 0",
        ":3: a key without ':'; write 'key: value', and indent what belongs to a longer text",
    ),
    "Python tag": (
        "news\n",
        "!!python/name:os.system\n",
        ":1: YAML tags such as 'tag:yaml.org,2002:python/name:os.system' are refused; write the plain value",
    ),
    "merge key": (
        "train:\n",
        "train:\n  <<: {warmup: 0.2}\n",
        ":13: train: merge keys ('<<') are not part of YAML 1.2; write the keys out",
    ),
    "second document": (
        "license:",
        "---\nlicense:",
        ":16: a second document begins; a recipe is one document, so remove the '---'",
    ),
    "several mistakes": (
        "transfer:\n  learning_rate: 2e-4\ntrain:\n  batch_size: 32",
        "transfer:\n  learning_rate: 0\ntrain:\n  bach_size: 32\n  warmup: -1",
        ":11: transfer.learning_rate: must be greater than 0, found 0; also wrong: train.bach_size (line 13), train.warmup (line 14)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_exact_sentence(mistake: str, tmp_path: Path) -> None:
    old, new, sentence = MISTAKES[mistake]
    assert GOOD.count(old) == 1, "the test must change exactly one place"
    recipe = tmp_path / "a.yaml"
    recipe.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(RecipeError) as refused:
        load_recipe(recipe)
    assert str(refused.value) == f"{recipe}{sentence}"
    assert refused.value.exit_code == 2


def test_the_recipe_without_mistakes_loads(tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_text(GOOD, encoding="utf-8")
    assert load_recipe(recipe).transfer.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", ":1: the recipe is empty; `finetune new` writes one to start from"),
        (b"# only a comment\n", ":1: the recipe is empty; `finetune new` writes one to start from"),
        (b"- name: a\n", ":1: a recipe is a mapping of keys such as 'task: text_classification', found a list"),
        (b"\nfast\n", ":2: a recipe is a mapping of keys such as 'task: text_classification', found the string 'fast'"),
        (b"name: a\ndescription: caf\xe9\n", ":2: not UTF-8 text; save the recipe as UTF-8"),
        (b"name: a\ndescription: \x07\n", ":2: the control character U+0007 is not allowed; remove it"),
        (b"#" * (1 << 20) + b"\n", ":1: the file is larger than 1 MiB; a recipe holds settings, not data"),
        (b'name: "\\UFFFFFFFF"\n', ":1: an escape or a directive that names no character or version; remove it"),
        (
            b'name: "\\ud800"\n',
            ":1: name: the text holds half of a surrogate pair, which is no character; write another value",
        ),
        (b"name: " + b"9" * 5000, ":1: name: a number of 5000 characters is too long; write another value"),
        (b"card:\n  tags: " + b"[" * 40, ":2: nested deeper than 20 levels; a recipe needs five at most"),
        (b"name: *missing\n", ":1: an alias ('*name') without its anchor; quote the text if no alias is meant"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_in_one_exact_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    recipe = tmp_path / "a.yaml"
    recipe.write_bytes(content)
    with pytest.raises(RecipeError) as refused:
        load_recipe(recipe)
    assert str(refused.value) == f"{recipe}{sentence}"


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: no such recipe file; check the path$"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match=r"not a file; check the path$"):
        load_recipe(tmp_path)
