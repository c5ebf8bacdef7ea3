import { Outbox } from "./outbox.js";
import { call, form } from "./wire.js";
import { element, t } from "./words.js";

const list = document.getElementById("projects");
const manages = list.dataset.manage === "yes";

async function show() {
  const found = await call("GET", "/projects");
  document.getElementById("none").hidden = found.length > 0;
  list.replaceChildren(...found.map((project) => element(
    "li", { class: project.archived ? "card archived" : "card" },
    element("h2", {}, project.name),
    element("p", { class: "soft" }, t(`kind_${project.task.kind}`), project.archived ? ` · ${t("archived")}` : ""),
    element(
      "p", {},
      project.archived ? null : element("a", { class: "button", href: `/projects/${project.id}/judge` }, t("judge")),
      " ",
      manages ? element("a", { href: `/projects/${project.id}` }, t("look_after")) : null,
    ),
  )));
}

form("new-project", async (fields) => {
  const kind = fields.get("kind"), task = { kind };
  const names = fields.get("labels").split(/[,，、\n]/).map((name) => name.trim()).filter(Boolean);
  if (kind === "category") task.labels = names;
  if (kind === "rating" && names.length) task.criteria = names.map((name) => ({ name }));
  const made = await call("POST", "/projects", { name: fields.get("name"), task });
  location.assign(`/projects/${made.id}`);
});

// What was not sent yet when one left.
new Outbox(list.dataset.rater, {
  told({ refused }) {
    if (!refused) return;
    const notice = document.getElementById("notice");
    notice.textContent = t("answer_refused", { why: refused.message });
    notice.hidden = false;
  },
}).flush();
show();
