"""Texts as token ids, and what a checkpoint says about its texts: `TextSpec`.

The front door is ``load_tokenizer`` in ``tokenize``, which is here by its name too, as ``encode``.
``spec`` holds what travels in the manifest, ``files`` reads it from a checkpoint's files, ``rows``
tells texts from ids, ``labels``, ``fill``, ``entities`` and ``spans`` turn outputs into answers.
"""

from tracefleet.text.tokenize import TOKENIZER, encode, load_tokenizer

__all__ = ["TOKENIZER", "encode", "load_tokenizer"]
