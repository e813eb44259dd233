"use strict";
// The page of a slide: deep zoom, layers of tiles over it, and the probabilities of the tile at the pointer or centre.
// Lengths are level-0 pixels of the slide unless a name says otherwise.

const data = JSON.parse(document.getElementById("data").textContent);
const stage = document.getElementById("stage");
const canvas = document.getElementById("layers");
const context = canvas.getContext("2d");
const muted = document.getElementById("muted"); // takes the stain's colour from tissue below labels, as overlay.png does
const stretch = data.mpp_y / data.mpp; // height of a pixel over its width; the deep zoom's pixels are square
const grid = data.grid;
const STEPS = 10000; // of a probability
const STRIPE = 6; // CSS pixels: width of the stripes of tiles with several labels

function unpack(type, text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return new type(bytes.buffer);
}

const count = data.tiles.count;
const tiles = {
  row: unpack(Uint32Array, data.tiles.row),
  column: unpack(Uint32Array, data.tiles.column),
  probability: unpack(Uint16Array, data.tiles.probability), // label by label
  carried: unpack(Uint8Array, data.tiles.carried), // label by label
};
const heat = unpack(Uint8Array, data.heat);
const extent = { row: Infinity, column: Infinity, rows: 0, columns: 0 }; // of all tiles, in cells
for (let i = 0; i < count; i++) {
  extent.row = Math.min(extent.row, tiles.row[i]);
  extent.column = Math.min(extent.column, tiles.column[i]);
  extent.rows = Math.max(extent.rows, tiles.row[i] + 1);
  extent.columns = Math.max(extent.columns, tiles.column[i] + 1);
}
extent.rows -= extent.row;
extent.columns -= extent.column;
const tileAt = new Map(); // cell -> number of its tile
for (let i = 0; i < count; i++) tileAt.set(tiles.row[i] * 2 ** 26 + tiles.column[i], i);

const probability = (label, i) => tiles.probability[label * count + i] / STEPS;
const carries = (label, i) => tiles.carried[label * count + i] === 1;

// --- Layers ----------------------------------------------------------------------------------------------------

// A small picture with one pixel per cell; `paint` returns the colour of a tile, or null.
function picture(paint) {
  const out = document.createElement("canvas");
  out.width = extent.columns;
  out.height = extent.rows;
  const pixels = new ImageData(extent.columns, extent.rows);
  for (let i = 0; i < count; i++) {
    const colour = paint(i);
    if (!colour) continue;
    const at = 4 * ((tiles.row[i] - extent.row) * extent.columns + tiles.column[i] - extent.column);
    pixels.data.set([...colour, 255], at);
  }
  out.getContext("2d").putImageData(pixels, 0, 0);
  return out;
}

// The pictures of a label: of the tiles that carry it as the n-th of m labels.
function labelPictures(label) {
  const place = (i) => {
    const carried = data.labels.map((_, other) => other).filter((other) => carries(other, i));
    return carries(label, i) ? `${carried.indexOf(label)} ${carried.length}` : "";
  };
  const places = Array.from({ length: count }, (_, i) => place(i));
  return [...new Set(places)].filter(Boolean).map((name) => {
    const [position, labels] = name.split(" ").map(Number);
    return { position, labels, cells: picture((i) => (places[i] === name ? data.labels[label].colour : null)) };
  });
}

// Diagonal stripes: those at `position` of each group of `labels`.
function stripes(position, labels) {
  const side = STRIPE * labels;
  const tile = document.createElement("canvas");
  tile.width = tile.height = side;
  const pixels = new ImageData(side, side);
  for (let at = 0; at < side * side; at++) {
    const stripe = Math.floor(((at % side) + Math.floor(at / side)) / STRIPE) % labels;
    pixels.data[4 * at + 3] = stripe === position ? 255 : 0;
  }
  tile.getContext("2d").putImageData(pixels, 0, 0);
  return context.createPattern(tile, "repeat");
}

const scratch = document.createElement("canvas");

