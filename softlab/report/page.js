"use strict";
// Sorts tables, draws the figures when they come into view, tells the case of a point, searches,
// and follows one method or input through all figures.

const $ = (query, at = document) => [...at.querySelectorAll(query)];
const make = (name, held = {}) => Object.assign(document.createElement(name), held);
const id = (name) => document.getElementById(name);

// --- light and dark
const root = document.documentElement;
function theme(name) {
  root.dataset.theme = name;
  try { localStorage.setItem("theme", name); } catch { /* a page from a file may not keep it */ }
}
let kept = null;
try { kept = localStorage.getItem("theme"); } catch { /* as above */ }
root.dataset.theme = kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
if (id("theme")) id("theme").onclick = () => theme(root.dataset.theme === "dark" ? "light" : "dark");

// --- tables: a cell as a number, where it begins with one: 1.2e-5, 3.14 × 10⁻⁵, 12 %, 3 of 7.
function value(cell) {
  const digits = { "⁻": "-", "⁰": 0, "¹": 1, "²": 2, "³": 3, "⁴": 4, "⁵": 5, "⁶": 6, "⁷": 7, "⁸": 8, "⁹": 9 };
  const own = cell.firstChild && cell.firstChild.nodeType === 3 ? cell.firstChild.data : cell.textContent;
  const text = own.trim().replace("∞", "Infinity");
  const power = text.match(/^(-?[\d.]+) × 10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)/);
  if (power) return parseFloat(power[1] + "e" + [...power[2]].map((x) => digits[x]).join(""));
  const part = text.match(/^1\/(\d+)$/);
  if (part) return 1 / part[1];
  const number = parseFloat(text);
  return Number.isNaN(number) ? text : number;
}

function order(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === typeof b) return a.localeCompare(b);
  return typeof a === "number" ? -1 : 1;
}

