"""One recipe under several seeds: each run's test score, and their mean with a confidence interval.

    python benchmarks/seeds.py recipes/image_cls.yaml --seeds 0 1 2      # as long as three runs

A seed divides the rows anew, so test splits differ from run to run as well as what is trained. The interval is Student's,
of the mean over seeds (95 %). Runs lie in `--folder` (exports/seeds); one that is complete under the same settings is read,
not repeated. Prints a Markdown table of the metric that the recipe is steered by, and, where rows have weights, of the
same metric where all count alike.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from scipy.stats import t

from finetune import load_recipe, run
from finetune.hardware import cpu
from finetune.recipe import recipe_hash

LEVEL = 0.95
FORMS = {"torch": "test", "served": "test_served"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("settings", nargs="*", help="KEY=VALUE, as finetune run takes them")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("exports/seeds"))
    arguments = parser.parse_args()
    reports = [one_run(arguments.recipe, arguments.settings, seed, arguments.folder) for seed in arguments.seeds]
    rows = [scores(report) for report in reports]
    print(f"{cpu().model}, {cpu().cores} cores\n")
    print(f"| seed | {' | '.join(rows[0])} | minutes |\n|---|{'---|' * (len(rows[0]) + 1)}")
    for seed, report, row in zip(arguments.seeds, reports, rows, strict=True):
        minutes = f"{report['timings_s']['total'] / 60:.1f}"
        print(f"| {seed} | {' | '.join(f'{value:.4f}' for value in row.values())} | {minutes} |")
    cells = [mean_and_interval([row[name] for row in rows]) for name in rows[0]]
    print(f"| mean | {' | '.join(cells)} | |")


def one_run(recipe: Path, settings: list[str], seed: int, folder: Path) -> dict[str, Any]:
    """report.json of the recipe under a seed."""
    chosen = load_recipe(recipe, [*settings, f"seed={seed}"])
    output = folder / f"{recipe.stem}_{seed}_{recipe_hash(chosen)[:8]}"
    return dict(run(chosen.model_copy(update={"output": str(output)}), resume=True).data)


def scores(report: dict[str, Any]) -> dict[str, float]:
    """The metric of each form on the test split, and where it is weighted the same without weights."""
    metric, found = report["metrics"]["primary"], {}
    for form, key in FORMS.items():
        measured = report["metrics"][key]
        found[f"{metric}, {form}"] = measured[metric]["value"]
        if "unweighted" in measured:
            found[f"unweighted, {form}"] = measured["unweighted"][metric]
    return found


def mean_and_interval(values: list[float]) -> str:
    """Mean over seeds and the ends of its Student interval; no interval of a single run."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.4f}"
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    reach = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    return f"{mean:.4f} ({mean - reach:.4f}–{mean + reach:.4f})"


if __name__ == "__main__":
    main()
