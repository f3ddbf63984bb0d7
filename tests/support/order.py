"""Which test files are slow, and in which order files run: the longest first.

Each file runs on one worker from beginning to end. A long one that began last would keep one
worker busy while the other has nothing left to do. ``make test-quick`` leaves these files out; that
each of them exists is tested in `tests/test_boundaries.py`.
"""

from __future__ import annotations

#: By the processor time of a whole file, longest first; those with servers and processes that are
#: waited for come early too.
SLOW = (
    "test_fleet_server",
    "test_fleet_losses",
    "test_production",
    "test_sweep",
    "test_neuron_flow",
    "test_store_contract",
    "test_store_faults",
    "test_transformers_versions",
    "test_adversarial",
    "test_general",
    "test_generation",
    "test_convert_fleet",
    "test_neuron_compile",
    "test_neuron_reader",
    "test_crash",
    "test_race",
    "test_arguments",
    "test_s3_local_faults",
    "test_s3_server",
    "test_quantise",
    "test_store_before",
    "test_validate",
    "test_samples",
    "test_bench",
    "test_devices",
    "test_rotary",
    "test_validate_current",
    "test_left_out",
    "test_left_padding",
    "test_pages",
    "test_flows_cli",
    "test_child",
    "test_pipeline_package",
    "test_convert_checkpoint",
    "test_neuron_double_models",
    "test_neuron_double_harness",
    "test_fault_proxy",
    "test_gc",
    "test_recording",
    "test_cpp",
    "test_predict",
    "test_defaults",
    "test_names",
    "test_sagemaker",
    "test_push",
    "test_neuron_images",
)


def place(file: str) -> int:
    """Return where a file stands: slow ones first, all others behind them."""
    return SLOW.index(file) if file in SLOW else len(SLOW)
