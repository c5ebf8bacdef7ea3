// A conversation with a served model, and what is said of its answers. Texts are shown as they stand, never as HTML.
import { element, other, speak, t } from "./words.js";

const turns = document.getElementById("turns"), say = document.getElementById("say");
const fault = document.getElementById("fault"), status = document.getElementById("status");
let messages = [], conversation = fresh(), going = null, last = null;

// Some name that nobody else has; browsers give randomUUID to safe addresses alone.
function fresh() {
  return crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint32Array(4)), (one) => one.toString(16)).join("-");
}

function headers() {
  const key = sessionStorage.getItem("plaudit-key");
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

// The server's answer, or an error with what it says.
async function ask(path, body, signal) {
  const answer = await fetch(path, body ? { method: "POST", headers: headers(), body: JSON.stringify(body), signal } : { headers: headers() });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  throw Object.assign(new Error(said?.error?.message ?? String(answer.status)), { status: answer.status });
}

function wrong(error) {
  fault.textContent = error instanceof TypeError ? t("gone") : error.message;
  document.getElementById("entry").hidden = error.status !== 401;
}

async function begin() {
  try {
    const list = await (await ask("/v1/models")).json();
    document.getElementById("model").replaceChildren(...list.data.map((one) => element("option", {}, one.id)));
    fault.textContent = "";
    document.getElementById("entry").hidden = true;
    say.focus();
  } catch (error) { wrong(error); }
}

// An answer as it comes: text is shown with each piece; in the end what feedback is sent with, or none.
async function stream(body, show, signal) {
  const answer = await ask("/v1/chat/completions", { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", text = "", id = null, handle = null;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      id = event.id;
      handle = event.feedback ?? handle;
      text += event.choices[0]?.delta.content ?? "";
      show(text);
    }
  }
  return { text, id, token: handle?.token ?? null };
}

function turn(role, text) {
  const shown = element("p", { class: "text" }, text);
  const made = element("li", { class: `turn ${role}` }, element("p", { class: "role", t: role === "user" ? "you" : "assistant" }), shown);
  turns.append(made);
  return { made, shown };
}

async function write(body, show) {
  going = new AbortController();
  document.getElementById("send").disabled = true;
  document.getElementById("stop").hidden = false;
  status.textContent = t("writing");
  fault.textContent = "";
  try {
    const found = await stream(body, show, going.signal);
    status.textContent = "";
    return found;
  } catch (error) {
    status.textContent = error.name === "AbortError" ? t("stopped") : "";
    if (error.name !== "AbortError") wrong(error);
    return null;
  } finally {
    going = null;
    document.getElementById("send").disabled = false;
    document.getElementById("stop").hidden = true;
  }
}

const request = () => ({ model: document.getElementById("model").value, messages, conversation });

async function send(event) {
  event.preventDefault();
  const text = say.value.trim();
  if (!text || going) return;
  leave();
  const mine = messages;
  messages.push({ role: "user", content: text });
  const asked = turn("user", text);
  say.value = "";
  const { made, shown } = turn("assistant", "");
  const found = await write(request(), (so) => (shown.textContent = so));
  if (mine !== messages) return;  // another conversation has begun
  if (found === null) {
    if (!shown.textContent) { made.remove(); asked.made.remove(); messages.pop(); say.value = text; }
    else messages.push({ role: "assistant", content: shown.textContent });
    return;
  }
  messages.push({ role: "assistant", content: found.text });
  judged(made, shown, found);
  say.focus();
}

async function tell(path, body) {
  try {
    await ask(path, body);
    status.textContent = t("thanks");
    return true;
  } catch (error) { wrong(error); return false; }
}

// Signals are no opinions, and nobody waits for them.
function notice(token, kind, value = 1) {
  if (token) fetch("/v1/feedback/signals", { method: "POST", headers: headers(), keepalive: true, body: JSON.stringify({ token, kind, value }) }).catch(() => {});
}

// How long the last answer was looked at, once it is looked at no more.
function leave() {
  if (last === null) return;
  const seconds = (performance.now() - last.since) / 1000;
  if (seconds > 0.5) notice(last.token, "dwell", Math.min(seconds, 86400));
  last = null;
}

// The buttons below an answer.
function judged(made, shown, found) {
  last = { token: found.token, since: performance.now() };
  const acts = element("div", { class: "acts" });
  made.append(acts);
  const copy = async () => { await navigator.clipboard.writeText(shown.textContent); status.textContent = t("copied"); notice(found.token, "copy"); };
  if (navigator.clipboard) acts.append(element("button", { type: "button", class: "quiet", t: "copy", on: { click: copy } }));
  if (!found.token) return;
  const thumbs = ["up", "down"].map((which) => element("button", { type: "button", class: "quiet", t: which, "aria-pressed": "false" }));
  thumbs.forEach((button, place) => button.addEventListener("click", async () => {
    const pressed = button.getAttribute("aria-pressed") === "true";
    const done = pressed ? await tell("/v1/feedback/retract", { token: found.token, what: "score" })
      : await tell("/v1/feedback", { token: found.token, thumbs: place === 0 ? "up" : "down" });
    if (!done) return;
    if (pressed) status.textContent = t("back");
    thumbs.forEach((each) => each.setAttribute("aria-pressed", String(each === button && !pressed)));
  }));
  const edit = element("button", { type: "button", class: "quiet", t: "edit", on: { click: () => correct(made, shown, found, edit) } });
  const again = element("button", { type: "button", class: "quiet", t: "again", on: { click: () => another(made, shown, found, acts) } });
  acts.prepend(...thumbs, edit, again);
}

function correct(made, shown, found, opener) {
  const id = `edit-${found.id}`, area = element("textarea", { id, rows: 4 });
  area.value = shown.textContent;
  const close = () => { form.remove(); opener.disabled = false; opener.focus(); };
  const form = element("form", {}, element("label", { for: id, t: "correction" }), area,
    element("button", { t: "keep" }), " ", element("button", { type: "button", class: "quiet", t: "cancel", on: { click: close } }));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = area.value.trim();
    if (!text || text === shown.textContent.trim()) return close();
    if (await tell("/v1/feedback", { token: found.token, correction: text })) {
      replace(shown.textContent, text);
      shown.textContent = text;
      close();
    }
  });
  opener.disabled = true;
  made.append(form);
  area.focus();
}

