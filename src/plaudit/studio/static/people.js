// Accounts, invitations, keys, webhooks and what was changed.
import { call, form, saved } from "./wire.js";
import { element, t, table } from "./words.js";

const place = (id) => document.getElementById(id);
const list = place("people");
const own = list.dataset.own === "yes", roles = list.dataset.roles.split(" ");

async function people() {
  const found = await call("GET", "/accounts");
  list.querySelector("tbody").replaceChildren(...found.map((account) => element(
    "tr", {},
    element("td", {}, account.name), element("td", {}, roleOf(account)),
    element("td", {}, new Date(account.created_at).toLocaleDateString(document.documentElement.lang)),
    element("td", {}, t(account.disabled ? "disabled" : "active")),
    element("td", { class: "acts" }, ...actsOn(account)),
  )));
}

// Whom one may change, one may give any role that one may give.
function roleOf(account) {
  if (!roles.includes(account.role)) return t(`role_${account.role}`);
  const given = roles.map((role) => element("option", { value: role, selected: role === account.role }, t(`role_${role}`)));
  return element(
    "select", { "aria-label": t("role_of_whom", { name: account.name }), on: { change: (event) => give(account, event.target.value) } }, ...given,
  );
}

function actsOn(account) {
  const act = (words, work) => element("button", { type: "button", class: "quiet", on: { click: work } }, t(words));
  return [
    ...(roles.includes(account.role) ? [
      act(account.disabled ? "let_in" : "keep_out", () => shut(account)), act("close_account", () => close(account)),
    ] : []),
    ...(own ? [act("export_rater", () => take(account)), act("forget", () => forget(account))] : []),
  ];
}

async function give(account, role) {
  if (confirm(t("role_sure", { name: account.name, role: t(`role_${role}`) }))) {
    await said(() => call("PUT", `/accounts/${encodeURIComponent(account.name)}/role`, { role }));
  }
  await people();
}

// All that is kept of somebody, for them to have.
async function take(account) {
  await said(() => saved(`/raters/${encodeURIComponent(account.name)}`, `${account.name}.json`));
}

async function shut(account) {
  await said(() => call("PUT", `/accounts/${encodeURIComponent(account.name)}/disabled?disabled=${!account.disabled}`));
  await people();
}

async function close(account) {
  if (!confirm(t("close_sure", { name: account.name }))) return;
  await said(() => call("DELETE", `/accounts/${encodeURIComponent(account.name)}`));
  await people();
}

async function forget(account) {
  if (!confirm(t("forget_sure", { name: account.name }))) return;
  await said(async () => {
    const { models } = await call("DELETE", `/raters/${encodeURIComponent(account.name)}`);
    return models.length ? t("forgotten_models", { models: models.join(", ") }) : t("forgotten");
  });
  await people();
}

async function said(work) {
  const notice = place("notice");
  try {
    const text = await work();
    notice.textContent = typeof text === "string" ? text : t("saved");
  } catch (error) {
    notice.textContent = error.message;
  }
  notice.hidden = false;
}

form("invite", async (fields) => (await call("POST", "/invitations", { role: fields.get("role") })).link);

async function hooks() {
  if (!own) return;
  const found = await call("GET", "/webhooks");
  place("hooks").replaceChildren(table([t("address"), t("told"), t("state"), ""], found.map((hook) => [
    hook.url, hook.kinds.map((one) => t(`told_${one}`)).join(", "), hook.failures ? `${hook.failures}: ${hook.fault}` : t("active"),
    element("button", { type: "button", class: "quiet", on: { click: () => call("DELETE", `/webhooks/${hook.id}`).then(hooks) } }, t("remove")),
  ]), t("webhooks")));
}

form("new-hook", async (fields) => {
  const made = await call("POST", "/webhooks", { url: fields.get("url"), kinds: fields.getAll("kinds") });
  await hooks();
  return t("hook_secret", { secret: made.secret });
});

async function log() {
  if (!own) return;
  const [found, { broken }] = await Promise.all([call("GET", "/audit"), call("GET", "/audit/check")]);
  place("unbroken").textContent = broken === null ? t("log_unbroken") : t("log_broken", { line: broken });
  place("audit").replaceChildren(table([t("when"), t("who"), t("what"), t("on_what"), ""], found.map((line) => [
    new Date(line.at).toLocaleString(document.documentElement.lang), line.actor, line.action, line.target, JSON.stringify(line.detail),
  ]), t("audit")));
}

people();
hooks();
log();
