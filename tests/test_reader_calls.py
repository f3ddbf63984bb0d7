"""Calls of an opened model: every form of input, rows of any lengths, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import tracefleet
from tests.support.reader_support import (
    LENGTHS,
    SEQ2SEQ,
    SOURCE,
    VOCABULARY,
    example_manifest,
    publish,
    tiny_bundle,
    tiny_seq2seq_bundle,
)
from tracefleet import (
    InputTooLongError,
    ManifestError,
    Model,
    Outputs,
    Run,
)
from tracefleet.manifest_types import General
from tracefleet.store.folder import FileStore

IDS = [[3, 1, 2]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    store = FileStore(root=tmp_path_factory.mktemp("store"))
    publish(store)
    return tracefleet.open(store, SOURCE)


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Model:
    store = FileStore(root=tmp_path_factory.mktemp("store"))
    publish(store, bundle=tiny_seq2seq_bundle(), **SEQ2SEQ)
    return tracefleet.open(store, SOURCE)


def test_outputs_are_named_by_key_attribute_and_position(model: Model):
    outputs = model(np.array(IDS))
    assert list(outputs) == ["last_hidden_state", "pooler_output"]
    assert len(outputs) == 2
    assert outputs["pooler_output"] is outputs.pooler_output is outputs[1] is outputs[-1]
    assert dict(outputs).keys() == outputs.keys()
    assert repr(outputs) == "Outputs(last_hidden_state: (1, 3, 4), pooler_output: (1, 4))"
    with pytest.raises(KeyError, match="expected one of"):
        outputs["logits"]
    with pytest.raises(AttributeError, match="expected one of"):
        _ = outputs.logits
    with pytest.raises(IndexError):
        outputs[2]
    with pytest.raises(AttributeError, match="read-only"):
        outputs.logits = 1
    for again in (pickle.loads(pickle.dumps(outputs)), copy.deepcopy(outputs)):
        assert np.array_equal(again.pooler_output, outputs.pooler_output)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (np.array(IDS), np.ndarray),
        (np.array(IDS, dtype=np.uint8), np.ndarray),
        (np.array(IDS, dtype=">i4"), np.ndarray),
        (torch.tensor(IDS), torch.Tensor),
        (torch.tensor(IDS, dtype=torch.int32), torch.Tensor),
        (IDS, np.ndarray),
        (tuple(tuple(row) for row in IDS), np.ndarray),
        ([np.array(IDS[0])], np.ndarray),
        (IDS[0], np.ndarray),
        (np.array(IDS[0]), np.ndarray),
        (torch.tensor(IDS[0]), torch.Tensor),
    ],
)
def test_every_form_of_ids_gives_the_same_numbers_and_its_own_kind(
    model: Model, given: Any, kind: type
):
    outputs = model(given)
    expected = model(torch.tensor(IDS))
    assert isinstance(outputs.pooler_output, kind)
    for name, value in outputs.items():
        assert np.array_equal(np.asarray(value), expected[name].numpy())
        assert value.shape[0] == 1


def test_a_read_only_array_is_taken_and_not_changed(model: Model):
    ids = np.array(IDS)
    ids.setflags(write=False)
    model(ids)
    assert ids.tolist() == IDS


def test_any_number_of_rows_and_any_length_up_to_the_maximum(model: Model):
    for rows in (1, 2, 5):
        for length in range(1, max(LENGTHS) + 1):
            ids = np.arange(rows * length).reshape(rows, length) % VOCABULARY
            outputs = model(ids)
            assert outputs.last_hidden_state.shape == (rows, length, 4)
            assert outputs.pooler_output.shape == (rows, 4)


def test_the_numbers_are_those_of_the_model(model: Model):
    module = torch.jit.load(_buffer())
    ids = torch.tensor(IDS)
    embedded = module.ids.weight[ids] + module.kinds.weight[torch.zeros_like(ids)]
    expected = embedded.mean(1)
    assert torch.allclose(model(ids).pooler_output, expected, atol=1e-6)
    assert not torch.allclose(model(ids + 1).pooler_output, expected, atol=1e-2)


def _buffer() -> Any:
    import io

    return io.BytesIO(tiny_bundle())


def test_outputs_can_feed_a_head_that_is_trained(model: Model):
    features = model(torch.tensor(IDS)).pooler_output
    head = torch.nn.Linear(4, 1)
    head(features).sum().backward()
    assert not features.requires_grad
    assert head.weight.grad is not None


def test_bfloat16_comes_to_numpy_as_float32():
    class Half(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return tensors[0].to(torch.bfloat16), tensors[0].to(torch.float16)

    model = Model(example_manifest(), Half())  # type: ignore[arg-type]
    outputs = model(IDS)
    assert outputs[0].dtype == np.float32
    assert outputs[1].dtype == np.float16
    assert model(torch.tensor(IDS))[0].dtype == torch.bfloat16


def test_a_bundle_that_returns_another_number_of_outputs_is_refused():
    class One(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
            return (tensors[0],)

    with pytest.raises(ManifestError, match="2 outputs expected, the bundle returned 1"):
        Model(example_manifest(), One())(IDS)  # type: ignore[arg-type]


# Calling: padding and masks


def test_ragged_rows_get_what_each_row_gets_alone(model: Model):
    rows = [[3, 1, 2, 9, 4], [7], [5, 6, 8]]
    together = model(rows)
    assert together.last_hidden_state.shape == (3, 5, 4)
    for index, row in enumerate(rows):
        alone = model([row])
        assert np.allclose(together.pooler_output[index], alone.pooler_output[0], atol=1e-6)
        hidden = together.last_hidden_state[index, : len(row)]
        assert np.allclose(hidden, alone.last_hidden_state[0], atol=1e-6)
    # The control: padded by hand and not masked, the rows come out different.
    padded = model([row + [0] * (5 - len(row)) for row in rows])
    assert not np.allclose(together.pooler_output[1], padded.pooler_output[1], atol=1e-2)


def test_a_mask_of_the_callers_own_is_used(model: Model):
    masked = model([[3, 1, 2]], attention_mask=[[1, 1, 0]])
    assert np.allclose(masked.pooler_output, model([[3, 1]]).pooler_output, atol=1e-6)
    assert not np.allclose(masked.pooler_output, model([[3, 1, 2]]).pooler_output, atol=1e-2)
    positional = model([[3, 1, 2]], [[1, 1, 0]])
    assert np.array_equal(masked.pooler_output, positional.pooler_output)


def test_ragged_rows_take_ragged_companions(model: Model):
    rows, kinds = [[3, 1], [2]], [[0, 1], [1]]
    together = model(rows, [[1, 1], [1]], token_type_ids=kinds)
    alone = model([[2]], token_type_ids=[[1]])
    assert np.allclose(together.pooler_output[1], alone.pooler_output[0], atol=1e-6)
    with pytest.raises(ValueError, match="attention_mask: expected 0 where"):
        model(rows, np.ones((2, 2), dtype=int))


def test_an_input_that_is_left_out_gets_the_models_own_default(model: Model):
    given = model(IDS, [[1, 1, 1]], token_type_ids=[[0, 0, 0]])
    assert np.array_equal(model(IDS).pooler_output, given.pooler_output)
    other = model(IDS, token_type_ids=[[1, 1, 1]])
    assert not np.allclose(model(IDS).pooler_output, other.pooler_output, atol=1e-2)


def test_one_torch_input_among_others_makes_torch_outputs(model: Model):
    outputs = model(IDS, torch.ones(1, 3, dtype=torch.int64))
    assert isinstance(outputs.pooler_output, torch.Tensor)


def test_a_decoder_may_have_another_length(seq2seq: Model):
    outputs = seq2seq([[1, 2, 3]], decoder_input_ids=[[1, 1, 1, 1, 1]])
    assert outputs.logits[0, :, 0].tolist() == [7, 8, 9, 10, 11]
    ragged = seq2seq([[1, 2, 3], [5]], decoder_input_ids=[[1], [2, 3]])
    assert ragged.logits.shape == (2, 2, 1)
    assert ragged.logits[1, :, 0].tolist() == [7, 10]
    with pytest.raises(InputTooLongError, match="9 tokens"):
        seq2seq([[1]], decoder_input_ids=[[1] * 9])
    with pytest.raises(ValueError, match="decoder_input_ids: this conversion needs it"):
        seq2seq([[1]])
    with pytest.raises(ValueError, match="expected batch 2 as in input_ids, got 1"):
        seq2seq([[1], [2]], decoder_input_ids=[[1]])


class _Echo(torch.nn.Module):
    """Returns each row's first id, and counts its calls' rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, int]] = []

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.rows.append((ids.shape[0], ids.shape[1]))
        return ids.unsqueeze(2).expand(*ids.shape, 4), ids[:, :1].expand(-1, 4)


