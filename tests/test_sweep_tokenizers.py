"""Tokenizers of the sweep's checkpoints: each of its family's kind, with the config's ids."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoTokenizer

from tasks.errors import UnsupportedCheckpointError
from tasks.model.arguments import check_tokenizer
from tasks.model.vocabulary import read_vocabulary
from tasks.sweep.configs import VOCABULARY
from tasks.sweep.pieces import CORPUS, train_bytes, train_unigram, train_wordpiece
from tasks.sweep.shrink import make_tiny_config
from tasks.sweep.tiny import Case, build
from tasks.sweep.tokenizers import save_tokenizer

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "labels")
#: Model type -> kind, and where the special tokens are around "a" and around the pair "a", "b".
TYPES = {
    "bert": ("WordPiece", "[CLS] a [SEP]", "[CLS] a [SEP] b [SEP]"),
    "electra": ("WordPiece", "[CLS] a [SEP]", "[CLS] a [SEP] b [SEP]"),
    "mpnet": ("WordPiece", "<s> a </s>", "<s> a </s> </s> b </s>"),
    "splinter": ("WordPiece", "[CLS] a [SEP]", "[CLS] a [SEP] b [SEP]"),
    "roberta": ("BPE", "<s> a </s>", "<s> a </s> </s> b </s>"),
    "bart": ("BPE", "<s> a </s>", "<s> a </s> </s> b </s>"),
    "gpt2": ("BPE", "a", "a b"),
    "qwen2": ("BPE", "a", "a b"),
    "llama": ("BPE", "<s> a", "<s> a <s> b"),
    "modernbert": ("BPE", "<s> a </s>", "<s> a </s> b </s>"),  # its cls is its bos
    "deberta": ("BPE", "[CLS] a [SEP]", "[CLS] a [SEP] b [SEP]"),
    "t5": ("Unigram", "▁a </s>", "▁a </s> ▁b </s>"),
    "marian": ("Unigram", "▁a </s>", "▁a </s> ▁b </s>"),
    "mbart": ("Unigram", "▁a </s>", "▁a </s> ▁b </s>"),
    "gemma2": ("Unigram", "<s> ▁a", "<s> ▁a <s> ▁b"),
    "xlm-roberta": ("Unigram", "<s> ▁a </s>", "<s> ▁a </s> </s> ▁b </s>"),
    "albert": ("Unigram", "[CLS] ▁a [SEP]", "[CLS] ▁a [SEP] ▁b [SEP]"),
    "deberta-v2": ("Unigram", "[CLS] ▁a [SEP]", "[CLS] ▁a [SEP] ▁b [SEP]"),
    "xlnet": ("Unigram", "▁a [SEP] [CLS]", "▁a [SEP] ▁b [SEP] [CLS]"),
}
TEXTS = (*CORPUS, "Ünïcödé Ωmega 漢字 𝕏 🏳️‍🌈\u200d\x07", "", " ")


def save(model_type: str, folder: Path, inputs: tuple[str, ...] = INPUTS) -> Any:
    """Save the tokenizer of a type; return its config."""
    config = make_tiny_config(model_type, "feature-extraction")
    save_tokenizer(model_type, config, folder, inputs)
    return config


def write_config(config: Any, folder: Path) -> None:
    config.save_pretrained(folder)


def read(folder: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    return written


@pytest.mark.parametrize("model_type", TYPES)
def test_a_family_gets_its_kind_and_its_special_tokens(model_type, tmp_path):
    kind, single, pair = TYPES[model_type]
    config = save(model_type, tmp_path)
    write_config(config, tmp_path)
    assert read(tmp_path)["model"]["type"] == kind
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.convert_ids_to_tokens(loaded("a")["input_ids"]) == single.split()
    assert loaded.convert_ids_to_tokens(loaded("a", "b")["input_ids"]) == pair.split()


@pytest.mark.parametrize("model_type", TYPES)
def test_ids_are_in_range_and_special_ids_are_the_configs(model_type, tmp_path):
    config = save(model_type, tmp_path)
    write_config(config, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = {one for text in TEXTS for one in loaded(text)["input_ids"]}
    assert 0 <= min(ids) <= max(ids) < VOCABULARY
    assert len(loaded) <= VOCABULARY
    for role in ("pad", "bos", "eos", "unk", "cls", "sep", "mask"):
        said = getattr(config, f"{role}_token_id", None)
        assert said is None or getattr(loaded, f"{role}_token_id") == said
        assert (getattr(loaded, f"{role}_token_id") or 0) < 10


@pytest.mark.parametrize("model_type", ["bert", "albert", "t5"])
def test_what_the_corpus_lacks_is_unknown(model_type, tmp_path):
    write_config(save(model_type, tmp_path), tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.unk_token_id in loaded("𓀀")["input_ids"]
    assert loaded.unk_token_id not in loaded(CORPUS[0])["input_ids"]


@pytest.mark.parametrize("model_type", ["roberta", "gpt2", "llama"])
def test_bytes_lose_nothing(model_type, tmp_path):
    write_config(save(model_type, tmp_path), tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in TEXTS:
        assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text


def test_pieces_are_longer_than_characters(tmp_path):
    for model_type in ("bert", "gpt2", "t5"):
        save(model_type, tmp_path)
        tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        found = tokenizer.encode(CORPUS[2], add_special_tokens=False).tokens
        assert len(found) < 0.5 * len(CORPUS[2])


def test_pairs_get_token_types_where_the_model_has_them(tmp_path):
    for model_type, types in (("bert", [0, 0, 0, 1, 1]), ("xlnet", [0, 0, 1, 1, 2])):
        write_config(save(model_type, tmp_path), tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
        assert loaded("a", "b")["token_type_ids"] == types
    write_config(save("funnel", tmp_path), tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded("a")["token_type_ids"] == [2, 0, 0]
    for model_type in ("deberta-v2", "gpt2", "t5"):
        write_config(save(model_type, tmp_path), tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
        assert "token_type_ids" not in loaded("a", "b")


def test_only_arguments_of_forward_are_named(tmp_path):
    save("bert", tmp_path, ("self", "input_ids", "labels"))
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["model_input_names"] == ["input_ids"]


class _Takes:
    def forward(self, input_ids: Any, token_type_ids: Any = None) -> None: ...


def test_preflight_takes_the_names_and_the_special_ids(tmp_path):
    config = save("bert", tmp_path)
    check_tokenizer(tmp_path, _Takes, config, ("input_ids", "token_type_ids"))
    assert set(range(10)) <= read_vocabulary(tmp_path, config, VOCABULARY).special
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    written["model_input_names"] = ["input_ids", "token_type_ids"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(written))
    config = CONFIG_MAPPING["t5"]()
    with pytest.raises(UnsupportedCheckpointError, match="got token_type_ids"):
        check_tokenizer(tmp_path, _Takes, config, ("input_ids",))


@pytest.mark.parametrize(
    ("model_type", "task"), [("canine", "feature-extraction"), ("perceiver", "fill-mask")]
)
def test_characters_and_bytes_are_read_by_the_types_own_tokenizer(model_type, task, tmp_path):
    folder = build(Case(model_type=model_type, task=task), tmp_path)
    assert not (folder / "tokenizer.json").exists()
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert type(loaded).__name__ == f"{model_type.capitalize()}Tokenizer"
    assert len(loaded("abc")["input_ids"]) == 5


def test_a_type_that_nobody_knows_gets_bytes(tmp_path):
    config = make_tiny_config("llama", "text-generation")
    save_tokenizer("of-next-year", config, tmp_path, INPUTS)
    assert read(tmp_path)["model"]["type"] == "BPE"


_HASH = """
import hashlib, pathlib, sys
from tasks.sweep.shrink import make_tiny_config
from tasks.sweep.tokenizers import save_tokenizer
folder = pathlib.Path(sys.argv[1])
for name in ("bert", "gpt2", "t5"):
    save_tokenizer(name, make_tiny_config(name, "fill-mask"), folder, ["input_ids"])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        print(hashlib.sha256((folder / file).read_bytes()).hexdigest())
"""


def test_every_process_makes_the_same_bytes(tmp_path):
    made = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", _HASH, str(tmp_path)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        made.append(run.stdout.split())
    assert len(made[0]) == 6
    assert made[0] == made[1]


def test_training_again_gives_the_same_pieces():
    """The library's own trainers of WordPiece and of unigrams do not: hash maps order them."""
    for train in (train_bytes, train_wordpiece, train_unigram):
        made = set()
        for _ in range(4):
            train.cache_clear()
            made.add(hashlib.sha256(repr(train()).encode()).hexdigest())
        assert len(made) == 1
