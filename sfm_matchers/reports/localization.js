// --- The photo that is picked: what became of it, and what supports it --------------------------
let viewer = null;
function showPicked(image) {
  const panel = byId("picked"), add = (tag, text) => {
    const element = document.createElement(tag);
    element.textContent = text;
    panel.append(element);
    return element;
  };
  panel.replaceChildren();
  const close = add("button", "×");
  close.className = "close";
  close.setAttribute("aria-label", "Close");
  close.onclick = () => { panel.hidden = true; viewer.pick(null); };
  add("h3", data.names[image]);
  if (pictureOf(image)) panel.append(pictureOf(image).cloneNode());
  add("p", data.notes[image]);
  panel.hidden = false;
  viewer.pick(image);
}
if (data.cameras.length) {
  byId("viewer").hidden = false;
  viewer = startViewer({ onPick: showPicked });
}
