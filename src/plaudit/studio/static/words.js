// The words of the reader's language, which the page carries.
const words = JSON.parse(document.getElementById("words").textContent);

// t(key, {name: value}): the words of a key, with {name} filled in.
export function t(key, values = {}) {
  const text = words[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

// element("tag", {attribute: value, on: {event: handler}}, child, ...): children are elements or text, never HTML.
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// HTML that the server has made of a model's or a person's text: it holds no element that could do anything.
export function prose(html, attributes = {}) {
  const made = element("div", { class: "prose", ...attributes });
  made.innerHTML = html;
  return made;
}

// A table in a region that scrolls by itself. rows: of cells, text or elements.
export function table(heads, rows, name) {
  return element(
    "div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name },
    element(
      "table", {},
      element("thead", {}, element("tr", {}, ...heads.map((head) => (head ? element("th", { scope: "col" }, head) : element("td", {}))))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell))))),
    ),
  );
}

export const percent = (share) => t("percent", { share: Math.round(100 * share) });

// What somebody has said, in words. place(index): what a completion is called, as it stands on this page.
export function payloadInWords(payload, place = (index) => String.fromCharCode(65 + index)) {
  if ("choice" in payload) {
    if (typeof payload.choice !== "number") return t(payload.choice);
    const better = t("is_better", { place: place(payload.choice) });
    return payload.strength ? t("graded", { better, grade: t(`strength_${payload.strength}`) }) : better;
  }
  if ("scores" in payload) return Object.entries(payload.scores).map(([name, score]) => `${name} ${score}`).join(", ");
  if ("label" in payload) return payload.label;
  if ("ranking" in payload) return payload.ranking.map(place).join(" > ");
  return payload.completion ?? "";
}
