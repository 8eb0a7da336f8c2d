// What ties everything together: the data and the frame that are shown.

import { $, clamp, colors, element, plural, rgb, short, unitOf } from "./base.js";
import { centres, frusta, joined, studied } from "./data.js";
import { COLORINGS, showBar } from "./colors.js";
import { drawImage, legend } from "./image.js";
import { Chart, columns } from "./charts.js";
import { describe } from "./header.js";
import { space, state } from "./state.js";
import { hover } from "./point.js";
import { pause } from "./playing.js";

const charts = new Map();

/** @type {[string, string, [string, string], (stage: any) => any, (data: any) => boolean][]} */
const TOGGLES = [
  // name, label, mark, which stages have it, whether it is on at first
  ["truth", "Truth", ["dot", "orange"], (stage) => stage.truth || stage.cameras_truth, () => true],
  [
    "residuals",
    "Residuals",
    ["", "muted"],
    (stage) => stage.truth,
    (data) => data.stages.every((stage) => !(stage.truth?.length > 6000)),
  ],
  ["cameras", "Cameras", ["", "blue"], (stage) => stage.depth > 0, () => true],
  [
    "trails",
    "Camera trails",
    ["", "trail"],
    (stage) => stage.trail.segments.length,
    (data) => data.frames.every((frame) => !(frame.cameras?.length > 12 * 20)),
  ],
  ["edges", "Edges", ["", "blue"], (stage) => stage.edges, () => true],
  ["grid", "Grid", ["", "grid"], () => true, () => true],
];
const isOn = (name) => $("toggles").querySelector(`[name=${name}]`)?.checked ?? false;

/** Show these data: the first, or newer ones of the same run. */
export function load(data) {
  const first = state.data === null;
  const old = state.data?.frames[state.frame];
  const following = first || !old || state.frame === state.data.frames.length - 1;
  state.data = studied(data);
  state.stage = -1;
  describe(data);

  const spatial = data.frames.some((frame) => frame.points.length || frame.cameras);
  const flat = data.frames.some((frame) => frame.points2d);
  const curved = columns(data.metrics).length > 0;
  document.body.classList.toggle("flat", !spatial);
  document.body.classList.toggle("bare", spatial && !flat && !curved);
  $("no-space").hidden = spatial && space !== null;
  $("picture").hidden = spatial || !$("picture").childElementCount;
  $("no-space").textContent = $("picture").hidden ? whyNoSpace(data, spatial, flat) : "";
  for (const part of ["canvas", "tools", "views", "counts", "axes"]) $(part).hidden = !spatial || !space;
  $("image").hidden = !flat;
  $("timeline").hidden = data.frames.length < 2;
  $("slider").max = data.frames.length - 1;
  if (spatial && space) offer(data);
  plot(data);
  offerStages(data);
  offerSpeeds(data);
  if (data.frames.length) {
    const same = following ? -1 : data.frames.findIndex((frame) => frame.step === old.step);
    show(same < 0 ? data.frames.length - 1 : same);
  }
}

function whyNoSpace(data, spatial, flat) {
  if (spatial) {
    return (
      "This browser gives no WebGL 2, which the view in space needs: turn on hardware acceleration " +
      "in its settings, or open the page in another browser. Everything else works."
    );
  }
  if (flat) return "";
  const finished = Object.keys(data.summary).length > 0;
  return `Nothing that moves in space ${finished ? "was recorded: the curves tell it all" : "is recorded yet"}.`;
}

/** The colours and switches for which there is something; what was chosen stays. */
function offer(data) {
  const possible = Object.keys(COLORINGS).filter((name) =>
    data.frames.some(
      (frame) =>
        frame.points.length && COLORINGS[name].of(data, data.stages[frame.stage], frame, frame.points.length / 3),
    ),
  );
  if (!possible.includes(state.color)) state.color = possible[0] ?? "position";
  $("color").replaceChildren(...possible.map((name) => element("option", { value: name }, COLORINGS[name].label)));
  $("color").value = state.color;
  $("color-row").hidden = $("size-row").hidden = !possible.length;
  const was = new Map([...$("toggles").querySelectorAll("input")].map((input) => [input.name, input.checked]));
  $("toggles").replaceChildren(
    ...TOGGLES.filter(([, , , has]) => data.stages.some(has)).map(([name, label, [mark, color], , on]) => {
      const input = element("input", { type: "checkbox", name });
      input.checked = was.get(name) ?? on(data);
      return element("label", {}, input, element("i", { class: mark, style: `border-color: var(--${color})` }), label);
    }),
  );
}

