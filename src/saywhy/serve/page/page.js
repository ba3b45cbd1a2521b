// The page of `saywhy serve`: what is typed or dropped goes to v1/classify, what comes back is shown.
// What a model, a user or a file says is never read as HTML: only textContent and value are set.

import { Refusal, request, streamed } from "./api.js";
import { compared, duration, number, percent, plural, scaleWords } from "./formats.js";
import { classifiedCsv, parseCsv, progressWords, textColumn } from "./formats.js";

const MOST_BYTES = 50_000_000;
const MOST_BATCH = 64;
const SECONDS_A_BATCH = 2;
const SHOWN = 8;
const MODES = {
  label: "scores the labels, writes nothing",
  explain: "the label first, then a reasoning behind it",
  reason: "writes a reasoning, then scores the labels behind it",
  vote: "the mean over several sampled reasonings",
  ensemble: "the mean of label and reason",
  adaptive: "label, and reason where the label is not sure enough",
};
const CTRL = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ ↵" : "Ctrl ↵";

// `asking` and `filing` are AbortControllers: a run that finds another in its place has been overtaken.
const state = { model: null, asking: null, answered: null, here: { texts: "" }, file: null, filing: null, url: "" };

// What is on the page

const $ = (id) => document.getElementById(id);
const view = () => document.querySelector("[name=view]:checked").value;
const mode = () => document.querySelector("[name=mode]:checked")?.value ?? null;
const fields = () => (view() === "two" ? [$("first"), $("second")] : [$("first")]);
const template = (id) => $(id).content.cloneNode(true).firstElementChild;
const tell = (words) => ($("status").textContent = words);

function make(tag, className = "", ...children) {
  const node = Object.assign(document.createElement(tag), { className });
  node.append(...children);
  return node;
}

/** An element whose text may be written from either side. */
const foreign = (tag, className, text) => Object.assign(make(tag, className, text), { dir: "auto" });

function show(node, text) {
  node.textContent = text;
  node.hidden = !text;
}

function trouble(error, again) {
  const button = Object.assign(make("button", "", "Try again"), { type: "button", onclick: again, hidden: !again });
  $("trouble").replaceChildren(make("b", "", error.message), make("p", "", error.fix ?? ""), button);
  $("trouble").hidden = false;
}

function ask(words, field) {
  trouble(new Error(words));
  field.focus();
}

/** Hide all but the first items behind a button, which stays as it is when it is painted again. */
function fold(button, items, limit, name = "labels") {
  const paint = () => {
    const open = button.ariaExpanded === "true";
    items.forEach((item, i) => (item.hidden = !open && i >= limit));
    button.textContent = open ? `Show only ${limit}` : `Show all ${items.length} ${name}`;
  };
  button.ariaExpanded ??= "false";
  button.hidden = items.length <= limit;
  button.onclick = () => {
    button.ariaExpanded = String(button.ariaExpanded !== "true");
    paint();
  };
  paint();
}

function paintBars(list, bars) {
  list.classList.toggle("names-long", bars.some(({ name }) => name.length > 20));
  const mark = (className, share) => {
    const node = make("span", className);
    node.style.setProperty("--share", share);
    return node;
  };
  list.replaceChildren(...bars.map(({ name, share, other, value, best }) => {
    const ticks = other === undefined ? [] : [mark("other", other)];
    const track = make("span", "track", mark("fill", share), ...ticks);
    return make("li", best ? "best" : "", make("bdi", "", name), track, make("span", "value", value));
  }));
}

function paintModel({ id, saywhy: { task, instruction, labels, descriptions, ordinal, modes, recommended } }) {
  document.title = `${task || id} – saywhy`;
  $("task").textContent = task || id;
  $("question").textContent = instruction || "Which label, and why?";
  $("question").classList.toggle("long", instruction.length > 90);
  $("empty-title").textContent = ordinal ? `A scale of ${labels.length} labels` : plural(labels.length, "label");
  const described = labels.some((label) => descriptions?.[label]);
  $("labels").className = described ? "labels described" : "labels";
  const items = labels.map((label) =>
    make("li", "", foreign("b", "", label), " ", foreign("span", "", descriptions?.[label] ?? "")));
  $("labels").replaceChildren(...items);
  fold($("empty").querySelector(".more"), items, described ? 12 : 24);
  $("empty").hidden = state.answered !== null;
  const cheapest = Math.min(...Object.values(modes).map((one) => one.tokens_per_row ?? Infinity));
  const cards = Object.entries(modes).map(([name, one]) => modeCard(name, one, cheapest, name === recommended));
  $("modes").replaceChildren($("modes").firstElementChild, ...cards);
  if (!mode()) cards[0].querySelector("input").checked = true;
  modeChanged();
}

