// What came of the run, in words and numbers.

import { $, element, plural, short, unitOf, withUnit } from "./base.js";

const FACTS = 10; // that are seen at once; the others unfold

export function describe(data) {
  const { summary } = data;
  const done = Object.keys(summary).length > 0;
  document.title = $("title").textContent = data.title;
  const reached = Math.max(data.metrics.step?.at(-1) ?? -1, data.frames.at(-1)?.step ?? -1);
  const [words, mood] = !data.is_run
    ? ["File", ""]
    : !done
      ? [reached < 0 ? "Unfinished" : `Unfinished, at iteration ${short(reached)}`, ""]
      : summary.converged
        ? ["Finished, goal reached", "good"]
        : ["Finished, goal not reached", "bad"];
  $("state").textContent = words;
  $("state").className = mood;
  $("goal").textContent = summary.goal ? `Goal: ${summary.goal}` : "";
  $("undetermined").replaceChildren(...(summary.undetermined ?? []).map((text) => element("li", {}, text)));

  const found = Object.entries(summary.found ?? {}).map(([name, quantity]) => {
    const { value, deviation, unit, reference } = quantity;
    const shown = element("dd", {}, measured(value, deviation) + (unit ? ` ${unit}` : ""));
    if (reference !== null) shown.append(element("span", { class: "reference" }, `reference ${short(reference)}`));
    return element("div", {}, element("dt", {}, name), shown);
  });
  const reference = { ...summary.reference };
  const facts = [];
  const add = (name, value) => {
    const text = reference[name];
    delete reference[name];
    facts.push([name, value, text]);
  };
  for (const name of ["iterations", "seconds", "loss"]) if (summary[name] !== undefined) add(name, summary[name]);
  for (const [name, value] of Object.entries(summary.errors ?? {})) add(name, value);
  for (const name of Object.keys(reference)) add(name);
  const all = [
    ...found,
    ...facts.map(([name, value, text]) => {
      const unit = name === "loss" ? (data.stages[0]?.units.loss ?? "") : unitOf(name);
      const label = name === "seconds" ? "time" : name.replace(/[_ ](px|deg|seconds)$/, "").replaceAll("_", " ");
      const shown = element("dd");
      if (value !== undefined) shown.append(withUnit(short(value), unit));
      if (text !== undefined) shown.append(element("span", { class: "reference" }, `reference ${short(text)}`));
      return element("div", {}, element("dt", {}, label), shown);
    }),
  ];
  const shown = all.length > FACTS ? all.splice(0, FACTS) : all.splice(0);
  $("facts").replaceChildren(...shown);
  $("more").hidden = all.length === 0;
  $("more").firstElementChild.textContent = `${plural(all.length, "more figure")}`;
  $("more").lastElementChild.replaceChildren(...all);
  const left = Object.entries(summary.left_out ?? {});
  $("left-out").replaceChildren(
    ...left.map(([name, why]) => element("li", {}, element("b", {}, name), `: ${why}`)),
  );
  $("left-out").hidden = left.length === 0;
  $("note").hidden = !summary.note;
  $("note").lastElementChild.textContent = summary.note ?? "";
}

/** A value with as many digits as its deviation bears out. */
function measured(value, deviation) {
  const size = Number(deviation);
  if (deviation === null || !Number.isFinite(size) || size <= 0)
    return short(value) + (deviation === null ? "" : ` ± ${short(deviation)}`);
  const digits = Math.min(20, Math.max(0, 1 - Math.floor(Math.log10(size))));
  return `${Number(value).toFixed(digits)} ± ${size.toFixed(digits)}`;
}
