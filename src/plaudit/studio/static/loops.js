// Loops: their rounds, what they wait for, and what each round has gained.
import { chart } from "./chart.js";
import { call } from "./wire.js";
import { element, percent, t, table } from "./words.js";

const OFTEN = 5000;
let shown = "";

async function list() {
  const found = await call("GET", "/loops");
  document.getElementById("no-loops").hidden = found.length > 0;
  const now = JSON.stringify(found);
  if (now === shown) return; // nobody's focus is taken away
  shown = now;
  document.getElementById("loops").replaceChildren(...found.map(section));
}

function section(loop) {
  return element(
    "section", { "data-loop": loop.run },
    element("h2", {}, `${loop.name} (${loop.run})`),
    element("p", { class: "state" }, state(loop)),
    element("dl", {},
      ...fact(t("loop_answers"), loop.champion.round ? `${loop.champion.version} (${t("round")} ${loop.champion.round})` : t("loop_start")),
      ...fact(t("loop_target"), loop.target === null ? "–" : t("loop_above", { share: percent(loop.target) })),
      ...fact(t("judgements"), loop.judgements),
      ...fact(t("loop_time"), minutes(loop.seconds)),
    ),
    loop.rounds.some((one) => one.gains.length) ? gains(loop) : "",
    rounds(loop),
  );
}

const fact = (name, value) => [element("dt", {}, name), element("dd", {}, value)];

function state(loop) {
  if (loop.ended) return `${t("loop_ended")}: ${loop.ended}`;
  if (loop.waiting) return t(loop.waiting.gate ? "loop_waits_gate" : "loop_waits", { round: loop.waiting.round, have: loop.waiting.have, want: loop.waiting.want });
  if (loop.at) return t("loop_at", { round: loop.at.round, step: t(`step_${loop.at.step}`) });
  return t("loop_rests");
}

function gains(loop) {
  const names = [...new Set(loop.rounds.flatMap((one) => one.gains.map((gain) => gain.against)))];
  const lines = names.map((name) => {
    const points = loop.rounds.flatMap((one) => one.gains.filter((gain) => gain.against === name).map((gain) => [one.round, gain]));
    return {
      name: t(`loop_${name}`), points: points.map(([round, gain]) => [round, gain.rate]),
      band: points.map(([round, gain]) => [round, gain.low, gain.high]),
    };
  });
  return element("figure", {}, element("figcaption", {}, t("loop_gain")), chart({ lines, x: t("round"), y: t("loop_wins"), title: `${loop.name}: ${t("loop_gain")}`, range: [0, 1] }));
}

function rounds(loop) {
  const heads = ["round", "judgements", "loop_reward", "loop_wins", "loop_verdict", "loop_time"].map((key) => t(key));
  return table(heads, loop.rounds.map((one) => [
    String(one.round),
    Object.entries(one.judgements).map(([source, count]) => `${t(`source_${source}`)} ${count}`).join(", ") || "–",
    one.accuracy === null ? "–" : percent(one.accuracy),
    one.gains.map((gain) => `${t(`loop_${gain.against}`)} ${percent(gain.rate)} (${percent(gain.low)}–${percent(gain.high)})`).join(", ") || "–",
    one.published ? t("loop_published") : one.why ? `${t("loop_kept_out")}: ${one.why}` : "–",
    minutes(one.seconds),
  ]), `${t("loops")}: ${loop.name}`);
}

const minutes = (seconds) => t("loop_minutes", { minutes: Math.round(seconds / 60) });

await list();
setInterval(() => { if (!document.hidden) list().catch(() => {}); }, OFTEN);
