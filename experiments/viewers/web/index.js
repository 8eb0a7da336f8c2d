"use strict";
// The table sorts by a click on a header and shows what the filter finds; without a script it is as it was written.
const body = document.querySelector("tbody");
const headers = [...document.querySelectorAll("thead th")];

// Numbers by size and text by alphabet; what is nan or absent stays last, whichever way.
function sort(column, descending) {
  const isNumber = headers[column].classList.contains("number");
  const key = (row) => {
    const cell = row.cells[column];
    if (!isNumber) return cell.innerText.trim();
    return cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
  };
  const isLast = (value) => value === "" || Number.isNaN(value);
  const sign = descending ? -1 : 1;
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => {
    if (isLast(a) || isLast(b)) return Number(isLast(a)) - Number(isLast(b));
    return sign * (isNumber ? Number(a > b) - Number(a < b) : a.localeCompare(b, "en", {numeric: true}));
  });
  body.append(...rows.map(([, row]) => row));
}

headers.forEach((header, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...header.childNodes);
  header.append(button);
  header.ariaSort = "none";
  button.addEventListener("click", () => {
    const descending = header.ariaSort === "ascending";
    for (const other of headers) other.ariaSort = "none";
    header.ariaSort = descending ? "descending" : "ascending";
    sort(column, descending);
  });
});

/** @type {HTMLElement} */
const filter = document.querySelector(".filter");
if (filter) {
  const [input, output] = [filter.querySelector("input"), filter.querySelector("output")];
  const texts = new Map([...body.rows].map((row) => [row, said(row)]));
  filter.hidden = false;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const [row, text] of texts) {
      row.hidden = !words.every((word) => text.includes(word));
      found += Number(!row.hidden);
    }
    output.textContent = words.length ? `${found} of ${texts.size}` : "";
  });
}

function said(row) {
  const cells = [...row.cells].slice(0, 4).map((cell) => cell.textContent.trim());
  return `${cells[0]} ${cells[1]} seed ${cells[2]} ${cells[3]}`.toLowerCase();
}
