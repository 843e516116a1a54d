const byId = id => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const bytesOf = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const floatsOf = text => new Float32Array(bytesOf(text).buffer);
const intsOf = text => new Int32Array(bytesOf(text).buffer);
const cssColor = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const pictureOf = image => document.querySelector(`[data-image="${image}"] img`);
const counted = (number, noun, plural) =>
  number.toLocaleString("en") + " " + (number === 1 ? noun : plural || noun + "s");

// Bad to good, readable on light and on dark, and for red-green blindness.
const RAMP = [[214, 48, 32], [238, 150, 40], [120, 170, 160], [44, 123, 214]];
function rampColor(share) {
  const at = Math.max(0, Math.min(1, share)) * (RAMP.length - 1), low = Math.floor(at);
  const high = Math.min(low + 1, RAMP.length - 1);
  return RAMP[low].map((value, i) => Math.round(value + (RAMP[high][i] - value) * (at - low)));
}
const rampGradient = `linear-gradient(90deg, ${RAMP.map(c => `rgb(${c})`).join(", ")})`;

function fitCanvas(canvas, width, height) {
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * density));
  canvas.height = Math.max(1, Math.round(height * density));
  return density;
}

function showTip(event, text, images) {
  const tip = byId("tip"), row = document.createElement("div");
  row.append(...(images || []).filter(Boolean).map(image => image.cloneNode()));
  tip.replaceChildren(row, text);
  // What is drawn over all else (a dialog, full screen) hides what is not inside it.
  (document.fullscreenElement || document.body).append(tip);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
  tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 8)) + "px";
}
const hideTip = () => { byId("tip").hidden = true; };

// What is drawn anew when the colours change: the scheme of the system, or for paper.
const drawings = [];
const drawAll = () => drawings.forEach(draw => draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
for (const [name, printing] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(name, () => {
    document.documentElement.classList.toggle("printing", printing);
    drawAll();
  });
}

function sortTable(header) {
  const body = header.closest("table").tBodies[0], column = header.cellIndex;
  const ascending = header.getAttribute("aria-sort") !== "ascending";
  const text = row => row.cells[column].textContent;
  const number = row => parseFloat(text(row).replaceAll(",", ""));
  const compare = header.dataset.key === "text"
    ? (a, b) => text(a).localeCompare(text(b), undefined, { numeric: true })
    : (a, b) => (number(a) || 0) - (number(b) || 0);
  const rows = [...body.rows].sort((a, b) => ascending ? compare(a, b) : compare(b, a));
  body.append(...rows);
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
}
for (const header of document.querySelectorAll("th[data-key]")) {
  header.onclick = () => sortTable(header);
}
