// Whether frames follow each other by themselves.

import { $ } from "./base.js";
import { state } from "./state.js";

const PLAY = '<svg viewBox="0 0 20 20"><path d="M6 3.5v13l11-6.5z"/></svg>';
const PAUSE = '<svg viewBox="0 0 20 20"><path d="M5 4h3.5v12H5zM11.5 4H15v12h-3.5z"/></svg>';

export function setButton() {
  $("play").innerHTML = state.playing === null ? PLAY : PAUSE;
  $("play").setAttribute("aria-label", state.playing === null ? "Play" : "Pause");
}

export function pause() {
  clearTimeout(state.playing);
  state.playing = null;
  setButton();
}
