"""The sweep over architectures: a representative part of it, and what it makes of faults."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest

from flows.__main__ import main
from flows.commands.sweep import summarise
from flows.convert import convert
from tasks.errors import RequestError
from tasks.sweep import check, rows, tiny
from tasks.sweep import run as sweep_run
from tasks.sweep.rows import CRASHED, PROVED, PUBLISHED, REFUSED, UNTESTABLE, WRONG, Row, Sweep
from tasks.sweep.run import SweepOptions, run_sweep, try_case
from tasks.sweep.table import make_support_page
from tasks.sweep.tiny import Case

#: The sweep is the first test's: on a busy machine it takes longer than any other test may.
pytestmark = pytest.mark.timeout(1800)
#: Model type -> the task that is tried here; `make sweep` tries them all.
REPRESENTATIVE = {
    "albert": "fill-mask", "bart": "text2text-generation", "bert": "multiple-choice",
    "bert-generation": "text-generation", "big_bird": "question-answering",
    "blenderbot": "text2text-generation", "bloom": "text-generation",
    "canine": "text-classification", "convbert": "fill-mask", "ctrl": "text-classification",
    "deberta": "fill-mask", "deberta-v2": "token-classification",
    "deepseek_v3": "text-generation", "distilbert": "question-answering",
    "electra": "text-classification", "esm": "token-classification", "falcon": "text-generation",
    "fnet": "fill-mask", "funnel": "text-classification", "gemma": "text-generation",
    "gemma3_text": "text-generation", "gpt2": "token-classification",
    "gpt_neo": "text-generation", "gpt_neox": "question-answering", "gpt_oss": "text-generation",
    "gptj": "text-generation", "ibert": "fill-mask", "jetmoe": "text-generation",
    "layoutlm": "token-classification", "led": "text2text-generation",
    "llama": "text-classification", "longformer": "fill-mask", "longt5": "text2text-generation",
    "m2m_100": "text2text-generation", "mamba": "text-generation",
    "marian": "text2text-generation", "mbart": "text2text-generation",
    "megatron-bert": "multiple-choice", "mistral": "text-generation",
    "mt5": "text2text-generation", "mixtral": "text-generation",
    "mobilebert": "question-answering", "modernbert": "fill-mask",
    "mpnet": "feature-extraction", "mpt": "text-generation", "nllb-moe": "text2text-generation",
    "nystromformer": "fill-mask", "opt": "text-generation", "pegasus": "text2text-generation",
    "phi": "text-generation", "qwen2_moe": "text-generation", "qwen3": "text-generation",
    "rembert": "fill-mask", "roberta": "feature-extraction", "roc_bert": "fill-mask",
    "roformer": "fill-mask", "rwkv": "text-generation", "squeezebert": "fill-mask",
    "switch_transformers": "text2text-generation", "t5": "text2text-generation",
    "t5gemma": "text2text-generation", "tapas": "text-classification",
    "umt5": "text2text-generation", "xlm": "fill-mask",
    "xlnet": "text-classification", "xmod": "fill-mask", "yoso": "fill-mask",
}  # fmt: skip
#: What is refused, and the error that says why.
REFUSALS = {"jetmoe": "NumericsMismatchError"}


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The representative part, run once; two cases at a time as the command does."""
    out = tmp_path_factory.mktemp("sweep") / "sweep.json"
    by_task: dict[str, list[str]] = {}
    for model_type, task in REPRESENTATIVE.items():
        by_task.setdefault(task, []).append(model_type)
    for task, types in by_task.items():
        run_sweep(out, types=types, tasks=[task], convert=convert)
    return Sweep.at(out, json.loads(out.read_text())["setup"])


def test_at_least_sixty_types_are_swept():
    assert len(REPRESENTATIVE) >= 60


@pytest.mark.parametrize("model_type", sorted(REPRESENTATIVE))
def test_it_is_published_right_or_refused_with_its_reason(model_type: str, swept: Sweep):
    row = swept.rows[f"{model_type}/{REPRESENTATIVE[model_type]}"]
    if model_type in REFUSALS:
        assert (row.status, row.error) == (REFUSED, REFUSALS[model_type]), row.reason
        assert row.reason
    else:
        assert row.status == PUBLISHED, f"{row.error}: {row.reason}"
        assert row.worst_check is not None
        assert row.worst_check < 1e-4


#: Encoder-decoders that have one forward, and a word of the reason.
NO_GENERATION = {
    "led": "programs of encode",
    "nllb-moe": "expected eager to run",
    "switch_transformers": "expected eager to run",
}


@pytest.mark.parametrize(
    "model_type",
    [one for one, task in REPRESENTATIVE.items() if task == "text2text-generation"],
)
def test_an_encoder_decoder_generates_or_says_why_not(model_type: str, swept: Sweep):
    found = swept.rows[f"{model_type}/text2text-generation"].generation
    if model_type in NO_GENERATION:
        assert NO_GENERATION[model_type] in found
    else:
        assert found == PROVED


