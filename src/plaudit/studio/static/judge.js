// Where people judge: one item after the other, the next one there before it is wanted.
import { draftOf, keep as keepHere, keepDraft, recall } from "./kept.js";
import { Outbox } from "./outbox.js";
import { makers } from "./tasks.js";
import { call, identity } from "./wire.js";
import { element, payloadInWords, percent, prose, t } from "./words.js";

const root = document.getElementById("judge");
const { project, language, rater } = root.dataset;
const board = document.getElementById("item"), notice = document.getElementById("notice");
const FLAGS = ["harmful", "private", "broken"];
const AHEAD = 3, ANSWERS = `/projects/${project}/answers`;

let task = null, guideline = 0, turns = [], current = null, last = null, coming = null, failed = null, today = 0;
let move = 0; // raised by whatever changes what is shown: who comes back from waiting looks whether it is still meant
const answered = new Set(); // items of this page that are answered or on their way
const began = Date.now();
let reminded = began;

const outbox = new Outbox(rater, {
  told({ waiting, unkept, refused, forged }) {
    if (refused) giveBack(refused);
    else if (unkept) say(t("not_kept", { count: unkept }), { kind: "waiting", loud: true });
    else if (forged) say(t("load_again"), { kind: "waiting", loud: true });
    else if (waiting) say(t("not_sent_yet", { count: waiting }), { kind: "waiting" });
    else if (notice.dataset.kind === "waiting") notice.hidden = true;
    if (!waiting && current === null && board.dataset.state === "waiting") next();
  },
  // An answer of this project brings what comes next; others may have been left from elsewhere.
  asks: (path) => (path === ANSWERS ? { ahead: AHEAD, have: held() } : {}),
  heard: (path, { next: found }) => found && take(found),
});

function say(text, { kind = "", loud = false } = {}) {
  if (notice.dataset.kind === "refused" && !notice.hidden && kind === "waiting") return;
  notice.dataset.kind = kind;
  notice.classList.toggle("loud", loud);
  notice.replaceChildren(
    element("span", {}, text), " ",
    element("button", { type: "button", class: "quiet", on: { click: close } }, t("close")),
  );
  notice.hidden = false;
}

// The message, else the comment that is open.
function close() {
  const more = current?.comment.closest("details[open]");
  const closed = notice.hidden ? more : notice, focused = closed?.contains(document.activeElement);
  if (!notice.hidden) notice.hidden = true;
  else if (more) more.open = false;
  if (focused) board.focus({ preventScroll: true });
}

// What was refused is a draft of its item again; what it should have replaced can still be replaced.
function giveBack({ body, message }) {
  say(t("answer_refused", { why: message }), { kind: "refused", loud: true });
  answered.delete(body.item);
  if (last?.event === body.event) last = body.supersedes ? { ...last, event: body.supersedes } : null;
}

// -- what comes next -------------------------------------------------------------------------------------------

// Items that this page has.
function held() {
  return [current?.turn, ...turns].filter(Boolean).map((turn) => turn.item);
}

async function load() {
  take(await call("GET", `/projects/${project}/next?count=${AHEAD}&have=${held().join(",")}`));
}

function take(found) {
  task = found.task;
  guideline = found.guideline;
  showGuideline(found);
  for (const { body } of outbox.read()) answered.add(body.item);
  const here = held();
  turns.push(...found.turns.filter((turn) => !here.includes(turn.item) && !answered.has(turn.item)));
}

function ahead() {
  coming ??= load().then(() => {
    failed = null;
  }, (error) => {
    failed = error;
  }).finally(() => {
    coming = null;
  });
  return coming;
}

async function next() {
  const mine = ++move;
  if (!turns.length) {
    board.setAttribute("aria-busy", "true");
    await outbox.flush();
    if (!turns.length) await ahead();
    if (mine === move && !turns.length && !failed) await ahead(); // what was loaded before the last answer had it still
    if (mine !== move) return;
  }
  const turn = turns.shift();
  if (turn) show(turn);
  else ended();
  if (today % 10 === 0) own();
}

async function own() {
  const midnight = new Date(new Date().setHours(0, 0, 0, 0)).toISOString();
  const found = await call("GET", `/projects/${project}/own?since=${encodeURIComponent(midnight)}`).catch(() => null);
  if (found === null) return;
  today = Math.max(today, found.today);
  const agreed = found.agreement === null ? "" : t("others_agree", { share: percent(found.agreement) });
  document.getElementById("own").textContent = agreed;
  document.getElementById("progress").textContent = t("judged_so_far", { count: today });
}

