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

const PAGE = 20; // rows shown at once
const BARS = 6; // labels shown of a row, at most, and the gold one

// An element with a class and its text or children.
function make(tag, name, ...inside) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...inside);
  return made;
}

// A text that users wrote: in its own direction.
function words(tag, name, text) {
  const made = make(tag, name ? `${name} user` : "user", text);
  made.dir = "auto";
  return made;
}

function share(mille) {
  return mille === undefined ? "<0.1%" : `${(mille / 10).toFixed(1)}%`;
}

class Explorer {
  constructor(app) {
    const { head, rows } = JSON.parse(document.getElementById("explorer-data").textContent);
    this.head = head;
    this.rows = rows.map(([text, gold, id, answers, choices]) => ({
      text,
      gold,
      id,
      options: choices || head.labels,
      answers: answers.map((one) => one && { label: one[0], shares: one[1], reasoning: one[2] || "", forced: one[3] }),
    }));
    this.app = app;
    this.page = 0;
    this.fields = {};
    for (const name of ["search", "gold", "a", "answer", "right", "b", "pair"]) {
      const field = document.getElementById(`x-${name}`);
      if (field) this.fields[name] = field;
    }
    this.shown = [...app.querySelectorAll("[name=x-show]")];
    this.reset();
    app.addEventListener("input", () => this.change(0));
    document.getElementById("x-clear").addEventListener("click", () => {
      this.reset();
      this.change(0);
    });
    document.getElementById("x-back").addEventListener("click", () => this.turn(-1));
    document.getElementById("x-next").addEventListener("click", () => this.turn(1));
  }

  reset() {
    const [a, b] = this.head.first;
    for (const field of Object.values(this.fields)) field.value = "";
    this.fields.a.value = a;
    if (this.fields.b) this.fields.b.value = b ?? (a === 0 ? 1 : 0);
    for (const box of this.shown) box.checked = false;
  }

  // The state as the address has it: names of systems and labels, so that a link outlives a change of their order.
  address() {
    const told = new URLSearchParams();
    const { keys, labels } = this.names();
    for (const [name, field] of Object.entries(this.fields)) {
      if (field.value === "") continue;
      if (name === "a" || name === "b") told.set(name, keys[field.value]);
      else if (name === "gold" || name === "answer") told.set(name, labels[field.value]);
      else told.set(name, field.value);
    }
    for (const box of this.shown) if (box.checked) told.append("show", keys[box.value]);
    if (this.page) told.set("page", this.page + 1);
    return `#explorer?${told}`;
  }

  names() {
    return { keys: this.head.systems.map(({ key }) => key), labels: this.head.labels };
  }

  read(address) {
    const told = new URLSearchParams(address.split("?")[1]);
    const { keys, labels } = this.names();
    this.reset();
    for (const [name, field] of Object.entries(this.fields)) {
      const value = told.get(name);
      if (value === null) continue;
      const list = name === "a" || name === "b" ? keys : name === "gold" || name === "answer" ? labels : null;
      const place = list ? list.indexOf(value) : 0;
      if (!list) field.value = value;
      else if (place >= 0) field.value = place;
      // A value that no option has leaves a select empty.
      if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = "";
    }
    const shown = told.getAll("show");
    for (const box of this.shown) box.checked = shown.includes(keys[box.value]);
    this.page = Math.max(0, (parseInt(told.get("page"), 10) || 1) - 1);
    this.draw();
  }

  change(page) {
    this.page = page;
    this.draw();
    // A page that was opened from a string has no address of its own to change.
    if (location.protocol !== "about:") history.replaceState(null, "", this.address());
  }

  turn(by) {
    this.change(this.page + by);
    this.app.scrollIntoView({ block: "start" });
    document.getElementById("x-count").focus({ preventScroll: true });
  }

  found() {
    const { search, gold, a, answer, right, b, pair } = Object.fromEntries(
      Object.entries(this.fields).map(([name, field]) => [name, field.value]),
    );
    const asked = (search || "").trim().toLowerCase();
    const fits = {
      changed: (one, other) => one.label !== other.label,
      a: (one, other, truth) => one.label === truth && other.label !== truth,
      b: (one, other, truth) => one.label !== truth && other.label === truth,
      right: (one, other, truth) => one.label === truth && other.label === truth,
      wrong: (one, other, truth) => one.label !== truth && other.label !== truth,
    };
    return this.rows.filter((row) => {
      const one = row.answers[a];
      const other = row.answers[b];
      if (gold && row.gold !== Number(gold)) return false;
      if (answer && (!one || one.label !== Number(answer))) return false;
      if (right && (!one || (one.label === row.gold) !== (right === "right"))) return false;
      if (pair && (!one || !other || !fits[pair](one, other, row.gold))) return false;
      if (!asked) return true;
      return [row.text, row.id, ...row.answers.map((said) => said?.reasoning ?? "")].some((text) =>
        text.toLowerCase().includes(asked),
      );
    });
  }

