"""The fixed texts of the gate: short, of several scripts, and of the kinds that break tokenizers.

They are part of what a conversion was proved on, and stay the same for all checkpoints. All were
written for this project.
"""

from __future__ import annotations

from dataclasses import dataclass

QUESTION_ANSWERING, MULTIPLE_CHOICE = "question-answering", "multiple-choice"
#: Tasks whose models are trained on pairs as often as on single texts.
_PAIR_TASKS = ("text-classification",)
QUESTION = "Where did it happen?"
#: Start of the names of the long text, cut to a number of tokens.
PASSAGE = "passage-"
#: Strings that many tokenizers take for special tokens when they stand in a text.
_SPECIAL = "[CLS] a [MASK] b [SEP] <s> c </s> <mask> <unk> <|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Text:
    """One input of a tokenizer.

    Attributes:
        name: Name of what it tries, such as ``emoji``.
        text: The text, or the first of a pair.
        pair: The second of a pair; None: a text by itself.
    """

    name: str
    text: str
    pair: str | None = None


TEXTS = (
    Text(name="word", text="Hello"),
    Text(name="english", text="The train to Oslo left at noon, but nobody saw it arrive."),
    Text(name="russian", text="Завтра утром мы снова поедем к морю."),
    Text(name="arabic", text="وصل القطار متأخرا هذا الصباح."),
    Text(name="hindi", text="आज बारिश बहुत तेज़ हो रही है।"),
    Text(name="chinese", text="图书馆明天上午九点开门。"),
    Text(name="japanese", text="雨がやんだら散歩に行こう。"),
    Text(name="emoji", text="Done! 🎉🚀 👩‍🔬👍🏽 see you ☕"),
    Text(name="code", text='def f(x): return {"a": x ** 2}  # <= 80'),
    Text(name="digits", text="2026-11-29 03:14:15 3.14159 × 1,000,000 = 42 %"),
    Text(name="repeated", text="no no no no no no no no no no"),
    Text(name="special", text=_SPECIAL),
)
PAIRS = (
    Text(name="pair", text="Is the bridge open?", pair="The bridge was closed on Friday."),
    Text(name="pair-of-scripts", text="Как дела?", pair="很好，谢谢。"),
)
CHOICES = ("It was late.", "Nobody knew the way, so they waited.", "雨が降った。", "42!")
_PASSAGE = (
    "In the spring of 1871 a surveyor named Ida Holm walked the coast from Bergen to Tromsø and "
    "wrote down every harbour, its depth (in fathoms), and the price of bread. “Nobody will read "
    "this,” she told her brother; he answered: «Кто знает?» Her notes fill 14 volumes, 3,208 pages "
    "of which two are lost. A storm took one; a goat, if the story is true, ate the other. "
    "これは本当の話です。 The rest lies in a museum, where visitors turn the pages with gloves, "
    "except on Mondays. Prices rose by 2.5 % a year; bread didn't get better. "
)


def list_texts(task: str) -> tuple[Text, ...]:
    """Return the short texts that a task takes: single ones, pairs, or both."""
    if task == QUESTION_ANSWERING:
        return tuple(Text(name=one.name, text=QUESTION, pair=one.text) for one in TEXTS)
    return (*TEXTS, *PAIRS) if task in _PAIR_TASKS else TEXTS


def write_passage(task: str, *, times: int) -> Text:
    """Return a long text of several paragraphs; a question comes first where the task has one."""
    passage = _PASSAGE * times
    if task == QUESTION_ANSWERING:
        return Text(name="passage", text=QUESTION, pair=passage)
    return Text(name="passage", text=passage)
