"""Tables that a person can sort and search, whole and readable where no script runs.

The script makes buttons of the column heads and shows the search field; without it the table is
simply in its first order. On a phone every row is a card, and the heads stand above as buttons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.report.markup import Html, element, join


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        name: its head, and the label of its cells on a phone.
        width: share of the table's width, in percent.
        kind: ``number`` is aligned as figures, and first sorted from the largest; ``long`` text
            has a line of its own on a phone; ``plain`` is not sorted.
    """

    name: str
    width: int
    kind: Literal["text", "long", "number", "plain"] = "text"

    @property
    def css(self) -> str | None:
        """Return the class of its head, and of its cells if they are figures."""
        return self.kind if self.kind in ("number", "plain") else None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell that is sorted by something else than its text.

    Attributes:
        shown: what stands in it.
        value: what it is sorted by; None: nothing, which comes last either way.
    """

    shown: object
    value: float | None


#: The one program of the page. It reads and moves what is there; it makes no markup of any text.
SCRIPT = """
"use strict";
(() => {
  const order = new Intl.Collator("en", {numeric: true});
  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const numbers = typeof a === "number" && typeof b === "number";
    return sign * (numbers ? (a > b) - (a < b) : order.compare(a, b));
  };
  const sort = (table, head) => {
    const first = head.classList.contains("number") ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const next = head.getAttribute("aria-sort") === first ? other : first;
    for (const one of head.parentNode.cells) one.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const keyed = Array.from(body.rows, (row) => [key(row, head.cellIndex), row]);
    keyed.sort((a, b) => compare(a[0], b[0], sign));
    body.append(...keyed.map((pair) => pair[1]));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.tHead.rows[0].cells) {
      if (head.classList.contains("plain")) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, head));
    }
  }
  for (const bar of document.querySelectorAll(".search")) {
    const rows = Array.from(document.getElementById(bar.dataset.of).tBodies[0].rows);
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const [words, ending] = bar.querySelectorAll("input, select");
    const count = bar.querySelector("output");
    const filter = () => {
      const wanted = words.value.toLowerCase().split(/\\s+/);
      let shown = 0;
      rows.forEach((row, place) => {
        const fits = (!ending.value || row.classList.contains(ending.value))
          && wanted.every((word) => texts[place].includes(word));
        row.hidden = !fits;
        shown += fits;
      });
      count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    };
    bar.addEventListener("input", filter);
    bar.hidden = false;
    filter();
  }
})();
"""

STYLE = """
table.sortable{table-layout:fixed;font-size:.92rem}.sortable td.number{white-space:nowrap}
.sortable td:empty::after{content:"–";color:var(--soft)}
.sortable small{display:block;color:var(--soft);font-size:.85em}
.sortable a,p a{color:var(--one)}.sortable td>a{margin-right:.5em}
th button{font:inherit;white-space:nowrap;color:inherit;background:none;border:0;padding:0;
text-align:inherit;cursor:pointer}th button::after{content:" ↕";opacity:.45}
[aria-sort] button{color:var(--ink)}[aria-sort=ascending] button::after{content:" ▲";opacity:1}
[aria-sort=descending] button::after{content:" ▼";opacity:1}
.search{display:flex;flex-wrap:wrap;gap:.6rem;align-items:center;margin:.5rem 0}
.search input,.search select{font:inherit;color:inherit;background:var(--card);padding:.35rem .6rem;
border:1px solid var(--soft);border-radius:.3rem;min-width:0}.search input{flex:0 1 24rem}
.search output{color:var(--soft)}[hidden]{display:none!important}
@media (min-width:44.01rem){.sortable thead th{position:sticky;top:0;z-index:1;
background:var(--paper);box-shadow:0 1px var(--line)}}
@media (max-width:44rem){table.sortable,.sortable tbody{display:block}
table.sortable thead{display:block}table.sortable col{display:none}
table.sortable thead tr{display:flex;flex-wrap:wrap;gap:.4rem;border:0;padding:0}
table.sortable thead th{border:0;padding:0;text-align:left}
table.sortable thead th:not(:has(button)){display:none}
th button{border:1px solid var(--line);border-radius:1rem;padding:.3rem .7rem}
.sortable tbody tr{content-visibility:auto;contain-intrinsic-size:auto 11rem}
.sortable td:empty{display:none}
.sortable tbody td:first-child{grid-column:1/-1;font-weight:600}.sortable small{font-weight:400}}
"""


def sortable(
    name: str, columns: Sequence[Column], rows: Iterable[tuple[str, Sequence[object]]]
) -> Html:
    """Return a table.

    Args:
        name: its id on the page.
        columns: what it has.
        rows: the class of each, by which it is filtered, and its cells.
    """
    head = (element("th", one.name, scope="col", class_=one.css) for one in columns)
    return element(
        "table",
        element("colgroup", *(Html(f'<col style="width:{one.width}%">') for one in columns)),
        element("thead", element("tr", *head)),
        element(
            "tbody",
            *(
                element("tr", *map(_cell, columns, cells), class_=kind or None)
                for kind, cells in rows
            ),
        ),
        class_="wide sortable",
        id=name,
    )


def _cell(column: Column, cell: object) -> Html:
    if isinstance(cell, Cell):
        return element("td", cell.shown, class_=column.css, data_value=_value(cell.value))
    return element("td", cell)


def _value(value: float | None) -> str | None:
    """Return a number as the script reads it: JavaScript spells infinity out."""
    return None if value is None else f"{value:.6g}".replace("inf", "Infinity")


def labels(name: str, columns: Sequence[Column]) -> str:
    """Return the rules that label a card's cells: once a column, and not once a cell."""
    rules = []
    for place, column in enumerate(columns[1:], 2):
        cell = f"#{name} td:nth-child({place})"
        rules.append(f'{cell}::before{{content:"{column.name}"}}')
        if column.kind == "long":
            rules.append(f"{cell}{{grid-column:1/-1}}")
    return f"@media (max-width:44rem){{{''.join(rules)}}}"


def search(of: str, choices: Sequence[str]) -> Html:
    """Return the fields that filter a table; the script shows them.

    Args:
        of: id of the table.
        choices: classes of its rows.
    """
    options = (element("option", word, value=word) for word in choices)
    words = Html('<input type="search" placeholder="Search all columns" aria-label="Search">')
    everything = element("option", "every ending", value="")
    return element(
        "div",
        join(words, element("select", everything, *options, aria_label="Ending")),
        element("output"),
        class_="search",
        data_of=of,
        hidden="",
    )
