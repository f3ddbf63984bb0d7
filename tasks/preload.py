"""Imports of every model child, made once in the fork server (see ``tasks.child``).

A fork server with these imports starts a child in about 20 ms instead of 4 s. It must never
compute: after a parallel torch operation in the server, a two-thread child hangs (measured,
November 2026).
"""

import contextlib
import gc
import importlib
import os

# No object of these imports is ever garbage: without collecting they take a fifth less time, and
# frozen objects stay on pages that the children share.
gc.disable()

# Children read only folders that fetch has verified; nothing in them may reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch  # noqa: E402, F401, TID253
import transformers  # noqa: E402, TID253
import transformers.modeling_utils  # noqa: E402, TID253
import transformers.models.auto.modeling_auto  # noqa: E402, TID253

import tasks.trace.record  # noqa: E402
import tasks.validate.compute  # noqa: E402
import tasks.validate.gate  # noqa: E402, F401


def _import_what_every_model_needs() -> None:
    """Import what the modules of models import, and make what loading weights asks for first.

    Each child of a conversion paid for it: a quarter of the processor time of a tiny one, half of
    it for the thousand regular expressions of transformers 5's mapping of weights' names.
    """
    for name in ("generation.utils", "modeling_layers", "models.auto.tokenization_auto"):
        with contextlib.suppress(ImportError):  # an earlier version lacks it
            importlib.import_module(f"transformers.{name}")
    with contextlib.suppress(ImportError):
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("bert")  # made, and kept, for all types at once


_import_what_every_model_needs()
transformers.utils.logging.disable_progress_bar()
gc.freeze()
gc.enable()
