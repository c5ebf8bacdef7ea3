import { call, form } from "./wire.js";

form("log-in", async (fields) => {
  await call("POST", "/log-in", { name: fields.get("name"), password: fields.get("password") });
  location.assign("/projects");
});
