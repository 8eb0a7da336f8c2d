// What page.encode packed, and what is computed of it once: boxes, frusta, trails.

import { bulk, clamp, percentiles } from "./base.js";

/** What page.encode packed, with every array's number replaced by the array. */
export async function decode(bytes) {
  const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = new Uint8Array(await new Response(unzipped).arrayBuffer());
  const size = new DataView(buffer.buffer).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(buffer.subarray(4, 4 + size)));
  const kinds = { f4: Float32Array, f8: Float64Array, u4: Uint32Array, u1: Uint8Array };
  const arrays = [];
  let at = 4 + size;
  for (const { kind, shape, dropped, base } of data.arrays) {
    const count = shape.reduce((product, n) => product * n, 1);
    const width = Number(kind[1]);
    const raw = new Uint8Array(count * width);
    const earlier = base === null ? null : new Uint8Array(arrays[base].buffer);
    for (let plane = dropped; plane < width; plane++) {
      for (let i = 0, to = plane; i < count; i++, to += width) {
        raw[to] = earlier ? buffer[at++] ^ earlier[to] : buffer[at++];
      }
    }
    arrays.push(new kinds[kind](raw.buffer));
  }
  const take = (record, names) => {
    for (const name of names) record[name] = record[name] === null ? null : arrays[record[name]];
  };
  take(data.metrics, Object.keys(data.metrics));
  for (const stage of data.stages) {
    take(stage, ["colors", "views", "edges", "truth", "cameras_truth", "points2d_truth"]);
  }
  for (const frame of data.frames) take(frame, ["points", "error", "cameras", "K", "points2d"]);
  delete data.arrays;
  return data;
}

const TOO_FAR = 6; // radii of the points' box: where a camera is farther, the cameras are not framed; as in scene.py

/** Where the cameras (V,3,4) are, (V,3): -R' t; none of null. */
export function centres(cameras) {
  if (!cameras) return new Float32Array();
  const out = new Float32Array(cameras.length / 4);
  for (let v = 0; v < cameras.length / 12; v++) {
    const c = 12 * v;
    for (let j = 0; j < 3; j++) {
      out[3 * v + j] = -(
        cameras[c + j] * cameras[c + 3] +
        cameras[c + 4 + j] * cameras[c + 7] +
        cameras[c + 8 + j] * cameras[c + 11]
      );
    }
  }
  return out;
}

/** Eight segments of each camera (V,3,4): from its centre to the image's corners, and around the image; none of null. */
export function frusta(cameras, K, depth) {
  if (!cameras) return new Float32Array();
  const count = cameras.length / 12;
  const out = [];
  const middle = centres(cameras);
  for (let v = 0; v < count; v++) {
    const k = K && K.length > 9 ? 9 * v : 0;
    const c = 12 * v;
    let halves = K ? [K[k + 2] / K[k], K[k + 5] / K[k + 4]] : [0, 0]; // the image ends at twice the principal point
    if (!(halves[0] > 0 && halves[1] > 0)) halves = [0.6, 0.45]; // centred coordinates tell no size
    const deep = depth * Math.min(1, 0.75 / Math.hypot(...halves)); // a wide lens takes no more room
    const corner = (x, y) =>
      [0, 1, 2].map(
        (j) =>
          middle[3 * v + j] +
          deep * (cameras[c + j] * x * halves[0] + cameras[c + 4 + j] * y * halves[1] + cameras[c + 8 + j]),
      );
    const apex = Array.from(middle.subarray(3 * v, 3 * v + 3));
    const around = [corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1)];
    if (![...apex, ...around.flat()].every(Number.isFinite)) continue;
    around.forEach((from, i) => out.push(...apex, ...from, ...from, ...around[(i + 1) % 4]));
  }
  return Float32Array.from(out);
}

/** The box of the bulk of points (N,3) as {centre, radius, low, high, corners (8,3)}, one wide of one; null of none. */
export function box(points) {
  const low = [];
  const high = [];
  for (const axis of [0, 1, 2]) {
    const [a, b] = bulk(points, axis, 3);
    low.push(a);
    high.push(b);
  }
  if (!Number.isFinite(low[0])) return null;
  const centre = low.map((a, axis) => (a + high[axis]) / 2);
  const radius = Math.hypot(...low.map((a, axis) => high[axis] - a)) / 2;
  if (radius === 0) return box([...low.map((a) => a - 0.5), ...high.map((b) => b + 0.5)]);
  const corners = [0, 1, 2, 3, 4, 5, 6, 7].flatMap((i) => low.map((a, axis) => ((i >> axis) & 1 ? high[axis] : a)));
  return { centre, low, high, corners, radius };
}

