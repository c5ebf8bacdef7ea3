// Runs and their curves as they grow, and the worker's jobs.
import { chart, numbers } from "./chart.js";
import { call } from "./wire.js";
import { element, percent, t } from "./words.js";

const FIRST = ["reward", "mean_reward", "loss", "kl", "accuracy", "heldout_accuracy", "length"];
const OFTEN = 2000;
let chosen = null, rows = [], state = "ended";

async function list() {
  const found = await call("GET", "/runs");
  document.getElementById("no-runs").hidden = found.length > 0;
  document.querySelector("#runs tbody").replaceChildren(...found.map((run) => element(
    "tr", {},
    element("td", {}, element("button", { type: "button", class: "quiet", "aria-pressed": String(run.name === chosen), on: { click: () => choose(run.name) } }, run.name)),
    element("td", {}, run.recipe), element("td", {}, t(`run_${run.state}`)), element("td", {}, run.steps),
  )));
  return found;
}

async function choose(name) {
  chosen = name;
  rows = [];
  await more();
  await list();
}

async function more() {
  if (chosen === null) return;
  const name = chosen;
  const found = await call("GET", `/metrics?run=${encodeURIComponent(name)}&after=${rows.length}`);
  if (name !== chosen) return;
  state = found.state;
  if (!found.rows.length && document.getElementById("curves").dataset.run === name) return;
  rows = [...rows, ...found.rows];
  draw(name);
}

function draw(name) {
  const open = new Set(Array.from(document.querySelectorAll("#curves details[open]"), (one) => one.closest("figure").dataset.metric));
  const names = [...new Set(rows.flatMap(Object.keys))].filter((one) => one !== "step");
  names.sort((one, other) => rank(one) - rank(other) || one.localeCompare(other));
  const curves = document.getElementById("curves");
  curves.dataset.run = name;
  curves.replaceChildren(element("h2", {}, name), element("div", { class: "charts" }, ...names.slice(0, 12).map((metric) => {
    const points = rows.map((row, number) => [row.step ?? number + 1, row[metric]]).filter(([, value]) => value !== null && value !== undefined);
    const lines = [{ name: metric, points }];
    return element("figure", { "data-metric": metric }, element("figcaption", {}, metric), chart({ lines, x: t("step"), y: "", title: `${name}: ${metric}` }), numbers(element, lines, t("step")));
  })));
  for (const figure of curves.querySelectorAll("figure")) if (open.has(figure.dataset.metric)) figure.querySelector("details").open = true;
}

const rank = (name) => {
  const found = FIRST.findIndex((one) => name.includes(one));
  return found < 0 ? FIRST.length : found;
};

async function jobs() {
  const body = document.querySelector("#jobs tbody");
  if (body === null) return;
  const found = await call("GET", "/jobs");
  if (body.contains(document.activeElement)) return; // nobody's focus is taken away
  body.replaceChildren(...found.map((job) => element(
    "tr", {},
    element("td", {}, job.id), element("td", {}, t(`job_${job.kind}`)),
    element("td", {}, t(`job_${job.state}`), job.state === "running" ? ` ${percent(job.progress)}` : ""),
    element("td", {}, job.message || (job.result ? JSON.stringify(job.result) : "")), element("td", {}, job.asked_by),
    element("td", {}, ["queued", "running"].includes(job.state) ? element("button", { type: "button", class: "quiet", on: { click: () => call("DELETE", `/jobs/${job.id}`).then(jobs) } }, t("cancel")) : ""),
  )));
}

const found = await list();
if (found.length) await choose(found[0].name);
await jobs();
setInterval(() => {
  if (document.hidden) return;
  jobs().catch(() => {});
  if (state === "running") more().catch(() => {});
}, OFTEN);
