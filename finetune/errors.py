"""The exception tree. Every message names the place and the fix, in one sentence a user can act on.

    FinetuneError
    ├── RecipeError       the recipe file: syntax, unknown keys, wrong types, impossible combinations
    ├── SourceError       a model or data source: missing, unreachable, unsafe to load
    ├── DataError         the rows: columns, labels, encodings, splits, leaks
    ├── LicenseError      the intended use is not allowed, or a licence is unknown
    ├── TrainingError     the numbers: divergence, a phase that did not train what it should
    ├── ExportError       ONNX or int8 could not be built
    ├── GateError         the artifact was built, measured, and is worse than the recipe allows
    ├── BundleError       a bundle on disk: missing files, changed bytes, an unknown format
    └── Interrupted       the user asked to stop; the run can be resumed

`FinetuneError.exit_code` is what the command line returns: 2 for anything the user can mend, 3 when
a gate refused the result, 130 when the run was interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FinetuneError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 2


class RecipeError(FinetuneError):
    """The recipe cannot be used as written."""


class SourceError(FinetuneError):
    """A backbone or a data set cannot be found, reached, or safely loaded."""


class DataError(FinetuneError):
    """The rows of a data set cannot be used as the recipe asks."""


class LicenseError(FinetuneError):
    """The licences of the parts do not allow the recipe's intended use."""


class TrainingError(FinetuneError):
    """Training produced something that must not be continued from."""


class ExportError(FinetuneError):
    """An exported form of the model could not be built."""


class GateError(FinetuneError):
    """A finished artifact is worse than the recipe allows, so no bundle was written."""

    exit_code = 3


class BundleError(FinetuneError):
    """A bundle is incomplete, altered, or of another format."""


class Interrupted(FinetuneError):  # noqa: N818 - it is not an error
    """The run stopped at the user's request, with a checkpoint to go on from."""

    exit_code = 130


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint such as "; did you mean 'unfreeze'?", or the list of valid names when none is close."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; valid names: {', '.join(names)}" if names else ""
