import { call, form } from "./wire.js";

form("welcome", async (fields, found) => {
  const identity = fields.get("contact") ? { contact: fields.get("contact") } : {};
  const body = { name: fields.get("name"), password: fields.get("password"), identity };
  const begun = await call("POST", `/invitations/${encodeURIComponent(found.dataset.token)}`, body);
  location.assign(begun.project ? `/projects/${begun.project}/judge` : "/projects");
});