// Nothing is left, or nothing could be had.
function ended() {
  current = null;
  const cut = failed !== null || outbox.read().length > 0;
  board.dataset.state = cut ? "waiting" : "finished";
  board.setAttribute("aria-busy", "false");
  const again = element("button", { type: "button", on: { click: () => next() } }, t("try_again"));
  board.replaceChildren(
    element("h2", {}, t(cut ? "cannot_be_reached" : "nothing_left")),
    element("p", {}, cut ? (failed?.message ?? "") : t("nothing_left_text")),
    element("div", { class: "actions" }, ...(cut ? [again] : []), undoButton()),
  );
  board.focus();
}

addEventListener("online", () => {
  if (current === null) next();
});

// -- one item --------------------------------------------------------------------------------------------------

function undoButton() {
  return element("button", { type: "button", class: "quiet", disabled: last === null, on: { click: undo } }, t("undo"), element("kbd", {}, "u"));
}

function show(turn, draft = stored(turn)) {
  move += 1;
  const training = turn.part === "training", flags = new Set(draft.flags ?? []);
  const comment = element("textarea", { id: "comment", rows: 2, maxlength: 10_000, on: { input: () => keep() } });
  comment.value = draft.comment ?? "";
  const part = makers[task.kind]({ task, turn, draft, changed: () => { keep(); ready(); } });
  const send = element("button", { type: "button", class: "send", on: { click: answer } }, t(training ? "check" : "send"), element("kbd", {}, "↵"));
  const pass = training ? null : element("button", { type: "button", class: "quiet", on: { click: skip } }, t("skip"), element("kbd", {}, "s"));
  const veil = task.blur ? element("button", { type: "button", class: "quiet", "aria-pressed": "false", on: { click: blurred } }, t("show_or_blur"), element("kbd", {}, "b")) : null;
  const flagged = FLAGS.map((flag) => element(
    "label", { class: "flag" },
    element("input", {
      type: "checkbox", checked: flags.has(flag),
      on: { change: (event) => { event.target.checked ? flags.add(flag) : flags.delete(flag); keep(); } },
    }),
    t(`flag_${flag}`),
  ));
  current = { turn, part, comment, flags, veil, began: performance.now(), event: identity(), supersedes: draft.supersedes ?? null };
  board.dataset.state = "item";
  board.replaceChildren(...[
    training ? element("p", { class: "eyebrow" }, t("training_item")) : null,
    element(
      "div", { class: "prompt", role: "group", "aria-label": t("prompt") },
      ...turn.prompt.map((one) => element("div", { class: `turn ${one.role}` }, element("span", { class: "role" }, t(`role_of_${one.role}`)), prose(one.html))),
    ),
    part.node,
    training ? null : element(
      "details", { class: "more", open: Boolean(draft.comment || flags.size) },
      element("summary", {}, t("comment_or_flag")),
      element("label", { for: "comment" }, t("comment")), comment,
      element("div", { class: "flags", role: "group", "aria-label": t("flags") }, ...flagged),
    ),
    element("div", { class: "actions" }, ...[send, pass, undoButton(), veil].filter(Boolean)),
  ].filter(Boolean));
  showVeil();
  board.setAttribute("aria-busy", "false");
  document.getElementById("progress").textContent = t("judged_so_far", { count: today });
  showKeys(part.keys, training);
  ready();
  board.focus({ preventScroll: true });
  scrollTo({ top: 0 });
  performance.mark("shown");
  if (turns.length < AHEAD - 1 && !outbox.running) ahead(); // else they come with the acknowledgement

  function ready() {
    send.disabled = !part.ready();
  }
}

function showKeys(keys, training) {
  const common = [["↵", t("send")], ...(training ? [] : [["s", t("skip")], ["c", t("comment")]]), ["u", t("undo")], ...(task.blur ? [["b", t("show_or_blur")]] : []), ["Esc", t("leave_field")]];
  document.getElementById("key-list").replaceChildren(
    ...[...keys, ...common].filter(([, words]) => words).flatMap(([key, words]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, words)]),
  );
}

function showGuideline({ guidelines, guideline: version }) {
  const text = guidelines[language] ?? Object.values(guidelines)[0];
  document.getElementById("guidelines").hidden = !text;
  if (!text) return;
  document.getElementById("version").textContent = t("version", { version });
  document.getElementById("guideline").textContent = text;
}

// -- drafts ----------------------------------------------------------------------------------------------------

let saving = null;

function stored(turn) {
  return draftOf(rater, project, turn.item) ?? turn.draft ?? {};
}

