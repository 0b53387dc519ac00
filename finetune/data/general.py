"""Texts that a language model is only measured on: those of another domain, which show what it forgets."""

from __future__ import annotations

from finetune.data.load import POOL, load_tables
from finetune.data.near import is_empty, normalise, text_key
from finetune.data.split import sample_rows
from finetune.errors import DataError
from finetune.recipe.types import DataSettings
from finetune.sources import Source
from finetune.tasks import TASKS


def read_texts(
    source: Source, *, text_column: str = "text", limit: int | None = None, seed: int = 0, encoding: str = "utf-8"
) -> list[str]:
    """The texts of a table's column or of a folder's .txt files, each once, in their order; at most `limit`, drawn by the seed.

    Read as `data.source` of a language model is. DataError, which speaks of evaluation.general, when there is no text.
    """
    settings = DataSettings(source=source.name, text_column=text_column, encoding=encoding)
    try:
        rows = load_tables(TASKS["causal_lm"], settings, source, {}).rows[POOL]
    except DataError as error:
        message = str(error).replace("data.text_column", "evaluation.general.text_column")
        raise DataError(f"evaluation.general: {message}") from error
    texts: dict[str, str] = {}
    for text in map(str, rows.inputs):
        if not is_empty(text):
            texts.setdefault(normalise(text), text)
    if not texts:
        raise DataError(f"evaluation.general: every text of {source.name} is empty; give another source or text_column")
    found = list(texts.values())
    if limit is None:
        return found
    keys = [text_key(name, seed) for name in texts]
    return [found[row] for row in sample_rows(keys, [0] * len(keys), limit)]
