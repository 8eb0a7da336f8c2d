// What all of the page's modules use.

const isDark = matchMedia("(prefers-color-scheme: dark)");
/** What canvases draw in: the colours of the style sheet by name, "#rrggbb", which are others in dark mode. */
export const colors = { background: "", text: "", muted: "", line: "", blue: "", orange: "" };
export const UNKNOWN = [154, 161, 171]; // colour of a point whose value is not known
const VIRIDIS = [
  ..."#440154 #481a6c #472f7d #414487 #39568c #31688e #2a788e #23888e".split(" "),
  ..."#1f988b #22a884 #35b779 #54c568 #7ad151 #a5db36 #d2e21b #fde725".split(" "),
].map(rgb);
export const AXES = ["x", "y", "z"];

function readColors() {
  const style = getComputedStyle(document.documentElement);
  for (const name of Object.keys(colors)) colors[name] = style.getPropertyValue(`--${name}`).trim();
}
readColors();

/** Call `repaint` whenever the colours have become others. */
export function onNewColors(repaint) {
  isDark.addEventListener("change", () => {
    readColors();
    repaint();
  });
}

/** Red, green, blue of "#rrggbb", 0 to 255. */
export function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

/** @type {(id: string) => any} */
export const $ = (id) => document.getElementById(id);
export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A number as short as it stays clear. */
export function short(value, digits = 4) {
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return String(value).toLowerCase().replace("infinity", "inf");
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(digits - 2).replace(/(\.0+)?e\+?/, "e");
  const rounded = Number(value.toPrecision(Math.max(digits, Math.ceil(Math.log10(size || 1)))));
  return rounded.toLocaleString("en", { maximumFractionDigits: 12 });
}

/** The unit that the end of a name states, as it is written; "" where it states none. */
export function unitOf(name) {
  const [, end] = name.match(/[_ ](px|deg|seconds)$/) ?? [name, name];
  return { px: "px", deg: "°", seconds: "s" }[end] ?? "";
}

export const withUnit = (number, unit) => number + (unit && unit !== "°" ? ` ${unit}` : unit);

export const plural = (count, word) => `${short(count)} ${word}${count === 1 ? "" : "s"}`;

/** The least of ... 1, 2, 5, 10 ... that is no less. */
export function roundAbove(value) {
  const exponent = 10 ** Math.floor(Math.log10(value));
  const lead = value / exponent;
  return (lead > 5 ? 10 : lead > 2 ? 5 : lead > 1 ? 2 : 1) * exponent;
}

/** Viridis; on a dark page without its darkest fifth, which nobody would see there. */
export function viridis(share) {
  const least = isDark.matches ? 0.2 : 0;
  const at = (least + (1 - least) * clamp(share, 0, 1)) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[i].map((low, channel) => low + (at - i) * (VIRIDIS[i + 1][channel] - low));
}

/** The values below which these shares of the finite values lie; of many values, of 20,000 evenly chosen ones. */
export function percentiles(values, shares, offset = 0, stride = 1) {
  const count = Math.floor((values.length - offset + stride - 1) / stride);
  const every = Math.ceil(count / 20000);
  const chosen = [];
  for (let i = 0; i < count; i += every) {
    const value = values[offset + i * stride];
    if (Number.isFinite(value)) chosen.push(value);
  }
  chosen.sort((a, b) => a - b);
  return shares.map((share) => chosen[Math.round(share * (chosen.length - 1))] ?? NaN);
}

/** From where to where the values reach, but for those farther out than 1.5 times the quartiles' distance (Tukey). */
export function bulk(values, offset = 0, stride = 1) {
  const [least, lower, upper, most] = percentiles(values, [0, 0.25, 0.75, 1], offset, stride);
  const beyond = 1.5 * (upper - lower);
  return [Math.max(least, lower - beyond), Math.min(most, upper + beyond)];
}
