"""A translator that a person can read: a tiny Marian, trained here on a handful of sentences.

``python -m examples.translator`` trains it in seconds (real sentencepiece tokenizers of its own),
converts it, and translates with the conversion: texts in, texts out, and the search runs inside the
archive, without transformers. C++ answers the same ids to the requests that are printed.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import tracefleet
from flows.convert import convert
from tasks.request.conversion import make_request

PAIRS = (
    ("The cat sits on the mat.", "Die Katze sitzt auf der Matte."),
    ("The dog sleeps under the table.", "Der Hund schläft unter dem Tisch."),
    ("It is raining today.", "Heute regnet es."),
    ("Where is the station?", "Wo ist der Bahnhof?"),
    ("The train to Oslo leaves at noon.", "Der Zug nach Oslo fährt um zwölf."),
    ("I would like a cup of tea.", "Ich möchte eine Tasse Tee."),
    ("Thank you.", "Danke."),
    ("We are going to the sea tomorrow.", "Morgen fahren wir ans Meer."),
)
_SIZES = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}
_STEPS = 120
_LENGTHS = (16, 32)


def make_translator(folder: Path) -> Path:
    """Train a Marian on ``PAIRS`` and save it as a checkpoint with its tokenizer; some seconds."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(folder)
    torch.manual_seed(0)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    special = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": eos}
    model = MarianMTModel(MarianConfig(vocab_size=len(tokenizer), **special, **_SIZES))
    _train(model, tokenizer)
    # What Marian's own checkpoints ask for.
    own = {"num_beams": 4, "bad_words_ids": [[pad]], "forced_eos_token_id": eos, "max_length": 32}
    model.generation_config.update(renormalize_logits=True, **own)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _train_tokenizer(folder: Path) -> Any:
    """Train one sentencepiece model for each language, as Marian's tokenizer has them."""
    import sentencepiece
    from transformers import MarianTokenizer

    pieces: dict[str, int] = {"</s>": 0, "<unk>": 1}
    for name, texts in zip(("source", "target"), zip(*PAIRS, strict=True), strict=True):
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
            vocab_size=120,
            hard_vocab_limit=False,
            bos_id=-1,
            eos_id=0,
            unk_id=1,
            minloglevel=2,
        )
        (folder / f"{name}.spm").write_bytes(written.getvalue())
        trained = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
        for place in range(trained.get_piece_size()):
            pieces.setdefault(trained.id_to_piece(place), len(pieces))
    pieces["<pad>"] = len(pieces)
    (folder / "vocab.json").write_text(json.dumps(pieces, ensure_ascii=False), "utf-8")
    files = [str(folder / name) for name in ("source.spm", "target.spm", "vocab.json")]
    return MarianTokenizer(*files, source_lang="en", target_lang="de", model_max_length=64)


def _train(model: Any, tokenizer: Any) -> None:
    """Fit the sentences until they are known by heart."""
    import torch

    sources, targets = zip(*PAIRS, strict=True)
    batch = tokenizer(list(sources), text_target=list(targets), padding=True, return_tensors="pt")
    labels = batch["labels"].masked_fill(batch["labels"] == tokenizer.pad_token_id, -100)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(_STEPS):
        optimiser.zero_grad()
        loss = model(batch["input_ids"], batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimiser.step()
    model.eval()


def main() -> int:
    """Train, convert, translate; return 0 if the texts are those of ``model.generate``."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder, store = make_translator(Path("./store-translator/checkpoint")), "./store-translator"
    fields = {"source": str(folder), "task": "text2text-generation", "lengths": _LENGTHS}
    manifest = convert(make_request({**fields, "store": store})).manifest
    model = tracefleet.open(store, manifest.source)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    eager, same = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), True
    for text, _ in PAIRS:
        inputs = tokenizer(text, return_tensors="pt")
        expected = tokenizer.decode(eager.generate(**inputs)[0], skip_special_tokens=True)
        answer = model.generate(text)
        same &= answer == expected
        print(f"{text:<36} {answer}")
        source = {"input_ids": inputs["input_ids"].tolist()}
        request = {"generate": source, "max_new_tokens": 31, "num_beams": 4}
        print(f"{'':<4}{json.dumps(request)}")
    print("the same as model.generate" if same else "DIFFERS from model.generate")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
