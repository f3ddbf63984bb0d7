"""What differs from run to run, written beside a conversion: attestation and report page."""

from __future__ import annotations

import getpass
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

from flows.children import Children
from tasks.model.facts import ModelFacts
from tasks.model.feeds import input_specs
from tasks.publish.conversion import attest
from tasks.report.conversion.facts import ReportFacts
from tasks.report.conversion.page import html_report
from tasks.request.conversion import ConversionRequest
from tasks.trace.record import TraceResult
from tasks.validate.verdict import ValidationReport
from tracefleet.manifest import Manifest, Toolchain
from tracefleet.store import Store

logger = logging.getLogger(__name__)

Show = Callable[[ReportFacts, ValidationReport, str], None]


@dataclass(frozen=True, kw_only=True)
class Records:
    """Where one run writes about itself.

    Attributes:
        store: the store.
        run_id: names the attestation and the report.
        show: shows the report elsewhere too; None: nowhere.
    """

    store: Store
    run_id: str
    show: Show | None

    def attest(
        self,
        manifest: Manifest,
        request: ConversionRequest,
        children: Children,
        report: ValidationReport | None,
    ) -> None:
        """Write who, when, where and how fast; what is published stays so if that fails."""
        eager = {} if report is None else report.latency_eager
        traced = {} if report is None else report.latency_traced
        facts = {
            "revision": request.revision,
            # Not datetime.UTC: Inf1's Python 3.10 has none.
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017
            "host": platform.node(),
            "user": _user(),
            "seconds": {step: round(took, 3) for step, took in children.seconds.items()},
            "peak_bytes": children.peak_bytes,
            "latency_eager_ms": {str(k): round(v, 3) for k, v in eager.items()},
            "latency_traced_ms": {str(k): round(v, 3) for k, v in traced.items()},
        }
        try:
            attest(self.store, manifest, self.run_id, facts)
        except Exception:
            logger.warning("the attestation could not be written", exc_info=True)

    def write_report(self, about: ReportFacts, report: ValidationReport) -> str:
        """Write the page and return its URL; one that can't be made must not hide the verdict."""
        path = f"reports/{self.run_id}/index.html"
        url = f"{self.store.url}/{path}"
        try:
            self.store.put_over(path, html_report(about, report).encode())
            if self.show is not None:
                self.show(about, report, url)
        except Exception:
            logger.warning("the report could not be written", exc_info=True)
        return url


def report_facts(
    request: ConversionRequest,
    source: tuple[str, str],
    toolchain: Toolchain,
    facts: ModelFacts,
    traced: TraceResult,
    children: Children,
) -> ReportFacts:
    """Return what a report tells beside the gate's findings; ``source`` is with its commit."""
    return ReportFacts(
        source=source[0],
        commit=source[1],
        variant=request.variant,
        options=request.identity_options,
        inputs=input_specs(facts),
        outputs=traced.outputs,
        shared=traced.shared,
        same_program=traced.same_program,
        toolchain=toolchain,
        tied_groups=traced.tied_groups,
        seconds=children.seconds,
        peak_bytes=children.peak_bytes,
        bundle_bytes=sum(file.size for file in traced.files),
        weight_bytes=max(file.weight_bytes for file in traced.files),
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
