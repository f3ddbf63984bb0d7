"""Real inputs for the gate; the front door is ``make_samples`` in ``make``.

Texts go through the checkpoint's own tokenizer, pictures and sounds through its own processor.
Random ids and pixels don't drive what training has made large. ``tasks.validate.real`` makes probes
of them, and ``tasks.validate.golden`` keeps some of them with the conversion.
"""
