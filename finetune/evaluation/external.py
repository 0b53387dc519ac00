"""`evaluate:NAME_OR_PATH`: metrics of the evaluate library, for what the built-in ones do not cover.

Such a metric is a Python script that runs here: a local one because the recipe names its path, a hub one
because the recipe names it. The library is imported only when a recipe asks for it, because it is slow to load.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.errors import RecipeError
from finetune.evaluation.logits import Weights
from finetune.recipe.task_names import METRICS

PREFIX = "evaluate:"


@dataclass(frozen=True)
class Given:
    """What a metric is given as predictions and as references, for one target."""

    words: str
    config: str | None
    """The library's name for a metric over lists, which its own metrics ask for before they accept rows of 0 and 1."""
    column: str = ""
    """How the type of a column that can hold it begins: the library would cut 0.25 down to a whole 0 without a word."""


GIVEN = {
    "single_label": Given("predicted labels", None),
    "multi_label": Given("rows of 0 and 1, one for each label", "multilabel"),
    "regression": Given("numbers", None, "float"),
}
_OFFLINE = ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def refuse_weighted(names: Sequence[str]) -> None:
    """RecipeError for the first `evaluate:` metric among the names: such a script takes answers and labels, and no weights."""
    for name in names:
        if name.startswith(PREFIX):
            raise RecipeError(
                f"evaluation.metrics: '{name}' cannot count rows by data.weight_column; "
                "name built-in metrics, or remove data.weight_column"
            )


def load(metric: str, target: str) -> Any:
    """The evaluate module that `evaluate:NAME_OR_PATH` names, set up for what `target` gives it.

    Raises RecipeError: library not installed, no such file, not on the Hub, Hub not reachable, or a script that fails to load.
    """
    name = metric.removeprefix(PREFIX)
    script = _local_script(name, metric)
    if importlib.util.find_spec("evaluate") is None:
        raise RecipeError(
            f"evaluation.metrics: '{metric}' needs the evaluate library; install it with: pip install 'finetune-recipes[evaluate]'"
        )
    try:
        import evaluate

        with _offline_if_asked(evaluate):
            # In memory: the default writes predictions to a shared cache folder and locks it.
            return evaluate.load(str(script or name), GIVEN[target].config, keep_in_memory=True)
    except (FileNotFoundError, ConnectionError) as error:
        if script is None:
            raise RecipeError(_unreachable(metric, name, METRICS[target])) from error
        raise RecipeError(f"evaluation.metrics: '{metric}' could not be loaded: {_one_line(error)}") from error
    except Exception as error:
        # The script is somebody else's code, so anything may come out of it; the user needs its name and its words.
        raise RecipeError(f"evaluation.metrics: '{metric}' could not be loaded: {_one_line(error)}") from error


def try_out(metric: str, target: str, sample: npt.NDArray[Any]) -> None:
    """Score made-up rows as if all were right, so that a metric that cannot score them is refused before training.

    RecipeError as `load` raises, or because the metric fails or does not return one number.
    """
    module = load(metric, target)
    forms = module.features if isinstance(module.features, list) else [module.features]
    types = {str(getattr(column, "dtype", "a list")) for form in forms for column in form.values()}
    if not any(name.startswith(GIVEN[target].column) for name in types):
        raise RecipeError(
            f"evaluation.metrics: '{metric}' cannot score {GIVEN[target].words}: it takes {', '.join(sorted(types))}; "
            f"declare its columns as {GIVEN[target].column}32"
        )
    _compute(module, metric, target, sample, sample)


def value(
    metric: str, target: str, predictions: npt.NDArray[Any], labels: npt.NDArray[Any], weights: Weights = None
) -> float | None:
    """The metric of predictions against true labels, (N,) or (N, C) each; None if it is NaN or infinite.

    RecipeError for rows with weights, before anything is loaded.
    """
    if weights is not None:
        refuse_weighted([metric])
    number = _compute(load(metric, target), metric, target, predictions, labels)
    return number if math.isfinite(number) else None


def _compute(module: Any, metric: str, target: str, predictions: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    try:
        answer = module.compute(predictions=predictions.tolist(), references=labels.tolist())
    except Exception as error:
        raise RecipeError(
            f"evaluation.metrics: '{metric}' cannot score {GIVEN[target].words} as it stands: {_one_line(error)}"
        ) from error
    if not isinstance(answer, Mapping):
        raise RecipeError(
            f"evaluation.metrics: '{metric}' must return a mapping of names to numbers, not {type(answer).__name__}"
        )
    numbers = {key: float(item) for key, item in answer.items() if isinstance(item, int | float | np.number)}
    own = Path(metric.removeprefix(PREFIX)).stem
    if len(numbers) != 1 and own not in numbers:
        found = ", ".join(map(str, answer)) or "nothing"
        raise RecipeError(
            f"evaluation.metrics: '{metric}' must return one number, or one called '{own}', but it returned {found}"
        )
    return numbers[own] if own in numbers else next(iter(numbers.values()))


def _local_script(name: str, metric: str) -> Path | None:
    """The script's path if there is one at `name`, None for a hub name; RecipeError for a path that leads nowhere."""
    path = Path(name).expanduser()
    script = path / f"{path.resolve().name}.py" if path.is_dir() else path
    if script.suffix == ".py" and script.is_file():
        return script.resolve()
    if path.suffix == ".py" or name.startswith((".", "/", "~")):
        raise RecipeError(
            f"evaluation.metrics: '{metric}' names no metric script: there is no file {script}; correct the path"
        )
    return None


@contextlib.contextmanager
def _offline_if_asked(evaluate: Any) -> Iterator[None]:
    """Hold the evaluate library to the offline switches of the other Hugging Face libraries, which it does not read."""
    before = evaluate.config.HF_EVALUATE_OFFLINE
    evaluate.config.HF_EVALUATE_OFFLINE = before or _offline()
    try:
        yield
    finally:
        evaluate.config.HF_EVALUATE_OFFLINE = before


def _offline() -> bool:
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in _OFFLINE)


def _unreachable(metric: str, name: str, known: tuple[str, ...]) -> str:
    why = "offline mode is on" if _offline() else "it is not there or cannot be reached"
    built_in = f"use the built-in metric '{name}'" if name in known else f"use a built-in metric ({', '.join(known)})"
    return (
        f"evaluation.metrics: '{metric}' is a script on the Hub, but {why} and no copy is cached; "
        f"{built_in}, load it once with a network, or name a local script (evaluate:./my_metric.py)"
    )


def _one_line(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else words[:297] + "..."
