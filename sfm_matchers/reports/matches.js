// --- Pairs: which photos match, and the lines between two of them -------------------------------
const pairTable = intsOf(data.pairs.pairs), lineCounts = intsOf(data.pairs.counts);
const lineEnds = new Uint16Array(bytesOf(data.pairs.lines).buffer);
const partners = data.names.map(() => []);  // of each image: {other, verified, matches, ...}
for (let pair = 0, start = 0; pair < lineCounts.length; start += lineCounts[pair++]) {
  const [first, second, verified, matches] = pairTable.subarray(4 * pair, 4 * pair + 4);
  const common = { first, second, verified, matches, start, count: lineCounts[pair] };
  partners[first].push({ other: second, ...common });
  partners[second].push({ other: first, ...common });
}
for (const list of partners) list.sort((a, b) => b.verified - a.verified);

const strongest = image => (partners[image].length ? partners[image][0].verified : 1);
const linksOf = image => partners[image].map(p => [p.other, p.verified / strongest(image)]);

function cellOf(first, second) {  // counts of a pair in the matrix; of blocks of photos none
  const { rows, block } = data.matrix;
  if (block > 1) return null;
  const at = first * rows + second;
  return { verified: matrixCounts.verified[at], matches: matrixCounts.matches[at] };
}
const matrixCounts = { verified: intsOf(data.matrix.verified), matches: intsOf(data.matrix.matches) };

function describePair(first, second) {
  const pair = partners[first].find(p => p.other === second) || cellOf(first, second);
  if (!pair) return "not among the strongest pairs of either photo";
  if (pair.verified < 0) return "never matched";
  return `${pair.verified.toLocaleString("en")} verified of ${counted(pair.matches, "match", "matches")}`;
}

let shownPair = null;
function showPair(first, second) {
  const pair = partners[first].find(p => p.other === second);
  shownPair = { first, second, pair };
  byId("pair-names").textContent = data.names[first] + " and " + data.names[second];
  let text = describePair(first, second);
  if (pair && pair.count && pair.count < pair.verified) text += `; ${pair.count} are drawn`;
  byId("pair-text").textContent = text + ".";
  if (!byId("pair").open) byId("pair").showModal();
  hideTip();
  const pictures = [pictureOf(first), pictureOf(second)];
  Promise.allSettled(pictures.map(p => p && p.decode())).then(() => drawPair(pictures));
}

function drawPair(pictures) {
  const canvas = byId("pair-canvas"), context = canvas.getContext("2d"), gap = 6;
  const wide = Math.min(innerWidth * 0.96, 1440) - 34, stacked = innerWidth < 700;
  const sizes = pictures.map(p => p ? [p.naturalWidth, p.naturalHeight] : [300, 200]);
  const room = innerHeight * 0.96 - 150;
  let boxes;
  if (stacked) {
    const heights = sizes.map(([w, h]) => Math.min(wide * h / w, (room - gap) / 2));
    boxes = sizes.map(([w, h], i) => [0, i * (heights[0] + gap), heights[i] * w / h, heights[i]]);
  } else {
    const aspects = sizes.map(([w, h]) => w / h);
    const high = Math.min((wide - gap) / (aspects[0] + aspects[1]), room, 760);
    boxes = aspects.map((aspect, i) => [i * (high * aspects[0] + gap), 0, high * aspect, high]);
  }
  const width = Math.max(...boxes.map(b => b[0] + b[2]));
  const height = Math.max(...boxes.map(b => b[1] + b[3]));
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const density = fitCanvas(canvas, width, height);
  context.scale(density, density);
  pictures.forEach((picture, i) => {
    context.fillStyle = cssColor("--unverified");
    context.fillRect(...boxes[i]);
    if (picture) context.drawImage(picture, ...boxes[i]);
  });
  if (byId("pair-lines").checked) drawPairLines(context, boxes);
}

function drawPairLines(context, boxes) {
  const { first, pair } = shownPair;
  if (!pair) return;
  const flipped = pair.first !== first;
  context.lineWidth = 1.1;
  for (let line = pair.start; line < pair.start + pair.count; line++) {
    const ends = lineEnds.subarray(4 * line, 4 * line + 4);
    const at = boxes.map(([x, y, w, h], i) => {
      const end = (flipped ? 1 - i : i) * 2;
      return [x + ends[end] / 65535 * w, y + ends[end + 1] / 65535 * h];
    });
    const hue = 330 * ends[flipped ? 2 : 0] / 65535;  // from left to right in the first photo
    context.strokeStyle = context.fillStyle = `hsl(${hue} 90% 58%)`;
    context.globalAlpha = 0.75;
    context.beginPath();
    context.moveTo(...at[0]);
    context.lineTo(...at[1]);
    context.stroke();
    context.globalAlpha = 1;
    for (const [x, y] of at) {
      context.beginPath();
      context.arc(x, y, 2, 0, 7);
      context.fill();
    }
  }
}

