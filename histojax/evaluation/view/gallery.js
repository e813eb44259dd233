"use strict";
// A gallery of images: sorting, filtering, and Grad-CAM instead of an image.

const { classes, items } = JSON.parse(document.getElementById("data").textContent);
const PAGE = 48; // images at a time
const list = document.getElementById("images");
const value = (id) => document.getElementById(id)?.value ?? "";
let chosen = [];
let start = 0;
items.forEach((item, number) => (item.number = number));

const orders = {
  error: (one, other) => (other.error ?? -1) - (one.error ?? -1),
  unsure: (one, other) => (one.confidence ?? 2) - (other.confidence ?? 2),
  sure: (one, other) => (other.confidence ?? -1) - (one.confidence ?? -1),
  name: (one, other) => one.name.localeCompare(other.name, "en", { numeric: true }),
};

function choose() {
  const [correct, split, text] = [value("correct"), value("split"), value("filter").trim().toLowerCase()];
  const has = (names, id) => value(id) === "" || names?.includes(Number(value(id)));
  chosen = items.filter((item) =>
    (correct === "" || item.wrong === (correct === "wrong")) && (split === "" || item.split === split) &&
    has(item.truth, "truth") && has(item.predicted, "predicted") && item.name.toLowerCase().includes(text));
  chosen.sort(orders[value("order")]);
  start = 0;
  show();
}

function show() {
  const end = Math.min(start + PAGE, chosen.length);
  const shown = chosen.length ? `Images ${start + 1} to ${end} of ${chosen.length}` : "No image fits";
  document.getElementById("count").textContent = shown;
  document.getElementById("previous").disabled = start === 0;
  document.getElementById("next").disabled = end === chosen.length;
  list.replaceChildren(...chosen.slice(start, end).map(card));
}

const element = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const names = (numbers) => (numbers.length ? numbers.map((number) => classes[number]).join(" + ") : "none");

// The number of the item's map that the page's choice asks for; -1 without one.
function mapOf(item) {
  if (!item.maps.length || value("map") === "") return -1;
  if (value("map") !== "top") return item.maps.indexOf(Number(value("map")));
  const p = new Map(item.probabilities);
  return item.maps.reduce((best, name, i) => (p.get(name) > p.get(item.maps[best]) ? i : best), 0);
}

function picture(item) {
  const image = element("img", { alt: "", loading: "lazy" });
  const holder = element(item.maps.length ? "button" : "div", { className: "picture" }, image);
  image.addEventListener("error", () => {
    image.remove();
    holder.append(element("span", { className: "none", textContent: "The picture is not available." }));
  });
  const set = (map) => {
    image.src = map < 0 ? `pictures/${item.number}.jpg` : `pictures/${item.number}_${map}.jpg`;
    if (!item.maps.length) return;
    holder.setAttribute("aria-pressed", String(map >= 0));
    holder.setAttribute("aria-label", `Grad-CAM${map < 0 ? "" : ` of ${classes[item.maps[map]]}`}: ${item.name}`);
  };
  let map = mapOf(item);
  set(map);
  if (item.maps.length) {
    holder.type = "button";
    holder.addEventListener("click", () => {
      map = map < 0 ? Math.max(mapOf(item), 0) : -1;
      set(map);
    });
  }
  return holder;
}

function card(item) {
  const lines = [element("b", { textContent: item.name.split("/").pop(), title: item.name })];
  if (item.truth) lines.push(`True: ${names(item.truth)}`);
  if (item.predicted) lines.push(`Predicted: ${names(item.predicted)}${item.wrong ? " (wrong)" : ""}`);
  const strongest = [...item.probabilities].sort((one, other) => other[1] - one[1]).slice(0, 4);
  lines.push(strongest.map(([name, p]) => `${classes[name]} ${p.toFixed(3)}`).join(", "));
  if (item.error !== null) lines.push(`Error ${item.error.toFixed(3)}`);
  if (document.getElementById("split")) lines.push(`Split: ${item.split}`);
  lines.push(...item.facts);
  const verdict = item.wrong === null ? "" : item.wrong ? "wrong" : "right";
  return element("li", { className: verdict }, picture(item), ...lines.map((line) => element("p", {}, line)));
}

for (const id of ["order", "correct", "truth", "predicted", "split"]) {
  document.getElementById(id)?.addEventListener("change", choose);
}
document.getElementById("filter").addEventListener("input", choose);
document.getElementById("map")?.addEventListener("change", show);
for (const [id, step] of [["previous", -PAGE], ["next", PAGE]]) {
  document.getElementById(id).addEventListener("click", () => {
    start += step;
    show();
    list.scrollIntoView({ block: "nearest" });
  });
}
choose();