function keep() {
  if (current === null) return;
  const { turn, part, comment, flags, supersedes } = current;
  if (turn.part === "training") return;
  const draft = { payload: part.said() ?? undefined, comment: comment.value, flags: [...flags], supersedes };
  keepDraft(rater, project, turn.item, draft);
  clearTimeout(saving);
  saving = setTimeout(() => call("PUT", `/drafts/${turn.item}`, { draft }).catch(() => {}), 1500);
}

// -- what is said of it ----------------------------------------------------------------------------------------

async function answer() {
  if (current === null || !current.part.ready()) return;
  if (current.turn.part === "training") await learn();
  else give(current.part.said());
}

function skip() {
  if (current !== null && current.turn.part !== "training") give(null);
}

function give(said) {
  const { turn, comment, flags, event, supersedes, began: shown } = current;
  current = null;
  const payload = said === null ? null : { ...said, seconds: Math.round((performance.now() - shown) / 100) / 10 };
  clearTimeout(saving);
  keepDraft(rater, project, turn.item, null);
  answered.add(turn.item);
  outbox.put(ANSWERS, {
    event, item: turn.item, payload, assignment: turn.assignment, guideline,
    comment: comment.value || null, flags: [...flags], supersedes,
  });
  last = { turn, payload, comment: comment.value, flags: [...flags], event };
  if (supersedes === null && said !== null) today += 1;
  rest();
  next();
}

// The last answer comes back as it was given; what is sent then takes its place.
function undo() {
  if (last === null) return;
  if (current !== null) turns.unshift(current.turn);
  const { turn, payload, comment, flags, event } = last;
  last = null;
  show(turn, { payload: payload ?? undefined, comment, flags, supersedes: event });
}

async function learn() {
  const { turn, part } = current, practised = current;
  current = null;
  let lesson;
  try {
    lesson = await call("POST", `/projects/${project}/practice`, { item: turn.item, payload: part.said() });
  } catch (error) {
    current = practised;
    say(error.message, { loud: true });
    return;
  }
  const { right, answer: correct, why } = lesson;
  answered.add(turn.item);
  const on = element("button", { type: "button", on: { click: () => next() } }, t("go_on"), element("kbd", {}, "↵"));
  board.append(element(
    "div", { class: right ? "lesson right" : "lesson wrong", role: "status" },
    element("h2", {}, right ? t("that_is_right") : t("we_would_say", { answer: inWords(correct, turn) })),
    why ? element("p", {}, why) : null, on,
  ));
  board.querySelector(".actions").hidden = true;
  on.focus();
}

function inWords(payload, turn) {
  return payloadInWords(payload, (index) => String.fromCharCode(65 + turn.completions.findIndex((one) => one.index === index)));
}

function rest() {
  const minutes = (Date.now() - reminded) / 60000;
  if (task.rest_minutes && minutes >= task.rest_minutes) {
    reminded = Date.now();
    say(t("time_to_rest", { minutes: Math.round((Date.now() - began) / 60000) }));
  }
}

// -- keys ------------------------------------------------------------------------------------------------------

const KEYS = "plaudit-keys";
const wanted = document.getElementById("use-keys");
wanted.checked = recall(KEYS) ?? true;
wanted.addEventListener("change", () => keepHere(KEYS, wanted.checked));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.repeat && !key.startsWith("Arrow")) return;
  const typing = event.target.matches("textarea, input:not([type=checkbox]):not([type=range]), select");
  if (typing) {
    if (key === "Escape") event.target.blur();
    return;
  }
  const own = 'button:not(.choice[aria-pressed="true"]), a, summary';
  if ((key === "Enter" || key === " ") && event.target.matches(own)) return;
  if (!wanted.checked && key !== "Enter" && key !== "Escape") return;
  const found = current?.part.keys.find(([name, , action]) => key === name && action);
  const actions = { Enter: answer, Escape: close, s: skip, u: undo, c: comment, b: blurred };
  const action = found ? found[2] : actions[key];
  if (!action) return;
  event.preventDefault();
  action();
});

function comment() {
  const more = current?.comment.closest("details");
  if (!more) return;
  more.open = true;
  current.comment.focus();
}

function blurred() {
  board.dataset.shown = board.dataset.shown ? "" : "yes";
  showVeil();
}

function showVeil() {
  board.classList.toggle("blur", task.blur && !board.dataset.shown);
  current?.veil?.setAttribute("aria-pressed", String(Boolean(board.dataset.shown)));
}

outbox.flush();
own();
next();
