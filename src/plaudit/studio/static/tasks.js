// One kind of judgement each: what is shown, what keys do, and what is said of it.
import { differences } from "./differences.js";
import { element, prose, t } from "./words.js";

const place = (number) => String.fromCharCode(65 + number);

// Each maker is given {task, turn, draft, changed}, takes of a draft what still fits the task, and gives {node, keys:
// [[key, words, action]], said, ready}. said(): the payload; ready(): whether it is whole; changed(): to be called when it
// is another.
export const makers = { rating, comparison, ranking, category, edit };

function answer(shown, number, attributes = {}) {
  return element(
    "article", { class: "answer", "aria-label": t("answer_number", { place: place(number) }), ...attributes },
    element("h2", { "aria-hidden": "true" }, place(number)), prose(shown.html),
  );
}

// A text whose pieces that the other lacks are marked.
function marks(pieces, number) {
  return element(
    "article", { class: "answer", "aria-label": t("answer_number", { place: place(number) }) },
    element("h2", { "aria-hidden": "true" }, place(number)),
    element("div", { class: "prose plain" }, ...pieces.map(([text, own]) => (own ? element("mark", {}, text) : text))),
  );
}

function comparison({ task, turn, draft, changed }) {
  const [first, second] = turn.completions;
  const grades = task.strength ? [4, 3, 2, 1] : [null];
  const options = [
    ...grades.map((strength) => ({ choice: first.index, strength, side: 0 })),
    { choice: "tie", strength: null },
    ...[...grades].reverse().map((strength) => ({ choice: second.index, strength, side: 1 })),
    { choice: "both_bad", strength: null },
  ];
  const is = (one, option) => one?.choice === option.choice && (one.strength ?? null) === option.strength;
  let said = options.some((option) => is(draft.payload, option)) ? draft.payload : null;
  const name = ({ choice, strength, side }) => {
    if (choice === "tie" || choice === "both_bad") return t(choice);
    const better = t("is_better", { place: place(side) });
    return strength === null ? better : t("graded", { better, grade: t(`strength_${strength}`) });
  };
  const keys = task.strength ? ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0"] : ["1", "2", "3", "0"];
  const buttons = options.map((option, number) => element(
    "button", { type: "button", class: "choice", "aria-pressed": "false", on: { click: () => choose(option) } },
    name(option), element("kbd", {}, keys[number]),
  ));
  function choose({ choice, strength }) {
    said = { choice, strength };
    show();
    changed();
  }
  function show() {
    options.forEach((option, number) => {
      buttons[number].setAttribute("aria-pressed", String(is(said, option)));
    });
  }
  show();
  // Grades stand below the answer that they are about.
  const parts = [buttons.slice(0, 4), [buttons[4], buttons[9]], buttons.slice(5, 9)];
  const columns = task.strength ? parts.map((part) => element("div", {}, ...part)) : buttons;
  const pair = element("div", { class: "pair" }, answer(first, 0), answer(second, 1));
  let marked = false;
  const mark = () => {
    marked = !marked;
    differ.setAttribute("aria-pressed", String(marked));
    const [one, other] = marked ? differences(first.text, second.text) : [];
    pair.replaceChildren(...(marked ? [marks(one, 0), marks(other, 1)] : [answer(first, 0), answer(second, 1)]));
  };
  const differ = element("button", { type: "button", class: "quiet", "aria-pressed": "false", on: { click: mark } }, t("show_differences"), element("kbd", {}, "d"));
  const node = element(
    "div", {}, pair,
    element("div", { class: task.strength ? "scale graded" : "scale", role: "group", "aria-label": t("which_is_better") }, ...columns), differ,
  );
  const listed = options.map((option, number) => [keys[number], name(option), () => choose(option)]);
  listed.push(["d", t("show_differences"), mark]);
  return { node, keys: listed, said: () => said, ready: () => said !== null };
}

