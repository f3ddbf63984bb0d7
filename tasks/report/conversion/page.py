"""What a person reads about a conversion: one self-contained HTML page.

The verdict first, then errors and latency as charts, then tables; a failed gate gets the same page
with its failures at the top. ``tasks.report.conversion.markdown`` has the same in markdown.
"""

from __future__ import annotations

from tasks.report.conversion import use, words
from tasks.report.conversion.charts import choose_outputs, error_chart, latency_chart
from tasks.report.conversion.facts import ReportFacts
from tasks.report.render import render
from tasks.validate.verdict import ValidationReport


def render_html(facts: ReportFacts, report: ValidationReport) -> str:
    """Return the whole page; opens from a disk or an S3 bucket, needs nothing else."""
    return render(
        "conversion.html",
        facts=facts,
        report=report,
        words=words,
        use=use,
        errors=error_chart(report),
        latency=latency_chart(report),
        shown=choose_outputs(report),
        outputs={name for probe in report.probes for name in probe.outputs},
    )