// --- The photo that is picked: its facts, and the photos that it matches ------------------------
function showPicked(image) {
  const panel = byId("picked"), add = (tag, text, parent = panel) => {
    const element = document.createElement(tag);
    element.textContent = text;
    parent.append(element);
    return element;
  };
  panel.replaceChildren();
  const close = add("button", "×");
  close.className = "close";
  close.setAttribute("aria-label", "Close");
  close.onclick = () => { panel.hidden = true; if (viewer) viewer.pick(null); };
  add("h3", data.names[image]);
  const picture = pictureOf(image), cells = document.querySelector(`[data-image="${image}"]`).cells;
  if (picture) panel.append(picture.cloneNode());
  add("p", `${cells[3].textContent} keypoints, ${cells[4].textContent} observations, `
    + `mean error ${cells[5].textContent} px`);
  add("h3", partners[image].length ? "Matches" : "No verified matches");
  for (const { other, verified } of partners[image]) {
    const card = add("button", "");
    card.className = "card";
    if (pictureOf(other)) card.append(pictureOf(other).cloneNode());
    const label = add("span", data.names[other], card);
    add("small", counted(verified, "verified match", "verified matches"), label);
    card.onclick = () => showPair(image, other);
  }
  panel.hidden = false;
  panel.scrollTop = 0;
  if (viewer) viewer.pick(image);
}

