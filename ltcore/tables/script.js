"use strict";
// Filters of rows by text and of columns by data set, and what stands behind a cell.
const field = document.querySelector("#filter");
if (field) {
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of document.querySelectorAll("tr[data-row]")) {
      row.hidden = !words.every((word) => row.dataset.row.includes(word));
    }
  });
}
for (const button of document.querySelectorAll("button[data-show]")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    for (const cell of document.querySelectorAll("[data-group]")) {
      if (cell.dataset.group === button.dataset.show) cell.hidden = !shown;
    }
  });
}
const chosen = document.querySelector("#chosen");
for (const button of document.querySelectorAll("button[data-cell]")) {
  button.addEventListener("click", () => {
    for (const part of document.querySelectorAll("[data-behind]")) {
      part.hidden = part.dataset.behind !== button.dataset.cell;
      if (!part.hidden) {
        chosen.hidden = true;
        part.tabIndex = -1;
        part.focus();
      }
    }
  });
}
