"""Torch to ONNX to int8, each stage measured on the same validation rows and gated. Imports torch."""

from finetune.export.stages import ExportResult, export_all

__all__ = ["ExportResult", "export_all"]