def test_rows_whose_padding_nothing_hides_run_with_their_equals():
    """Without a mask a shorter row would be computed with its padding."""
    echo = _Echo()
    bare = Model(example_manifest(inputs=example_manifest().inputs[:1]), echo)  # type: ignore[arg-type]
    found = bare([[1, 2], [3], [4, 5]])
    assert found.pooler_output[:, 0].tolist() == [1, 3, 4]
    assert found.last_hidden_state[:, :, 0].tolist() == [[1, 2], [3, 0], [4, 5]]
    assert sorted(echo.rows) == [(1, 1), (2, 2)]


# Calling: many rows


def _general(rows: int = 4, tokens: int = 16) -> tuple[Model, _Echo]:
    echo = _Echo()
    manifest = example_manifest(
        inputs=example_manifest().inputs[:1], general=General(shortest=1, rows=rows, tokens=tokens)
    )
    return Model(manifest, echo), echo  # type: ignore[arg-type]


def test_rows_may_be_arrays_and_tensors_of_one_axis(model: Model):
    lists = [[3, 1, 2], [7]]
    expected = model(lists).pooler_output
    arrays = [np.array(row) for row in lists]
    assert np.array_equal(model(arrays).pooler_output, expected)
    assert np.array_equal(model([torch.tensor(row) for row in lists]).pooler_output, expected)
    streamed = [one.pooler_output for one in model.stream(arrays)]
    assert np.allclose(streamed, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"row 1: expected whole numbers, got 1\.5"):
        model([np.array([1, 2]), np.array([1.5])])


