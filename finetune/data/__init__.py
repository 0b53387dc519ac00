"""Labelled texts and images: read them, audit them for duplicates, split them without leaks.

Importing this package, or `finetune.data.inspect`, pulls in neither torch nor datasets; loading from the hub does, when it
is called.
"""

from finetune.data.inspect import Inspection, inspect_data
from finetune.data.prepare import prepare_data
from finetune.data.rows import LabelledData, Split

__all__ = ["Inspection", "LabelledData", "Split", "inspect_data", "prepare_data"]
