"""What the pipeline asks of a modality: one plain entry each. Importing this package loads torch."""

from finetune.modality import image, language, text
from finetune.modality.spec import Modality, Setup

MODALITIES: dict[str, Modality] = {"text": text.MODALITY, "image": image.MODALITY, "language": language.MODALITY}

__all__ = ["MODALITIES", "Modality", "Setup"]
