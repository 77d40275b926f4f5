"""Several studies as one self-contained HTML page."""

from collections.abc import Sequence

from lensjax.core import text
from lensjax.report.pages.html import render
from lensjax.report.pages.sections import shown_section
from lensjax.study.comparing import Comparison, compared_sections
from lensjax.study.schema import StudyReport


def render_comparison(reports: Sequence[StudyReport], comparison: Comparison) -> str:
    """Studies side by side, as HTML that needs no network.

    Args:
      reports: Of two studies or more.
      comparison: As `lensjax.study.comparing.compare` makes it of them.
    """
    order = [one.model for one in comparison.overall]
    first, *others = compared_sections(reports, comparison)
    sections = [shown_section(first, order), *map(shown_section, others)]
    return render(
        "comparison.html.j2",
        {"studies": [text.clean(name, 60) for name in comparison.studies], "sections": sections},
    )