function offerStages(data) {
  $("stages").hidden = data.stages.length < 2;
  $("stage-choice").replaceChildren(
    ...data.stages.map((stage, i) => {
      const option = element("option", { value: i }, stage.name || `${i + 1}`);
      option.disabled = !stage.frames.length;
      return option;
    }),
  );
}

function offerSpeeds(data) {
  if ($("speed").childElementCount) return;
  const speeds = [1, 2, 5, 10, 20, 40];
  const wanted = data.frames.length / 8; // 8 seconds
  $("speed").append(...speeds.map((speed) => element("option", { value: speed }, `${plural(speed, "frame")}/s`)));
  $("speed").value = speeds.find((speed) => speed >= wanted) ?? 40;
}

function plot(data) {
  const names = columns(data.metrics);
  for (const [name, chart] of charts)
    if (!names.includes(name)) {
      chart.element.remove();
      charts.delete(name);
    }
  for (const name of names) {
    if (charts.has(name)) continue;
    const chart = new Chart(name, (step) => seek(step));
    charts.set(name, chart);
    $("curves").append(chart.element);
  }
  if (!data.frames.length) target(data.stages.at(-1));
}

/** Give the curves their data, and the targets of a stage. */
function target(stage) {
  const { metrics, frames } = state.data;
  const [from, to] = rows(stage);
  const steps = (metrics.step ?? new Float64Array()).subarray(from, to);
  const own = state.data.stages.length > 1 && stage?.frames.length ? stage.frames : frames;
  const ends = [steps[0], steps.at(-1), own[0]?.step, own.at(-1)?.step].filter(Number.isFinite);
  const xs = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
  for (const [name, chart] of charts) {
    chart.unit = stage?.units[name] ?? unitOf(name);
    chart.update(steps, metrics[name].subarray(from, to), xs, Number(stage?.targets[name] ?? NaN));
    chart.mark(undefined);
  }
}

/** The rows of the metrics, from … to, that are a stage's: up to where another one begins. */
function rows(stage) {
  const { metrics, frames, stages } = state.data;
  const steps = metrics.step ?? [];
  if (stages.length < 2 || !stage?.frames.length) return [0, steps.length];
  const next = frames[frames.indexOf(stage.frames.at(-1)) + 1];
  const before = (step) => steps.filter((other) => other < step).length;
  return [before(stage.frames[0].step), next ? before(next.step) : steps.length];
}

/** Show the frame closest to this iteration. */
function seek(step) {
  const { frames } = state.data;
  if (!frames.length) return;
  pause();
  show(
    frames.reduce((best, frame, i) => (Math.abs(frame.step - step) < Math.abs(frames[best].step - step) ? i : best), 0),
  );
}

/** Show frame number i. */
export function show(i) {
  const { data } = state;
  const count = data.frames.length;
  state.frame = clamp(i, 0, count - 1);
  const frame = data.frames[state.frame];
  const stage = data.stages[frame.stage];
  if (state.stage !== frame.stage) enter(frame.stage);
  $("slider").value = state.frame;
  $("slider").setAttribute("aria-valuetext", `iteration ${frame.step}`);
  $("step").textContent = `Iteration ${frame.step.toLocaleString("en")}`;
  $("stage-name").textContent = data.stages.length > 1 && stage.name ? `of ${stage.name}` : "";
  $("stage-choice").value = frame.stage;
  const kept = count < data.frames_recorded ? ` (${count} of ${data.frames_recorded} frames kept)` : "";
  $("kept").textContent = `frame ${state.frame + 1} of ${count}${kept}`;
  if (space && (frame.points.length || frame.cameras)) fill(frame, stage);
  if (!$("image").hidden) drawImage($("image-canvas"), data, frame);
  for (const chart of charts.values()) chart.mark(frame.step);
  dispatchEvent(new Event("viewed"));
}

