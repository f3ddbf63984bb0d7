// The one program of the page. It reads and moves what is there; it makes no markup of any text.
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
      const wanted = words.value.toLowerCase().split(/\s+/);
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
