// One's own password and keys.
import { call, form, renew } from "./wire.js";
import { element, t, table } from "./words.js";

const list = document.getElementById("keys");

async function keys() {
  const found = await call("GET", "/keys");
  list.replaceChildren(found.length ? table([t("label"), t("scopes"), t("who"), ""], found.map((key) => [
    key.label || key.id, key.scopes.join(", "), key.account,
    element("button", { type: "button", class: "quiet", on: { click: () => call("DELETE", `/keys/${key.id}`).then(keys) } }, t("revoke")),
  ]), t("api_keys")) : element("p", { class: "soft" }, t("no_keys")));
}

form("password", async (fields) => {
  const begun = await call("PUT", "/me/password", { old: fields.get("old"), new: fields.get("new") });
  renew(begun.csrf);
  return t("saved");
});

form("new-key", async (fields) => {
  const made = await call("POST", "/keys", { label: fields.get("label"), scopes: fields.getAll("scopes") });
  await keys();
  return t("key_secret", { secret: made.secret });
});

keys();
