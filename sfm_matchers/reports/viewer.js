// The model: z is up, the middle is at 0, most of it lies within 1 of it.
// onPick(image) is called with the row of the photo whose camera is clicked; linksOf(image) gives
// [other image, strength from 0 to 1] for lines from the camera that is picked.
function startViewer({ onPick, linksOf }) {
  const points = floatsOf(data.points), frusta = floatsOf(data.frusta);  // 5 corners a camera
  const numCameras = data.cameras.length, cameraOf = new Map(data.cameras.map((row, i) => [row, i]));
  const canvas = byId("scene"), context = canvas.getContext("2d");
  let view = null, density = 1, hovered = -1, picked = -1, pending = false, packed = null;
  let colorOf = null;

  // --- Colours ---------------------------------------------------------------------------------
  const isDark = () => {
    const value = parseInt(cssColor("--canvas").slice(1, 3), 16);
    return value < 128;
  };
  function pointColors() {  // as 32 bits a point
    const mode = byId("coloring").value, own = bytesOf(data.colors), dark = isDark();
    const levels = mode === "error" ? bytesOf(data.errors) : bytesOf(data.tracks);
    const longest = trackLimit();
    const colors = new Uint32Array(points.length / 3);
    for (let i = 0; i < colors.length; i++) {
      let color = [own[3 * i], own[3 * i + 1], own[3 * i + 2]];
      if (mode === "error") color = rampColor(1 - levels[i] / 255);
      else if (mode === "track") color = rampColor((levels[i] - 2) / Math.max(1, longest - 2));
      else {  // what is as dark or as light as the ground is moved away from it
        const light = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2];
        const lift = dark ? Math.max(0, 85 - light) : Math.min(0, 205 - light);
        color = color.map(value => Math.max(0, Math.min(255, value + lift)));
      }
      colors[i] = 0xff000000 | color[2] << 16 | color[1] << 8 | color[0];
    }
    return colors;
  }
  function trackLimit() {
    const sorted = bytesOf(data.tracks).sort();
    return sorted.length ? Math.max(2, sorted[Math.floor(0.98 * (sorted.length - 1))]) : 2;
  }
  const most = Math.max(1, ...(data.observations || []));
  function cameraColors() {
    const own = (data.kinds || []).map(kind => cssColor(kind.color));
    return data.cameras.map((_, camera) => data.kinds ? own[data.kind_of[camera]]
      : `rgb(${rampColor(data.observations[camera] / most)})`);
  }

  // --- Where things are on the canvas -----------------------------------------------------------
  function project() {  // world -> [x, y, depth] in pixels of the canvas
    const { azimuth: a, elevation: e, distance, target } = view;
    const right = [Math.cos(a), Math.sin(a), 0];
    const away = [-Math.sin(a) * Math.cos(e), Math.cos(a) * Math.cos(e), -Math.sin(e)];
    const down = [-Math.sin(a) * Math.sin(e), Math.cos(a) * Math.sin(e), Math.cos(e)].map(v => -v);
    const focal = 1.2 * Math.min(canvas.width, canvas.height);
    const dot = (v, x, y, z) => v[0] * x + v[1] * y + v[2] * z;
    const apply = (x, y, z) => {
      x -= target[0]; y -= target[1]; z -= target[2];
      const depth = dot(away, x, y, z) + distance;
      const scale = focal / depth;
      return [canvas.width / 2 + dot(right, x, y, z) * scale,
        canvas.height / 2 + dot(down, x, y, z) * scale, depth];
    };
    return { apply, right, down, away, focal };
  }
  const centerOf = camera => frusta.subarray(15 * camera, 15 * camera + 3);

  // Cameras that may lie far off, those of new photos, come last and are not waited for.
  const inView = frusta.subarray(0, 15 * (data.num_in_view ?? numCameras));

  // Turn to a direction, and stand as near as shows nearly all points and cameras.
  function lookFrom(azimuth, elevation) {
    view = { azimuth, elevation, distance: 0, target: [0, 0, 0] };
    const { right, down, away, focal } = project();
    const dot = (v, at, array) => v[0] * array[at] + v[1] * array[at + 1] + v[2] * array[at + 2];
    const needed = (array, step) => {
      const distances = [];
      for (let at = 0; at < array.length; at += step) {
        const across = Math.max(Math.abs(dot(right, at, array)) / canvas.width,
          Math.abs(dot(down, at, array)) / canvas.height);
        distances.push(across * focal / 0.45 - dot(away, at, array));
      }
      distances.sort((a, b) => a - b);
      return distances.length ? distances[Math.ceil(0.98 * (distances.length - 1))] : 0;
    };
    view.distance = Math.max(0.1, needed(points, 3), needed(inView, 15));
    redraw();
  }
  const reset = () => lookFrom(0.45, 0.35);

  // --- Drawing ----------------------------------------------------------------------------------
  function drawPoints(apply) {
    const { width, height } = canvas, picture = context.createImageData(width, height);
    const pixels = new Uint32Array(picture.data.buffer);
    const depths = new Float32Array(width * height).fill(Infinity);
    const size = Math.max(1, Math.round(byId("size").value * density));
    packed = packed || pointColors();
    for (let i = 0; i < points.length; i += 3) {
      const [x, y, depth] = apply(points[i], points[i + 1], points[i + 2]);
      if (depth < 0.02) continue;
      const left = Math.round(x - size / 2), top = Math.round(y - size / 2);
      if (!(left >= 0 && top >= 0 && left + size <= width && top + size <= height)) continue;
      const color = packed[i / 3];
      for (let v = top; v < top + size; v++) {
        for (let at = v * width + left, end = at + size; at < end; at++) {
          if (depth < depths[at]) { depths[at] = depth; pixels[at] = color; }
        }
      }
    }
    context.putImageData(picture, 0, 0);
  }

  function drawCamera(apply, camera, focal) {
    const corners = [];
    for (let corner = 0; corner < 5; corner++) {
      const at = 15 * camera + 3 * corner;
      corners.push(apply(frusta[at], frusta[at + 1], frusta[at + 2]));
    }
    if (corners.some(corner => corner[2] < 0.02)) return;
    const [tip, ...base] = corners, stands_out = camera === hovered || camera === picked;
    context.strokeStyle = context.fillStyle = colorOf[camera];
    context.lineWidth = (stands_out ? 2.6 : 1.2) * density;
    context.beginPath();
    base.forEach(([x, y], i) => i ? context.lineTo(x, y) : context.moveTo(x, y));
    context.closePath();
    context.globalAlpha = stands_out ? 0.45 : 0.15;
    context.fill();
    context.globalAlpha = 1;
    for (const [x, y] of base) {
      context.moveTo(tip[0], tip[1]);
      context.lineTo(x, y);
    }
    context.stroke();
    const radius = data.sigmas ? data.sigmas[camera] * focal / tip[2] : 0;
    if (radius > 2 * density) {  // how sure its position is
      context.beginPath();
      context.arc(tip[0], tip[1], radius, 0, 7);
      context.stroke();
    }
  }

  function drawLines(apply) {
    const line = (from, to) => {
      const [x, y, near] = apply(...centerOf(from)), [toX, toY, far] = apply(...centerOf(to));
      if (near < 0.02 || far < 0.02) return;
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(toX, toY);
      context.stroke();
    };
    context.lineWidth = 1.5 * density;
    context.strokeStyle = cssColor("--quiet");
    if (byId("path").checked) {
      const path = (data.path || data.cameras.map((_, i) => i));
      for (let i = 1; i < path.length; i++) line(path[i - 1], path[i]);
    }
    if (picked < 0 || !linksOf) return;
    context.strokeStyle = cssColor("--accent");
    for (const [other, strength] of linksOf(data.cameras[picked])) {
      context.globalAlpha = 0.15 + 0.75 * strength;
      if (cameraOf.has(other)) line(picked, cameraOf.get(other));
    }
    context.globalAlpha = 1;
  }

  function draw() {
    pending = false;
    if (!view) return;
    const { apply, focal } = project();
    colorOf = colorOf || cameraColors();
    drawPoints(apply);
    drawLines(apply);
    if (!byId("cameras").checked) return;
    for (let camera = 0; camera < numCameras; camera++) drawCamera(apply, camera, focal);
    for (const camera of [picked, hovered]) if (camera >= 0) drawCamera(apply, camera, focal);
  }
  const redraw = () => { if (!pending) { pending = true; requestAnimationFrame(draw); } };
  drawings.push(() => { packed = colorOf = null; draw(); });

  // --- Turning, moving, picking -----------------------------------------------------------------
  function turn(dx, dy) {
    view.azimuth -= dx * 0.006;
    view.elevation = Math.max(-1.57, Math.min(1.57, view.elevation + dy * 0.006));
  }
  function move(dx, dy) {
    const { right, down, focal } = project(), step = view.distance / focal * density;
    view.target = view.target.map((v, i) => v - (right[i] * dx + down[i] * dy) * step);
  }
  function zoom(factor) {
    view.distance = Math.max(0.02, Math.min(200, view.distance * factor));
  }
  function cameraAt(event, reach) {
    const { apply } = project();
    let nearest = -1, best = reach * density;
    for (let camera = 0; camera < numCameras && byId("cameras").checked; camera++) {
      const corners = [];  // the middle of the pyramid: its tip and its base
      for (let at = 15 * camera; at < 15 * camera + 15; at += 3) {
        corners.push(apply(frusta[at], frusta[at + 1], frusta[at + 2]));
      }
      const middle = axis => (corners.slice(1).reduce((sum, c) => sum + c[axis], 0) / 4);
      for (const [x, y] of [corners[0], [middle(0), middle(1)]]) {
        const distance = Math.hypot(x - event.offsetX * density, y - event.offsetY * density);
        if (corners[0][2] > 0 && distance < best) { best = distance; nearest = camera; }
      }
    }
    return nearest;
  }
  function pick(image) {
    picked = image === null || !cameraOf.has(image) ? -1 : cameraOf.get(image);
    redraw();
  }

  const held = new Map();  // pointer id -> last event
  let travelled = 0;
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    if (!held.size) travelled = 0;
    held.set(event.pointerId, event);
    if (held.size > 1) travelled = Infinity;
    hideTip();
  });
  canvas.addEventListener("pointercancel", event => held.delete(event.pointerId));
  canvas.addEventListener("pointerup", event => {
    held.delete(event.pointerId);
    if (travelled > 5 || event.button !== 0 || held.size) return;
    const camera = cameraAt(event, event.pointerType === "touch" ? 26 : 14);
    if (camera >= 0) onPick(data.cameras[camera]);
  });
  canvas.addEventListener("pointermove", event => {
    const last = held.get(event.pointerId);
    if (!last) { hover(event); return; }
    const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY;
    travelled += Math.hypot(dx, dy);
    if (held.size === 2) {
      const other = [...held.values()].find(pointer => pointer.pointerId !== event.pointerId);
      const apart = p => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY);
      zoom(apart(last) / Math.max(apart(event), 1));
      move(dx / 2, dy / 2);
    } else if (event.shiftKey || event.buttons & 6) move(dx, dy);
    else turn(dx, dy);
    held.set(event.pointerId, event);
    redraw();
  });
  canvas.addEventListener("contextmenu", event => event.preventDefault());
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    zoom(Math.exp(event.deltaY * (event.deltaMode ? 0.03 : 0.001)));
    redraw();
  }, { passive: false });
  canvas.addEventListener("keydown", event => {
    const step = { ArrowLeft: [-20, 0], ArrowRight: [20, 0], ArrowUp: [0, -20], ArrowDown: [0, 20] };
    if (step[event.key]) turn(...step[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(0.9);
    else if (event.key === "-") zoom(1.1);
    else return;
    event.preventDefault();
    redraw();
  });
  function hover(event) {
    const nearest = cameraAt(event, 14);
    if (nearest !== hovered) { hovered = nearest; redraw(); }
    canvas.classList.toggle("over", nearest >= 0);
    if (nearest < 0) { hideTip(); return; }
    const image = data.cameras[nearest];
    const fact = data.kinds ? data.kinds[data.kind_of[nearest]].label
      : counted(data.observations[nearest], "observation");
    showTip(event, data.names[image] + "\n" + fact, [pictureOf(image)]);
  }
  canvas.addEventListener("pointerleave", () => { hovered = -1; hideTip(); redraw(); });

  // --- Buttons ----------------------------------------------------------------------------------
  function showLegend() {
    const mode = byId("coloring").value;
    byId("point-legend").hidden = mode === "photo";
    byId("point-low").textContent = mode === "error" ? data.error_limit.toPrecision(2) + " px" : "2";
    byId("point-high").textContent = mode === "error" ? "0" : trackLimit() + " photos";
    byId("camera-legend").hidden = !!data.kinds;
    byId("camera-most").textContent = counted(most, "observation");
    const kinds = (data.kinds || []).map(({ label, color }) => {
      const item = document.createElement("span"), swatch = document.createElement("i");
      swatch.className = "swatch";
      swatch.style.background = `var(${color})`;
      item.append(swatch, " " + label);
      return item;
    });
    byId("kinds").replaceChildren(...kinds);
  }
  function fullScreen() {
    const viewer = byId("viewer"), on = !viewer.classList.contains("full");
    viewer.classList.toggle("full", on);  // fills the window where there is no full screen
    if (on && viewer.requestFullscreen) viewer.requestFullscreen().catch(() => {});
    else if (document.fullscreenElement) document.exitFullscreen();
  }
  document.addEventListener("fullscreenchange", () => {
    if (!document.fullscreenElement) byId("viewer").classList.remove("full");
  });
  addEventListener("keydown", event => {
    if (event.key === "Escape") byId("viewer").classList.remove("full");
  });
  for (const ramp of document.querySelectorAll("#viewer .ramp")) {
    ramp.style.background = rampGradient;
  }
  byId("reset").onclick = reset;
  byId("top").onclick = () => lookFrom(0, 1.57);
  byId("full").onclick = fullScreen;
  byId("ply").onclick = savePly;
  byId("size").oninput = byId("cameras").onchange = byId("path").onchange = redraw;
  byId("coloring").onchange = () => { packed = null; showLegend(); redraw(); };
  byId("size").value = points.length < 3 * 20000 ? 3 : 2;
  showLegend();
  new ResizeObserver(() => {
    density = fitCanvas(canvas, canvas.clientWidth, canvas.clientHeight);
    if (!view) reset();
    draw();  // now, or the canvas is empty for a moment
  }).observe(canvas);
  return { pick, draw };
}

// The points as shown, back in the model's own frame.
function plyBytes() {
  const points = floatsOf(data.points), colors = bytesOf(data.colors);
  const { upright: r, middle, radius } = data.world, number = points.length / 3;
  const header = new TextEncoder().encode("ply\nformat binary_little_endian 1.0\nelement vertex "
    + number + "\n" + ["x", "y", "z"].map(axis => `property double ${axis}\n`).join("")
    + ["red", "green", "blue"].map(name => `property uchar ${name}\n`).join("") + "end_header\n");
  const bytes = new Uint8Array(header.length + 27 * number), values = new DataView(bytes.buffer);
  bytes.set(header);
  for (let i = 0; i < number; i++) {
    const turned = [0, 1, 2].map(axis => points[3 * i + axis] * radius + middle[axis]);
    const at = header.length + 27 * i;
    for (let axis = 0; axis < 3; axis++) {
      const value = r[axis] * turned[0] + r[3 + axis] * turned[1] + r[6 + axis] * turned[2];
      values.setFloat64(at + 8 * axis, value, true);
      bytes[at + 24 + axis] = colors[3 * i + axis];
    }
  }
  return bytes;
}
function savePly() {
  const address = document.createElement("a");
  address.href = URL.createObjectURL(new Blob([plyBytes()], { type: "application/octet-stream" }));
  address.download = "points3D.ply";
  address.click();
  setTimeout(() => URL.revokeObjectURL(address.href), 60000);
}
