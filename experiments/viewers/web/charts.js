// The columns of metrics.csv as curves.

import { uPlot } from "./libraries.js";
import { clamp, colors, element, short, withUnit } from "./base.js";

const INTRINSICS = /^(f|fx|fy|cx|cy|skew|focal\w*|[kpd]\d)$/;

/** The columns in the order of the charts: loss, intrinsics, the rest. */
export function columns(metrics) {
  const rank = (name) => (/^loss/.test(name) ? 0 : INTRINSICS.test(name) ? 1 : 2);
  return Object.keys(metrics)
    .filter((name) => name !== "step")
    .sort((a, b) => rank(a) - rank(b));
}

const chartHeight = () => (document.body.classList.contains("flat") ? 200 : 124);

export class Chart {
  steps = [];
  values = [];
  xs = [0, 1];
  log = false;
  goal = NaN;
  unit = "";

  constructor(name, onStep) {
    this.name = name;
    this.onStep = onStep;
    this.target = element("span", { class: "target" });
    this.value = element("span", { class: "value" });
    this.holder = element("div", { class: "plot" });
    const head = element("div", { class: "chart-head" }, element("span", {}, name), this.value, this.target);
    this.element = element("section", { class: "chart", "aria-label": `Curve of ${name}` }, head, this.holder);
    this.line = element("div", { class: "now-line", hidden: "" });
    this.dot = element("div", { class: "now-dot", hidden: "" });
    new ResizeObserver(() => {
      if (this.plot && this.holder.clientWidth) {
        this.plot.setSize({ width: this.holder.clientWidth, height: chartHeight() });
        this.mark(this.step);
      }
    }).observe(this.holder);
  }

  /** steps (T,), values (T,); xs: the iterations from first to last; target: where the column should end, or NaN. */
  update(steps, values, xs, target) {
    const finite = values.filter(Number.isFinite);
    const positive = finite.filter((value) => value > 0);
    const least = positive.reduce((a, b) => Math.min(a, b), Infinity);
    const most = positive.reduce((a, b) => Math.max(a, b), 0);
    const log = finite.every((value) => value >= 0) && most > 100 * least;
    Object.assign(this, { steps, values, xs, log, goal: log && !(target > 0) ? NaN : target });
    this.target.textContent = Number.isFinite(target) ? `target ${short(target)}` : "";
    const shown = Array.from(values, (value) => (Number.isFinite(value) && !(log && value <= 0) ? value : null));
    if (this.plot && this.wasLog === log) {
      this.plot.setData([steps, shown]);
      return;
    }
    this.wasLog = log;
    this.plot?.destroy();
    this.plot = new uPlot(this.options(log), [steps, shown], this.holder);
    this.plot.over.append(this.line, this.dot);
    const seek = (event) => {
      if (!(event.buttons & 1)) return;
      const left = event.clientX - this.plot.over.getBoundingClientRect().left;
      this.onStep(this.plot.posToVal(left, "x"));
    };
    this.plot.over.addEventListener("pointerdown", (event) => {
      this.plot.over.setPointerCapture(event.pointerId);
      seek(event);
    });
    this.plot.over.addEventListener("pointermove", seek);
  }

