"use strict";
// Sorts tables by a column, and tells the case of the point that the mouse or the keyboard is at.

// A cell as a number, where it begins with one: 1.2e-5, 3.14 × 10⁻⁵, 12 %, 3 of 7.
function value(cell) {
  const digits = { "⁻": "-", "⁰": 0, "¹": 1, "²": 2, "³": 3, "⁴": 4, "⁵": 5, "⁶": 6, "⁷": 7, "⁸": 8, "⁹": 9 };
  const own = cell.firstChild && cell.firstChild.nodeType === 3 ? cell.firstChild.data : cell.textContent;
  const text = own.trim().replace("∞", "Infinity");
  const power = text.match(/^(-?[\d.]+) × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)/);
  if (power) return parseFloat(power[1] + "e" + [...power[2]].map((x) => digits[x]).join(""));
  const number = parseFloat(text);
  return Number.isNaN(number) ? text : number;
}

function order(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === typeof b) return a.localeCompare(b);
  return typeof a === "number" ? -1 : 1;
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => {
    head.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows];
      for (const row of rows) {
        const first = row.cells[0];
        if (first.textContent === "") first.textContent = row.dataset.group;
      }
      const keyed = rows.map((row) => [value(row.cells[column]), row]);
      // Empty cells stay last, whichever way.
      keyed.sort(([a], [b]) => (a === "") - (b === "") || (up ? order(a, b) : order(b, a)));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

const tip = document.getElementById("tip");
function tell(mark) {
  const [name, ...rest] = JSON.parse(mark.dataset.said);
  const head = document.createElement("b");
  head.textContent = name;
  tip.replaceChildren(head, ...rest.flatMap((line) => [line, document.createElement("br")]));
  tip.hidden = false;
  mark.classList.add("here");
  const at = mark.getBoundingClientRect();
  const left = Math.min(at.right + 8, window.innerWidth - tip.offsetWidth - 8);
  const below = at.bottom + 8 + tip.offsetHeight < window.innerHeight;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = (below ? at.bottom + 8 : Math.max(8, at.top - tip.offsetHeight - 8)) + "px";
}
for (const mark of document.querySelectorAll(".marks circle")) {
  mark.addEventListener("mouseenter", () => tell(mark));
  mark.addEventListener("click", () => tell(mark));
  mark.addEventListener("mouseleave", () => {
    tip.hidden = true;
    mark.classList.remove("here");
  });
}