function drawCells(onto, cells, where, opacity, pattern) {
  const box = [extent.column * grid.stride + grid.left, extent.row * grid.strideHeight + grid.top];
  box.push(extent.columns * grid.stride, extent.rows * grid.strideHeight);
  const target = pattern ? scratch.getContext("2d") : onto;
  if (pattern) {
    scratch.width = canvas.width;
    scratch.height = canvas.height;
  }
  target.imageSmoothingEnabled = false;
  target.globalAlpha = pattern ? 1 : opacity;
  target.setTransform(where.x, 0, 0, where.y, where.left, where.top);
  target.drawImage(cells, ...box);
  if (!pattern) return;
  target.setTransform(1, 0, 0, 1, 0, 0);
  target.globalCompositeOperation = "destination-in";
  target.fillStyle = pattern;
  target.fillRect(0, 0, scratch.width, scratch.height);
  onto.globalAlpha = opacity;
  onto.setTransform(1, 0, 0, 1, 0, 0);
  onto.drawImage(scratch, 0, 0);
}

function drawLine(path, where, colour, width) {
  const moved = new Path2D();
  moved.addPath(path, new DOMMatrix([where.x, 0, 0, where.y, where.left, where.top]));
  context.globalAlpha = 1;
  context.setTransform(1, 0, 0, 1, 0, 0);
  for (const [style, extra] of [["#fff", 3], [colour, 0]]) {
    context.strokeStyle = style;
    context.lineWidth = (width + extra) * devicePixelRatio;
    context.stroke(moved);
  }
}

