// What the user does: look closer, and move in time.

import { Vector3 } from "./libraries.js";
import { $, AXES } from "./base.js";
import { drawImage } from "./image.js";
import { space, state } from "./state.js";
import { hover } from "./point.js";
import { pause, setButton } from "./playing.js";
import { everything, show } from "./show.js";

function turnAxes() {
  const lines = [];
  const m = space.camera.matrixWorldInverse.elements;
  AXES.forEach((name, axis) => {
    const [x, y, z] = [m[4 * axis], -m[4 * axis + 1], m[4 * axis + 2]];
    lines.push([
      z,
      `<line x2="${24 * x}" y2="${24 * y}"/><text x="${32 * x}" y="${32 * y}">${name}</text>`,
    ]);
  });
  $("axes").innerHTML = lines
    .sort((a, b) => a[0] - b[0])
    .map(([, drawing]) => drawing)
    .join("");
}

export function listenInSpace() {
  const canvas = $("canvas");
  let asked = null;
  space.afterDraw = () => {
    turnAxes();
    dispatchEvent(new Event("viewed")); // for a page that has this one in a frame
  };
  const point = (event) => {
    const bounds = canvas.getBoundingClientRect();
    return space.pick(event.clientX - bounds.left, event.clientY - bounds.top);
  };
  // A look still waiting for its frame is dropped by whatever comes after: else a pointer that has left is answered.
  const answer = (n) => {
    cancelAnimationFrame(asked);
    hover(n);
  };
  canvas.addEventListener("pointermove", (event) => {
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(() => hover(event.buttons ? null : point(event)));
  });
  canvas.addEventListener("click", (event) => answer(point(event)));
  canvas.addEventListener("pointerleave", () => answer(null));
  canvas.addEventListener("wheel", () => answer(null), { passive: true });
  canvas.addEventListener("dblclick", (event) => {
    // turn around this point from now on
    const n = point(event);
    if (n < 0) return;
    const place = space.points.position.array.subarray(3 * n, 3 * n + 3);
    space.camera.position.add(new Vector3().fromArray(place).sub(space.controls.target));
    space.controls.target.fromArray(place);
    space.redraw();
  });
  const current = () => state.data.stages[state.stage];
  $("fit-points").addEventListener("click", () => space.fit([current().box.corners], current().box.centre));
  $("fit-all").addEventListener("click", fitAll);
  listenToKeys(canvas);
  const narrow = matchMedia("(max-width: 600px)");
  const fold = () => ($("tools").open = !narrow.matches);
  narrow.addEventListener("change", fold);
  fold();
  $("color").addEventListener("change", () => {
    state.color = $("color").value;
    show(state.frame);
  });
  $("toggles").addEventListener("change", () => show(state.frame));
  $("size").addEventListener("input", () => {
    space.magnified = 2 ** Number($("size").value);
    space.redraw();
  });
}

function fitAll() {
  const stage = state.data.stages[state.stage];
  space.fit(everything(stage, state.data.frames[state.frame]), stage.box.centre);
}

const TURN = Math.PI / 24;
const SHIFT = 40; // px
const CLOSER = 0.85;

/** Keys of the canvas. Only the keyboard gives it the focus, and a ring shows it: after a click arrows go in time. */
function listenToKeys(canvas) {
  canvas.addEventListener("mousedown", (event) => {
    event.preventDefault();
    /** @type {HTMLElement} */ (document.activeElement).blur();
  });
  const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !space.controls) return;
    const { controls } = space;
    const [x, y] = arrows[event.key] ?? [0, 0];
    if (event.key in arrows && event.shiftKey) controls.pan(SHIFT * x, SHIFT * y);
    else if (x) controls.rotateLeft(TURN * x);
    else if (y) controls.rotateUp(TURN * y);
    else if (event.key === "+" || event.key === "=") controls.dollyIn(CLOSER);
    else if (event.key === "-") controls.dollyOut(CLOSER);
    else if (event.key === "0" || event.key === "f") fitAll();
    else return;
    hover(null);
    event.preventDefault();
    event.stopPropagation(); // an arrow does not go in time as well
  });
}

export function listenToHelp() {
  $("help").addEventListener("click", () => $("shortcuts").showModal());
  addEventListener("keydown", (event) => {
    if (event.key === "?" && !$("shortcuts").open) $("shortcuts").showModal();
  });
}

function play() {
  if (state.data.frames.length < 2) return;
  const next = () => {
    state.playing = setTimeout(
      () => {
        const end = state.data.frames.length - 1;
        if (state.frame < end) show(state.frame + 1);
        else if ($("loop").checked) show(0);
        if (state.frame === end && !$("loop").checked) pause();
        else next();
      },
      1000 / Number($("speed").value),
    );
  };
  if (state.frame === state.data.frames.length - 1) show(0);
  next();
  setButton();
}

const toggle = () => (state.playing === null ? play() : pause());

export function go(i) {
  pause();
  show(i);
}

export function listenToTime() {
  setButton();
  $("play").addEventListener("click", toggle);
  $("slider").addEventListener("input", () => go(Number($("slider").value)));
  $("stage-choice").addEventListener("change", () =>
    go(state.data.frames.indexOf(state.data.stages[Number($("stage-choice").value)].frames.at(-1))),
  );
  addEventListener("keydown", (event) => {
    if (!state.data?.frames.length || $("shortcuts").open || event.ctrlKey || event.metaKey || event.altKey) return;
    const on = /** @type {HTMLElement} */ (event.target);
    if (on !== $("slider") && on.matches?.("select, input[type=range]")) return; // it has keys of its own
    if (event.key === " " && on.matches?.("button, input[type=checkbox], summary")) return;
    const moves = {
      ArrowLeft: state.frame - 1,
      ArrowRight: state.frame + 1,
      Home: 0,
      End: state.data.frames.length - 1,
    };
    if (event.key === " ") toggle();
    else if (event.key in moves) go(moves[event.key]);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => {
    if (state.data?.frames.length && !$("image").hidden)
      drawImage($("image-canvas"), state.data, state.data.frames[state.frame]);
  }).observe($("image"));
}
