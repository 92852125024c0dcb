"use strict";

const element = (id) => document.getElementById(id);
const NAMES = { soil_moisture: "soil moisture", soil_moisture_std: "spread of the members" };
const RAMPS = {
  soil_moisture: "#ffffd9,#edf8b1,#c7e9b4,#7fcdbb,#41b6c4,#1d91c0,#225ea8,#253494,#081d58",
  soil_moisture_std: "#fcfdbf,#fec98d,#fd9567,#f1605d,#cd3f71,#9e2f7f,#721f81,#440f76,#180f3e,#000004",
};

let scenes = [];
let limits = {};
let shown = [];
let map;
let marker;

async function ask(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return answer.json();
}

async function begin() {
  const all = await ask("api/scenes");
  scenes = all.scenes;
  limits = all.limits;
  element("simulated").hidden = !scenes.some((scene) => scene.simulated);
  for (const res of new Set(scenes.map((scene) => scene.res))) {
    element("res").add(new Option(res || "unnamed", res));
  }
  for (const flag of all.flags) element("flags").append(flagLine(flag));
  map = new maplibregl.Map({
    container: "map",
    style: {
      version: 8,
      sources: {},
      layers: [{ id: "ground", type: "background", paint: { "background-color": "#eef1f4" } }],
    },
    bounds: around(scenes),
    fitBoundsOptions: { padding: 30 },
    attributionControl: false,
    dragRotate: false,
  });
  map.addControl(new maplibregl.NavigationControl({ showCompass: false }));
  map.addControl(new maplibregl.ScaleControl());
  map.on("click", (event) => showCell(event.lngLat.wrap()));
  map.on("idle", () => {
    element("map").dataset.drawn = ["values", "marks"].filter((name) => map.getLayer(name)).join(" ");
  });
  await map.once("load");
  chooseGrid();
  for (const input of document.querySelectorAll("#what input, #flags input, #flagged")) {
    input.addEventListener("change", draw);
  }
  element("res").addEventListener("change", chooseGrid);
  element("slider").addEventListener("input", draw);
  element("back").addEventListener("click", () => step(-1));
  element("forth").addEventListener("click", () => step(1));
}

function flagLine(flag) {
  const line = document.createElement("li");
  line.title = flag.meaning;
  const label = document.createElement("label");
  const box = Object.assign(document.createElement("input"), { type: "checkbox", value: flag.bit, checked: true });
  const patch = document.createElement("i");
  patch.style.background = flag.colour;
  label.append(box, patch, flag.name);
  line.append(label);
  return line;
}

function around(list) {
  const sides = [0, 1, 2, 3].map((k) => list.map((scene) => scene.bounds[k]));
  return [
    [Math.min(...sides[0]), Math.min(...sides[1])],
    [Math.max(...sides[2]), Math.max(...sides[3])],
  ];
}

function chooseGrid() {
  shown = scenes.filter((scene) => scene.res === element("res").value);
  element("slider").max = shown.length - 1;
  element("slider").value = Math.min(element("slider").value, shown.length - 1);
  draw();
}

function step(by) {
  element("slider").value = Number(element("slider").value) + by;
  draw();
}

function draw() {
  const scene = shown[Number(element("slider").value)];
  const variable = document.querySelector("[name=variable]:checked").value;
  element("when").value = `${scene.time.replace("T", " ")} UTC, ${scene.about}`;
  let bits = 0;
  for (const box of document.querySelectorAll("#flags input:checked")) bits += Number(box.value);
  const [low, high, ramp] = limits[variable] || [0, 1, ""];
  element("bar").style.background = ramp ? `linear-gradient(to right, ${RAMPS[variable]})` : "none";
  element("ticks").replaceChildren(
    ...(ramp ? [low, NAMES[variable] + ", m³ m⁻³", high] : []).map((text) =>
      Object.assign(document.createElement("span"), { textContent: text }),
    ),
  );
  place("values", scene, scene[variable], `rescale=${low},${high}&colormap_name=${ramp}&unscale=true`);
  const parameters = encodeURIComponent(JSON.stringify({ bits }));
  place(
    "marks",
    scene,
    element("flagged").checked ? scene.quality_flag : undefined,
    `algorithm=flags&algorithm_params=${parameters}`,
  );
}

