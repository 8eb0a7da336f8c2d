// What is seen, as the part of an address after its #: frame, camera, colours and switches.

import { $, clamp } from "./base.js";
import { space, state } from "./state.js";
import { show } from "./show.js";

/** Where the camera is and what it turns around, in radii of the stage's box about its centre: in any run's scale. */
export function look() {
  if (!space?.controls) return null;
  const { centre, radius } = state.data.stages[state.stage].box;
  const [eye, target] = [space.camera.position, space.controls.target].map((place) =>
    place.toArray().map((value, axis) => (value - centre[axis]) / radius),
  );
  return { eye, target };
}

export function lookFrom({ eye, target }) {
  if (!space?.controls) return;
  const { centre, radius } = state.data.stages[state.stage].box;
  const [from, to] = [eye, target].map((place) => place.map((value, axis) => centre[axis] + radius * value));
  space.look(from, to);
}

const switches = () => [...$("toggles").querySelectorAll("input")];
const rounded = (place) => place.map((value) => Number(value.toPrecision(5))).join(",");

/** The view as "#iteration=…&eye=…". */
export function viewAsHash() {
  const said = new URLSearchParams();
  const frame = state.data.frames[state.frame];
  if (frame) said.set("iteration", String(frame.step));
  const now = look();
  if (now) {
    said.set("eye", rounded(now.eye));
    said.set("target", rounded(now.target));
    said.set("colour", $("color").value);
    said.set("size", $("size").value);
    said.set("show", switches().filter((input) => input.checked).map((input) => input.name).join(",")); // prettier-ignore
  }
  return `#${said}`.replaceAll("%2C", ",");
}

/** Show what an address says; what it says wrongly, or of what is not there, is as if unsaid. */
export function restore(hash) {
  const said = new URLSearchParams(hash.slice(1));
  const numbers = (name, count) => {
    const found = (said.get(name) ?? "").split(",").map((word) => (word.trim() ? Number(word) : NaN));
    return found.length === count && found.every((value) => Math.abs(value) < 1e6) ? found : null;
  };
  const { frames } = state.data;
  if (!frames.length) return;
  if (said.has("show")) {
    const on = said.get("show").split(",");
    for (const input of switches()) input.checked = on.includes(input.name);
  }
  const choice = [...$("color").options].find((option) => option.value === said.get("colour"));
  if (choice) state.color = $("color").value = choice.value;
  const size = numbers("size", 1);
  if (size && space) {
    $("size").value = String(clamp(size[0], -2, 2));
    space.magnified = 2 ** Number($("size").value);
  }
  const step = numbers("iteration", 1)?.[0];
  const found = frames.findIndex((frame) => frame.step === step);
  show(found < 0 ? state.frame : found);
  const [eye, target] = [numbers("eye", 3), numbers("target", 3)];
  if (eye && target && Math.hypot(...eye.map((value, axis) => value - target[axis])) > 1e-4) lookFrom({ eye, target });
}

export function listenToLinks() {
  const button = $("link");
  const words = button.textContent;
  button.addEventListener("click", async () => {
    history.replaceState(null, "", viewAsHash());
    let copied = true;
    try {
      await navigator.clipboard.writeText(location.href);
    } catch {
      copied = false; // not allowed, or no such thing where the address is not this machine's
    }
    button.textContent = copied ? "Copied" : "It is in the address bar";
    setTimeout(() => (button.textContent = words), 2000);
  });
  addEventListener("hashchange", () => state.data && restore(location.hash));
}
