"use strict";
// Two pages of runs in frames, on one slider, seen from the same side. They are of this page's origin: it looks into them.
/** @type {(id: string) => any} */
const get = (id) => document.getElementById(id);
const frames = [...document.querySelectorAll("iframe")];
/** @type {any[]} */
const viewers = [];
/** @type {number[][]} */
let pairs = []; // of the frames that are shown together
let at = -1;
let playing = 0;

/** By iteration each run stands where it was then, the shorter one at its end; by share both begin and end together. */
function paired() {
  const all = viewers.map((viewer) => viewer.steps);
  if (get("by").value === "share") {
    const count = Math.max(...all.map((steps) => steps.length));
    return Array.from({ length: count }, (_, i) =>
      all.map((steps) => Math.round((i / Math.max(count - 1, 1)) * (steps.length - 1))),
    );
  }
  const union = [...new Set(all.flat())].sort((a, b) => a - b);
  return union.map((step) => all.map((steps) => Math.max(0, steps.findLastIndex((other) => other <= step))));
}

function go(i) {
  at = Math.min(Math.max(i, 0), pairs.length - 1);
  get("slider").value = at;
  viewers.forEach((viewer, side) => viewer.frame !== pairs[at][side] && viewer.setFrame(pairs[at][side]));
  const said = viewers.map((viewer) => `${viewer.step ?? "none"}`);
  get("moment").textContent = `Iteration ${said[0] === said[1] ? said[0] : said.join(" and ")}`;
}

/** One of the pages shows another frame, or from elsewhere: the other one follows. */
function follow(side) {
  const [viewer, other] = [viewers[side], viewers[1 - side]];
  if (pairs[at][side] !== viewer.frame) {
    stop();
    go(pairs.findLastIndex((pair) => pair[side] === viewer.frame));
  }
  const [look, its] = [viewer.look, other.look];
  if (look && its && differ(look, its)) other.look = look;
}

/** By more than rounding: else each would follow the other for ever. */
function differ(a, b) {
  return ["eye", "target"].some((name) => a[name].some((value, axis) => Math.abs(value - b[name][axis]) > 1e-6));
}

function stop() {
  clearInterval(playing);
  playing = 0;
  get("play").textContent = "Play";
}

function start() {
  pairs = paired();
  get("slider").max = pairs.length - 1;
  go(pairs.length - 1);
}

Promise.all(
  frames.map(
    (frame) =>
      new Promise((done) => {
        const look = () => {
          const inside = /** @type {any} */ (frame.contentWindow);
          if (inside.viewer?.ready) done(inside.viewer);
          else setTimeout(look, 50);
        };
        look();
      }),
  ),
).then((found) => {
  viewers.push(...found);
  for (const frame of frames) frame.contentDocument.body.classList.add("beside");
  start();
  if (viewers[0].look && viewers[1].look) viewers[1].look = viewers[0].look;
  frames.forEach((frame, side) => frame.contentWindow.addEventListener("viewed", () => follow(side)));
  get("slider").addEventListener("input", () => {
    stop();
    go(Number(get("slider").value));
  });
  get("by").addEventListener("change", start);
  get("play").addEventListener("click", () => {
    if (playing) return stop();
    if (at === pairs.length - 1) go(0);
    get("play").textContent = "Pause";
    playing = setInterval(() => {
      go(at + 1);
      if (at === pairs.length - 1) stop();
    }, Math.max(25, 8000 / pairs.length)); // prettier-ignore
  });
  document.body.dataset.ready = "";
});
