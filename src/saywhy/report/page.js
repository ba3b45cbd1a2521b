// What the pages of the report can do where scripts run. Without them everything but the explorer is there to read.
"use strict";

// A number as the report writes it: "1,204", "−3.1", "95.7 [94.1, 96.8]", "94.1 to 96.8", "< 0.001", "15 min 12 s".
const NUMBER = /^[[<>≈±~]?\s*([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?)/i;

function numberOf(text) {
  const plain = text.replace(/\u2212/g, "-").trim();
  const time = plain.match(/^(?:(\d+) h )?(\d+) min(?: (\d+) s)?$/);
  if (time) return 3600 * (time[1] || 0) + 60 * time[2] + Number(time[3] || 0);
  const found = plain.match(NUMBER);
  if (!found) return null;
  const value = Number(found[1].replace(/,/g, ""));
  // "< 0.001" stands below 0.001 itself.
  return plain.startsWith("<") ? value - 1e-9 : value;
}

// The cells of some rows by column, spans unfolded: grid[row][column] is the cell that lies there.
function gridOf(rows) {
  const grid = rows.map(() => []);
  rows.forEach((row, y) => {
    let x = 0;
    for (const cell of row.cells) {
      while (grid[y][x]) x += 1;
      for (let down = 0; down < cell.rowSpan && y + down < rows.length; down += 1) {
        for (let right = 0; right < cell.colSpan; right += 1) grid[y + down][x + right] = cell;
      }
      x += cell.colSpan;
    }
  });
  return grid;
}

// Rows that a spanning cell binds together move together.
function bundlesOf(rows) {
  const bundles = [];
  let open = 0;
  for (const row of rows) {
    if (open > 0) bundles.at(-1).push(row);
    else bundles.push([row]);
    open = Math.max(open, ...[...row.cells].map((cell) => cell.rowSpan)) - 1;
  }
  return bundles;
}

function wordsIn(cell) {
  const text = cell ? (cell.dataset.sort ?? cell.textContent).trim() : "";
  return text === "–" ? "" : text;
}

function sortable(table) {
  if (!table.tHead) return;
  const heads = gridOf([...table.tHead.rows]).at(-1);
  const original = new Map([...table.tBodies].map((body) => [body, bundlesOf([...body.rows])]));
  const order = new Intl.Collator("en", { numeric: true });

  function sortBy(head, column, direction) {
    for (const other of heads) other.removeAttribute("aria-sort");
    if (direction) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    for (const [body, bundles] of original) {
      const keyed = bundles.map((rows) => ({ rows, text: wordsIn(gridOf(rows)[0][column]) }));
      const numeric = keyed.every(({ text }) => text === "" || numberOf(text) !== null);
      if (direction) {
        keyed.sort((a, b) => {
          if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "");
          const compared = numeric ? numberOf(a.text) - numberOf(b.text) : order.compare(a.text, b.text);
          return direction * compared;
        });
      }
      body.append(...keyed.flatMap(({ rows }) => rows));
    }
  }

  new Set(heads).forEach((head) => {
    const column = heads.indexOf(head);
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const texts = [...original.values()].flat().map((rows) => wordsIn(gridOf(rows)[0][column]));
      // Names begin with A, figures with the largest; a third press puts the rows back.
      const first = texts.every((text) => text === "" || numberOf(text) !== null) ? "descending" : "ascending";
      const now = head.getAttribute("aria-sort");
      const next = !now ? first : now === first ? (first === "ascending" ? "descending" : "ascending") : "";
      sortBy(head, column, { ascending: 1, descending: -1 }[next] ?? 0);
    });
  });
  table.classList.add("sortable");
}

document.querySelectorAll("table").forEach(sortable);
