"use strict";
(() => {
  const BLANK = /^(?:[\s\u2010-\u2015\u2212-]*|nan|none|n\/a)$/i;
  const NUMBER = /^[<>=\u2264\u2265~\u00b1\s]*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)/i;
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  const shown = (row, column) => {
    const cell = row.cells[column];
    return cell ? (cell.dataset.sort ?? cell.textContent).trim() : "";
  };
  const value = (text) => {
    const found = NUMBER.exec(text.replace(/\u2212/g, "-").replace(/(\d),(?=\d{3})/g, "$1"));
    return found ? parseFloat(found[1]) : NaN;
  };

  const sorted = (rows, column, sign) => {
    const blank = (row) => BLANK.test(shown(row, column));
    const filled = rows.filter((row) => !blank(row));
    const numeric = filled.every((row) => !Number.isNaN(value(shown(row, column))));
    const compare = numeric
      ? (a, b) => value(shown(a, column)) - value(shown(b, column))
      : (a, b) => words.compare(shown(a, column), shown(b, column));
    return [...filled.sort((a, b) => sign * compare(a, b)), ...rows.filter(blank)];
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    if (!table.tHead || !body) continue;
    const heads = [...table.tHead.rows[0].cells];
    const original = [...body.rows];
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const now = { none: "ascending", ascending: "descending", descending: "none" }[before];
        for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", now);
        const rows = [...(now === "none" ? original : body.rows)];
        const last = rows.filter((row) => row.classList.contains("total"));
        const rest = rows.filter((row) => !row.classList.contains("total"));
        body.append(...(now === "none" ? rest : sorted(rest, column, now === "ascending" ? 1 : -1)), ...last);
        table.classList.toggle("sorted", now !== "none");
      });
    });
  }
})();
