// How points are coloured, and the bar that says so.

import { $, AXES, bulk, clamp, element, percentiles, short, UNKNOWN, viridis } from "./base.js";

/** How to colour the points of a frame: {name, color(i, out, at), low, high, log} with low ... high for the bar. */
export const COLORINGS = {
  image: {
    label: "image",
    of: (data, stage, frame, count) =>
      stage.colors?.length === 3 * count && {
        color: (i, out, at) => {
          for (let c = 0; c < 3; c++) out[at + c] = stage.colors[3 * i + c];
        },
      },
  },
  position: {
    label: "position",
    of: (data, stage, frame, count) => {
      stage.positions ??= new Map();
      if (!stage.positions.has(count)) stage.positions.set(count, byPosition(stage, count));
      return stage.positions.get(count);
    },
  },
  error: {
    label: "error",
    of: (data, stage, frame) => {
      if (!frame.error) return null;
      const [low, high] = data.error_range;
      const unit = frame.error_unit || "scene units";
      const name = frame.error_unit ? `reprojection error (${unit}, log)` : `distance to truth (${unit}, log)`;
      return scale(name, low, high, (i) => frame.error[i], true);
    },
  },
  views: {
    label: "visibility",
    of: (data, stage, frame, count) => {
      if (stage.views?.length !== count) return null;
      stage.views_range ??= percentiles(stage.views, [0, 1]);
      return scale("views that see the point", ...stage.views_range, (i) => stage.views[i]);
    },
  },
};

/** A point keeps its colour while it moves: that of where it belongs, or ends, along the axis of most spread. */
function byPosition(stage, count) {
  const known = stage.truth?.length === 3 * count;
  const place = known ? stage.truth : stage.frames.findLast((frame) => frame.points.length === 3 * count).points;
  const ranges = [0, 1, 2].map((axis) => bulk(place, axis, 3));
  const widths = ranges.map(([low, high]) => high - low);
  const axis = widths.indexOf(Math.max(...widths));
  if (axis < 0) return scale("position", 0, 1, () => NaN);
  const [low, high] = ranges[axis];
  const when = known ? " of the truth" : stage.frames.length > 1 ? " at the end" : "";
  const made = scale(`${AXES[axis]}${when} (scene units)`, low, high, (i) => place[3 * i + axis]);
  return { ...made, offset: axis };
}

function scale(name, low, high, value, log = false) {
  const table = new Uint8Array(3 * 256);
  for (let i = 0; i < 256; i++) table.set(viridis(i / 255).map(Math.round), 3 * i);
  const from = log ? Math.log(low) : low;
  const width = (log ? Math.log(high) : high) - from || 1;
  const color = (i, out, at) => {
    const raw = value(i);
    const share = log ? (raw > 0 ? (Math.log(raw) - from) / width : raw === 0 ? 0 : NaN) : (raw - from) / width;
    if (Number.isNaN(share)) {
      out[at] = UNKNOWN[0];
      out[at + 1] = UNKNOWN[1];
      out[at + 2] = UNKNOWN[2];
      return;
    }
    const row = 3 * Math.round(255 * clamp(share, 0, 1));
    out[at] = table[row];
    out[at + 1] = table[row + 1];
    out[at + 2] = table[row + 2];
  };
  return { name, low, high, log, color };
}

export function showBar({ name, low, high, log, offset }, stage, count) {
  $("bar").hidden = !name || !count;
  if ($("bar").hidden) return;
  const shift = offset === undefined ? 0 : stage.centre[offset];
  const middle = log ? Math.sqrt(low * high) : (low + high) / 2;
  const unit = !log && high > low ? 10 ** (Math.floor(Math.log10(high - low)) - 2) : 0;
  const rounded = (value) => (unit ? Math.round(value / unit) * unit || 0 : value);
  $("bar-name").textContent = name;
  const stops = Array.from({ length: 16 }, (_, i) => `rgb(${viridis(i / 15)})`);
  $("bar-colors").style.background = `linear-gradient(to right, ${stops})`;
  $("bar-numbers").replaceChildren(
    ...[low, middle, high].map((value) => element("span", {}, short(rounded(value + shift), 3))),
  );
}
