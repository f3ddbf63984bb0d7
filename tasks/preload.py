"""What every model child needs, imported once in the fork server (see ``tasks.child``).

A warm fork server starts a child in about 20 ms instead of 3 s. It must never compute: after a
parallel torch operation in the server, a two-thread child hangs (measured, November 2026).
"""

import os

# Children read only folders that fetch has verified; nothing in them may reach the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import transformers  # noqa: TID253
import transformers.modeling_utils  # noqa: TID253
import transformers.models.auto.modeling_auto  # noqa: TID253

import tasks.reference
import tasks.trace
import tasks.validate  # noqa: F401

transformers.utils.logging.disable_progress_bar()