function modeCard(name, { tokens_per_row: tokens, rows_per_second: speed, accuracy }, cheapest, recommended) {
  const card = template("mode");
  const put = (className, ...words) => card.querySelector(className).replaceChildren(...words);
  const figure = (value) => (value == null ? "–" : number(value, value < 10 ? 1 : 0));
  const times = tokens > cheapest && cheapest > 0 ? [make("small", "", ` ×${number(tokens / cheapest, 1)}`)] : [];
  Object.assign(card.querySelector("input"), { value: name, checked: recommended });
  card.querySelector("input").setAttribute("aria-describedby", `about-${name}`);
  card.querySelector(".about").id = `about-${name}`;
  card.querySelector(".pick").hidden = !recommended;
  put(".name", name);
  put(".what", MODES[name] ?? "");
  put(".tokens", figure(tokens), ...times);
  put(".speed", figure(speed));
  put(".accuracy", accuracy == null ? "–" : percent(accuracy));
  return card;
}

function modeChanged() {
  for (const link of document.querySelectorAll(".in-mode")) show(link, mode() ? `Mode: ${mode()}` : "");
  notice();
  fileChanged();
}

/** Say so where the answer on the page belongs to another text or mode than stands there now. */
function notice() {
  const { texts, mode: asked } = state.answered ?? {};
  const changed = fields().some((field, i) => field.value !== texts?.[i]);
  let words = "";
  if (changed) words = `The text has changed since this answer. ${CTRL} asks again.`;
  else if (asked !== mode()) words = `Answered in mode ${asked}. ${CTRL} asks in mode ${mode()}.`;
  show($("note"), texts && view() !== "file" ? words : "");
}

function viewChanged() {
  const file = view() === "file";
  $("ask").hidden = $("answers").hidden = file;
  $("file").hidden = !file;
  $("file-answers").hidden = !file || !state.file?.started;
  $("second-field").hidden = view() !== "two";
  $("first-name").textContent = view() === "two" ? "First text" : "Text";
  $("trouble").hidden = true;
  if (!file && state.asking && $("results").childElementCount !== fields().length) clearAnswers();
  notice();
}

function busy(form, on) {
  const button = form.querySelector(".cancel");
  if (!on && document.activeElement === button) form.querySelector(".main").focus();
  button.hidden = !on;
  form.setAttribute("aria-busy", on);
}

/** Ask the person for the API key; what they give stays in memory. */
function askKey(wrong) {
  $("key-title").textContent = wrong ? "That key was not accepted" : "This server asks for a key";
  $("key-dialog").showModal();
  return new Promise((done, refuse) => {
    $("key-form").onsubmit = () => done($("key").value.trim());
    $("key-dialog").onclose = () => {
      $("key").value = "";
      refuse(new Refusal(401, "The server answers only with its API key."));
    };
  });
}

const call = (path, options) => request(path, { askKey, ...options });

// One text, or two

function clearAnswers() {
  state.asking?.abort();
  state.answered = null;
  for (const id of ["verdict", "note"]) show($(id), "");
  $("results").replaceChildren();
  $("empty").hidden = !state.model;
}

async function classify() {
  const blank = fields().find((field) => !field.value.trim());
  if (blank) return ask("There is no text yet. Type or paste one first.", blank);
  const texts = fields().map((field) => field.value);
  const asked = mode();
  clearAnswers();
  const run = (state.asking = new AbortController());
  const cards = texts.map(() => template("answer"));
  $("results").replaceChildren(...cards);
  $("empty").hidden = $("trouble").hidden = true;
  cards[0].scrollIntoView({ block: "nearest" });
  busy($("ask"), true);
  tell("Classifying.");
  try {
    const body = { texts, mode: asked, reasoning: true, probabilities: true, stream: true };
    const waiting = (seconds) => show($("note"), `The server is busy. Asking again in ${duration(seconds)}.`);
    const response = await call("v1/classify", { body, signal: run.signal, waiting });
    const results = [];
    show($("note"), "");
    for await (const { event, said } of streamed(response)) {
      if (state.asking !== run) return;
      if (event === "reasoning") paintReasoning(cards[said.index], said.text, asked);
      if (event === "result") paintAnswer(cards[said.index], (results[said.index] = said), asked);
      if (event === "done") finish(cards, texts, results, said);
    }
  } catch (error) {
    if (state.asking !== run) return;
    clearAnswers();
    if (error.name === "AbortError") tell("Cancelled.");
    else trouble(error, classify);
  } finally {
    if (state.asking === run) busy($("ask"), false);
  }
}

