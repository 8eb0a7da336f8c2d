// What is shown now, and where.

import { $ } from "./base.js";
import { Space } from "./space.js";

export const state = { data: null, frame: 0, color: null, playing: null, stage: -1, entered: -1 };

/** null where the browser has no WebGL 2. */
export const space = Space.on($("canvas"));
