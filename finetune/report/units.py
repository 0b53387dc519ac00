"""Numbers as people read them: one rounding rule per kind of quantity, a dash for what was not measured.

Every function accepts anything that a report may hold and never prints NaN or infinity.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

MISSING = "–"
NARROW = "\u202f"  # narrow no-break space between a number and its unit
MINUS = "\u2212"
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

SHARES = frozenset(
    {
        "accuracy",
        "balanced_accuracy",
        "f1_macro",
        "f1_micro",
        "precision_macro",
        "precision_micro",
        "recall_macro",
        "recall_micro",
        "exact_match",
        "label_accuracy",
        "average_precision_macro",
    }
)
"""Metrics that are fractions of one and are printed as per cent."""

LOWER_IS_BETTER = frozenset({"loss", "mae", "rmse", "perplexity"})
RATIOS = frozenset({"perplexity"})
"""Metrics whose differences are told in per cent of the other value."""
AT_MOST_ONE = SHARES | {"r2", "pearson", "spearman"}

METRIC_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "precision_macro": "macro precision",
    "precision_micro": "micro precision",
    "recall_macro": "macro recall",
    "recall_micro": "micro recall",
    "exact_match": "exact match",
    "label_accuracy": "label accuracy",
    "average_precision_macro": "macro average precision",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "R²",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "perplexity": "perplexity",
    "loss": "cross-entropy loss",
}


def finite(value: Any) -> float | None:
    """The value as a finite float, or None for anything that is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def count(value: Any) -> str:
    """A whole number with thousands separated: 22,713,216."""
    number = finite(value)
    return MISSING if number is None else f"{round(number):,}".replace("-", MINUS)


def significant(value: Any, digits: int = 3) -> str:
    """A number with so many significant digits and no exponent between 1e-3 and 1e6."""
    number = finite(value)
    if number is None:
        return MISSING
    if number == 0:
        return "0"
    size = int(f"{number:.{digits - 1}e}".split("e")[1])  # of the rounded number: 999.96 is written as 1,000
    if size < -3 or size >= 6:
        return scientific(number)
    return f"{number:,.{max(0, digits - 1 - size)}f}".replace("-", MINUS)


def scientific(value: Any) -> str:
    """A very small or very large number as it is written in a recipe: 2e-4, 3.1e-6."""
    number = finite(value)
    if number is None:
        return MISSING
    if number == 0:
        return "0"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def plain(value: Any) -> str:
    """A chosen value, such as a setting or an axis tick, without trailing zeros: 0.8, 32, 1e-4."""
    number = finite(value)
    if number is None:
        return MISSING
    return scientific(number) if number and abs(number) < 1e-3 else f"{number:,.6g}".replace("-", MINUS)


def percent(value: Any, digits: int = 1) -> str:
    """A fraction as per cent; more digits where rounding would claim exactly 0 % or 100 %."""
    number = finite(value)
    scaled = None if number is None else finite(number * 100)
    if scaled is None:
        return MISSING
    while digits < 4 and scaled not in (0, 100) and round(scaled, digits) in (0, 100):
        digits += 1
    return f"{scaled:.{digits}f}{NARROW}%".replace("-", MINUS)


def interval(low: Any, high: Any, name: str) -> str:
    """An interval of a metric, `94.4–98.8 %`; empty when it was not measured."""
    if finite(low) is None or finite(high) is None:
        return ""
    first, second = metric(name, low), metric(name, high)
    return f"{first.removesuffix(f'{NARROW}%') if name in SHARES else first}–{second}"


def metric(name: str, value: Any) -> str:
    """A metric in its own unit: per cent for fractions, three decimals (or digits, far from one) for the rest."""
    if name in SHARES:
        return percent(value)
    number = finite(value)
    return (
        f"{number:.3f}".replace("-", MINUS) if number is not None and 0.01 <= abs(number) < 10 else significant(value)
    )


def metric_title(name: str, loss: str = METRIC_TITLES["loss"]) -> str:
    """The metric's name in words; `loss` is what the target's loss is called."""
    return loss if name == "loss" else METRIC_TITLES.get(name, name)


def difference(name: str, value: float, other: float) -> str:
    """How far a metric is from another form's: in points for fractions, in per cent for ratios, else in its own unit."""
    if name in SHARES:
        return points(value - other)
    if name in RATIOS:
        return change(value, other)
    gap = value - other
    return f"{'+' if gap > 0 else MINUS if gap < 0 else '±'}{significant(abs(gap), 2)}"


def quantile(name: Any) -> str:
    """The name of a quantile as people say it: p50 is the median, p05 is 5 %."""
    known = {"min": "least", "max": "greatest", "p0": "least", "p50": "median", "p100": "greatest"}
    words = str(name)
    if words in known or not (words[:1] == "p" and words[1:].isdigit()):
        return known.get(words, words.replace("_", " "))
    return f"{int(words[1:])}{NARROW}%"


def size(value: Any) -> str:
    """Bytes in decimal units: 23.5 MB."""
    number = finite(value)
    if number is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.0f}{NARROW}{unit}" if unit == "B" else f"{significant(number)}{NARROW}{unit}"
        number /= 1000
    return f"{significant(number)}{NARROW}TB"


def duration(seconds: Any) -> str:
    """Seconds as a person says them: 42 ms, 12.3 s, 4 min 12 s, 1 h 04 min."""
    number = finite(seconds)
    if number is None:
        return MISSING
    if 0 < number < 0.0995:
        return f"{significant(number * 1000, 2)}{NARROW}ms"
    if number < 59.95:
        return f"{number:.1f}{NARROW}s"
    minutes, rest = divmod(round(number), 60)
    if minutes < 60:
        return f"{minutes}{NARROW}min {rest:02d}{NARROW}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NARROW}h {minutes:02d}{NARROW}min"


def times(value: Any) -> str:
    """A factor: 2.3×."""
    number = finite(value)
    return MISSING if number is None else f"{significant(number, 2 if number < 10 else 3)}×"


def points(difference: Any) -> str:
    """A difference of two fractions in percentage points, with its sign."""
    number = finite(difference)
    if number is None or finite(number * 100) is None:
        return MISSING
    scaled = round(number * 100, 1)
    return f"{'+' if scaled > 0 else MINUS if scaled < 0 else '±'}{abs(scaled):.1f} points"


def change(value: Any, other: Any, digits: int = 1) -> str:
    """How much larger or smaller a value is than another, in per cent of the other: −21.6 %, +0.3 %."""
    new, old = finite(value), finite(other)
    ratio = finite(new / old - 1) if new is not None and old else None
    if ratio is None:
        return MISSING
    scaled = round(ratio * 100, digits)
    return f"{'+' if scaled > 0 else MINUS if scaled < 0 else '±'}{abs(scaled):.{digits}f}{NARROW}%"


def moment(written: Any) -> str:
    """An ISO 8601 time in UTC as people write it: 21 November 2026, 14:03 UTC; anything else as it is."""
    try:
        when = datetime.fromisoformat(str(written))
    except ValueError:
        return str(written)
    month = MONTHS[when.month - 1]
    return f"{when.day} {month} {when.year}, {when:%H:%M}" + (" UTC" if when.utcoffset() == timedelta(0) else "")


def plural(number: Any, noun: str) -> str:
    """A count with its noun: 1 group, 97 groups, 2 processes."""
    return f"{count(number)} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def shorten(text: str, length: int) -> str:
    """The text in at most `length` characters, an ellipsis for what is left out."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: max(1, length - 1)].rstrip() + "…"
