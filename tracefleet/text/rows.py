"""Tell texts from ids, and read them as rows: a text or a pair of texts each."""

from __future__ import annotations

from typing import Any

from tracefleet.text.tokenize import Row


def is_text(value: Any) -> bool:
    """Tell whether a caller gave texts and not ids: a string, a pair, or a list of these."""
    if isinstance(value, str):
        return True
    if getattr(getattr(value, "dtype", None), "kind", "") == "U":
        return True
    return isinstance(value, list | tuple) and any(_starts_with_text(one) for one in value)


def _starts_with_text(value: Any) -> bool:
    # Only the first: rows of ids are long.
    if isinstance(value, list | tuple) and value:
        return isinstance(value[0], str)
    return isinstance(value, str)


def is_single(value: Any) -> bool:
    """Tell whether it is one text, or one pair as a tuple; a list holds rows."""
    return isinstance(value, str) or _is_pair(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, str) for v in value)


def read_rows(value: Any) -> list[Row]:
    """Return one row for each text or pair, in order.

    Args:
        value: a text; a tuple of two texts, which is a pair; or a list of texts, or of pairs as
            tuples or lists of two texts.

    Raises:
        ValueError: something else than texts, or texts mixed with pairs.
    """
    if is_single(value):
        return [value]
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, tuple) and any(isinstance(one, str) for one in value):
        raise ValueError(
            f"expected a tuple of two texts, which is a pair, got {len(value)}. Give several "
            "texts as a list."
        )
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a text, a pair of texts or a list of these, got {value!r}")
    rows = [_read_row(place, one) for place, one in enumerate(value)]
    kinds = {type(row) for row in rows}
    if len(kinds) > 1:
        raise ValueError("expected texts alone or pairs alone, got a mixture of both")
    return rows


def _read_row(place: int, value: Any) -> Row:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list | tuple) and len(value) == 2:
        first, second = value
        if isinstance(first, str) and isinstance(second, str):
            return first, second
    raise ValueError(f"text {place}: expected a text or a pair of texts, got {value!r}")


def add_prompt(rows: list[Row], prompt: str) -> list[Row]:
    """Return rows with the prompt before each text, or before the first text of each pair."""
    prompted: list[Row] = []
    for row in rows:
        if isinstance(row, str):
            prompted.append(prompt + row)
        else:
            prompted.append((prompt + row[0], row[1]))
    return prompted