// In the conversation so far, that the model goes on with.
function replace(before, after) {
  const place = messages.findLastIndex((one) => one.role === "assistant" && one.content === before);
  if (place >= 0) messages[place] = { role: "assistant", content: after };
}

// Another answer beside the first, and which of the two is better; the conversation goes on with that one.
async function another(made, shown, found, acts) {
  const place = messages.findLastIndex((one) => one.role === "assistant" && one.content === shown.textContent);
  if (going || place < 0) return;
  notice(found.token, "regenerate");
  const second = element("p", { class: "text" }), pair = element("div", { class: "pair" });
  shown.replaceWith(pair);
  pair.append(shown, second);
  acts.hidden = true;
  const body = { ...request(), messages: messages.slice(0, place), regenerates: found.id };
  const mine = messages, next = await write(body, (so) => (second.textContent = so));
  if (mine !== messages) return;
  const settle = (text, kept) => {
    pair.replaceWith(element("p", { class: "text" }, text));
    messages[place] = { role: "assistant", content: text };
    acts.remove();
    judged(made, made.querySelector(".text"), kept);
  };
  if (next === null || !next.token) return settle(shown.textContent, found);
  const choice = element("div", { class: "acts" }, element("p", { class: "note", t: "which" }));
  const pick = (word, better, worse, text) => element("button", { type: "button", class: "quiet", t: word, on: { click: async () => {
    if (await tell("/v1/feedback", { token: better.token, over: worse.token })) { choice.remove(); settle(text(), better); }
  } } });
  choice.append(pick("first", found, next, () => shown.textContent), pick("second", next, found, () => next.text));
  made.append(choice);
  choice.querySelector("button").focus();
}

document.getElementById("composer").addEventListener("submit", send);
say.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); document.getElementById("composer").requestSubmit(); }
});
document.getElementById("stop").addEventListener("click", () => going?.abort());
document.getElementById("language").addEventListener("click", () => { speak(other()); name(); });
document.getElementById("fresh").addEventListener("click", () => {
  going?.abort();
  leave();
  messages = [];
  conversation = fresh();
  turns.replaceChildren();
  status.textContent = fault.textContent = "";
  say.focus();
});
document.getElementById("entry").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("plaudit-key", document.getElementById("key").value.trim());
  begin();
});
addEventListener("pagehide", () => { if (last && messages.length) notice(last.token, "abandon"); leave(); });

function name() {
  const button = document.getElementById("language");
  button.textContent = t("language");
  button.lang = other() === "zh" ? "zh-CN" : "en";
}
speak();
name();
begin();
