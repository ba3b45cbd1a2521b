// What the page reads and writes: CSV, event streams, numbers in words. Pure functions, none touches the page.

/**
 * Read a CSV file (RFC 4180; comma, semicolon or tab, whichever its first line has most of).
 * Gives {columns, rows, delimiter, bom}; rows are lists of text as long as the header. An Error names the line.
 */
export function parseCsv(text) {
  const source = text.replace(/^\uFEFF/, "");
  const delimiter = delimiterOf(source);
  const stop = new RegExp(`[${delimiter}\r\n]`, "g");
  const rows = [];
  for (let at = 0, line = 1; at < source.length; line += 1) {
    const first = line;
    const row = [];
    const quoted = source[at] === '"';
    for (let more = true; more; at += 1) {
      let end;
      if (source[at] === '"') {
        end = closingQuote(source, at);
        if (end < 0) throw new Error(`Line ${line} opens a quote that nothing closes.`);
        const cell = source.slice(at + 1, end);
        line += cell.match(/\r\n|\r|\n/g)?.length ?? 0;
        row.push(cell.replaceAll('""', '"'));
        end += 1;
        if (end < source.length && !`${delimiter}\r\n`.includes(source[end]))
          throw new Error(`Line ${line} has text behind a closing quote. A quote inside a cell is written twice: "".`);
      } else {
        stop.lastIndex = at;
        end = stop.exec(source)?.index ?? source.length;
        row.push(source.slice(at, end));
      }
      at = end;
      more = source[at] === delimiter;
    }
    if (source[at - 1] === "\r" && source[at] === "\n") at += 1;
    if (row.length === 1 && row[0] === "" && !quoted) continue;
    const width = rows[0]?.length ?? row.length;
    if (row.length !== width)
      throw new Error(`Line ${first} has ${plural(row.length, "cell")} where the header has ${width}. ` +
        `Put quotes around cells that hold a ${MARKS[delimiter]} or a line break.`);
    rows.push(row);
  }
  if (rows.length < 2) throw new Error("There is no row behind the header. The first line must name the columns.");
  return { columns: rows[0], rows: rows.slice(1), delimiter, bom: text !== source };
}

const MARKS = { ",": "comma", ";": "semicolon", "\t": "tab" };

function delimiterOf(source) {
  const head = source.slice(0, 100_000).replace(/"[^"]*"/g, "").match(/[^\r\n]+/)?.[0] ?? "";
  const count = (mark) => head.split(mark).length;
  return Object.keys(MARKS).reduce((best, mark) => (count(mark) > count(best) ? mark : best));
}

function closingQuote(source, opening) {
  let end = source.indexOf('"', opening + 1);
  while (end >= 0 && source[end + 1] === '"') end = source.indexOf('"', end + 2);
  return end;
}

