"""Loading an archive whose weights stay in its file."""

from __future__ import annotations

import hashlib
import io
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.model.facts import LoadOptions
from tasks.model.feeds import random_feed
from tasks.model.preflight import inspect
from tasks.model.weights import list_tensors
from tasks.trace.record import trace_checkpoint
from tracefleet.reader import archive


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Make the bundle of a tiny checkpoint, once for each name, task and dtype."""
    from tests.support import tiny

    made: dict[tuple[str, ...], tuple[Path, Any]] = {}

    def make(name: str, task: str, dtype: str = "float32") -> tuple[Path, Any]:
        if (name, task, dtype) not in made:
            folder = tiny.save(name, tmp_path_factory.mktemp("checkpoint"))
            options = LoadOptions(task=task, dtype=dtype)
            facts = inspect(folder, options, (8, 16))
            target = tmp_path_factory.mktemp("bundle") / "model.pt"
            trace_checkpoint(folder, options, facts, (8, 16), 1, target)
            made[name, task, dtype] = target, facts
        return made[name, task, dtype]

    return make


CASES = [
    ("bert-mlm", "fill-mask", "float32"),
    ("t5", "text2text-generation", "float32"),
    ("bert", "feature-extraction", "bfloat16"),
    ("bert", "feature-extraction", "int8"),
]


@pytest.mark.parametrize(("name", "task", "dtype"), CASES)
def test_every_weight_and_result_is_that_of_torchs_own_loader(name, task, dtype, bundles):
    path, facts = bundles(name, task, dtype)
    plain, mapped = torch.jit.load(path), archive.load(str(path))
    ours = list_tensors(mapped)
    assert ours.keys() == list_tensors(plain).keys()
    for key, tensor in list_tensors(plain).items():
        assert torch.equal(tensor, ours[key]), key
        assert tensor.requires_grad == ours[key].requires_grad
    feed = list(random_feed(facts, batch=3, length=11, seed=1).values())
    with torch.no_grad():
        assert all(map(torch.equal, plain(*feed), mapped(*feed)))


def test_large_weights_are_pages_of_the_file(bundles):
    path, _ = bundles("bert-mlm", "fill-mask")
    mapped = archive.load(str(path))
    ranges = _find_ranges(path)
    assert ranges
    large = [t for t in mapped.parameters() if t.numel() >= 4096]
    assert large
    assert all(any(low <= t.data_ptr() < high for low, high in ranges) for t in large)
    # The control: torch's own loader copies.
    copied = [t for t in torch.jit.load(path).parameters() if t.numel() >= 4096]
    ranges = _find_ranges(path)
    assert not any(low <= t.data_ptr() < high for t in copied for low, high in ranges)


def _find_ranges(path: Path) -> list[tuple[int, int]]:
    """Return where this process has the file in its memory."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
    return [(int(low, 16), int(high, 16)) for low, high in spans]


def test_a_changed_weight_stays_in_this_process(bundles):
    path, _ = bundles("bert-mlm", "fill-mask")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    mapped = archive.load(str(path))
    with torch.no_grad():
        for weight in mapped.parameters():
            weight.add_(1)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    fresh = dict(archive.load(str(path)).named_parameters())
    assert not any(torch.equal(fresh[name], w) for name, w in mapped.named_parameters())


def test_eight_threads_get_what_one_gets(bundles):
    path, facts = bundles("bert-mlm", "fill-mask")
    module = archive.load(str(path))
    feeds = [
        list(random_feed(facts, batch=1 + n % 5, length=1 + n % 16, seed=n).values())
        for n in range(40)
    ]
    with torch.no_grad():
        expected = [module(*feed)[0] for feed in feeds]
    wrong: list[int] = []

    def call(offset: int) -> None:
        with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            for number in range(len(feeds)):
                place = (number + offset) % len(feeds)
                if not torch.allclose(module(*feeds[place])[0], expected[place], atol=1e-6):
                    wrong.append(place)

    threads = [threading.Thread(target=call, args=(5 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class _Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("echo harm",)


@pytest.mark.parametrize(
    "structure", [pickle.dumps(_Hostile()), b"", b"nonsense", pickle.dumps([1, 2])]
)
def test_a_structure_that_no_archive_of_ours_has_is_refused(structure, bundles, tmp_path, capfd):
    path, _ = bundles("bert-mlm", "fill-mask")
    reader = torch._C.PyTorchFileReader(str(path))
    copy = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(copy)
    for record in reader.get_all_records():
        data = structure if record == "data.pkl" else reader.get_record(record)
        if record not in (".data/version", "version", ".data/serialization_id", "byteorder"):
            writer.write_record(record, data, len(data))
    writer.write_end_of_file()
    forged = tmp_path / "model.pt"
    forged.write_bytes(copy.getvalue())
    with pytest.raises(RuntimeError, match="structure can't be read"):
        archive.load(str(forged))
    assert "harm" not in capfd.readouterr().out