  draw() {
    const found = this.found();
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    this.page = Math.min(this.page, pages - 1);
    const start = this.page * PAGE;
    const many = (n) => n.toLocaleString("en");
    const of = `${many(found.length)} of ${many(this.rows.length)} rows`;
    const count = document.getElementById("x-count");
    count.tabIndex = -1;
    count.textContent =
      found.length > PAGE ? `${of}; ${many(start + 1)} to ${many(Math.min(start + PAGE, found.length))} here` : of;
    document.getElementById("x-rows").replaceChildren(...found.slice(start, start + PAGE).map((row) => this.card(row)));
    document.getElementById("x-pages").hidden = pages === 1;
    document.getElementById("x-page").textContent = `page ${this.page + 1} of ${many(pages)}`;
    document.getElementById("x-back").disabled = this.page === 0;
    document.getElementById("x-next").disabled = this.page >= pages - 1;
  }

  card(row) {
    const { a, b } = this.fields;
    const wanted = [Number(a.value), ...(b ? [Number(b.value)] : [])];
    for (const box of this.shown) if (box.checked) wanted.push(Number(box.value));
    const sides = make("div", "sides", ...[...new Set(wanted)].map((place) => this.side(row, place)));
    const first = row.answers[wanted[0]];
    const tone = first ? (first.label === row.gold ? "right" : "wrong") : "";
    return make(
      "li",
      `answer ${tone}`,
      words("p", "text", row.text || "(empty text)"),
      make("p", "said", make("span", "", make("b", "", "Gold"), words("bdi", "", this.label(row, row.gold)))),
      sides,
      make("p", "foot", "id ", words("bdi", "", row.id)),
    );
  }

  label(row, place) {
    const name = typeof place === "string" ? place : row.options[place];
    return name.length > 60 ? `${name.slice(0, 59)}…` : name;
  }

  side(row, place) {
    const { key, tone } = this.head.systems[place];
    const head = make("h3", "", make("span", `tone ${tone}`), make("span", "key", key));
    const said = row.answers[place];
    if (!said) return make("div", "side", head, make("p", "small", "did not answer this row"));
    const right = said.label === row.gold;
    const verdict = make("p", "said", make("b", "", right ? "✓" : "✗"), words("bdi", "", this.label(row, said.label)));
    verdict.append(make("span", "small", right ? " right" : " wrong"));
    const side = make("div", right ? "side" : "side wrong", head, verdict, this.bars(row, said));
    if (said.forced) side.append(make("p", "foot", "the length limit ended the reasoning"));
    if (said.reasoning) {
      side.append(make("div", "why", make("b", "", "Reasoning"), words("p", "", said.reasoning)));
    }
    return side;
  }

  bars(row, said) {
    const shares = new Map();
    for (let at = 0; at < said.shares.length; at += 2) shares.set(said.shares[at], said.shares[at + 1]);
    if (shares.size === 0) return make("p", "small", "no probabilities were saved");
    const order = [...shares.keys()].sort((one, other) => shares.get(other) - shares.get(one) || one - other);
    const drawn = order.slice(0, BARS);
    for (const place of [said.label, row.gold]) {
      if (typeof place === "number" && !drawn.includes(place)) drawn.push(place);
    }
    const list = make("ul", "bars");
    for (const place of drawn) {
      const fill = make("span", "fill");
      fill.style.width = `${(shares.get(place) ?? 0) / 10}%`;
      const name = words("bdi", "", this.label(row, place));
      const bar = make("li", place === row.gold ? "gold" : "", name, make("span", "value", share(shares.get(place))));
      bar.append(make("span", "bar", fill));
      if (place === row.gold) name.append(make("small", "", " (gold)"));
      list.append(bar);
    }
    const rest = order.length - drawn.filter((place) => shares.has(place)).length;
    if (rest > 0) list.append(make("li", "rest", `${rest} more`));
    return list;
  }
}

function explore() {
  const app = document.getElementById("explorer-app");
  if (!app) return;
  app.hidden = false;
  document.querySelectorAll(".without-script").forEach((one) => one.remove());
  let made = null;
  const ready = () => (made ??= new Explorer(app));
  const follow = () => {
    if (!location.hash.startsWith("#explorer?")) return;
    ready().read(location.hash);
    document.getElementById("explorer").scrollIntoView({ block: "start", behavior: "instant" });
  };
  // Rows are many: they are read when somebody comes near them.
  new IntersectionObserver((seen, observer) => {
    if (!seen.some((one) => one.isIntersecting)) return;
    observer.disconnect();
    if (!made) ready().draw();
  }, { rootMargin: "800px" }).observe(app);
  window.addEventListener("hashchange", follow);
  follow();
}

explore();
