// Points of one image, and the way they went.

import { clamp, colors, element, percentiles, roundAbove, short, viridis } from "./base.js";

export function drawImage(canvas, data, frame) {
  const stage = data.stages[frame.stage];
  const current = frame.points2d ?? [];
  const truth = stage.points2d_truth ?? [];
  const frames = stage.frames.filter((other) => other.points2d?.length === current.length);
  stage.image_box ??= imageBox(stage, frames, truth);
  const { low, high } = stage.image_box;
  const margin = { left: 44, right: 8, top: 8, bottom: 24 };
  const width = canvas.parentElement.clientWidth;
  const most = 0.6 * window.innerHeight;
  const zoom = Math.min((width - margin.left - margin.right) / (high[0] - low[0]), most / (high[1] - low[1]));
  const height = Math.round(zoom * (high[1] - low[1]) + margin.top + margin.bottom);
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const right = margin.left + zoom * (high[0] - low[0]);
  const bottom = height - margin.bottom;
  const u = (x) => margin.left + zoom * (x - low[0]);
  const v = (y) => margin.top + zoom * (y - low[1]);

  pen.font = "11px system-ui, sans-serif";
  pen.lineWidth = 1;
  for (const axis of [0, 1]) {
    for (const tick of roundNumbers(low[axis], high[axis], axis ? 5 : 6)) {
      const at = Math.round(axis ? v(tick) : u(tick)) + 0.5;
      pen.strokeStyle = colors.line;
      pen.fillStyle = colors.muted;
      pen.beginPath();
      if (axis) {
        pen.moveTo(margin.left, at);
        pen.lineTo(right, at);
      } else {
        pen.moveTo(at, margin.top);
        pen.lineTo(at, bottom);
      }
      pen.stroke();
      pen.textAlign = axis ? "right" : "center";
      pen.textBaseline = axis ? "middle" : "top";
      pen.fillText(short(tick), axis ? margin.left - 6 : at, axis ? at : bottom + 6);
    }
  }
  if (stage.image_size) {
    pen.strokeStyle = colors.muted;
    const [w, h] = stage.image_size; // (0, 0) is the centre of the top-left pixel
    pen.strokeRect(u(-0.5), v(-0.5), zoom * w, zoom * h);
  }
  pen.save();
  pen.beginPath();
  pen.rect(margin.left, margin.top, right - margin.left, bottom - margin.top);
  pen.clip();
  const line = (a, i, b, j) => {
    pen.moveTo(u(a[2 * i]), v(a[2 * i + 1]));
    pen.lineTo(u(b[2 * j]), v(b[2 * j + 1]));
  };
  const count = current.length / 2;
  const many = count > 200;
  const past = frames.slice(0, frames.indexOf(frame) + 1);
  pen.globalAlpha = many ? 0.35 : 0.8;
  pen.lineWidth = many ? 0.75 : 1.25;
  for (let k = 1; k < past.length; k++) {
    pen.strokeStyle = `rgb(${viridis(k / Math.max(frames.length - 1, 1)).map(Math.round)})`;
    pen.beginPath();
    for (let i = 0; i < count; i++) line(past[k - 1].points2d, i, past[k].points2d, i);
    pen.stroke();
  }
  pen.globalAlpha = 1;
  if (stage.edges && stage.edges.every((end) => end < count)) {
    pen.strokeStyle = colors.blue;
    pen.lineWidth = 1;
    pen.beginPath();
    for (let e = 0; e < stage.edges.length; e += 2) line(current, stage.edges[e], current, stage.edges[e + 1]);
    pen.stroke();
  }
  if (truth.length === current.length) {
    pen.strokeStyle = colors.muted;
    pen.globalAlpha = 0.6;
    pen.beginPath();
    for (let i = 0; i < count; i++) line(current, i, truth, i);
    pen.stroke();
    pen.globalAlpha = 1;
  }
  const arm = clamp(40 / Math.sqrt(truth.length / 2), 3, 8);
  pen.strokeStyle = colors.orange;
  pen.lineWidth = many ? 1 : 2;
  pen.beginPath();
  for (let i = 0; i < truth.length; i += 2) {
    const x = u(truth[i]);
    const y = v(truth[i + 1]);
    pen.moveTo(x - arm, y);
    pen.lineTo(x + arm, y);
    pen.moveTo(x, y - arm);
    pen.lineTo(x, y + arm);
  }
  pen.stroke();
  pen.fillStyle = colors.blue;
  pen.strokeStyle = colors.background;
  pen.lineWidth = 1;
  for (let i = 0; i < count; i++) {
    pen.beginPath();
    pen.arc(u(current[2 * i]), v(current[2 * i + 1]), many ? 1.75 : 3.5, 0, 2 * Math.PI);
    pen.fill();
    if (!many) pen.stroke();
  }
  pen.restore();
}

/** What the panel shows: the image, and the points where they end and belong; else all that they cross. */
function imageBox(stage, frames, truth) {
  const ends = [
    truth,
    frames.at(-1)?.points2d ?? [],
    ...(stage.image_size ? [] : frames.map((frame) => frame.points2d)),
  ];
  const all = ends.flatMap((points) => Array.from(points));
  const low = [];
  const high = [];
  for (const axis of [0, 1]) {
    let [a, b] = percentiles(all, [0, 1], axis, 2);
    if (stage.image_size) [a, b] = [Math.min(-0.5, a || 0), Math.max(stage.image_size[axis] - 0.5, b || 0)];
    const pad = stage.image_size ? 0.02 * (b - a) : 0.06 * (b - a) || 1;
    low.push(a - pad);
    high.push(b + pad);
  }
  return { low, high };
}

/** Round numbers between low and high, at most about `count`. */
function roundNumbers(low, high, count) {
  const step = roundAbove((high - low) / count);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step || 0);
  return found;
}

export function legend(stage) {
  const mark = (drawing, label) => {
    const span = element("span");
    span.innerHTML = `<svg viewBox="-7 -7 14 14">${drawing}</svg>`;
    span.append(label);
    return span;
  };
  const marks = [mark(`<circle r="4" style="fill: var(--blue)"/>`, "now")];
  if (stage.points2d_truth)
    marks.push(mark(`<path d="M-6 0H6M0 -6V6" style="stroke: var(--orange); stroke-width: 2"/>`, "target"));
  marks.push(
    mark(
      [`M-7 0H0`, `M0 0H7`]
        .map((line, i) => `<path d="${line}" stroke="rgb(${viridis(0.65 * i)})" stroke-width="2"/>`)
        .join(""),
      "way, from dark to bright",
    ),
  );
  return marks;
}
