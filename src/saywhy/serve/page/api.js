// The way to the server: waiting where it is busy, the key where it wants one, what it refuses in words.

import { parseEvents, retryAfter } from "./formats.js";

// What to do about a status; 0: there was no answer.
const FIXES = {
  0: "Look whether saywhy serve is still running, then try again.",
  401: "Try again, and give the key.",
  413: "That is more than the server takes at once. Shorten the text and try again.",
  422: "Change what the message names, then try again.",
  500: "The server's own output says more. Try again.",
  503: "The server is starting or stopping. Try again in a moment.",
  504: "Choose a mode that computes fewer tokens, or shorten the text.",
};
// An error inside a stream comes too late for a status of its own.
const STATUS = { timeout_error: 504, unavailable_error: 503 };

/** What the server refused: its HTTP status, the field it named, and the fix in words. */
export class Refusal extends Error {
  constructor(status, message, param = null) {
    super(message);
    const field = param && !message.includes(param) ? ` Field: ${param}.` : "";
    Object.assign(this, { status, param, fix: (FIXES[status] ?? "") + field });
  }
}

// The key stays in memory, and is asked for once however many requests want it.
let key = "";
let asking = null;

/**
 * Fetch `path`, with POST where there is a `body`. Waits out 429, and 503 where that says how long, telling `waiting`
 * the seconds left; calls `askKey(wrong)` for 401; throws a Refusal for all else that is no answer.
 */
export async function request(path, { askKey, body, signal, waiting }) {
  for (;;) {
    const sent = key;
    const headers = { "Content-Type": "application/json", ...(sent && { Authorization: `Bearer ${sent}` }) };
    const options = { headers, signal, ...(body && { method: "POST", body: JSON.stringify(body) }) };
    const response = await fetch(path, options).catch(orBroken("The server does not answer."));
    if (response.ok) return response;
    const after = retryAfter(response.headers.get("Retry-After"));
    if (response.status === 401) {
      if (key === sent) asking ??= askKey(sent !== "").finally(() => (asking = null));
      key = (await asking) ?? key;
    } else if (response.status === 429 || (response.status === 503 && after !== null)) {
      await pause(after ?? 1, signal, waiting);
    } else {
      const { error } = (await response.json().catch(() => null)) ?? {};
      throw new Refusal(response.status, error?.message ?? `The server answered ${response.status}.`, error?.param);
    }
    signal?.throwIfAborted();
  }
}

const orBroken = (message) => (error) => {
  throw error.name === "AbortError" ? error : new Refusal(0, message);
};

async function pause(seconds, signal, waiting) {
  for (const end = Date.now() + seconds * 1000; Date.now() < end; signal?.throwIfAborted()) {
    waiting?.(Math.ceil((end - Date.now()) / 1000));
    await new Promise((done) => setTimeout(done, Math.min(200, end - Date.now())));
  }
}

/** The events of a streamed answer as {event, said}, up to `done`; throws a Refusal where it ends before. */
export async function* streamed(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { value, done } = await reader.read().catch(orBroken("The connection broke off before the answer's end."));
    if (done) throw new Refusal(0, "The answer broke off before its end.");
    const { events, rest } = parseEvents(text + value);
    text = rest;
    for (const { event, data } of events) {
      const said = JSON.parse(data);
      if (event === "error") throw new Refusal(STATUS[said.error.type] ?? 500, said.error.message, said.error.param);
      yield { event, said };
      if (event === "done") return;
    }
  }
}