function ringsPath(rings) {
  const path = new Path2D();
  for (const ring of rings) {
    ring.forEach(([x, y], number) => (number ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  }
  return path;
}

const css = (colour) => (typeof colour === "string" ? colour : `rgb(${colour.join(" ")})`);
const makers = {
  label(number, element) {
    element.querySelector(".swatch").style.backgroundColor = css(data.labels[number].colour);
    const parts = labelPictures(number).map((part) => ({
      cells: part.cells,
      pattern: part.labels > 1 ? stripes(part.position, part.labels) : null,
    }));
    const carried = picture((i) => (carries(number, i) ? [128, 128, 128] : null));
    return (where, opacity) => {
      drawCells(muted.getContext("2d"), carried, where, 1, null);
      parts.forEach((part) => drawCells(context, part.cells, where, opacity, part.pattern));
    };
  },
  probability(number, element) {
    element.querySelector(".swatch").style.backgroundColor = css([...heat.slice(3 * 190, 3 * 190 + 3)]);
    let cells = null; // made when it is first shown
    return (where, opacity) => {
      cells ??= picture((i) => {
        const at = 3 * Math.round(255 * probability(number, i));
        return heat.slice(at, at + 3);
      });
      drawCells(context, cells, where, opacity, null);
    };
  },
  outline(number, element) {
    const { rings, colour } = data.outlines[number];
    element.querySelector(".swatch").style.borderColor = colour;
    const path = ringsPath(rings);
    return (where) => drawLine(path, where, colour, 2.5);
  },
};
const layers = [...document.querySelectorAll(".layer")].map((element) => ({
  kind: element.dataset.kind,
  box: element.querySelector("input[type=checkbox]"),
  slider: element.querySelector("input[type=range]"),
  draw: makers[element.dataset.kind](Number(element.dataset.number), element),
}));

// --- The view --------------------------------------------------------------------------------------------------

// OpenSeadragon would add a style that the page's policy refuses, unless it finds one: an element of that name will do.
const placeholder = document.createElementNS(null, "style");
placeholder.setAttribute("data-openseadragon-mobile-css", "");
document.head.append(placeholder);

const viewer = OpenSeadragon({
  id: "viewer",
  tileSources: data.slide,
  drawer: "canvas", // WebGL cannot use pictures of a page without a server
  showNavigationControl: false,
  animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.6,
  gestureSettingsMouse: { clickToZoom: false },
  gestureSettingsTouch: { clickToZoom: false },
  maxZoomPixelRatio: 3,
  minZoomImageRatio: 0.8,
  visibilityRatio: 0.4,
});
viewer.canvas.setAttribute("role", "application");
viewer.canvas.setAttribute("aria-label", `Slide ${document.title}`);
viewer.canvas.setAttribute("aria-describedby", "help");

// Where level-0 pixel (0, 0) is, and how large a pixel is; in CSS pixels times `ratio`.
function place(ratio = 1) {
  const start = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
  const end = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true);
  const x = (ratio * (end.x - start.x)) / data.width;
  return { left: ratio * start.x, top: ratio * start.y, x, y: x * stretch };
}

let chosen = null; // number of the tile whose probabilities are shown
let byKeyboard = false;
let hidden = false; // all layers
let pending = false;

function draw() {
  pending = false;
  if (!viewer.world.getItemCount()) return;
  const [width, height] = [stage.clientWidth, stage.clientHeight].map((side) => Math.round(side * devicePixelRatio));
  for (const each of [canvas, muted]) Object.assign(each, { width, height }); // clears them as well
  const where = place(devicePixelRatio);
  let strongest = 0; // opacity of a label
  for (const layer of layers) {
    const opacity = layer.slider ? layer.slider.value / 100 : 1;
    if (hidden || !layer.box.checked || !opacity || (layer.slider && !count)) continue;
    layer.draw(where, opacity);
    if (layer.kind === "label") strongest = Math.max(strongest, opacity);
  }
  muted.style.opacity = Math.min(1, 1.5 * strongest);
  if (chosen !== null) drawLine(tilePath(chosen), where, "#000", 2);
  if (byKeyboard) drawLine(cross(where), where, "#000", 1.5);
  drawScale();
}

function redraw() {
  if (!pending) requestAnimationFrame(draw);
  pending = true;
}

function tilePath(i) {
  const path = new Path2D();
  path.rect(tiles.column[i] * grid.stride, tiles.row[i] * grid.strideHeight, grid.tile, grid.tileHeight);
  return path;
}

function cross(where) {
  const [x, y] = positionOf(stage.clientWidth / 2, stage.clientHeight / 2);
  const arm = (12 * devicePixelRatio) / where.x;
  const path = new Path2D();
  path.moveTo(x - arm, y);
  path.lineTo(x + arm, y);
  path.moveTo(x, y - arm / stretch);
  path.lineTo(x, y + arm / stretch);
  return path;
}

function drawScale() {
  const micrometers = data.mpp / place().x; // per CSS pixel
  const most = micrometers * Math.min(150, stage.clientWidth / 3);
  const power = 10 ** Math.floor(Math.log10(most));
  const length = power * [5, 2, 1].find((step) => step * power <= most);
  const text = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
  const bar = document.getElementById("scale");
  bar.querySelector("div").style.width = `${length / micrometers}px`;
  bar.querySelector("span").textContent = `${text}, ${micrometers.toPrecision(2)} µm/px`;
  bar.setAttribute("aria-label", `Scale bar: ${text}`);
}

// --- Tiles -----------------------------------------------------------------------------------------------------

// The level-0 position below a point of the stage, given in CSS pixels.
function positionOf(x, y) {
  const where = place();
  return [(x - where.left) / where.x, (y - where.top) / where.y];
}

function findTile(x, y) {
  const [across, down] = positionOf(x, y);
  const column = Math.floor((across - grid.left) / grid.stride);
  const row = Math.floor((down - grid.top) / grid.strideHeight);
  return row < 0 || column < 0 ? null : (tileAt.get(row * 2 ** 26 + column) ?? null);
}

function describe(i) {
  return data.labels.map((label, number) => {
    const limit = label.threshold === null ? "" : `, threshold ${label.threshold.toPrecision(3)}`;
    return { name: label.name, value: probability(number, i).toFixed(3), limit, carried: carries(number, i) };
  });
}

function show(i, aloud) {
  const spoken = i === null ? "No tile here" : describe(i).map(
    (label) => `${label.name} ${label.value}${label.carried ? ", predicted" : ""}`).join("; ");
  if (aloud) document.getElementById("announcement").textContent = spoken;
  if (i === chosen) return;
  chosen = i;
  const box = document.getElementById("tile");
  box.replaceChildren();
  if (i === null) {
    box.append(Object.assign(document.createElement("p"), { className: "small", textContent: "No tile here." }));
  } else {
    const table = box.appendChild(document.createElement("table"));
    for (const label of describe(i)) {
      const row = table.insertRow();
      row.append(Object.assign(document.createElement("th"), { scope: "row", textContent: label.name }));
      row.insertCell().append(Object.assign(document.createElement(label.carried ? "b" : "span"), { textContent: label.value }));
      row.insertCell().textContent = `${label.carried ? "predicted" : ""}${label.limit}`.replace(/^, /, "");
    }
    const text = `Row ${tiles.row[i]}, column ${tiles.column[i]}; ${grid.tile} × ${grid.tileHeight} pixels`;
    box.append(Object.assign(document.createElement("p"), { className: "small", textContent: text }));
  }
  redraw();
}

const showCentre = (aloud) => show(findTile(stage.clientWidth / 2, stage.clientHeight / 2), aloud);

function useKeyboard(on) {
  byKeyboard = on;
  if (on) showCentre(true);
  redraw();
}

stage.addEventListener("pointermove", (event) => {
  const box = stage.getBoundingClientRect();
  byKeyboard = false;
  show(findTile(event.clientX - box.left, event.clientY - box.top), false);
  redraw();
});
viewer.addHandler("canvas-click", (event) => show(findTile(event.position.x, event.position.y), true));
viewer.canvas.addEventListener("focus", () => viewer.canvas.matches(":focus-visible") && useKeyboard(true));
viewer.canvas.addEventListener("blur", () => useKeyboard(false));
viewer.canvas.addEventListener("keydown", () => useKeyboard(true));
viewer.addHandler("canvas-key", (event) => {
  // Keys that would turn or mirror the slide, under which the layers would not lie any more.
  event.preventDefaultAction ||= ["r", "R", "f", "F"].includes(event.originalEvent.key);
});
viewer.addHandler("update-viewport", redraw);
viewer.addHandler("animation", () => byKeyboard && showCentre(false));
viewer.addHandler("animation-finish", () => byKeyboard && showCentre(true));
for (const event of ["open", "resize"]) viewer.addHandler(event, redraw);

// --- Controls --------------------------------------------------------------------------------------------------

const actions = {
  in: () => viewer.viewport.zoomBy(2),
  out: () => viewer.viewport.zoomBy(0.5),
  whole: () => viewer.viewport.goHome(),
  hide(button) {
    hidden = !hidden;
    button.setAttribute("aria-pressed", String(hidden));
    redraw();
  },
  outline(button) {
    const points = data.outlines[button.dataset.number].rings.flat();
    const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1] * stretch)];
    const [left, top] = [Math.min(...xs), Math.min(...ys)];
    const [width, height] = [Math.max(...xs) - left, Math.max(...ys) - top];
    const box = [left - 0.1 * width, top - 0.1 * height, 1.2 * width, 1.2 * height].map((side) => side / data.width);
    viewer.viewport.fitBoundsWithConstraints(new OpenSeadragon.Rect(...box));
  },
};
for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => {
    actions[button.dataset.action](button);
    viewer.viewport.applyConstraints();
  });
}
for (const { box, slider } of layers) {
  box.addEventListener("change", redraw);
  slider?.addEventListener("input", () => {
    box.checked = true; // a slider that is moved shows its layer
    redraw();
  });
}
if (count) {
  const colours = new ImageData(256, 1);
  for (let i = 0; i < 256; i++) colours.data.set([...heat.slice(3 * i, 3 * i + 3), 255], 4 * i);
  document.getElementById("heat").getContext("2d").putImageData(colours, 0, 0);
}
