"""The HTML report: one self-contained file drawn from `report.json`."""

from finetune.report.html import render_html

__all__ = ["render_html"]