  /** @returns {any} what uPlot is told */
  options(log) {
    const font = "11px system-ui, sans-serif";
    const [blue, line] = [() => colors.blue, () => colors.line]; // asked for whenever it draws
    const axis = { font, stroke: () => colors.muted, ticks: { stroke: line, size: 4 }, grid: { stroke: line, width: 1 } };
    return {
      width: this.holder.clientWidth || 360,
      height: chartHeight(),
      legend: { show: false },
      padding: [8, 8, 0, 0],
      cursor: {
        y: false,
        drag: { x: false, y: false },
        sync: { key: "iteration" },
        points: { size: 6, width: 0 },
      },
      scales: {
        x: { time: false, range: () => (this.xs[0] < this.xs[1] ? this.xs : [this.xs[0] - 1, this.xs[0] + 1]) },
        y: { distr: log ? 3 : 1, range: (_, low, high) => this.range(low, high) },
      },
      axes: [
        {
          ...axis,
          size: 26,
          gap: 3,
          incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6, 1e7],
        },
        {
          ...axis,
          gap: 4,
          space: 26,
          size: (_, labels) => 14 + 6.4 * Math.max(6, ...(labels ?? []).map((label) => label.length)),
          ...(log && { splits: (_, __, low, high) => decades(low, high), filter: (_, splits) => splits }),
          values: (_, splits, __, ___, step) => splits.map((value) => tickLabel(value, step, log)),
        },
      ],
      series: [
        {},
        { stroke: blue, width: 1.6, spanGaps: false, points: { show: this.values.length < 40, size: 4, fill: blue } },
      ],
      hooks: {
        draw: [(plot) => this.drawTarget(plot)],
        setCursor: [(plot) => this.say(plot.cursor.idx)],
      },
    };
  }

  /** Draw again, in the colours that hold now. */
  repaint() {
    this.plot?.redraw();
  }

  range(low, high) {
    const ends = [low, high, this.goal].filter(Number.isFinite);
    if (!ends.length) return [0, 1];
    const [a, b] = [Math.min(...ends), Math.max(...ends)];
    if (this.log) return [a / 1.6, b * 1.6];
    const pad = 0.08 * (b - a) || 0.05 * Math.abs(a) || 1;
    return [a - pad, b + pad];
  }

  drawTarget(plot) {
    if (!Number.isFinite(this.goal)) return;
    const { ctx, bbox } = plot;
    const y = plot.valToPos(this.goal, "y", true);
    ctx.save();
    ctx.strokeStyle = colors.orange;
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.restore();
  }

  /** The row of the last iteration up to `step`; the first where there is none. */
  row(step) {
    let low = 0;
    let high = this.steps.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.steps[middle] <= step) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  mark(step) {
    this.step = step;
    const known = step !== undefined && this.steps.length > 0;
    this.line.hidden = this.dot.hidden = !known;
    this.say(null);
    if (!known) return;
    const row = this.row(step);
    const value = this.values[row];
    this.line.style.left = `${this.plot.valToPos(step, "x")}px`;
    this.dot.hidden = !Number.isFinite(value) || (this.log && value <= 0);
    if (this.dot.hidden) return;
    this.dot.style.left = `${this.plot.valToPos(this.steps[row], "x")}px`;
    this.dot.style.top = `${this.plot.valToPos(value, "y")}px`;
  }

  /** Write the value of this row; without one, that of now. */
  say(row) {
    const hovered = row !== null && row !== undefined;
    const shown = hovered ? row : this.step === undefined ? this.steps.length - 1 : this.row(this.step);
    const value = this.values[shown];
    this.value.textContent =
      value === undefined ? "" : `${hovered ? `at ${short(this.steps[shown])}: ` : ""}${withUnit(short(value), this.unit)}`;
    this.value.classList.toggle("past", hovered);
  }
}

/** Powers of ten between low and high, at most five. */
function decades(low, high) {
  const first = Math.ceil(Math.log10(low));
  const last = Math.floor(Math.log10(high));
  const every = Math.ceil((last - first + 1) / 5);
  const found = [];
  for (let power = first; power <= last; power += every) found.push(Number(`1e${power}`));
  return found;
}

function tickLabel(value, step, log) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (log)
    return size >= 1e-3 && size < 1e5
      ? String(Number(value.toPrecision(6)))
      : value.toExponential(0).replace("e+", "e");
  const order = Math.floor(Math.log10(step) + 1e-9);
  const exponent = Math.floor(Math.log10(size));
  if (size !== 0 && (size < 1e-3 || size >= 1e9))
    return value.toExponential(Math.max(0, exponent - order)).replace("e+", "e");
  return value.toFixed(clamp(-order, 0, 20));
}