/** Write rows as CSV with CRLF line ends; `safe` guards every cell against being run as a formula. */
export function writeCsv(rows, delimiter = ",", safe = false) {
  const needsQuotes = new RegExp(`[${delimiter}"\r\n\v\f\u0085\u2028\u2029]`);
  const written = (cell) => (needsQuotes.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  return rows.map((row) => `${row.map((cell) => written(safe ? guarded(cell) : cell)).join(delimiter)}\r\n`).join("");
}

/** Put ' before a cell that a spreadsheet would run as a formula (OWASP, "CSV Injection"). */
const guarded = (cell) => (/^[=+\-@\t\r\n＝＋－＠]/.test(cell) ? `'${cell}` : cell);

/**
 * The rows of a file, all their cells as they were, with what was answered behind them: {csv, names of what was added}.
 * All names begin with `predicted_` where the file has one of them already. There may be fewer answers than rows.
 */
export function classifiedCsv({ columns, rows, delimiter, bom }, answers, { ordinal = false, safe = false } = {}) {
  const refused = answers.some(({ error }) => error);
  const names = ["label", "probability", "probabilities", ...(ordinal ? ["expected"] : [])];
  names.push("abstained", "reasoning", "tokens", "forced", ...(refused ? ["error"] : []));
  const prefix = names.some((name) => columns.includes(name)) ? "predicted_" : "";
  const added = names.map((name) => prefix + name);
  const table = answers.map((answer, i) => [...rows[i], ...names.map((name) => answerCell(answer, name))]);
  return { csv: (bom ? "\uFEFF" : "") + writeCsv([[...columns, ...added], ...table], delimiter, safe), names: added };
}

/** What a model wrote is guarded whatever was chosen: a hostile text could have made it write a formula. */
function answerCell(answer, name) {
  const value = answer[name] ?? "";
  if (name === "reasoning" || name === "error") return guarded(value);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

const TEXT_COLUMNS = ["text", "texts", "sentence", "message", "content", "body", "review", "comment", "question"];

/** The place of the column that obviously has the text: the only one, or the only one with such a name; else null. */
export function textColumn(columns) {
  const known = columns.flatMap((name, i) => (TEXT_COLUMNS.includes(name.trim().toLowerCase()) ? [i] : []));
  if (columns.length === 1) return 0;
  return known.length === 1 ? known[0] : null;
}

/** The events that are complete in a piece of an event stream (HTML standard, 9.2), and what is left of it. */
export function parseEvents(text) {
  const blocks = text.split(/\r\n\r\n|\n\n|\r\r/);
  const rest = blocks.pop();
  const events = blocks.map((block) => {
    const event = { event: "message", data: [] };
    for (const line of block.split(/\r\n|\n|\r/)) {
      const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
      if (name === "event") event.event = value;
      if (name === "data") event.data.push(value);
    }
    return { ...event, data: event.data.join("\n") };
  });
  return { events: events.filter(({ data }) => data), rest };
}

/** The seconds of a Retry-After header, which is a number or a date; null where it is neither. */
export function retryAfter(value, now = Date.now()) {
  const seconds = /^\s*\d+(\.\d+)?\s*$/.test(value ?? "") ? Number(value) : (Date.parse(value ?? "") - now) / 1000;
  return Number.isNaN(seconds) ? null : Math.max(0.1, seconds);
}

/** What the labels of a scale count as: their own numbers where these rise or fall throughout, else 1 to n. */
function scaleOf(labels) {
  const own = labels.map((label) => (label.trim() ? Number(label) : NaN));
  const steps = own.slice(1).map((value, i) => value - own[i]);
  const ordered = steps.every((step) => step > 0) || steps.every((step) => step < 0);
  return ordered && own.every(Number.isFinite) ? own : labels.map((_, i) => i + 1);
}

/** Say between which ratings an expected rating lies, with the names of the ends where these are no numbers. */
export function scaleWords(labels) {
  const ends = [0, labels.length - 1].map((i) => {
    const value = String(scaleOf(labels)[i]);
    return value === labels[i] ? value : `${value} (${labels[i]})`;
  });
  return `on a scale from ${ends.join(" to ")}`;
}

/** Say of two answers to two texts what is the same and what is not. */
export function compared(a, b) {
  if (a.label !== b.label)
    return `The first is ${a.label} (${percent(a.probability)}), the second ${b.label} (${percent(b.probability)}).`;
  const points = number(Math.abs(a.probability - b.probability) * 100, 1);
  if (points === "0") return `Both are ${a.label}, and equally sure.`;
  return `Both are ${a.label}; the ${a.probability > b.probability ? "first" : "second"} is surer by ${points} points.`;
}

/** How far a file is: rows done, and what is to be waited for. `speed` is in rows a second, `wait` in seconds. */
export function progressWords(done, rows, { speed, wait, running }) {
  const so = `${number(done)} of ${plural(rows, "row")}`;
  if (done === rows) return so;
  if (!running) return `${so}, stopped`;
  if (wait) return `${so}, the server is busy, asking again in ${duration(wait)}`;
  return speed > 0 ? `${so}, ${number(speed, 1)} rows/s, about ${duration((rows - done) / speed)} left` : so;
}

export const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });

export const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

/** A share in percent; what is not quite 0 or 1 never reads as if it were. */
export function percent(share) {
  if (share > 0 && share < 0.0005) return "<0.1%";
  if (share < 1 && share >= 0.9995) return ">99.9%";
  return `${(share * 100).toFixed(1)}%`;
}

export function duration(seconds) {
  if (seconds < 90) return plural(Math.max(1, Math.round(seconds)), "second");
  return seconds < 5400 ? plural(Math.round(seconds / 60), "minute") : plural(Math.round(seconds / 3600), "hour");
}
