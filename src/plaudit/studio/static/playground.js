// A chat with two models at once, blind until one has voted.
import { call, form } from "./wire.js";
import { element, prose, t } from "./words.js";

const dialogue = [];
const answers = document.getElementById("answers");
const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

form("ask", async (fields, found) => {
  dialogue.push({ role: "user", content: fields.get("message") });
  try {
    let chat = await call("POST", "/playground", { messages: dialogue, models: [fields.get("one"), fields.get("other")] });
    answers.replaceChildren(element("p", { class: "soft" }, t("waiting_for_worker")));
    while (["queued", "running"].includes(chat.state)) {
      await wait(500);
      chat = await call("GET", `/playground/${chat.job}`);
    }
    if (chat.state !== "done") throw new Error(chat.message || t(`job_${chat.state}`));
    show(chat);
  } catch (error) {
    dialogue.pop();
    answers.replaceChildren();
    throw error;
  }
  found.querySelector("#message").value = "";
});

function show(chat) {
  const choices = [[0, t("is_better", { place: "A" })], ["tie", t("tie")], ["both_bad", t("both_bad")], [1, t("is_better", { place: "B" })]];
  answers.replaceChildren(
    element("div", { class: "pair" }, ...chat.html.map((html, side) => element("article", { class: "answer" }, element("h2", {}, "AB"[side]), prose(html)))),
    element("div", { class: "scale", role: "group", "aria-label": t("which_is_better") }, ...choices.map(([choice, words]) => element(
      "button", { type: "button", class: "choice", on: { click: () => vote(chat, choice) } }, words,
    ))),
  );
}

async function vote(chat, choice) {
  const told = await call("POST", `/playground/${chat.job}/vote`, { choice });
  const kept = chat.replies[choice === 1 ? 1 : 0];
  dialogue.push({ role: "assistant", content: kept });
  const shown = document.getElementById("dialogue");
  shown.replaceChildren(...dialogue.map((turn) => element("div", { class: `turn ${turn.role}` }, element("span", { class: "role" }, t(`role_of_${turn.role}`)), element("p", {}, turn.content))));
  answers.replaceChildren(element("p", { role: "status" }, t("who_was_who", { one: told.models[0], other: told.models[1] })));
}
