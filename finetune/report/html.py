"""report.json in, one self-contained HTML file out: inline CSS and SVG, no script, nothing loaded from anywhere.

Rendering is a pure function of the report: the same report gives the same bytes. jinja2 and PyYAML are imported inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from finetune.report import language, samples, tables, units, view
from finetune.report.cautions import cautions
from finetune.report.kinds import MODALITIES, kind_of, sections, words_of
from finetune.report.quality import quality
from finetune.report.samples import ReadFile

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def render_html(report: Mapping[str, Any], read_file: ReadFile | None = None) -> str:
    """The whole page for a report (format 1, docs/report.md), to be written as UTF-8.

    `read_file` gives the bytes of a file of the bundle, `samples/00.jpg`; the pictures of the hardest test rows are then
    written into the page, which without it has their words only. All text of the report is escaped, whatever it contains.
    A key that is null or absent shows as a dash, or its part of the page is left out, so that a report with no calibration,
    no baselines or no int8 form is complete too.
    """
    modality, target = kind_of(report)
    cards = samples.cards(report, read_file)
    return (
        _environment()
        .get_template("template.html")
        .render(
            r=report,
            modality=modality,
            target=target,
            sections=sections(report, samples=bool(cards)),
            noun=MODALITIES[modality],
            words_of_target=words_of(report),
            head=view.headline(report),
            cautions=cautions(report),
            training=_drawn(view.training(report)),
            quality=_drawn(quality(report, cards)),
            cards=cards,
            verdicts=view.VERDICTS,
            **tables.everything(report),
            **language.tables(report),
        )
    )


def _drawn(values: dict[str, Any]) -> dict[str, Any]:
    """Mark the charts, whose text is escaped where they are drawn, as markup; user text never begins as an element here."""
    from markupsafe import Markup

    return {key: Markup(value) if key in _CHARTS else value for key, value in values.items()}


_WORDS = {"lp_ft": "LP-FT"}
"""Names of methods that are no words."""

_CHARTS = (
    "loss",
    "metric",
    "rates",
    "drift",
    "map",
    "choice",
    "matrix",
    "intervals",
    "before",
    "after",
    "scatter",
    "histogram",
    "forgetting",
)


@cache
def _environment() -> Environment:
    from jinja2 import ChainableUndefined, Environment, PackageLoader, pass_context
    from jinja2.runtime import Context

    @pass_context
    def metric_title(context: Context, name: Any) -> str:
        return str(context["words_of_target"].title(str(name)))

    environment = Environment(
        loader=PackageLoader("finetune", "report"),
        autoescape=True,
        undefined=ChainableUndefined,
        finalize=lambda value: units.MISSING if value is None or isinstance(value, ChainableUndefined) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": units.count,
        "significant": units.significant,
        "scientific": units.scientific,
        "percent": units.percent,
        "size": units.size,
        "duration": units.duration,
        "times": units.times,
        "change": units.change,
        "metric": lambda value, name: units.metric(str(name), value),
        "metric_title": metric_title,
        "plain": units.plain,
        "moment": units.moment,
        "quantile": units.quantile,
        "sentence": _sentence,
        "plural": units.plural,
        "path": _breakable,
        "words": lambda text: _WORDS.get(str(text), str(text).replace("_", " ")),
        "link": _link,
    }
    environment.globals |= {"interval": units.interval, "dash": units.MISSING}
    return environment


def _sentence(words: Any) -> str:
    """The words as a sentence: a capital first, a full stop last."""
    text = str(words).strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _breakable(name: Any) -> Markup:
    """A path or id that may break after its separators, where a reader expects it."""
    from markupsafe import Markup, escape

    return Markup("/<wbr>").join(escape(part) for part in str(name).split("/"))


def _link(address: Any) -> str | None:
    """The address if a browser may follow it from this page: plain web links only, no javascript: or data:."""
    text = str(address) if isinstance(address, str) else ""
    return text if text.lower().startswith(("https://", "http://")) else None