/** How far from `centre` the farthest of the places (N,3) is; 0 of none. */
function farthest(places, centre) {
  let most = 0;
  for (let i = 0; i < places.length; i += 3) {
    const away = Math.hypot(...centre.map((c, axis) => places[i + axis] - c));
    if (away > most) most = away;
  }
  return most;
}

/** What is worth computing once of each stage of the data. */
export function studied(data) {
  const measured = data.frames.filter((frame) => frame.error);
  const errors = [];
  for (const { error } of measured) {
    const every = Math.ceil((error.length * measured.length) / 50000);
    for (let i = 0; i < error.length; i += every) if (error[i] > 0) errors.push(error[i]);
  }
  let [low, high] = percentiles(errors, [0.01, 0.99]);
  if (!(low > 0)) [low, high] = [1e-6, 1];
  data.error_range = high > low ? [low, high] : [low / 10, low];

  data.stages.forEach((stage, number) => {
    const frames = data.frames.filter((frame) => frame.stage === number);
    const last = frames.at(-1);
    stage.frames = frames;
    stage.K = last?.K ?? null;
    const points = [stage.truth, last?.points].find((places) => places?.length) ?? [];
    const cameras = [last?.cameras, stage.cameras_truth].map(centres);
    stage.eyes = cameras.find((eyes) => eyes.length) ?? new Float32Array();
    stage.box = box(points) ?? box(stage.eyes) ?? box([0, 0, 0]);
    stage.cameras_are_near = cameras.every((eyes) => !(farthest(eyes, stage.box.centre) > TOO_FAR * stage.box.radius));
    stage.depth = stage.eyes.length ? frustumDepth(stage.eyes, stage.box) : 0;
    stage.trail = trail(frames);
  });
  return data;
}

/** How deep to draw cameras: a tenth as far as the points are, less where they stand close together. */
function frustumDepth(eyes, { centre, radius }) {
  const count = eyes.length / 3;
  const far = [];
  const near = [];
  const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
  const eye = (v) => eyes.subarray(3 * v, 3 * v + 3);
  const every = Math.ceil(count / 300);
  for (let v = 0; v < count; v += every) {
    far.push(distance(eye(v), centre));
    let closest = Infinity;
    for (let w = 0; w < count; w++) if (w !== v) closest = Math.min(closest, distance(eye(v), eye(w)) || Infinity);
    near.push(closest);
  }
  const [away] = percentiles(far, [0.5]);
  const [apart = Infinity] = percentiles(near, [0.5]);
  const depth = 0.1 * (away > 0 ? away : radius);
  return apart > 0 ? clamp(1.2 * apart, 0.5 * depth, depth) : depth;
}

/** Segments (S,2,3) between places (N,3): pairs[2 s] of `from` to pairs[2 s + 1] of `to`, or each to its own; if known. */
export function joined(from, to, pairs = Uint32Array.from({ length: (2 * from.length) / 3 }, (_, i) => i >> 1)) {
  const out = new Float32Array(3 * pairs.length);
  let n = 0;
  for (let i = 0; i < pairs.length; i += 2) {
    const a = 3 * pairs[i];
    const b = 3 * pairs[i + 1];
    const sum = from[a] + from[a + 1] + from[a + 2] + to[b] + to[b + 1] + to[b + 2];
    if (!Number.isFinite(sum)) continue;
    for (let axis = 0; axis < 3; axis++) {
      out[n + axis] = from[a + axis];
      out[n + 3 + axis] = to[b + axis];
    }
    n += 6;
  }
  return out.subarray(0, n);
}

/** Where the cameras went: segments (S,2,3), and how many of them lead up to each frame. */
function trail(frames) {
  const segments = [];
  const counts = new Map();
  let before = null;
  for (const frame of frames) {
    const now = centres(frame.cameras);
    if (before?.length === now.length) for (const value of joined(before, now)) segments.push(value);
    before = now;
    counts.set(frame, segments.length / 6);
  }
  return { segments: Float32Array.from(segments), counts };
}