function rating({ task, turn, draft, changed }) {
  const asked = task.criteria.map((criterion) => criterion.name);
  const scores = Object.fromEntries(Object.entries(draft.payload?.scores ?? {}).filter(([name]) => asked.includes(name)));
  const rows = task.criteria.map((criterion, number) => {
    const id = `score-${number}`, shown = element("output", { for: id });
    const slider = element("input", {
      type: "range", id, min: 0, max: 1, step: 0.05, value: 0.5, "aria-describedby": criterion.help ? `${id}-help` : null,
      on: {
        input: () => set(number, Number(slider.value)), click: () => set(number, Number(slider.value)),
        focus: () => { at = number; show(); },
      },
    });
    const label = criterion.label || (criterion.name === "overall" ? t("overall") : criterion.name);
    const node = element(
      "div", { class: "criterion" },
      element("label", { for: id }, label),
      criterion.help ? element("p", { class: "help", id: `${id}-help` }, criterion.help) : null,
      element(
        "div", { class: "slider" },
        element("span", { class: "soft" }, criterion.low || "0"), slider,
        element("span", { class: "soft" }, criterion.high || "1"), shown,
      ),
    );
    return { node, slider, shown, name: criterion.name };
  });
  let at = 0;
  function set(number, value) {
    const row = rows[number];
    at = number;
    scores[row.name] = value;
    row.slider.value = value;
    show();
    changed();
  }
  function show() {
    rows.forEach((row, number) => {
      const given = row.name in scores;
      if (given) row.slider.value = scores[row.name];
      row.node.classList.toggle("given", given);
      row.node.classList.toggle("current", number === at);
      row.shown.textContent = given ? Number(scores[row.name]).toFixed(2) : t("not_given");
      row.slider.setAttribute("aria-valuetext", row.shown.textContent);
    });
  }
  function give(tenth) {
    set(at, tenth / 10);
    const next = rows.findIndex((row) => !(row.name in scores));
    look(next >= 0 ? next : at);
  }
  function look(to) {
    at = Math.min(rows.length - 1, Math.max(0, to));
    show();
    rows[at].slider.focus();
  }
  show();
  const node = element(
    "div", {},
    element("div", { class: "single" }, ...turn.completions.map((shown) => element("article", { class: "answer" }, prose(shown.html)))),
    element("div", { class: "rubric", role: "group", "aria-label": t("scores") }, ...rows.map((row) => row.node)),
  );
  const keys = [
    ["0–9", t("give_tenths"), null],
    ...Array.from({ length: 10 }, (_, tenth) => [String(tenth), null, () => give(tenth)]),
    ["+", t("give_all"), () => give(10)],
    ["↑ ↓", t("another_criterion"), null],
    ["ArrowUp", null, () => look(at - 1)],
    ["ArrowDown", null, () => look(at + 1)],
  ];
  return { node, keys, said: () => (Object.keys(scores).length ? { scores: { ...scores } } : null), ready: () => rows.every((row) => row.name in scores) };
}

function category({ task, turn, draft, changed }) {
  let label = task.labels.find((name) => name === draft.payload?.label) ?? null;
  const keyOf = (number) => (number < 9 ? String(number + 1) : "adefghijklmnopqrtvwxyz"[number - 9] ?? "");
  const buttons = task.labels.map((name, number) => element(
    "button", { type: "button", class: "choice", "aria-pressed": "false", on: { click: () => choose(name) } },
    name, keyOf(number) ? element("kbd", {}, keyOf(number)) : null,
  ));
  function choose(name) {
    label = name;
    show();
    changed();
  }
  function show() {
    task.labels.forEach((name, number) => buttons[number].setAttribute("aria-pressed", String(name === label)));
  }
  show();
  const node = element(
    "div", {},
    ...turn.completions.map((shown) => element("article", { class: "answer" }, prose(shown.html))),
    element("div", { class: "scale", role: "group", "aria-label": t("labels") }, ...buttons),
  );
  const keys = task.labels.map((name, number) => [keyOf(number), name, () => choose(name)]).filter(([key]) => key);
  return { node, keys, said: () => (label === null ? null : { label }), ready: () => label !== null };
}

const DRAGGED = "application/x-plaudit-rank";

