"use strict";
// The list of slides: sorting by a column's button, and filtering.

const body = document.querySelector("table.slides tbody");
const rows = [...body.rows];
const order = new Intl.Collator("en", { numeric: true });

function sort(header) {
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const sign = ascending ? 1 : -1;
  const value = (row) => row.cells[header.cellIndex].dataset.value;
  const numeric = header.dataset.kind === "number";
  rows.sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1); // missing values stay at the end
    return sign * (numeric ? a - b : order.compare(a, b));
  });
  body.append(...rows);
}

function filter() {
  const text = document.getElementById("filter").value.trim().toLowerCase();
  const status = document.getElementById("status").value;
  let shown = 0;
  for (const row of rows) {
    row.hidden = !row.textContent.toLowerCase().includes(text) || (status !== "" && row.dataset.status !== status);
    shown += !row.hidden;
  }
  document.getElementById("count").textContent = `${shown} of ${rows.length} slides shown`;
}

for (const button of document.querySelectorAll("table.slides thead button")) {
  button.addEventListener("click", () => sort(button.parentElement));
}
document.getElementById("filter").addEventListener("input", filter);
document.getElementById("status").addEventListener("change", filter);
filter();
