// What one point is.

import { $, AXES, clamp, plural, short } from "./base.js";
import { space, state } from "./state.js";

/** Say what point number n of the drawn ones is; null for none. */
export function hover(n) {
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
    `${place.map((value, axis) => `${AXES[axis]} ${short(value + stage.centre[axis])}`).join("  ")}  scene units`,
  ];
  if (frame.error) {
    const name = frame.error_unit ? "reprojection error" : "distance to truth";
    lines.push(`${name} ${short(frame.error[i], 3)} ${frame.error_unit || "scene units"}`);
  }
  if (stage.views?.length * 3 === frame.points.length) lines.push(`seen in ${plural(stage.views[i], "view")}`);
  $("tip").textContent = lines.join("\n");
  const { clientWidth: width, clientHeight: height } = $("space");
  $("tip").style.left = `${clamp(x + 14, 0, width - $("tip").offsetWidth - 8)}px`;
  $("tip").style.top = `${clamp(y + 14, 0, height - $("tip").offsetHeight - 8)}px`;
  $("picked").style.left = `${x}px`;
  $("picked").style.top = `${y}px`;
}
