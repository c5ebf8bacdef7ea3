// A line chart as SVG: one or several lines over one axis, with a band around a line where one is given.
import { t } from "./words.js";

const SPACE = "http://www.w3.org/2000/svg";
const WIDTH = 640, HEIGHT = 300, LEFT = 56, RIGHT = 16, TOP = 30, BOTTOM = 44;

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Round numbers between two values, about so many.
export function ticks(low, high, count = 5) {
  if (!(high > low)) return [low];
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

const shown = (number) => (Math.abs(number) >= 1000 ? number.toLocaleString() : String(Number(number.toPrecision(4))));

// lines: [{points: [[x, y], ...], band: [[x, low, high], ...] or none, name}]. title: what a reader hears.
export function chart({ lines, x, y, title, range }) {
  const all = lines.flatMap((line) => [...line.points, ...(line.band ?? []).flatMap(([at, low, high]) => [[at, low], [at, high]])]);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title, class: "chart" });
  if (!all.length) return drawing;
  const xs = all.map(([at]) => at), ys = range ?? all.map(([, value]) => value);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
  const over = (at) => LEFT + ((at - x0) / (x1 - x0 || 1)) * (WIDTH - LEFT - RIGHT);
  const up = (value) => HEIGHT - BOTTOM - ((value - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM);
  const place = ([at, value]) => `${over(at).toFixed(1)},${up(value).toFixed(1)}`;
  for (const value of ticks(y0, y1)) {
    drawing.append(
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: up(value), y2: up(value) }),
      svg("text", { x: LEFT - 8, y: up(value) + 4, "text-anchor": "end" }, shown(value)),
    );
  }
  for (const at of ticks(x0, x1)) drawing.append(svg("text", { x: over(at), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, shown(at)));
  drawing.append(
    svg("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, x),
    svg("text", { x: 14, y: 14, class: "axis" }, y),
  );
  lines.forEach((line, number) => {
    if (line.band?.length) {
      const outline = [...line.band.map(([at, low]) => [at, low]), ...[...line.band].reverse().map(([at, , high]) => [at, high])];
      drawing.append(svg("polygon", { class: `band line-${number % 4}`, points: outline.map(place).join(" ") }));
    }
    drawing.append(svg("polyline", { class: `stroke line-${number % 4}`, points: line.points.map(place).join(" ") }));
    for (const point of line.points.length <= 24 ? line.points : []) {
      drawing.append(svg("circle", { class: `dot line-${number % 4}`, cx: over(point[0]), cy: up(point[1]), r: 3.5 }, svg("title", {}, `${shown(point[0])}: ${shown(point[1])}`)));
    }
  });
  return drawing;
}

// The same numbers for whoever would rather read.
export function numbers(element, lines, x) {
  const rows = lines.flatMap((line) => line.points.map(([at, value]) => [line.name ?? "", at, value]));
  return element(
    "details", { class: "numbers" }, element("summary", {}, t("as_numbers")),
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("as_numbers") }, element(
      "table", {},
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, t("line")), element("th", { scope: "col" }, x), element("th", { scope: "col" }, t("number")))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, typeof cell === "number" ? shown(cell) : cell))))),
    )),
  );
}
