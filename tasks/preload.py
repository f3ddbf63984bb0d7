"""Imports of every model child, made once in the fork server (see ``tasks.child``).

A fork server with these imports starts a child in about 20 ms instead of 4 s. It must never
compute: after a parallel torch operation in the server, a two-thread child hangs (measured,
November 2026).
"""

import gc
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

transformers.utils.logging.disable_progress_bar()
gc.freeze()
gc.enable()