for (const table of $("table.sortable")) {
  const body = table.tBodies[0];
  const heads = table.tHead ? [...table.tHead.rows[0].cells] : [];
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

// --- downloads
function give(name, kind, held) {
  const link = make("a", { download: name, href: URL.createObjectURL(new Blob([held], { type: kind })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function cells(table) {
  return [...table.rows].map((row) => [...row.cells].map((cell) => {
    const small = cell.querySelector("small");
    return small ? `${cell.firstChild.data} (${small.textContent})` : cell.textContent;
  }));
}
function csv(table) {
  // A word that a spreadsheet would take for a formula is marked as a word.
  const word = (x) => `"${(/^[=+@\t\r]|^-[^\d.]/.test(x) ? "'" + x : x).replaceAll('"', '""')}"`;
  return cells(table).map((row) => row.map(word).join(",")).join("\n") + "\n";
}
function latex(table) {
  const marks = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}" };
  const word = (x) => x.replace(/[\\~^&%$#_{}]/g, (y) => marks[y] || "\\" + y);
  const rows = cells(table).map((row) => row.map(word).join(" & ") + " \\\\");
  const head = table.tHead ? [rows.shift(), "\\midrule"] : [];
  const left = table.tBodies[0].querySelectorAll("tr:first-child td.left").length;
  const columns = "l".repeat(left) + "r".repeat(Math.max(0, table.rows[0].cells.length - left));
  return ["% needs \\usepackage{booktabs}", `\\begin{tabular}{${columns}}`, "\\toprule", ...head, ...rows,
    "\\bottomrule", "\\end{tabular}", ""].join("\n");
}
document.addEventListener("click", (event) => {
  const asked = event.target.dataset && event.target.dataset.get;
  if (!asked) return;
  const figure = event.target.closest("figure");
  const name = figure.id || "softlab";
  if (asked === "csv") give(`${name}.csv`, "text/csv", csv(figure.querySelector("table")));
  if (asked === "tex") give(`${name}.tex`, "text/plain", latex(figure.querySelector("table")));
  if (asked === "svg") drawn(figure).then((held) => give(`${name}.svg`, "image/svg+xml", held.svg));
});

// --- figures: packed in the page, unpacked when they come near
const unpacked = new Map();
function drawn(figure) {
  if (!unpacked.has(figure)) unpacked.set(figure, unpack(figure));
  return unpacked.get(figure);
}
async function unpack(figure) {
  const packed = figure.querySelector("script").textContent.trim();
  const bytes = Uint8Array.from(atob(packed), (x) => x.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const held = JSON.parse(await new Response(stream).text());
  const frame = figure.querySelector(".drawing");
  const image = make("img", { alt: figure.querySelector("figcaption").textContent });
  image.src = URL.createObjectURL(new Blob([held.svg], { type: "image/svg+xml" }));
  const layer = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  layer.setAttribute("class", "marks");
  layer.setAttribute("role", "group");
  layer.setAttribute("aria-label", "points; arrow keys go from one to the next");
  held.marks.forEach((mark, i) => {
    const circle = document.createElementNS(layer.namespaceURI, "circle");
    const set = { cx: mark.left + "%", cy: mark.top + "%", r: 7, tabindex: i ? -1 : 0, role: "img" };
    for (const [key, x] of Object.entries(set)) circle.setAttribute(key, x);
    circle.setAttribute("aria-label", mark.said.join(", "));
    circle.mark = mark;
    layer.append(circle);
  });
  frame.replaceChildren(image, layer);
  follow(figure);
  return held;
}
const near = new IntersectionObserver((seen) => {
  for (const one of seen) if (one.isIntersecting) { near.unobserve(one.target); drawn(one.target); }
}, { rootMargin: "800px" });
$("figure.plot").forEach((figure) => near.observe(figure));
addEventListener("beforeprint", () => $("figure.plot").forEach(drawn));

// --- points
const tip = id("tip");
function tell(mark) {
  const [name, ...rest] = mark.mark.said;
  tip.replaceChildren(make("b", { textContent: name }), ...rest.flatMap((line) => [line, make("br")]));
  tip.hidden = false;
  mark.classList.add("here");
  const at = mark.getBoundingClientRect();
  const left = Math.min(at.right + 8, window.innerWidth - tip.offsetWidth - 8);
  const below = at.bottom + 8 + tip.offsetHeight < window.innerHeight;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = (below ? at.bottom + 8 : Math.max(8, at.top - tip.offsetHeight - 8)) + "px";
}
function leave(mark) {
  tip.hidden = true;
  mark.classList.remove("here");
}
const point = (event) => (event.target.mark ? event.target : null);
for (const [name, call] of [["mouseover", tell], ["focusin", tell], ["click", tell], ["mouseout", leave], ["focusout", leave]]) {
  document.addEventListener(name, (event) => { if (point(event)) call(event.target); });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") tip.hidden = true;
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!point(event) || !step) return;
  event.preventDefault();
  const all = $("circle", event.target.parentNode);
  const next = all[(all.indexOf(event.target) + step + all.length) % all.length];
  event.target.setAttribute("tabindex", -1);
  next.setAttribute("tabindex", 0);
  next.focus();
});

// --- one method, one input, through all figures and tables
function follow(figure) {
  const method = id("method") ? id("method").value : "", input = id("input") ? id("input").value : "";
  const layer = figure.querySelector(".marks");
  if (!layer) return;
  $("polyline", layer).forEach((line) => line.remove());
  const chosen = (mark) => (!method || mark.group === method) && (!input || mark.panel === input);
  const circles = $("circle", layer);
  const hits = circles.filter((circle) => (method || input) && chosen(circle.mark));
  circles.forEach((circle) => circle.classList.toggle("chosen", hits.includes(circle)));
  figure.querySelector(".drawing").classList.toggle("chosen", hits.length > 0);
  figure.classList.toggle("off", Boolean(method || input) && hits.length === 0);
}
function filtered() {
  const words = ["method", "input"].map((name) => (id(name) ? id(name).value : "")).filter(Boolean);
  $("figure.plot").forEach(follow);
  for (const row of $("figure.table tbody > tr")) {
    const own = [...row.cells].map((cell) => (cell.firstChild ? cell.firstChild.textContent : ""));
    const text = [row.dataset.group, ...own];
    row.classList.toggle("hit", words.length > 0 && words.every((word) => text.includes(word)));
  }
}
for (const name of ["method", "input"]) if (id(name)) id(name).addEventListener("change", filtered);

// --- search: what does not hold the words is hidden, with the sections where nothing is left
const blocks = $("main > section").map((section) => [section, [...section.children].filter((x) => x.tagName !== "H2")]);
function searched(words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const [section, parts] of blocks) {
    const title = section.querySelector("h2") ? section.querySelector("h2").textContent.toLowerCase() : "";
    let left = 0;
    for (const part of parts) {
      const text = part.tagName === "H3" ? "" : (title + " " + part.textContent).toLowerCase();
      part.hidden = wanted.length > 0 && !(text && wanted.every((word) => text.includes(word)));
      left += !part.hidden;
    }
    section.hidden = left === 0;
    found += left;
  }
  if (id("count")) id("count").textContent = wanted.length ? `${found} places` : "";
}
if (id("search")) id("search").addEventListener("input", (event) => searched(event.target.value));
if (id("filter")) id("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of $("table.filtered > tbody > tr")) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
  }
});
addEventListener("hashchange", () => {  // a link leads to what the search has hidden, too
  if (id("search") && id("search").value) { id("search").value = ""; searched(""); }
  const at = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (at) at.scrollIntoView();
});