function ranking({ turn, draft, changed }) {
  const shown = new Map(turn.completions.map((one, number) => [one.index, { ...one, number }]));
  const kept = new Set(draft.payload?.ranking);
  let touched = kept.size === shown.size && [...kept].every((index) => shown.has(index));
  let order = touched ? [...kept] : [...shown.keys()];
  let at = 0;
  const list = element("ol", { class: "ranks", "aria-label": t("best_first") });
  const told = element("p", { class: "unseen", role: "status" });
  function move(from, to) {
    if (!(to >= 0 && to < order.length && from >= 0 && from < order.length)) return;
    const [index] = order.splice(from, 1);
    order.splice(to, 0, index);
    at = to;
    touch();
    told.textContent = t("now_at", { place: place(shown.get(index).number), rank: at + 1 });
  }
  function touch() {
    touched = true;
    show();
    changed();
  }
  function look(to) {
    at = Math.min(order.length - 1, Math.max(0, to));
    show();
    list.children[at].scrollIntoView({ block: "nearest" });
  }
  // Whichever of an answer's two buttons has the focus keeps it, so that it can be pressed again.
  function show() {
    const focused = list.contains(document.activeElement) ? document.activeElement : null;
    const mine = focused?.closest("li").dataset.index, down = focused?.nextElementSibling === null;
    list.replaceChildren(...order.map((index, rank) => {
      const one = shown.get(index), name = place(one.number);
      return element(
        "li", {
          class: rank === at ? "answer current" : "answer", draggable: "true", "data-index": index, "aria-current": rank === at ? "true" : null,
          on: {
            dragstart: (event) => event.dataTransfer.setData(DRAGGED, String(rank)),
            dragover: (event) => event.preventDefault(),
            drop: (event) => {
              event.preventDefault();
              const from = event.dataTransfer.getData(DRAGGED);
              if (from !== "") move(Number(from), rank);
            },
          },
        },
        element(
          "div", { class: "handle" }, element("h2", {}, name),
          element("button", { type: "button", disabled: rank === 0, "aria-label": t("move_up", { place: name }), on: { click: () => move(rank, rank - 1) } }, "↑"),
          element("button", { type: "button", disabled: rank === order.length - 1, "aria-label": t("move_down", { place: name }), on: { click: () => move(rank, rank + 1) } }, "↓"),
        ),
        prose(one.html),
      );
    }));
    if (focused === null) return;
    const buttons = [...list.querySelectorAll(`[data-index="${mine}"] button`)];
    (down ? buttons.reverse() : buttons).find((button) => !button.disabled)?.focus();
  }
  show();
  const keys = [
    ["↑ ↓", t("another_answer"), null],
    ["ArrowUp", null, () => look(at - 1)],
    ["ArrowDown", null, () => look(at + 1)],
    ["k", t("move_it_up"), () => move(at, at - 1)],
    ["j", t("move_it_down"), () => move(at, at + 1)],
    ["o", t("order_is_right"), touch],
    ...order.map((_, rank) => [String(rank + 1), rank === 0 ? t("move_it_to") : null, () => move(at, rank)]),
  ];
  const sure = element("button", { type: "button", class: "quiet", on: { click: touch } }, t("order_is_right"), element("kbd", {}, "o"));
  return { node: element("div", {}, list, sure, told), keys, said: () => (touched ? { ranking: [...order] } : null), ready: () => touched };
}

// Of two answers the better one is chosen first, and then mended.
function edit({ turn, draft, changed }) {
  const shown = turn.completions, two = shown.length > 1;
  const texts = new Map(shown.map((one) => [one.index, one.raw]));
  const given = two ? draft.payload?.chosen : shown[0].index;
  let chosen = texts.has(given) ? given : null;
  if (draft.payload && chosen !== null) texts.set(chosen, draft.payload.completion);
  const area = element("textarea", { id: "edited", rows: 12, on: { input: () => { texts.set(chosen, area.value); changed(); } } });
  const buttons = two ? shown.map((one, number) => element(
    "button", { type: "button", class: "choice", "aria-pressed": "false", on: { click: () => choose(one.index) } },
    t("mend", { place: place(number) }), element("kbd", {}, String(number + 1)),
  )) : [];
  function choose(index) {
    chosen = index;
    show();
    changed();
    area.focus();
  }
  function show() {
    area.disabled = chosen === null;
    area.value = chosen === null ? "" : texts.get(chosen);
    shown.forEach((one, number) => buttons[number]?.setAttribute("aria-pressed", String(one.index === chosen)));
  }
  // A text area turns every end of line into one of its own: what is not changed otherwise is sent as it stood.
  function mended() {
    const { raw } = shown.find((one) => one.index === chosen);
    return area.value === raw.replace(/\r\n?/g, "\n") ? raw : area.value;
  }
  show();
  const node = element(
    "div", {},
    two
      ? element("div", { class: "pair" }, ...shown.map((one, number) => answer(one, number)))
      : element("details", {}, element("summary", {}, t("as_it_was")), prose(shown[0].html)),
    two ? element("div", { class: "scale", role: "group", "aria-label": t("which_is_better") }, ...buttons) : null,
    element("label", { for: "edited" }, t("as_it_should_be")), area,
  );
  const keys = two ? shown.map((one, number) => [String(number + 1), t("mend", { place: place(number) }), () => choose(one.index)]) : [];
  const said = () => (chosen === null ? null : { completion: mended(), ...(two ? { chosen } : {}) });
  return { node, keys, said, ready: () => chosen !== null && area.value.trim() !== "" };
}