def test_a_sweep_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "sweep.json"
    first = run_sweep(out, types=["bert"], tasks=["fill-mask"], jobs=1, convert=convert)
    assert [row.status for row in first.rows.values()] == [PUBLISHED]

    def never(*_: object) -> Row:
        raise AssertionError("it has a row already")

    monkeypatch.setattr("tasks.sweep.run.try_case", never)
    again = run_sweep(out, types=["bert"], tasks=["fill-mask"], jobs=1, convert=convert)
    assert again.rows == first.rows
    with pytest.raises(AssertionError, match="has a row already"):
        run_sweep(
            out, types=["bert"], tasks=["fill-mask"], jobs=1, again=[PUBLISHED], convert=convert
        )
    with pytest.raises(RequestError, match=r"expected a sweep of .*float16.*Name another --out"):
        run_sweep(out, types=["bert"], options=SweepOptions(dtype="float16"), convert=convert)


def test_a_file_that_is_no_sweep_is_left_alone(tmp_path: Path):
    out = tmp_path / "sweep.json"
    out.write_text('{"rows": 1}')
    with pytest.raises(RequestError, match="expected a file that"):
        run_sweep(out, types=["bert"], convert=convert)
    assert out.read_text() == '{"rows": 1}'
    with pytest.raises(RequestError, match=r"brt.*Did you mean .*bert"):
        run_sweep(tmp_path / "other.json", types=["brt"], convert=convert)


def test_a_case_that_eager_can_not_run_is_untestable_with_the_reason():
    row = try_case(Case(model_type="vit", task="feature-extraction"), SweepOptions(), convert)
    assert (row.status, row.error) == (UNTESTABLE, "")
    assert "pixel_values" in row.reason


def test_a_child_that_dies_is_a_crash_and_not_the_sweeps_end(monkeypatch: pytest.MonkeyPatch):
    options = SweepOptions(timeout=0.05)
    row = try_case(Case(model_type="bert", task="fill-mask"), options, convert)
    assert (row.status, row.error) == (CRASHED, "timeout after 0.05 s")


def test_what_no_conversion_may_raise_is_a_crash():
    def broken(*_: object) -> None:
        raise KeyError("a bug of ours")

    row = try_case(Case(model_type="bert", task="fill-mask"), SweepOptions(), broken)
    assert (row.status, row.error) == (CRASHED, "KeyError")


def test_the_independent_comparison_sees_another_model(tmp_path: Path):
    """The negative control: what was published is right for another checkpoint."""
    from tasks.request.conversion import make_request

    case = Case(model_type="bert", task="fill-mask")
    folder = tiny.build(case, tmp_path / "bert")
    store = (tmp_path / "store").as_uri()
    fields = {"source": folder.as_uri(), "task": case.task, "lengths": [16, 48], "store": store}
    result = convert(make_request(fields))
    source = result.manifest.source
    right = check.check_published(store, source, case.task, folder, "latest")
    assert right.failures == ()
    assert right.outputs > 6
    other = tiny.build(dataclasses.replace(case, model_type="bert"), tmp_path / "other")
    corrupt(other)
    wrong = check.check_published(store, source, case.task, other, "latest")
    assert len(wrong.failures) == wrong.outputs
    assert "is off by" in wrong.failures[0]


def corrupt(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "query.weight" in name)
    weights[name] = weights[name].roll(1, 0).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def row(status: str, **changes: object) -> Row:
    return dataclasses.replace(
        Row(type="bert", task="fill-mask", status=status),
        **changes,  # type: ignore[arg-type]
    )


def test_shares_are_of_what_eager_runs():
    found = [row(PUBLISHED), row(PUBLISHED), row(PUBLISHED), row(REFUSED), row(UNTESTABLE)]
    assert rows.compute_share(found) == 0.75
    assert rows.compute_share([]) == 0.0
    assert summarise(found).startswith("5 cases: 3 published, 1 refused, 1 untestable\n75.0%")


def test_the_support_page_has_types_tasks_and_reasons():
    found = [
        row(PUBLISHED, other_lengths="differs", same_program=False),
        row(REFUSED, task="question-answering", error="TraceError", reason="a | b\nc"),
        row(UNTESTABLE, type="vit"),
        row(WRONG, type="odd", reason="off"),
    ]
    setup = {"toolchain": {"torch": "2.13.0"}, "dtype": "float32", "lengths": [16]}
    page = make_support_page(setup, found)
    assert "**1 of 3 cases published (33.3%), 1 model types;**" in page
    line = (
        "| bert | yes | refused | each length | silently wrong at other lengths without the guard |"
    )
    assert line in page
    assert "| bert/question-answering | TraceError | a \\| b c |" in page
    assert "| vit |" not in page
    assert "wrong" in page


def test_the_command_prints_totals_writes_the_table_and_fails_on_a_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    statuses = {"bert": PUBLISHED, "t5": CRASHED}

    def answer(case: Case, *_: object) -> Row:
        return Row(type=case.model_type, task=case.task, status=statuses[case.model_type])

    monkeypatch.setattr(sweep_run, "try_case", answer)
    arguments = ["sweep", "--tiny", "--out", str(tmp_path / "a.json"), "--tasks", "fill-mask"]
    table = ["--table", str(tmp_path / "table.md"), "--quiet"]
    level = logging.getLogger("flows.convert").level
    assert main([*arguments, "--types", "bert", *table]) == 0
    assert logging.getLogger("flows.convert").level == level
    assert "1 cases: 1 published" in capsys.readouterr().out
    assert "| bert | yes |" in (tmp_path / "table.md").read_text()
    other = ["sweep", "--tiny", "--out", str(tmp_path / "b.json"), "--types", "t5", "--quiet"]
    assert main([*other, "--tasks", "text2text-generation"]) == 1
    assert "1 crashed" in capsys.readouterr().out
