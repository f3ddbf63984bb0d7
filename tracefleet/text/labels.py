"""Classes with their scores, from the logits of a classifier, as transformers' pipeline gives."""

from __future__ import annotations

from typing import Any

from tracefleet.text.spec import TextSpec

Label = dict[str, Any]


def score_labels(logits: Any, spec: TextSpec) -> list[Label]:
    """Return every class with its score, best first.

    Args:
        logits: array of shape ``(classes,)``.
        spec: names of the classes, and the problem type: the scores of a regression are the logits,
            those of several labels or of one class are sigmoids, others are softmax.

    Returns:
        ``{"label": …, "score": …}`` each.
    """
    import numpy as np

    logits = np.asarray(logits, dtype=np.float32)
    if spec.problem_type == "regression":
        scores = logits
    elif spec.problem_type == "multi_label_classification" or logits.size == 1:
        scores = 0.5 * (1.0 + np.tanh(0.5 * logits))
    else:
        scores = softmax(logits)
    order = np.argsort(-scores, kind="stable")
    return [{"label": spec.label(int(one)), "score": float(scores[one])} for one in order]


def softmax(logits: Any) -> Any:
    """Return the softmax over the last axis."""
    import numpy as np

    powers = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
