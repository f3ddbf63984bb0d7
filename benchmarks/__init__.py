"""Ratios against the documented script and the peers, measured side by side in one run."""