function paintReasoning(card, text, asked) {
  const why = card.querySelector(".why");
  why.hidden = false;
  why.classList.add("writing");
  why.firstElementChild.textContent = `What the model wrote ${asked === "explain" ? "after" : "before"} its label`;
  why.lastElementChild.textContent += text;
}

function paintAnswer(card, result, asked) {
  const { labels, descriptions } = state.model.saywhy;
  const remarks = [
    result.abstained && "Not sure enough: the model abstains. This is the label it would have given.",
    result.expected != null && `Expected rating ${number(result.expected, 2)}, ${scaleWords(labels)}.`,
    result.forced && "The reasoning ran into its limit and was cut there.",
  ];
  card.classList.remove("waiting");
  card.classList.toggle("unsure", result.abstained);
  card.classList.toggle("name-long", result.label.length > 24);
  // A name like wrong_exchange_rate may break behind its underscores.
  const parts = result.label.split(/(?<=_)/).flatMap((part) => [part, make("wbr")]);
  card.querySelector(".name").replaceChildren(...parts);
  card.querySelector(".sure").textContent = percent(result.probability);
  show(card.querySelector(".meaning"), descriptions?.[result.label] ?? "");
  show(card.querySelector(".remark"), remarks.filter(Boolean).join("\n"));
  const why = card.querySelector(".why");
  why.lastElementChild.textContent = "";
  paintReasoning(card, result.reasoning ?? "", asked);
  why.hidden = !result.reasoning;
  why.classList.remove("writing");
  paintProbabilities(card, result);
}

function paintProbabilities(card, { label, probabilities }, other = {}) {
  if (!probabilities) return;
  const { labels, ordinal } = state.model.saywhy;
  const most = (name) => Math.max(probabilities[name] ?? 0, other[name] ?? 0);
  const order = ordinal ? labels : [...labels].sort((a, b) => most(b) - most(a));
  const bars = order.map((name) => {
    const share = probabilities[name] ?? 0;
    const apart = Math.abs(share - other[name]) > 0.01;
    return { name, share, value: percent(share), best: name === label, other: apart ? other[name] : undefined };
  });
  paintBars(card.querySelector(".bars"), bars);
  fold(card.querySelector(".more"), [...card.querySelectorAll(".bars li")], ordinal ? 12 : SHOWN);
}

function finish(cards, texts, results, { mode: answered, usage }) {
  state.answered = { texts, mode: answered };
  const two = results.length > 1;
  const said = results.map(({ label, probability }) => `${label}, ${percent(probability)}`);
  const seconds = `${number(usage.seconds, 2)} s${two ? " for both" : ""}`;
  if (two) {
    cards.forEach((card, i) => paintProbabilities(card, results[i], results[1 - i].probabilities ?? {}));
    show($("verdict"), compared(...results));
  }
  cards.forEach((card, i) => {
    const tokens = plural(Math.round(results[i].tokens), "token");
    const tick = two ? " A thin line in a bar marks the other text." : "";
    card.querySelector(".cost").textContent = `Mode ${answered}: ${tokens} computed, ${seconds}.${tick}`;
  });
  paintHere(texts, answered, `${said.join("; ")}. ${plural(Math.round(usage.tokens), "token")}, ${seconds}.`);
  tell([...said, ...results.map(({ reasoning }) => reasoning ?? "")].join(". "));
  notice();
}

/** Keep under each mode what it said and cost for this text, so that modes can be compared. */
function paintHere(texts, answered, words) {
  const asked = JSON.stringify(texts);
  if (state.here.texts !== asked) state.here = { texts: asked, said: new Map() };
  state.here.said.set(answered, `${texts.length > 1 ? "These texts" : "This text"}: ${words}`);
  for (const card of document.querySelectorAll(".mode"))
    show(card.querySelector(".here"), state.here.said.get(card.querySelector("input").value) ?? "");
}

// A file