def test_a_stream_yields_each_row_in_order_without_padding_and_reads_a_window_ahead():
    model, echo = _general()
    taken = []

    def rows() -> Iterator[list[int]]:
        for index in range(25):
            taken.append(index)
            yield [index + 1] * (1 + index % 3)

    found = model.stream(rows(), window=10)
    first = next(found)
    assert len(taken) == 10
    rest = list(found)
    assert len(taken) == 25
    for index, one in enumerate([first, *rest]):
        assert one.pooler_output.tolist() == [index + 1] * 4
        assert one.last_hidden_state.shape == (1 + index % 3, 4)
    assert max(rows for rows, _ in echo.rows) <= 4
    assert all(rows * tokens <= 16 for rows, tokens in echo.rows)
    assert list(model.stream([])) == []


def test_a_stream_takes_every_input_by_name(model: Model):
    rows = [
        {"input_ids": [3, 1], "token_type_ids": [0, 1]},
        {"input_ids": [2], "token_type_ids": [1]},
    ]
    found = list(model.stream(rows))
    for row, one in zip(rows, found, strict=True):
        alone = model([row["input_ids"]], token_type_ids=[row["token_type_ids"]])
        assert np.allclose(one.pooler_output, alone.pooler_output[0], atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([], ValueError, "input_ids: row 5: expected at least one token"),
        ([1, "a"], ValueError, "input_ids: row 5: expected whole numbers, got 'a'"),
        ([1] * 9, InputTooLongError, "row 5 has 9 tokens; expected at most 8"),
        (3, ValueError, "a list of ids for each row"),
        ({"ids": [1]}, ValueError, r"row 5: expected \['input_ids'\] as in the rows before, got"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(bad: Any, error: type[Exception], message: str):
    model, _ = _general()
    rows = [[1]] * 5 + [bad] + [[2]] * 3
    with pytest.raises(error, match=message):
        list(model.stream(rows, window=3))
    if isinstance(bad, list):
        with pytest.raises(error, match=message):
            model(rows)


def test_a_window_and_the_inputs_of_a_stream_are_checked(model: Model):
    with pytest.raises(ValueError, match="window: expected at least 1 row, got 0"):
        next(model.stream([[1]], window=0))
    with pytest.raises(ValueError, match=r"unknown inputs \['text'\]"):
        next(model.stream([{"text": [1]}]))


def test_every_run_is_told_to_whoever_counts(model: Model):
    runs: list[Run] = []
    model.on_run = runs.append
    model([[3, 1, 2, 9, 4], [7], [5, 6, 8]])
    model(np.ones((1, 3), dtype=int))
    assert sum(run.rows for run in runs) == 4
    assert sum(run.tokens for run in runs) == 5 + 1 + 3 + 3
    assert all(0 <= run.padded < 1 and run.seconds > 0 for run in runs)
    # Its bundle pads three tokens to four.
    assert runs[-1].padded == pytest.approx(1 / 4)


# Calling: what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one token in each row"),
        ([[]], "at least one token in each row"),
        ([[1], []], "at least one token in each row"),
        (np.zeros((0, 3), dtype=int), "at least one row and one token"),
        (np.zeros((1, 0), dtype=int), "at least one row and one token"),
        (np.zeros((1, 2, 3), dtype=int), r"expected shape \(batch, length\)"),
        (np.array(3), r"expected shape \(batch, length\)"),
        (np.array([[1.0]]), "expected integers, got float64"),
        (np.array([[True]]), "expected integers, got bool"),
        (torch.tensor([[1.0]]), r"expected integers, got torch\.float32"),
        (torch.tensor([[True]]), r"expected integers, got torch\.bool"),
        ([[1.5]], "expected whole numbers, got 1.5"),
        ([["a"]], r"expected a text or a pair of texts, got \['a'\]"),
        ([[True]], "expected whole numbers, got True"),
        ([1, [2]], "got a mixture"),
        ([[1, -1]], "from 0 to .* got -1"),
        (np.array([[2**63]], dtype=np.uint64), "from 0 to"),
        ([[2**70]], "64 bits"),
        (None, "input_ids: this conversion needs it"),
        ("text", "published without model/tokenizer.json"),
        ([[VOCABULARY]], f"outside the model's vocabulary .largest given: {VOCABULARY}"),
    ],
)
def test_ids_that_make_no_sense_are_refused(model: Model, given: Any, message: str):
    with pytest.raises(ValueError, match=message):
        model(given)


