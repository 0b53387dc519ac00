"""Labelled texts: read them, audit them for duplicates, split them without leaks.

Importing this package, or `finetune.data.inspect`, pulls in neither torch nor datasets; loading does, when it is called.
"""

from finetune.data.inspect import Inspection, inspect_text
from finetune.data.prepare import prepare_text
from finetune.data.rows import Split, TextData

__all__ = ["Inspection", "Split", "TextData", "inspect_text", "prepare_text"]