async function openFile(chosen) {
  if (!chosen) return;
  state.filing?.abort();
  Object.assign(state, { chosen, file: null });
  $("ready").hidden = $("file-answers").hidden = $("trouble").hidden = true;
  if (chosen.size > MOST_BYTES)
    return trouble(new Error("This file is larger than 50 MB. Use saywhy predict RUN --input FILE --output FILE."));
  try {
    const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    const bytes = await chosen.arrayBuffer();
    if (state.chosen !== chosen) return;
    state.file = { name: chosen.name, answers: [], batch: 8, ...parseCsv(decoder.decode(bytes)) };
  } catch (error) {
    const other = new Error("This file is not UTF-8. Save it as “CSV UTF-8” and drop it again.");
    return trouble(error instanceof TypeError ? other : error);
  }
  const { columns, rows, name } = state.file;
  const obvious = textColumn(columns) ?? "";
  const options = columns.map((column, i) => new Option(column || `column ${i + 1}`, i));
  $("column").replaceChildren(...(obvious === "" ? [new Option("Choose a column", "")] : []), ...options);
  $("column").value = obvious;
  const size = `: ${plural(rows.length, "row")}, ${plural(columns.length, "column")}`;
  $("file-name").replaceChildren(make("bdi", "", name), size);
  $("ready").hidden = false;
  fileChanged();
  (obvious === "" ? $("column") : $("file").querySelector(".main")).focus();
}

/** Another column or mode is another question: what is answered so far can no longer be gone on with. */
function goesOn(file) {
  const some = file.answers.length > 0 && file.answers.length < file.rows.length;
  return some && file.column === $("column").value && file.mode === mode();
}

function fileChanged() {
  const file = state.file;
  if (!file) return;
  const column = $("column").value;
  const sample = column === "" ? [] : file.rows.slice(0, 3).map((row) => row[column] || "(empty)");
  $("sample").replaceChildren(...sample.map((text) => foreign("li", "", text)));
  const all = `Classify ${plural(file.rows.length, "row")}`;
  $("start").textContent = goesOn(file) ? `Go on with row ${number(file.answers.length + 1)}` : all;
}

async function classifyFile() {
  const file = state.file;
  if (!file) return ask("There is no file yet. Drop or choose one first.", $("picked"));
  if (state.filing) return;
  const column = $("column").value;
  if (column === "") return ask("Choose the column that holds the text.", $("column"));
  if (!goesOn(file)) Object.assign(file, { answers: [], column, mode: mode(), started: true });
  const run = (state.filing = new AbortController());
  const before = file.answers.length;
  const started = performance.now();
  const speed = () => (1000 * (file.answers.length - before)) / (performance.now() - started);
  const paint = (wait) => state.file === file && paintFile(file, speed(), wait);
  $("trouble").hidden = true;
  $("file-answers").hidden = false;
  $("column").disabled = true;
  busy($("file"), true);
  tell(`Classifying ${plural(file.rows.length, "row")}.`);
  paint();
  try {
    while (file.answers.length < file.rows.length) {
      await nextBatch(file, run.signal, paint);
      paint();
    }
    tell(`Done: ${plural(file.rows.length, "row")} classified. The CSV can be downloaded.`);
  } catch (error) {
    if (error.name === "AbortError") tell(`Stopped after ${plural(file.answers.length, "row")}.`);
    else trouble(error, classifyFile);
  } finally {
    if (state.filing === run) state.filing = null;
    $("column").disabled = false;
    busy($("file"), false);
    paint();
    fileChanged();
  }
}

/** Ask for some rows more: as many as take about two seconds, so that progress shows and cancelling is quick. */
async function nextBatch(file, signal, waiting) {
  const done = file.answers.length;
  const texts = file.rows.slice(done, done + file.batch).map((row) => row[file.column]);
  const asked = performance.now();
  const filled = texts.filter((text) => text.trim());
  const answers = filled.length ? await askAll(file, filled, signal, waiting) : [];
  file.answers.push(...texts.map((text) => (text.trim() ? answers.shift() : { error: "The text is empty." })));
  const fits = Math.round((texts.length * SECONDS_A_BATCH * 1000) / (performance.now() - asked));
  file.batch = Math.max(1, Math.min(fits, 2 * texts.length, file.most ?? MOST_BATCH));
  if (file.answers.length >= 10 && file.answers.every(({ error }) => error))
    throw new Refusal(422, `Every row so far is refused. ${file.answers[0].error}`);
}

