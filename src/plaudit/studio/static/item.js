// One item and all that was said of it; a reviewer decides where raters disagree.
import { makers } from "./tasks.js";
import { call, form, identity } from "./wire.js";
import { element, payloadInWords, prose, t } from "./words.js";

const { project, item } = document.getElementById("review").dataset;
const shown = document.getElementById("shown");
let task = null, part = null, event = identity();

async function show() {
  const found = await call("GET", `/projects/${project}/items/${item}`);
  shown.setAttribute("aria-busy", "false");
  shown.replaceChildren(...found.prompt.map((one) => element("div", { class: `turn ${one.role}` }, prose(one.html))));
  document.querySelector("#said tbody").replaceChildren(...found.said.map((one) => element(
    "tr", { class: one.stands ? "" : "gone" },
    element("td", {}, new Date(one.at).toLocaleString(document.documentElement.lang)),
    element("td", {}, one.rater, one.payload.adjudicates ? ` (${t("decided")})` : ""),
    element("td", {}, one.kind === "skip" ? t("skipped") : one.kind === "retract" ? t("taken_back") : payloadInWords(one.payload)),
    element("td", {}, one.comment ?? ""), element("td", {}, t(one.stands ? "stands" : "replaced")),
  )));
  const turn = { item, completions: found.completions, prompt: found.prompt, part: "open" };
  part = makers[task.kind]({ task, turn, draft: {}, changed: () => {} });
  document.getElementById("decision").replaceChildren(part.node);
}

form("decide", async (fields) => {
  if (!part?.ready()) throw new Error(t("say_something_first"));
  await call("POST", `/projects/${project}/adjudications`, { event, item, payload: part.said(), comment: fields.get("reason") || null });
  event = identity();
  await show();
  return t("saved");
});

async function begin() {
  ({ task } = await call("GET", `/projects/${project}`));
  await show();
}

begin().catch((error) => {
  shown.setAttribute("aria-busy", "false");
  shown.replaceChildren(element("p", { class: "fault", role: "alert" }, error.message));
});