/** Put up all that stays for as long as this stage does. */
function enter(number) {
  const { data } = state;
  const stage = data.stages[number];
  state.stage = number;
  target(stage);
  $("image-legend").replaceChildren(...legend(stage));
  if (!space) return;
  const similar =
    state.framed &&
    Math.hypot(...stage.box.centre.map((c, axis) => c - state.framed.centre[axis])) < 0.5 * state.framed.radius &&
    stage.box.radius < 2 * state.framed.radius &&
    stage.box.radius > 0.5 * state.framed.radius;
  if (!space.controls) space.start(data.up, stage);
  const points = (stage.truth ?? stage.frames.at(-1)?.points ?? []).length / 3;
  space.pointSize = stage.box.radius * Math.min(0.045, 0.7 / Math.sqrt(points || 1));
  space.least = clamp(60 / Math.sqrt(points || 1), 2, 5);
  state.unit = space.lay(stage.box);
  paintTruth(stage);
  space.camerasTruth.set(frusta(stage.cameras_truth, stage.K, stage.depth));
  space.reach = reach(stage);
  if (number !== state.entered && !similar) {
    // newer data of the same stage do not take the view away
    state.framed = stage.box;
    space.fit(stage.cameras_are_near ? everything(stage, stage.frames.at(-1)) : [stage.box.corners], stage.box.centre);
  }
  state.entered = number;
}

function paintTruth(stage) {
  const orange = rgb(colors.orange);
  space.truth.set(stage.truth, (_, out, at) => out.set(orange, at));
}

/** Draw all that is shown again, in the colours that hold now. */
export function repaint() {
  const { data } = state;
  for (const chart of charts.values()) chart.repaint();
  space?.paint();
  if (!data?.frames.length) return;
  const stage = data.stages[state.stage];
  for (const other of data.stages) delete other.positions; // what colours.js remembers of the other colours
  if (space) paintTruth(stage);
  $("image-legend").replaceChildren(...legend(stage));
  show(state.frame);
}

/** All there is to see of a frame: arrays of places (N,3). */
export function everything(stage, frame) {
  return [
    stage.box.corners,
    frusta(frame.cameras, frame.K, stage.depth),
    frusta(stage.cameras_truth, stage.K, stage.depth),
  ];
}

/** How far from the centre anything of the stage is. */
function reach(stage) {
  let most = 0;
  const places = stage.frames.flatMap((frame) => [frame.points, centres(frame.cameras)]);
  for (const values of [stage.truth, centres(stage.cameras_truth), ...new Set(places)]) {
    for (const value of values ?? []) if (Math.abs(value) > most && Number.isFinite(value)) most = Math.abs(value);
  }
  return 2 * most + 2 * stage.box.radius;
}

function fill(frame, stage) {
  const { data } = state;
  const { points } = frame;
  const count = points.length / 3;
  const none = new Float32Array();
  const coloring =
    COLORINGS[state.color]?.of(data, stage, frame, count) || COLORINGS.position.of(data, stage, frame, count);
  space.points.set(points, coloring.color);
  showBar(coloring, stage, count);

  const matched = stage.truth?.length === points.length && isOn("residuals");
  space.residuals.set(matched ? joined(points, stage.truth) : none);
  const edges = stage.edges?.every((end) => end < count) && count ? stage.edges : none;
  space.edges.set(joined(points, points, edges));
  space.cameras.set(frusta(frame.cameras, frame.K, stage.depth));
  space.trails.set(stage.trail.segments, stage.trail.counts.get(frame));
  const put = (part, on) => (space[part].object.visible = on && (space[part].any ?? space[part].count > 0));
  for (const [name] of TOGGLES) put(name, isOn(name));
  put("camerasTruth", isOn("cameras") && isOn("truth"));

  const words = [];
  const cameras = frame.cameras ? frame.cameras.length / 12 : 0;
  if (count)
    words.push(
      space.points.count === count
        ? plural(count, "point")
        : `${short(space.points.count)} of ${plural(count, "point")} known`,
    );
  if (stage.stride > 1) words.push(`one of ${stage.stride} shown`);
  if (cameras) words.push(plural(cameras, "camera"));
  if (isOn("grid")) words.push(`grid ${short(state.unit)} scene ${state.unit === 1 ? "unit" : "units"}`);
  $("counts").textContent = words.join(" · ");
  hover(null);
  space.redraw();
}
