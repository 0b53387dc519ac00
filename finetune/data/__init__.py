"""Labelled texts and images, and what language models learn from: read them, audit them for duplicates, split them without leaks.

Importing this package, or `finetune.data.inspect`, pulls in neither torch nor datasets; loading from the hub does, when it
is called.
"""

from finetune.data.blocks import Blocks, blocks_of
from finetune.data.general import read_texts
from finetune.data.inspect import Inspection, inspect_data
from finetune.data.prepare import prepare_data
from finetune.data.rows import LabelledData, Split

__all__ = ["Blocks", "Inspection", "LabelledData", "Split", "blocks_of", "inspect_data", "prepare_data", "read_texts"]
