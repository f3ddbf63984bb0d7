"""Texts in, texts out: what encoder-decoders write, and tokenizers without ``tokenizer.json``."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BertTokenizer, M2M100Tokenizer

import tracefleet
from examples.translator import PAIRS, make_translator
from flows.convert import convert
from tasks.model.facts import LoadOptions
from tasks.request.conversion import make_request
from tasks.samples import text_spec
from tasks.samples.text_spec import describe_text
from tasks.samples.texts import list_texts
from tasks.samples.tokenizer_file import describe_pieces, make_tokenizer_file, read_from
from tasks.sweep.tiny import Case, build
from tracefleet.check import SAME, check
from tracefleet.cli import main
from tracefleet.errors import InputTooLongError, ManifestError, NoGenerationError
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


@pytest.mark.parametrize(
    "arguments",
    [
        ("--text", "a", "--top-k", "2"),
        ("--text", "a", "--raw", "--beams", "2"),
        ("--ids", "5 0", "--truncate"),
        ("--ids", "5 0", "--decoder-ids", "5", "--first-token", "7"),
    ],
)
def test_options_without_effect_are_refused(translator, capsys, arguments: tuple[str, ...]):
    store, source, _ = translator
    with pytest.raises(SystemExit, match="2"):
        main(["run", str(store), source, *arguments])
    assert "expected none with what is asked for here" in capsys.readouterr().err


def test_an_id_is_a_first_token_too(translator, capsys):
    store, source, folder = translator
    eos = AutoTokenizer.from_pretrained(folder).eos_token_id
    assert main(["run", str(store), source, "--text", "a", "--first-token", str(eos)]) == 0
    assert capsys.readouterr().out == "\n"


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


@pytest.fixture
def own_translator(translator, tmp_path) -> Path:
    _, _, folder = translator
    return Path(shutil.copytree(folder, tmp_path / "own"))


def _edit_tokenizer(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_spaces_before_punctuation_go_where_transformers_lets_them_go(own_translator, tmp_path):
    _edit_tokenizer(own_translator, clean_up_tokenization_spaces=True)
    spec, tokenizer = _opened(own_translator, tmp_path / "made.json")
    assert spec.clean_up_spaces
    own = AutoTokenizer.from_pretrained(own_translator)
    ids = own("Where is the station ?")["input_ids"]
    expected = own.decode(ids, skip_special_tokens=True)
    assert expected == "Where is the station?"
    assert tokenizer.decode(ids, skip_special=True, clean_up=spec.clean_up_spaces) == expected
    assert tokenizer.decode(ids, skip_special=True, clean_up=False) != expected


def test_a_flag_that_transformers_does_not_follow_is_not_followed(tmp_path):
    folder = build(Case(model_type="bart", task=TASK), tmp_path / "bart")
    _edit_tokenizer(folder, clean_up_tokenization_spaces=True)
    spec = describe_text(folder, OPTIONS, (16,), tmp_path / "made.json")
    own = AutoTokenizer.from_pretrained(folder)
    ids = own("Is it ? No .", add_special_tokens=False)["input_ids"]
    follows = " ?" not in own.decode(ids, skip_special_tokens=True)
    assert (spec.refused, spec.clean_up_spaces) == (None, follows)


def test_a_tokenizer_of_pieces_with_added_words_is_refused(own_translator, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(own_translator)
    tokenizer.add_tokens(["<term>"])
    tokenizer.save_pretrained(own_translator)
    spec = describe_text(own_translator, OPTIONS, (16,), tmp_path / "made.json")
    assert spec.pieces is None
    assert spec.refused == "the checkpoint has no tokenizer.json"


def test_a_tokenizer_that_can_not_be_written_down_refuses_texts_alone(tmp_path):
    class Custom:
        def pre_tokenize(self, text: Any) -> None: ...

    made = Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = PreTokenizer.custom(Custom())
    own = SimpleNamespace(backend_tokenizer=made)
    assert not make_tokenizer_file(tmp_path, own, tmp_path / "made.json")


@pytest.mark.parametrize(
    ("model", "vocabulary", "told"),
    [
        (b"", None, "without pieces"),
        (b"junk", None, "expected a SentencePiece model"),
        (None, b"[]", "expected ids by their pieces"),
        (None, b'{"</s>": "0", "<unk>": 1}', "expected an id"),
        (None, b'{"</s>": 0.5, "<unk>": 1}', "expected an id"),
        (None, b'{"</s>": -1, "<unk>": 1}', "expected an id"),
        (None, b'{"\\ud800": 0, "<unk>": 1}', "surrogates not allowed"),
        (None, b"[" * 100_000, "expected a SentencePiece model"),
        (None, b'{"a": 0}', "<unk>"),
    ],
)
def test_damaged_pieces_are_refused_when_they_are_opened(
    translator, tmp_path, model: bytes | None, vocabulary: bytes | None, told: str
):
    _, _, folder = translator
    spec = describe_text(folder, OPTIONS, (16,), tmp_path / "made.json")
    assert spec.pieces is not None
    read = read_from(folder, tmp_path / "made.json")
    given = {"source.spm": model, "vocab.json": vocabulary}

    def read_damaged(name: str) -> bytes | None:
        return read(name) if given.get(name) is None else given[name]

    special = {name: place for name, place in spec.pieces.special.items() if name != "<unk>"}
    spec = dataclasses.replace(spec, pieces=dataclasses.replace(spec.pieces, special=special))
    with pytest.raises(ValueError, match=told):
        open_tokenizer(spec, read_damaged)


@pytest.mark.parametrize(
    "change", [{"special": {}}, {"special": {"": 0}}, {"added": {"a": -1}}, {"unknown": "\ud800"}]
)
def test_pieces_that_no_tokenizer_has_are_refused(change: dict[str, Any]):
    fields: dict[str, Any] = {"model": "m", "vocabulary": "v", "end": (), "unknown": "u"}
    with pytest.raises(ManifestError, match="pieces expected"):
        PieceSpec(**{**fields, "added": {}, "special": {"</s>": 0}, **change})


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
    assert "make other ids" in spec.refused


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
