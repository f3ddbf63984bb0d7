"""Building blocks of the report's page: elements, tables, and the one stylesheet.

Text is escaped wherever it enters an element; only what an element returned is taken as markup.
So a checkpoint named ``<script>`` is a name, and every tag that was opened is closed.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence

#: Colours are variables, for the plots too: text and marks keep 4.5:1 on either background.
STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f5f7fa;--line:#d8dfe7;--ink:#1b2330;
--soft:#566273;--good:#12703a;--good-card:#e9f6ee;--bad:#b3261e;--bad-card:#fdeeec;--warn:#7a5200;
--one:#0b62a8;--two:#b35000;--three:#00735c;--four:#8a3b8f;--five:#6b5d00;--six:#4a4a8f;
--grey:#8a94a3}
@media (prefers-color-scheme:dark){:root{--paper:#11151b;--card:#1a2029;--line:#333d49;
--ink:#e4e9f0;--soft:#a4afbd;--good:#62d391;--good-card:#12281b;--bad:#ff8f85;--bad-card:#331917;
--warn:#f0c060;--one:#6cb6ff;--two:#ffa657;--three:#4ecfae;--four:#dea2e6;--five:#d8c65a;
--six:#aeb2ff;--grey:#8a94a3}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;max-width:66rem;margin:0 auto;padding:1.5rem 1rem 4rem;
color:var(--ink);background:var(--paper);overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:0}
h2{font-size:1.15rem;margin:2.2rem 0 .4rem}
p{margin:.4rem 0}ul{margin:.4rem 0;padding-left:1.2rem}li{margin:.2rem 0}
.soft,figcaption{color:var(--soft);font-size:.9rem}
.verdict{margin:1rem 0;padding:.8rem 1rem;border-left:.4rem solid;border-radius:.3rem}
.verdict strong{font-size:1.25rem}.verdict>*{color:var(--ink)}
.verdict.passed{border-color:var(--good);background:var(--good-card)}
.verdict.failed{border-color:var(--bad);background:var(--bad-card)}
.good,.bad{white-space:nowrap}.good,.verdict.passed>strong{color:var(--good);font-weight:600}
.bad,.verdict.failed>strong{color:var(--bad);font-weight:600}
.warn{color:var(--warn);font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));gap:1rem}
figure{margin:0;padding:.6rem;border:1px solid var(--line);border-radius:.4rem}
figcaption{padding:0 .3rem .2rem}
svg{display:block;width:100%;height:auto}svg text{font-family:system-ui,sans-serif!important}
td code{overflow-wrap:anywhere}code{font:.88em/1.4 ui-monospace,monospace}
table{border-collapse:collapse;width:100%;margin:.5rem 0}
th,td{text-align:left;vertical-align:top;overflow-wrap:break-word;padding:.35rem .6rem;
border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:600;font-size:.88rem;vertical-align:bottom}
tbody th{font-weight:600;width:11rem}
.number{text-align:right;font-variant-numeric:tabular-nums}
.bar{display:inline-block;height:.7em;width:calc(var(--share)*12rem);background:var(--one);border-radius:2px;min-width:1px}
details{border:1px solid var(--line);border-radius:.4rem;margin:.5rem 0;padding:0 .8rem}
summary{cursor:pointer;padding:.5rem 0;font-weight:600}
@media (max-width:44rem){th,td{padding:.3rem .4rem}.bar{width:calc(var(--share)*5rem)}
tbody th{width:auto}
table.facts th,table.facts td{display:block;padding:.1rem 0;border:0}
table.facts td{padding-bottom:.5rem;border-bottom:1px solid var(--line)}
table.wide thead{display:none}
table.wide tr{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.5rem,1fr));
gap:.2rem .8rem;border:1px solid var(--line);border-radius:.4rem;margin:.5rem 0;padding:.4rem .6rem}
table.wide td{border:0;padding:0;text-align:left}
table.wide td::before{content:attr(data-label);display:block;color:var(--soft);font-size:.8rem}
table.wide td:has(code,div){grid-column:span 2}table.wide td:has(span:empty){display:none}}
@media print{details>*{display:block}}
"""


class Html(str):
    """Markup that was made here, and not text that has to be escaped."""

    __slots__ = ()


def join(*parts: object) -> Html:
    """Return the parts one after the other, text escaped."""
    return Html("".join(p if isinstance(p, Html) else html.escape(str(p)) for p in parts))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """Return one element; ``class_`` and ``data_label`` become ``class`` and ``data-label``."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    shown = "".join(
        f' {name}="{html.escape(str(value))}"' for name, value in named.items() if value is not None
    )
    return Html(f"<{tag}{shown}>{join(*children)}</{tag}>")


def items(lines: Iterable[object]) -> Html:
    """Return a list."""
    return element("ul", *(element("li", line) for line in lines))


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[str] = (),
    wide: bool = False,
) -> Html:
    """Return a table.

    Args:
        header: names of the columns.
        rows: their cells.
        numbers: columns that are aligned as figures.
        wide: too wide for a phone: each row becomes a card there, its cells under their names.
    """
    kinds = ["number" if name in numbers else None for name in header]
    named = list(zip(header, kinds, strict=True))
    head = (element("th", name, scope="col", class_=kind) for name, kind in named)
    body = (
        (
            element("td", element("span", cell), class_=kind, data_label=name if wide else None)
            for cell, (name, kind) in zip(row, named, strict=True)
        )
        for row in rows
    )
    return element(
        "table",
        element("thead", element("tr", *head)),
        element("tbody", *(element("tr", *cells) for cells in body)),
        class_="wide" if wide else None,
    )


def facts_table(rows: dict[str, object]) -> Html:
    """Return a table of names and what there is to say about each."""
    body = (
        element("tr", element("th", name, scope="row"), element("td", value))
        for name, value in rows.items()
    )
    return element("table", element("tbody", *body), class_="facts")


def page(title: str, *body: object, style: str = "", script: str = "") -> Html:
    """Return a whole document that loads nothing.

    Args:
        title: of the document.
        body: what stands on it.
        style: rules of this page alone.
        script: the one program that may run. The browser knows it by its digest, so that nothing
            else does, whatever stands on the page; without one nothing runs at all.
    """
    # Names of outside stand on this page: whatever they hold, the browser must not act on it.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    )
    program = Html(f"<script>{script}</script>" if script else "")
    return Html(
        f'<!doctype html><html lang="en"><head>{head}{element("title", title)}'
        f"<style>{STYLE}{style}</style></head>"
        f"{element('body', element('main', *body), program)}</html>"
    )
