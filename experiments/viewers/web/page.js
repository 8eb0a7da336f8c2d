// Data, embedded or from a server, and the start.

import { uPlotStyle } from "./libraries.js";
import { $, element, onNewColors } from "./base.js";
import { centres, decode } from "./data.js";
import { space, state } from "./state.js";
import { load, repaint } from "./show.js";
import { listenToLinks, look, lookFrom, restore } from "./link.js";
import { go, listenInSpace, listenToHelp, listenToTime } from "./controls.js";

function trouble(words) {
  $("trouble").hidden = !words;
  $("trouble").textContent = words ?? "";
}

/** Show these data; the first as the address says. */
function begin(data) {
  const first = state.data === null;
  load(data);
  if (first) restore(location.hash);
}

/** Ask once a second whether there is something new, for as long as the page is open. */
async function follow(prefix) {
  let version = null;
  let answered = null;
  const ask = async (name) => {
    const response = await fetch(prefix + name, { cache: "no-store" });
    if (!response.ok) throw new Error((await response.text()).slice(0, 300) || response.statusText);
    return response;
  };
  for (;;) {
    let fresh = null;
    try {
      const latest = await (await ask("version")).text();
      if (latest !== version) fresh = await (await ask("recording")).arrayBuffer();
      version = latest;
      answered = new Date();
      trouble(null);
    } catch (error) {
      const since = answered ? ` What you see is as of ${answered.toLocaleTimeString()}.` : "";
      trouble(
        error instanceof TypeError // fetch's, when nobody answers
          ? `The server no longer answers.${since} Start it again, and this page goes on by itself.`
          : `The server could not read the recording: ${error.message}${since}`,
      );
    }
    if (fresh) begin(await decode(fresh));
    await new Promise((done) => setTimeout(done, 1000));
  }
}

// ---- the start ----

function onPage(place) {
  const { left, top } = $("canvas").getBoundingClientRect();
  const [x, y] = space.onCanvas(...place) ?? [NaN, NaN];
  return [left + x, top + y];
}

/**
 * For tests, the curious, and a page that has this one in a frame; read-only but for setFrame and look.
 * ready: whether there are data. frames, frame, step: how many there are, which is shown, its iteration; steps: of all.
 * look: {eye, target} in radii of the stage's box, null without a view in space. positions: [[x, y, z], ...] of the points
 * in the drawn buffer, nan where unknown. screen(i), eyes: where point i is, and where the cameras are, on the page in
 * px. draws: how often space was drawn.
 */
const viewer = Object.freeze({
  get ready() {
    return state.data !== null;
  },
  get steps() {
    return state.data.frames.map((frame) => frame.step);
  },
  get look() {
    return look();
  },
  set look(wanted) {
    lookFrom(wanted);
  },
  get frames() {
    return state.data ? state.data.frames.length : 0;
  },
  get frame() {
    return state.frame;
  },
  get step() {
    return state.data?.frames[state.frame]?.step;
  },
  get draws() {
    return space?.draws ?? 0;
  },
  get positions() {
    const out = Array.from({ length: space.points.total }, () => [NaN, NaN, NaN]);
    for (let n = 0; n < space.points.count; n++) {
      out[space.points.index[n]] = state.data.stages[state.stage].centre.map(
        (c, axis) => c + space.points.position.array[3 * n + axis],
      );
    }
    return out;
  },
  screen(i) {
    const n = space.points.index.subarray(0, space.points.count).indexOf(i);
    return onPage(space.points.position.array.subarray(3 * n, 3 * n + 3));
  },
  get eyes() {
    const places = centres(state.data.frames[state.frame].cameras);
    return Array.from({ length: places.length / 3 }, (_, v) => onPage(places.subarray(3 * v, 3 * v + 3)));
  },
  setFrame: go,
});
Object.assign(window, { viewer });

document.head.append(element("style", {}, uPlotStyle));
if (space) listenInSpace();
listenToTime();
listenToHelp();
listenToLinks();
onNewColors(repaint);
const live = document.body.dataset.live;
if (live) follow(live);
else {
  const embedded = $("data");
  const letters = atob(embedded.textContent);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  decode(bytes).then(begin);
  embedded.remove(); // megabytes of text
}
