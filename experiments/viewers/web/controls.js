// What the user does: look closer, and move in time.

/** Say what point number n of the drawn ones is; null for none. */
function hover(n) {
  const none = n === null || n < 0;
  $("tip").hidden = $("picked").hidden = none;
  if (none) return;
  const { data } = state;
  const frame = data.frames[state.frame];
  const stage = data.stages[frame.stage];
  const i = space.points.index[n];
  const place = Array.from(space.points.position.array.subarray(3 * n, 3 * n + 3));
  const [x, y] = space.onCanvas(...place);
  const lines = [
    `point ${short(i * stage.stride)}`,
    place.map((value, axis) => `${AXES[axis]} ${short(value + stage.centre[axis])}`).join("  "),
  ];
  if (frame.error) {
    const name = frame.error_unit ? "reprojection error" : "distance to truth";
    lines.push(`${name} ${short(frame.error[i], 3)} ${frame.error_unit}`.trim());
  }
  if (stage.views?.length * 3 === frame.points.length) lines.push(`seen in ${plural(stage.views[i], "view")}`);
  $("tip").textContent = lines.join("\n");
  const { clientWidth: width, clientHeight: height } = $("space");
  $("tip").style.left = `${clamp(x + 14, 0, width - $("tip").offsetWidth - 8)}px`;
  $("tip").style.top = `${clamp(y + 14, 0, height - $("tip").offsetHeight - 8)}px`;
  $("picked").style.left = `${x}px`;
  $("picked").style.top = `${y}px`;
}

function turnAxes() {
  const lines = [];
  const m = space.camera.matrixWorldInverse.elements;
  AXES.forEach((name, axis) => {
    const [x, y, z] = [m[4 * axis], -m[4 * axis + 1], m[4 * axis + 2]];
    lines.push([
      z,
      `<line x2="${24 * x}" y2="${24 * y}" stroke="${MUTED}" stroke-width="1.5"/>
      <text x="${32 * x}" y="${32 * y}" fill="${MUTED}">${name}</text>`,
    ]);
  });
  $("axes").innerHTML = lines
    .sort((a, b) => a[0] - b[0])
    .map(([, drawing]) => drawing)
    .join("");
}

function listenInSpace() {
  const canvas = $("canvas");
  let asked = null;
  space.afterDraw = turnAxes;
  const point = (event) => {
    const bounds = canvas.getBoundingClientRect();
    return space.pick(event.clientX - bounds.left, event.clientY - bounds.top);
  };
  canvas.addEventListener("pointermove", (event) => {
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(() => hover(event.buttons ? null : point(event)));
  });
  canvas.addEventListener("click", (event) => hover(point(event)));
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("wheel", () => hover(null), { passive: true });
  canvas.addEventListener("dblclick", (event) => {
    // turn around this point from now on
    const n = point(event);
    if (n < 0) return;
    const place = space.points.position.array.subarray(3 * n, 3 * n + 3);
    space.camera.position.add(new Vector3(...place).sub(space.controls.target));
    space.controls.target.set(...place);
    space.redraw();
  });
  const current = () => state.data.stages[state.stage];
  $("fit-points").addEventListener("click", () => space.fit([current().box.corners], current().box.centre));
  $("fit-all").addEventListener("click", () =>
    space.fit(everything(current(), state.data.frames[state.frame]), current().box.centre),
  );
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

const PLAY = '<svg viewBox="0 0 20 20"><path d="M6 3.5v13l11-6.5z"/></svg>';
const PAUSE = '<svg viewBox="0 0 20 20"><path d="M5 4h3.5v12H5zM11.5 4H15v12h-3.5z"/></svg>';

function setButton() {
  $("play").innerHTML = state.playing === null ? PLAY : PAUSE;
  $("play").setAttribute("aria-label", state.playing === null ? "Play" : "Pause");
}

function pause() {
  clearTimeout(state.playing);
  state.playing = null;
  setButton();
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

function go(i) {
  pause();
  show(i);
}

function listenToTime() {
  setButton();
  $("play").addEventListener("click", toggle);
  $("slider").addEventListener("input", () => go(Number($("slider").value)));
  $("stage-choice").addEventListener("change", () =>
    go(state.data.frames.indexOf(state.data.stages[Number($("stage-choice").value)].frames.at(-1))),
  );
  addEventListener("keydown", (event) => {
    if (!state.data?.frames.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const { target: on } = event;
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
