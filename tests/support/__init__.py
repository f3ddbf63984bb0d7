"""Helpers of the tests: tiny checkpoints, servers, planted faults."""