function place(name, scene, id, options) {
  const address = `${location.origin}/maps/${id}/tiles/WebMercatorQuad/{z}/{x}/{y}.png?${options}`;
  const known = map.getSource(name);
  if (known && known.tiles && known.tiles[0] === address) return;
  if (map.getLayer(name)) map.removeLayer(name);
  if (known) map.removeSource(name);
  if (!id) return;
  map.addSource(name, { type: "raster", tiles: [address], tileSize: 256, bounds: scene.bounds, maxzoom: 14 });
  const before = name === "values" && map.getLayer("marks") ? "marks" : undefined;
  map.addLayer(
    { id: name, type: "raster", source: name, paint: { "raster-resampling": "nearest", "raster-fade-duration": 0 } },
    before,
  );
}

const degrees = (value, up, down) => `${Math.abs(value).toFixed(4)}° ${value < 0 ? down : up}`;

async function showCell(where) {
  if (!marker) marker = new maplibregl.Marker({ color: "#d73027" });
  marker.setLngLat(where).addTo(map);
  const res = element("res").value;
  const query = `lon=${where.lng}&lat=${where.lat}`;
  const { series } = await ask(`api/pixel?${query}&res=${encodeURIComponent(res)}`);
  const maps = series.length ? `${series.length} maps` : "no map reaches this place";
  const place = `${degrees(where.lat, "N", "S")}, ${degrees(where.lng, "E", "W")}`;
  element("where").textContent = `${place}, ${res}: ${maps}`;
  chart(series);
  const now = shown[Number(element("slider").value)];
  const row = series.find((one) => one.time === now.time && one.about === now.about);
  const lines = [];
  if (row) {
    const value = row.soil_moisture;
    lines.push(value == null ? "No value." : `${value.toFixed(3)} ± ${(row.soil_moisture_std ?? NaN).toFixed(3)} m³ m⁻³ (spread of the members, not an error)`);
    lines.push(...(row.reasons.length ? row.reasons : ["No remark."]));
  }
  const { text } = await ask(`api/explain?${query}&time=${encodeURIComponent(now.time)}`);
  if (text) lines.push("", text);
  element("why").textContent = lines.join("\n");
}

function chart(series) {
  const svg = element("chart");
  const draw = (kind, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    svg.append(made);
  };
  svg.replaceChildren();
  const rows = series.filter((row) => row.soil_moisture != null);
  if (!rows.length) return;
  const times = series.map((row) => Date.parse(row.time + "Z"));
  const first = Math.min(...times);
  const span = Math.max(...times) - first || 1;
  const x = (row) => 34 + (274 * (Date.parse(row.time + "Z") - first)) / span;
  const y = (value) => 128 - (120 * Math.min(Math.max(value, 0), 0.6)) / 0.6;
  for (const level of [0, 0.2, 0.4, 0.6]) {
    draw("line", { x1: 34, x2: 312, y1: y(level), y2: y(level), stroke: "#dde3e8" });
    draw("text", { x: 28, y: y(level) + 3, "text-anchor": "end" }, level.toFixed(1));
  }
  draw("text", { x: 34, y: 144 }, series[0].time.slice(0, 10));
  draw("text", { x: 312, y: 144, "text-anchor": "end" }, series[series.length - 1].time.slice(0, 10));
  draw("polyline", { points: rows.map((row) => `${x(row)},${y(row.soil_moisture)}`).join(" "), fill: "none", stroke: "#9ecae1" });
  for (const row of rows) {
    const spread = row.soil_moisture_std ?? 0;
    draw("line", { x1: x(row), x2: x(row), y1: y(row.soil_moisture - spread), y2: y(row.soil_moisture + spread), stroke: "#6baed6" });
    draw("circle", { cx: x(row), cy: y(row.soil_moisture), r: 3, fill: row.flags ? "#fff" : "#225ea8", stroke: "#225ea8" });
  }
}

begin().catch((error) => {
  element("where").textContent = `The maps could not be shown: ${error.message}`;
  throw error;
});
