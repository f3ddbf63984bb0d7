"""Texts in, texts out: what encoder-decoders write, and tokenizers without ``tokenizer.json``."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BertTokenizer, M2M100Tokenizer

import tracefleet
from examples.translator import PAIRS, make_translator
from flows.convert import convert
from tasks.model.facts import LoadOptions
from tasks.request.conversion import make_request
from tasks.samples import text_spec
from tasks.samples.text_spec import describe_text
from tasks.samples.texts import list_texts
from tasks.samples.tokenizer_file import describe_pieces, read_from
from tracefleet.check import SAME, check
from tracefleet.cli import main
from tracefleet.errors import InputTooLongError, NoGenerationError
from tracefleet.text.files import read_spec
from tracefleet.text.opening import open_tokenizer
from tracefleet.text.spec import PieceSpec

TASK = "text2text-generation"
OPTIONS = LoadOptions(task=TASK)
SOURCES, TARGETS = (list(texts) for texts in zip(*PAIRS, strict=True))
#: What a tokenizer of pieces does by itself: unknown runs, special tokens, codes, spaces.
ODD = (
    *("  two  spaces ", "▁x", "Привет, Müller!", "🎉🚀 a", "<unk> <pad>x", "tab\tand\nline"),
    *("a</s>b", ">>fr<< Where is the cat?", ">>fr<<", ">>open", ""),
)
pytestmark = pytest.mark.filterwarnings("ignore:Recommended")  # sacremoses cleans in training


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """Return a store with a translator that was trained here, its name, and its checkpoint."""
    root = tmp_path_factory.mktemp("translator")
    folder, store = make_translator(root / "checkpoint"), root / "store"
    fields = {"source": f"file://{folder}", "task": TASK, "lengths": [16, 32]}
    manifest = convert(make_request({**fields, "store": str(store)})).manifest
    made = manifest.generation
    assert made is not None
    assert made.verdict is not None
    assert (made.num_beams, made.verdict.unproved) == (4, ())
    return store, manifest.source, folder


def test_a_translator_translates_as_a_person_can_read(translator):
    store, source, folder = translator
    model = tracefleet.open(store, source)
    assert model.generate(SOURCES) == TARGETS
    assert model.generate(SOURCES[0]) == TARGETS[0]
    assert model.predict(SOURCES[1:3]) == TARGETS[1:3]
    assert model.predict([]) == []
    tokenizer = AutoTokenizer.from_pretrained(folder)
    eager = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    padded = tokenizer(SOURCES, padding=True, return_tensors="pt")
    expected = eager.generate(**padded)
    assert torch.equal(model.generate(dict(padded)), expected), "what a tokenizer returned"
    assert tokenizer.batch_decode(expected, skip_special_tokens=True) == TARGETS


def test_the_command_translates_lines_of_a_pipe_and_prints_ids(translator, capsys, monkeypatch):
    store, source, folder = translator
    assert main(["run", str(store), source, "--text", SOURCES[0], "--text", SOURCES[6]]) == 0
    assert capsys.readouterr().out.splitlines() == [TARGETS[0], TARGETS[6]]
    assert main(["run", str(store), "--text", SOURCES[6], "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": SOURCES[6], "answer": TARGETS[6]}
    assert main(["run", str(store), "--text", SOURCES[0], "--new-tokens", "1", "--beams", "1"]) == 0
    assert len(capsys.readouterr().out) < len(TARGETS[0])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(SOURCES[6])["input_ids"]
    assert main(["run", str(store), "--ids", " ".join(map(str, ids))]) == 0
    printed = [int(word) for word in capsys.readouterr().out.split()]
    assert tokenizer.decode(printed, skip_special_tokens=True) == TARGETS[6]


def test_bad_texts_are_refused_by_type(translator):
    store, source, _ = translator
    model = tracefleet.open(store, source)
    with pytest.raises(InputTooLongError, match=r"text 1: [0-9]+ tokens"):
        model.generate(["Thank you.", "Thank you. " * 40])
    assert isinstance(model.generate("Thank you. " * 40, truncate=True), str)
    with pytest.raises(ValueError, match="got pairs of texts"):
        model.generate([("a", "b")])
    with pytest.raises(ValueError, match="expected none beside texts"):
        model.generate("a", [[1]])
    with pytest.raises(ValueError, match="expected texts beside them, got ids"):
        model.generate([[5, 0]], truncate=True)
    with pytest.raises(ValueError, match="first_token: expected a token of the vocabulary"):
        model.generate("a", first_token="xx")
    with pytest.raises(ValueError, match=r"prompt_name: expected one of"):
        model.generate("a", prompt_name="summarization")
    with pytest.raises(ValueError, match=r"surrogate|UTF-8"):
        model.generate("\ud800")


def test_golden_texts_make_the_same_ids_without_transformers(translator):
    store, source, _ = translator
    report = check(tracefleet.open(store, source))
    assert report.ok
    assert {result for _, result in report.tokenizer} == {SAME}


def test_a_conversion_without_generation_says_so_for_texts(checkpoint, tmp_path):
    fields = {"source": f"file://{checkpoint('t5')}", "task": TASK, "lengths": [8]}
    more = {"store": str(tmp_path / "store"), "generation": "none"}
    manifest = convert(make_request({**fields, **more})).manifest
    model = tracefleet.open(tmp_path / "store", manifest.source)
    for ask in (model.generate, model.predict):
        with pytest.raises(NoGenerationError, match="expected a conversion that generates"):
            ask("a")


# --- tokenizers without tokenizer.json ----------------------------------------------------------


def _opened(folder: Path, made: Path, lengths: tuple[int, ...] = (16,)) -> Any:
    spec = describe_text(folder, OPTIONS, lengths, made)
    assert spec.refused is None
    return spec, open_tokenizer(spec, read_from(folder, made))


def _expect_the_same(own: Any, tokenizer: Any, texts: list[str]) -> None:
    for text in texts:
        [encoded] = tokenizer.encode_all([text])
        assert encoded.ids == own(text)["input_ids"], text
        decoded = tokenizer.decode(encoded.ids, skip_special=True, clean_up=False)
        assert decoded == own.decode(encoded.ids, skip_special_tokens=True), text
        [cut] = tokenizer.encode_all([text], most=5)
        assert cut.ids == own(text, truncation=True, max_length=5)["input_ids"], text


def test_marian_reads_and_writes_as_its_own_tokenizer_does(translator, tmp_path):
    _, _, folder = translator
    spec, tokenizer = _opened(folder, tmp_path / "made.json")
    assert spec.tokenizer is None
    assert spec.pieces.codes
    own = AutoTokenizer.from_pretrained(folder)
    _expect_the_same(own, tokenizer, [*SOURCES, *TARGETS, *ODD])


def test_m2m100_begins_with_the_language_of_its_source(translator, tmp_path):
    _, _, marian = translator
    shutil.copy(marian / "source.spm", tmp_path / "sentencepiece.bpe.model")
    shutil.copy(marian / "vocab.json", tmp_path / "vocab.json")
    files = [str(tmp_path / name) for name in ("vocab.json", "sentencepiece.bpe.model")]
    M2M100Tokenizer(*files, src_lang="de").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "m2m_100"}))
    spec, tokenizer = _opened(tmp_path, tmp_path / "made.json")
    assert spec.pieces.begin == ("__de__",)
    own = AutoTokenizer.from_pretrained(tmp_path)
    assert own.convert_tokens_to_ids("__fr__") == tokenizer.find_id("__fr__")
    _expect_the_same(own, tokenizer, [*SOURCES, *TARGETS, *ODD])


@pytest.mark.parametrize("change", [{"codes": False}, {"end": ()}, {"unknown": "<pad>"}])
def test_a_tokenizer_that_does_something_else_is_refused(
    translator, tmp_path, monkeypatch, change: dict[str, Any]
):
    def plant(*given: Any) -> PieceSpec:
        described = describe_pieces(*given)
        assert described is not None
        return dataclasses.replace(described, **change)

    _, _, folder = translator
    coded = dataclasses.replace(next(iter(list_texts(TASK))), text=">>de<< Hello")
    monkeypatch.setattr(text_spec, "list_texts", lambda task: (*list_texts(task), coded))
    monkeypatch.setattr(text_spec, "describe_pieces", plant)
    spec = text_spec.describe_text(folder, OPTIONS, (16,), tmp_path / "made.json")
    assert spec.refused is not None
    assert "makes other ids" in spec.refused


def test_a_vocabulary_alone_becomes_a_tokenizer_file_that_is_published(checkpoint, tmp_path):
    """Older checkpoints have ``vocab.txt`` and no ``tokenizer.json``."""
    folder = tmp_path / "old"
    shutil.copytree(checkpoint("bert"), folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "##e"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    fields = {"source": f"file://{folder}", "task": "feature-extraction", "lengths": [8]}
    manifest = convert(make_request({**fields, "store": str(tmp_path / "store")})).manifest
    assert manifest.text is not None
    assert manifest.text.tokenizer == "model/tokenizer.json"
    model = tracefleet.open(tmp_path / "store", manifest.source)
    own = AutoTokenizer.from_pretrained(folder)
    encoded = own("a be c", return_tensors="np")
    assert model("a be c").keys() == model(dict(encoded)).keys()
    assert (model("a be c")[0] == model(dict(encoded))[0]).all()
    assert not (folder / "tokenizer.json").exists(), "the checkpoint is left as it was"


def test_prefixes_of_t5_are_prompts(tmp_path):
    asked = {"translation_en_to_de": {"prefix": "translate English to German: "}, "other": {}}
    files = {"config.json": json.dumps({"task_specific_params": asked}).encode()}
    assert read_spec(files.get, TASK).prompts == {
        "translation_en_to_de": "translate English to German: "
    }
    assert read_spec(files.get, "feature-extraction").prompts == {}
