"""``python -m neuron_double``: every behaviour, its source, and whether it is documented."""

import sys

from neuron_double.behaviours import table

sys.stdout.write(f"{table()}\n")
