// Where an owner looks after a project, and reviewers see what its judgements are worth.
import { chart, numbers } from "./chart.js";
import { call, form, saved } from "./wire.js";
import { element, payloadInWords, percent, prose, t, table } from "./words.js";

const root = document.getElementById("project");
const { project, kind, manage } = root.dataset;
const place = (id) => document.getElementById(id);
const number = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));

// -- one part at a time ----------------------------------------------------------------------------------------

const loaders = { overview, quality, disagreements: quality, value, models, data: () => {}, settings };
const done = new Set();

function turn() {
  const wanted = location.hash.slice(1);
  const part = root.querySelector(`section[data-part="${CSS.escape(wanted)}"]`) ? wanted : "overview";
  for (const section of root.querySelectorAll("section[data-part]")) section.hidden = section.dataset.part !== part;
  for (const link of root.querySelectorAll(".tabs a")) {
    if (link.dataset.part === part) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (done.has(loaders[part])) return;
  done.add(loaders[part]);
  Promise.resolve(loaders[part]()).catch((error) => {
    done.delete(loaders[part]);
    const fault = element("p", { class: "fault", role: "alert" }, error.message);
    root.querySelector(`section[data-part="${part}"]`).append(fault);
  });
}

async function overview() {
  const found = await call("GET", `/projects/${project}/counts`);
  place("counts").replaceChildren(...Object.entries(found).flatMap(([name, count]) => [
    element("dt", {}, t(`count_${name}`)), element("dd", {}, count.toLocaleString()),
  ]));
}

// -- quality ---------------------------------------------------------------------------------------------------

const share = (figure) => (figure && figure.share !== null ? `${percent(figure.share)} (${figure.n})` : "–");

async function quality() {
  done.add(quality);
  const found = await call("GET", `/projects/${project}/quality`);
  showAgreement(found);
  showDisagreements(found.disagreements);
}

function showAgreement(found) {
  const { agreement, kappa, raters } = found;
  const alphas = [];
  const groups = [["comparisons", agreement.comparisons], ["categories", agreement.categories], ...Object.entries(agreement.ratings)];
  for (const [name, figures] of groups) {
    for (const [level, figure] of Object.entries(figures?.alpha ?? {})) {
      if (figure.value !== null) alphas.push([t(name) === name ? name : t(name), t(`level_${level}`), number(figure.value), figures.overlapping_items ?? ""]);
    }
  }
  const people = Object.entries(raters).map(([rater, own]) => [
    rater, own.judgements, own.skips, own.accuracy === null ? "–" : percent(own.accuracy), share(own.gold),
    share(own.repeats), share(own.first), share(own.longer), own.seconds === null ? "–" : number(own.seconds, 1),
  ]);
  const pairs = kappa.cohen.map(({ raters: [one, other], kappa: value, items }) => [one, other, number(value), items]);
  place("agreement").setAttribute("aria-busy", "false");
  place("agreement").replaceChildren(
    element("h3", {}, t("alpha")),
    alphas.length ? table([t("of_what"), t("level"), "α", t("items")], alphas, t("alpha")) : element("p", { class: "soft" }, t("no_overlap")),
    kappa.fleiss === null ? "" : element("p", {}, t("fleiss", { kappa: number(kappa.fleiss), items: kappa.fleiss_items })),
    element("h3", {}, t("raters")),
    table([t("rater"), t("judgements"), t("skips"), t("accuracy"), t("gold"), t("repeats"), t("first_side"), t("longer_one"), t("seconds")], people, t("raters")),
    element("p", { class: "help" }, t("raters_help")),
    found.slice.alpha === null ? "" : element("p", {}, t("slice_alpha", { alpha: number(found.slice.alpha), items: found.slice.items })),
    ...(pairs.length ? [element("h3", {}, t("pairs_of_raters")), table([t("rater"), t("rater"), "κ", t("items")], pairs, t("pairs_of_raters"))] : []),
    found.longer.share === null ? "" : element("p", {}, t("longer_all", { share: percent(found.longer.share), n: found.longer.n })),
    Object.keys(found.flags).length ? element("p", {}, t("flags"), ": ", Object.entries(found.flags).map(([flag, n]) => `${t(`flag_${flag}`)} ${n}`).join(", ")) : "",
  );
}

function showDisagreements(rows) {
  place("queue").setAttribute("aria-busy", "false");
  place("queue").replaceChildren(
    rows.length ? table([t("item"), t("spread"), t("raters")], rows.map((row) => [
      element("a", { href: `/projects/${project}/items/${row.item}` }, row.item.slice(0, 8)), number(row.spread), row.raters.join(", "),
    ]), t("part_disagreements")) : element("p", { class: "soft" }, t("none_disagree")),
  );
}

// -- value -----------------------------------------------------------------------------------------------------

async function value() {
  const found = await call("GET", `/projects/${project}/value`);
  place("curve").setAttribute("aria-busy", "false");
  if (found.reason) {
    place("curve").replaceChildren(element("p", { class: "soft" }, found.reason));
  } else {
    const line = {
      name: t("accuracy"), points: found.curve.map((at) => [at.n, at.accuracy]), band: found.curve.map((at) => [at.n, at.low, at.high]),
    };
    const [shown, drawn] = [found.forecast, found.slice];
    place("curve").replaceChildren(
      chart({ lines: [line], x: t("judgements"), y: t("accuracy"), title: t("part_value") }), numbers(element, [line], t("judgements")),
      element("p", {}, t("longer_alone", { share: percent(found.longer) })),
      drawn ? element("p", {}, t("slice_accuracy", { n: drawn.n, accuracy: percent(drawn.accuracy), low: percent(drawn.low), high: percent(drawn.high) })) : "",
      shown ? element("p", {}, t("forecast", { more: shown.more, gain: points(shown.gain), low: points(shown.low), high: points(shown.high) })) : "",
    );
  }
  await standings();
}

const points = (gain) => `${gain >= 0 ? "+" : "−"}${Math.abs(100 * gain).toFixed(1)}`;

async function standings() {
  const found = await call("GET", `/projects/${project}/standings`);
  const changed = found.prompts.filter(({ answers }) => answers.some((one) => one.rank !== one.before)).slice(0, 10);
  place("standings").replaceChildren(...(changed.length ? changed.map(({ prompt, answers }) => element(
    "div", { class: "card" },
    element("p", {}, element("strong", {}, typeof prompt === "string" ? prompt : prompt.at(-1).content)),
    element("ol", {}, ...answers.map((one) => element(
      "li", {}, one.text, " ",
      one.rank === one.before ? "" : element("span", { class: "moved" }, t(one.rank < one.before ? "went_up" : "went_down", { from: one.before, to: one.rank })),
    ))),
  )) : [element("p", { class: "soft" }, t("none_moved"))]));
}

// -- models side by side ---------------------------------------------------------------------------------------

async function models() {
  const found = await call("GET", `/projects/${project}/models`);
  place("sides").setAttribute("aria-busy", "false");
  place("sides").replaceChildren(...(found.length ? found.map(({ prompt, answers }) => element(
    "div", { class: "card" },
    ...prompt.map((one) => prose(one.html)),
    element("div", { class: "columns" }, ...answers.map((one) => element("article", { class: "answer" }, element("h3", {}, one.model || t("unnamed")), prose(one.html)))),
  )) : [element("p", { class: "soft" }, t("one_model_alone"))]));
}

// -- data ------------------------------------------------------------------------------------------------------

form("add-items", async (fields) => {
  const file = fields.get("file"), text = await file.text();
  const lines = text.split(/\r?\n/).filter((line) => line.trim());
  const items = file.name.endsWith(".txt") ? lines.map((prompt) => ({ prompt })) : lines.map((line, at) => {
    try {
      const { prompt, completion, completions, policy_version, meta, part, answer, why } = JSON.parse(line);
      const item = { prompt, completions: completions ?? (completion === undefined ? [] : [completion]) };
      for (const [name, said] of Object.entries({ policy_version, meta, part, answer, why })) {
        if (said !== undefined) item[name] = said;
      }
      return item;
    } catch {
      throw new Error(t("line_is_not_json", { file: file.name, line: at + 1 }));
    }
  });
  let added = 0;
  for (let at = 0; at < items.length; at += 1000) {
    added += (await call("POST", `/projects/${project}/items`, { items: items.slice(at, at + 1000) })).added;
  }
  done.delete(overview);
  return t("items_added", { count: added });
});

form("sample", async (fields) => {
  const prompts = fields.get("prompts").split("\n").map((line) => line.trim()).filter(Boolean);
  const job = await call("POST", `/projects/${project}/samples`, {
    model: fields.get("model"), n: Number(fields.get("n")), max_new_tokens: Number(fields.get("tokens")), prompts,
  });
  return t("job_put", { job: job.id });
});

form("vectors", async (fields) => {
  const job = await call("POST", `/projects/${project}/vectors`, { model: fields.get("model") });
  return t("job_put", { job: job.id });
});

form("scores", async (fields) => {
  const job = await call("POST", `/projects/${project}/scores`, { reward: fields.get("reward") });
  return t("job_put", { job: job.id });
});

form("prioritise", async () => t("ordered", { count: (await call("POST", `/projects/${project}/priorities`)).ordered }));

form("download", async (fields) => {
  const answer = await saved(`/projects/${project}/records?format=${fields.get("format")}&kind=${fields.get("kind")}`);
  return t("downloaded", { records: answer.get("x-plaudit-records"), left: answer.get("x-plaudit-left-out") });
});

form("take-in", async (fields) => {
  const file = fields.get("file"), ending = file.name.split(".").at(-1);
  const found = await call("POST", `/projects/${project}/records?kind=${ending}`, file);
  done.delete(overview);
  done.delete(quality);
  return t("taken_in", found);
});

// -- settings --------------------------------------------------------------------------------------------------

async function settings() {
  const { guidelines } = await call("GET", `/projects/${project}`);
  for (const name of ["en", "zh"]) place(`guideline-${name}`).value = guidelines[name] ?? "";
}

const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

// Only what was changed on this page is sent: others change a project, too, and whoever is invited is named in it.
form("task", async (_, { elements }) => {
  const task = {}, body = {};
  for (const { name, type, value, defaultValue, checked, defaultChecked } of elements) {
    if (type === "checkbox" ? checked === defaultChecked : value === defaultValue) continue;
    if (type === "checkbox") task[name] = checked;
    else if (type === "number") task[name] = value === "" ? null : Number(value);
    else if (name === "name") body.name = value;
  }
  const { raters } = elements, before = lines(raters.defaultValue), now = lines(raters.value);
  const admit = now.filter((one) => !before.includes(one)), dismiss = before.filter((one) => !now.includes(one));
  if (!now.length && before.length) task.raters = []; // everybody may judge
  else if (admit.length || dismiss.length) body.raters = { admit, dismiss };
  if (Object.keys(task).length) body.task = task;
  show(await call("PATCH", `/projects/${project}`, body), elements);
  done.delete(overview);
  return t("saved");
});

function show({ name, task }, elements) {
  elements.blur.checked = elements.blur.defaultChecked = task.blur;
  for (const [key, value] of Object.entries({ ...task, name, raters: task.raters.join("\n") })) {
    const field = elements[key];
    if (field && key !== "blur") field.value = field.defaultValue = value ?? "";
  }
}

form("guideline", async (fields) => {
  const guideline = Object.fromEntries(["en", "zh"].map((name) => [name, fields.get(name)]).filter(([, x]) => x));
  const shown = await call("PATCH", `/projects/${project}`, { guideline });
  return t("guideline_saved", { version: shown.guideline });
});

form("invite", async () => (await call("POST", "/invitations", { role: "rater", project })).link);

form("copy", async () => {
  const made = await call("POST", `/projects/${project}/copies`);
  location.assign(`/projects/${made.id}`);
});

form("archive", async (_, found) => {
  await call("PATCH", `/projects/${project}`, { archived: found.dataset.archived !== "yes" });
  location.reload();
});

addEventListener("hashchange", turn);
turn();
