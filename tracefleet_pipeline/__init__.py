"""Convert checkpoints from Python; the front door is ``convert``.

    import tracefleet_pipeline

    result = tracefleet_pipeline.convert("./my-model", lengths=[32, 128], progress=print)
    result.status, result.url, result.report   # 'published', 'file:///…/conversions/…', …
    model = result.open()                       # tracefleet.open of what was converted

The commands of ``tracefleet`` (convert, plan, fleet, gc, …) come with this package.
"""

from tracefleet_pipeline.api import Conversion, ConversionError, convert

__all__ = ["Conversion", "ConversionError", "convert"]