@pytest.mark.parametrize(
    "given", [[[1] * 9], [1] * 9, np.ones((2, 9), dtype=int), [[1], [1] * 9], torch.ones(9).long()]
)
def test_one_token_too_many_is_refused_not_cut(model: Model, given: Any):
    with pytest.raises(InputTooLongError, match="9 tokens; expected at most 8"):
        model(given)


def test_inputs_that_do_not_fit_together_are_refused(model: Model):
    with pytest.raises(
        ValueError, match=r"unknown inputs \['token_types'\]; this .*token_type_ids"
    ):
        model(IDS, token_types=IDS)
    with pytest.raises(
        ValueError, match="attention_mask: expected length 3 as in input_ids, got 2"
    ):
        model(IDS, [[1, 1]])
    with pytest.raises(ValueError, match="attention_mask: expected batch 1 as in input_ids, got 2"):
        model(IDS, [[1, 1, 1], [1, 1, 1]])
    with pytest.raises(ValueError, match="token_type_ids: expected whole numbers from 0"):
        model(IDS, token_type_ids=[[0, -1, 0]])


def test_an_id_too_large_for_the_bundles_dtype_is_refused_not_wrapped(model: Model):
    narrow = type(model.manifest.inputs[0])(**{**vars(model.manifest.inputs[0]), "dtype": "int32"})
    module = torch.jit.load(_buffer())
    inputs = (narrow, *model.manifest.inputs[1:])
    narrowed = Model(example_manifest(inputs=inputs), module)
    with pytest.raises(ValueError, match=f"from 0 to {2**31 - 1}, got {2**32 + 1}"):
        narrowed([[2**32 + 1]])
    assert narrowed([[1]]).pooler_output.shape == (1, 4), "the control: a small id runs"


# Calling one length exactly


def test_exact_runs_one_graph_and_only_at_its_own_shape(model: Model):
    ids = torch.tensor([[3, 1, 2, 4]])
    ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
    outputs = model.exact(4, ids, ones, zeros)
    assert isinstance(outputs, Outputs)
    assert torch.equal(outputs.pooler_output, model(ids).pooler_output)
    with pytest.raises(ValueError, match=r"expected one of \(4, 8\), got 5"):
        model.exact(5, ids, ones, zeros)
    with pytest.raises(ValueError, match="expected 3 tensors"):
        model.exact(4, ids)
    with pytest.raises(ValueError, match=r"input_ids: expected shape \(1, 8\), got \(1, 4\)"):
        model.exact(8, ids, ones, zeros)