// --- The match graph --------------------------------------------------------------------------
function startGraph() {
  const { verified, matches } = matrixCounts;
  const { rows, block } = data.matrix, palette = bytesOf(data.palette);
  const canvas = byId("graph"), context = canvas.getContext("2d");
  const most = verified.reduce((a, b) => Math.max(a, b), 0), steps = palette.length / 3;
  const rgb = level => {
    const at = 3 * Math.round(level * (steps - 1));
    return `rgb(${palette[at]} ${palette[at + 1]} ${palette[at + 2]})`;
  };
  // Of many photos every so many are named, for which the wider cells leave room on top too.
  const LABEL_STEPS = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500];
  const cells = document.createElement("canvas");  // drawn once, as there may be 90,000
  let cell = 1, left = 0, top = 0, under = null;

  function drawCells(size, density) {
    fitCanvas(cells, size, size);
    const brush = cells.getContext("2d"), gap = cell > 8 ? 1 : 0;
    const untried = cssColor("--untried"), unverified = cssColor("--unverified");
    brush.scale(density, density);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < rows; column++) {
        const count = verified[row * rows + column];
        brush.fillStyle = count > 0 ? rgb(Math.log(count) / Math.log(Math.max(most, 2)))
          : count < 0 ? untried : unverified;
        brush.fillRect(column * cell, row * cell, cell - gap, cell - gap);
      }
    }
  }

  function draw() {
    const style = getComputedStyle(document.body);
    const room = document.body.clientWidth - parseFloat(style.paddingLeft) * 2;
    left = Math.min(160, 0.3 * room);
    if (rows > 40 && rows > room - left) left = 0;
    cell = Math.max(1, Math.min(48, Math.floor(Math.min(room - left, 760) / rows)));
    if (cell * rows > room - left) cell = (room - left) / rows;
    const size = cell * rows;
    top = left ? 20 : 0;
    canvas.style.width = left + size + "px";
    canvas.style.height = top + size + "px";
    drawCells(size, fitCanvas(canvas, left + size, top + size));
    paint();
  }

  function paint() {
    const size = cell * rows, density = window.devicePixelRatio || 1, gap = cell > 8 ? 1 : 0;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, left + size, top + size);
    context.drawImage(cells, left, top, size, size);
    if (under) {  // the row and the column that one points at
      context.strokeStyle = cssColor("--accent");
      context.lineWidth = 1;
      context.strokeRect(left, top + under[0] * cell, size, Math.max(cell - gap, 1));
      context.strokeRect(left + under[1] * cell, top, Math.max(cell - gap, 1), size);
    }
    if (left) drawLabels();
  }

  function drawLabels() {
    const step = rows <= 40 ? 1 : LABEL_STEPS.find(step => step * cell >= 28) || rows;
    context.fillStyle = cssColor("--quiet");
    context.font = `${Math.min(13, Math.max(7, step * cell - 2))}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    for (let row = step - 1; row < rows; row += step) {
      const number = String(row * block + 1), center = (row + 0.5) * cell;
      const wide = context.measureText(number).width, size = rows * cell;
      const whole = data.names[row * block];  // of one that is too long the end is shown
      let name = whole;
      for (let cut = 2; name && context.measureText(name + "  " + number).width > left - 12; cut++) {
        name = cut < whole.length ? "…" + whole.slice(cut) : "";
      }
      context.textAlign = "right";
      context.fillText(name + "  " + number, left - 8, top + Math.min(center, size - 7));
      context.textAlign = "center";
      if (wide < step * cell) {
        context.fillText(number, left + Math.min(center, size - wide / 2), top / 2);
      }
    }
  }

  const label = row => {
    const first = data.names[row * block];
    const last = data.names[Math.min((row + 1) * block, data.names.length) - 1];
    return first === last ? first : first + " … " + last;
  };
  const cellAt = event => {
    const column = Math.floor((event.offsetX - left) / cell);
    const row = Math.floor((event.offsetY - top) / cell);
    return row < 0 || column < 0 || row >= rows || column >= rows ? null : [row, column];
  };
  canvas.addEventListener("pointermove", event => {
    const place = cellAt(event);
    if (String(place) !== String(under)) { under = place; requestAnimationFrame(paint); }
    if (!place) { hideTip(); return; }
    const [row, column] = place, at = row * rows + column;
    const text = row === column && block === 1 ? data.names[row]
      : label(row) + "\n" + label(column) + "\n" + (verified[at] < 0 ? "never matched"
      : (block > 1 ? "strongest pair: " : "") + verified[at] + " verified of "
      + counted(matches[at], "match", "matches"));
    const images = block > 1 ? [] : [...new Set(place)].map(pictureOf);
    showTip(event, text, images);
  });
  canvas.addEventListener("click", event => {
    const place = cellAt(event);
    if (place && block === 1 && place[0] !== place[1]) showPair(...place);
  });
  canvas.addEventListener("pointerleave", () => { under = null; hideTip(); paint(); });

  byId("graph-note").textContent = block > 1
    ? `Each cell shows the strongest pair of two blocks of ${block} photos.`
    : "Verified matches of every pair. Point at a cell for its names and counts, click for its photos.";
  const ramp = byId("ramp"), brush = ramp.getContext("2d");
  ramp.width = steps;
  ramp.height = 1;
  for (let step = 0; step < steps; step++) {
    brush.fillStyle = rgb(step / (steps - 1));
    brush.fillRect(step, 0, 1, 1);
  }
  byId("most").textContent = counted(most, "verified match", "verified matches");
  byId("ramp-label").hidden = most === 0;
  drawings.push(draw);
  addEventListener("resize", draw);
  draw();
}

// --- Any pair ---------------------------------------------------------------------------------
function startPairs() {
  const selects = [byId("first"), byId("second")];
  for (const select of selects) {
    select.append(...data.names.map((name, image) => new Option(name, image)));
  }
  const best = partners.reduce((a, list) => list[0] && (!a || list[0].verified > a.verified)
    ? list[0] : a, null);
  selects[0].value = best ? best.first : 0;
  selects[1].value = best ? best.second : Math.min(1, data.names.length - 1);
  byId("look").onclick = () => showPair(+selects[0].value, +selects[1].value);
  byId("chooser").hidden = data.names.length < 2;
  const again = () => {
    if (shownPair && byId("pair").open) showPair(shownPair.first, shownPair.second);
  };
  byId("pair-lines").onchange = again;
  byId("pair-close").onclick = () => byId("pair").close();
  byId("pair").onclick = event => { if (event.target === byId("pair")) byId("pair").close(); };
  addEventListener("resize", again);
}

let viewer = null;
if (data.cameras.length) {
  byId("viewer").hidden = false;
  viewer = startViewer({ onPick: showPicked, linksOf });
}
startGraph();
startPairs();
for (const row of document.querySelectorAll("[data-image]")) {
  const picture = row.querySelector("img");
  if (picture && viewer) picture.onclick = () => {
    showPicked(+row.dataset.image);
    byId("viewer").scrollIntoView({ block: "center" });
  };
}