/** Ask for texts. What is refused together is asked in halves, so that one text cannot stop a file. */
async function askAll(file, texts, signal, waiting) {
  try {
    const body = { texts, mode: file.mode, reasoning: true, probabilities: true, stream: false };
    return (await (await call("v1/classify", { body, signal, waiting })).json()).results;
  } catch (error) {
    if (![413, 422, 500, 504].includes(error.status)) throw error;
    if (texts.length === 1) return [{ error: error.message }];
    const half = Math.ceil(texts.length / 2);
    if (error.status !== 422 || error.param === "texts") file.most = half;
    const first = await askAll(file, texts.slice(0, half), signal, waiting);
    return [...first, ...(await askAll(file, texts.slice(half), signal, waiting))];
  }
}

function paintFile(file, speed, wait) {
  const done = file.answers.length;
  const tally = new Map();
  for (const { label, abstained, error } of file.answers) {
    const name = error ? "refused" : abstained ? "abstained" : label;
    tally.set(name, (tally.get(name) ?? 0) + 1);
  }
  const counts = [...tally].sort((a, b) => b[1] - a[1]);
  Object.assign($("progress"), { max: file.rows.length, value: done });
  $("progress-text").textContent = progressWords(done, file.rows.length, { speed, wait, running: state.filing });
  const bars = counts.map(([name, count]) => ({ name, share: count / done, value: number(count), best: true }));
  paintBars($("tally"), bars);
  fold($("file-answers").querySelector(".more"), [...$("tally").children], SHOWN);
  const first = file.answers.slice(0, SHOWN).map((answer, i) => previewed(file.rows[i][file.column], answer));
  $("preview").replaceChildren(...first);
  $("saved").hidden = Boolean(state.filing) || !done;
  if (!$("saved").hidden) offer(file);
}

function previewed(text, { label, probability, reasoning, error }) {
  const sure = make("small", "", error ? "" : percent(probability));
  const said = make("span", "said", make("bdi", "", error ? "refused" : label), " ", sure);
  return make("li", "", foreign("span", "text", text), said, foreign("span", "reason", error ?? reasoning ?? ""));
}

function offer(file) {
  const { ordinal } = state.model.saywhy;
  const { csv, names } = classifiedCsv(file, file.answers, { ordinal, safe: $("guard").checked });
  URL.revokeObjectURL(state.url);
  state.url = URL.createObjectURL(new Blob([csv], { type: "text/csv" }));
  Object.assign($("download"), { href: state.url, download: `${file.name.replace(/\.[^.]*$/, "")}-classified.csv` });
  const size = plural(file.answers.length, "row");
  $("download-note").textContent = `${size}: all columns of the file, and ${names.join(", ")}.`;
}

// Keys, and the start

const go = () => (!state.model ? start() : view() === "file" ? classifyFile() : classify());
const cancel = () => (view() === "file" ? state.filing : state.asking)?.abort();

function dropped(event) {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (!event.dataTransfer.files.length) return;
  document.querySelector("[name=view][value=file]").checked = true;
  viewChanged();
  openFile(event.dataTransfer.files[0]);
}

function listen() {
  for (const key of document.querySelectorAll(".ctrl")) key.textContent = CTRL;
  for (const form of [$("ask"), $("file")]) {
    form.onsubmit = (event) => {
      event.preventDefault();
      go();
    };
    form.querySelector(".cancel").onclick = cancel;
  }
  $("views").onchange = viewChanged;
  $("modes").onchange = modeChanged;
  $("ask").oninput = notice;
  $("column").onchange = fileChanged;
  $("guard").onchange = () => state.file?.answers.length && offer(state.file);
  $("picked").onchange = () => openFile($("picked").files[0]).finally(() => ($("picked").value = ""));
  $("key-cancel").onclick = () => $("key-dialog").close();
  document.onkeydown = (event) => {
    if ($("key-dialog").open || event.isComposing) return;
    if (event.key === "Escape") cancel();
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    go();
  };
  document.ondragover = (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  };
  document.ondragleave = (event) => event.relatedTarget || document.body.classList.remove("dragging");
  document.ondrop = dropped;
  window.onbeforeunload = (event) => state.filing && event.preventDefault();
}

async function start() {
  try {
    const { data } = await (await call("v1/models")).json();
    $("trouble").hidden = true;
    paintModel((state.model = data[0]));
  } catch (error) {
    trouble(error, start);
  }
}

listen();
viewChanged();
start();
