"use strict";
// The report's page: a table of all cases, distributions, and the meshes and slices of one case at a time.
// Meshes are drawn by a small rasteriser of our own, not by WebGL: it works without a graphics card and needs no library.

const report = JSON.parse(document.getElementById("report").textContent);
const METRICS = [
  // key, title, digits
  ["dice", "Dice", 3],
  ["hd95_mm", "HD95, mm", 2],
  ["assd_mm", "ASSD, mm", 2],
  ["volume_ml", "Volume, ml", 1],
  ["mesh_volume_ml", "Volume of the mesh, ml", 1],
  ["surface_mm2", "Surface, mm²", 0],
  ["agreement", "Agreement with the voxel segmentation", 3],
  ["self_intersecting_faces", "Crossing faces", 0],
  ["smallest_angle_p05_deg", "Smallest angle of a face, 5th percentile, degrees", 1],
  ["aspect_ratio_p95", "Aspect ratio of a face, 95th percentile", 2],
  ["edge_mean_mm", "Length of an edge, mean, mm", 2],
  ["edge_sd_mm", "Length of an edge, standard deviation, mm", 2],
];
const VIEWS = {
  // rows: the screen's right, up and towards the viewer, in RAS
  front: [-1, 0, 0, 0, 0, 1, 0, 1, 0],
  left: [0, -1, 0, 0, 0, 1, -1, 0, 0],
  feet: [-1, 0, 0, 0, 1, 0, 0, 0, -1],
};
const REFERENCE_ALPHA = 0.35;
const DEPTHS = 4096; // steps by which see-through triangles are sorted

const state = {
  metric: null,
  column: "rank",
  rising: true,
  current: null, // the opened case's number
  shown: report.structures.map(() => true),
  opacity: report.structures.map((structure) => (structure.encloses ? 0.35 : 1)),
  reference: true,
  turn: VIEWS.front.slice(),
  zoom: 1,
};
let opened = null; // what is decoded of the current case
let faces = null;

const find = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function drawing(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// ---- the table ----

const shownAs = (value, digits) => (value === null || value === undefined ? "" : value.toFixed(digits));
const titleOf = (key) => METRICS.find((metric) => metric[0] === key)[1];
const digitsOf = (key) => METRICS.find((metric) => metric[0] === key)[2];
const valuesOf = (item, key) => Object.values(item.structures).map((row) => row[key]).filter((value) => value !== null);
const least = (values) => (values.length ? Math.min(...values) : null);
const most = (values) => (values.length ? Math.max(...values) : null);
const sum = (values) => values.reduce((total, value) => total + value, 0);

function columns() {
  const list = [
    { key: "rank", title: "#", of: (item) => item.rank },
    { key: "name", title: "Case", text: true, of: (item) => item.name },
  ];
  if (report.labelled) {
    const mean = (item) => (valuesOf(item, "dice").length ? sum(valuesOf(item, "dice")) / valuesOf(item, "dice").length : null);
    list.push({ key: "dice", title: "Mean Dice", digits: 3, of: mean });
    list.push({ key: "hd95", title: "Most HD95, mm", digits: 2, of: (item) => most(valuesOf(item, "hd95_mm")) });
  }
  list.push({
    key: "agreement", title: "Least agreement", digits: 3, of: (item) => least(valuesOf(item, "agreement")),
    doubtful: (value) => value !== null && value < report.least_agreement,
  });
  list.push({
    key: "crossing", title: "Crossing faces", digits: 0, of: (item) => sum(valuesOf(item, "self_intersecting_faces")),
    doubtful: (value) => value > 0,
  });
  list.push({ key: "warnings", title: "Warnings", text: true, of: (item) => item.warnings, doubtful: (value) => value !== "" });
  for (const { name } of report.structures) {
    const of = (item) => item.structures[name][state.metric];
    list.push({ key: `of ${name}`, title: name, digits: digitsOf(state.metric), of });
  }
  list.push({ key: "seconds", title: "Seconds", digits: 1, of: (item) => item.seconds });
  return list;
}

function sorted(column) {
  const order = report.cases.map((_, number) => number);
  const sign = state.rising ? 1 : -1;
  return order.sort((one, other) => {
    const [a, b] = [column.of(report.cases[one]), column.of(report.cases[other])];
    if (a === null || b === null) return (a === null) - (b === null); // what is not known comes last
    return sign * (column.text ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  });
}

function drawTable() {
  const list = columns();
  const by = list.find((column) => column.key === state.column) || list[0];
  const head = element("tr");
  for (const column of list) {
    const sort = column === by ? (state.rising ? "ascending" : "descending") : "none";
    const button = element("button", { type: "button", onclick: () => sortBy(column.key) }, column.title);
    head.append(element("th", { scope: "col", "aria-sort": sort, "data-key": column.key, class: column.text && "text" }, button));
  }
  find("cohort").tHead.replaceChildren(head);
  find("cohort").tBodies[0].replaceChildren(...sorted(by).map((number) => rowOf(number, list)));
}

function rowOf(number, list) {
  const item = report.cases[number];
  const row = element("tr", { "data-case": number, "aria-current": number === state.current ? "true" : "false" });
  for (const column of list) {
    const value = column.of(item);
    const cell = element("td", { class: column.text && "text" });
    if (column.key === "name") cell.append(element("button", { type: "button", onclick: () => open(number, true) }, value));
    else cell.append(column.text ? value : shownAs(value, column.digits || 0));
    if (column.doubtful && column.doubtful(value)) cell.classList.add("warning");
    if (column.key === "warnings") cell.classList.add("sentences");
    row.append(cell);
  }
  return row;
}

function sortBy(key) {
  state.rising = state.column === key ? !state.rising : true;
  state.column = key;
  drawTable();
  find("cohort").querySelector(`th[data-key="${CSS.escape(key)}"] button`).focus();
}

// ---- the distributions ----

function quantile(rising, share) {
  const place = share * (rising.length - 1);
  const low = Math.floor(place);
  const high = Math.ceil(place);
  return rising[low] + (rising[high] - rising[low]) * (place - low);
}

function drawSpread() {
  const [left, width, step] = [130, 650, 26];
  const all = report.cases.flatMap((item) => valuesOf(item, state.metric));
  const low = least(all) ?? 0;
  const range = (most(all) ?? 1) - low || 1;
  const across = (value) => left + ((value - low) / range) * width;
  const digits = digitsOf(state.metric);
  const sentences = [];
  const image = drawing("svg", { viewBox: `0 0 900 ${step * report.structures.length + 30}`, role: "img" });
  report.structures.forEach((structure, number) => {
    const y = step * number + step / 2;
    const values = [];
    report.cases.forEach((item, place) => {
      const value = item.structures[structure.name][state.metric];
      if (value !== null) values.push([value, place]);
    });
    image.append(drawing("text", { x: left - 14, y: y + 4, "text-anchor": "end", fill: "currentColor" }, structure.name));
    if (!values.length) return;
    const rising = values.map(([value]) => value).sort((a, b) => a - b);
    const [first, median, third] = [0.25, 0.5, 0.75].map((share) => quantile(rising, share));
    const box = { x: across(first), y: y - 8, width: Math.max(across(third) - across(first), 1), height: 16, rx: 3 };
    image.append(drawing("rect", { ...box, fill: structure.colour, "fill-opacity": 0.2, stroke: structure.colour }));
    image.append(drawing("path", { d: `M${across(median)} ${y - 8}v16`, stroke: structure.colour, "stroke-width": 3 }));
    for (const [value, place] of values) {
      const text = `${report.cases[place].name}: ${value.toFixed(digits)}`;
      const dot = drawing("circle", { cx: across(value), cy: y, r: 4, fill: structure.colour }, drawing("title", {}, text));
      dot.addEventListener("click", () => open(place, true));
      image.append(dot);
    }
    image.append(drawing("text", { x: left + width + 14, y: y + 4, fill: "currentColor" }, `median ${median.toFixed(digits)}`));
    sentences.push(`${structure.name}: median ${median.toFixed(digits)}, middle half ${first.toFixed(digits)} to ${third.toFixed(digits)}`);
  });
  const bottom = step * report.structures.length + 18;
  for (const share of [0, 0.5, 1]) {
    const place = { x: left + share * width, y: bottom, "text-anchor": "middle", fill: "currentColor" };
    image.append(drawing("text", place, (low + share * range).toFixed(digits)));
  }
  image.setAttribute("aria-label", `${titleOf(state.metric)}. ${sentences.join("; ")}`);
  find("spread").replaceChildren(image);
}

// ---- one case ----

async function inflated(id) {
  const text = atob(find(id).textContent.trim());
  const packed = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place += 1) packed[place] = text.charCodeAt(place);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function open(number, focus = false) {
  const item = report.cases[number];
  state.current = number;
  for (const row of find("cohort").tBodies[0].rows) row.setAttribute("aria-current", String(row.dataset.case === String(number)));
  find("case-title").textContent = item.name;
  find("case-warnings").textContent = item.warnings;
  find("views").hidden = item.view === null;
  find("case-note").textContent = item.view === null ? "Of this case the page has the figures alone, so that it stays small." : "";
  if (focus) find("case-title").focus();
  if (item.view === null) return;
  if (faces === null) faces = new Uint32Array(await inflated("faces"));
  const buffer = await inflated(`case-${number}`);
  if (state.current !== number) return; // another was opened meanwhile
  opened = unpack(item.view, buffer);
  fillSlices();
  redraw();
  document.body.dataset.opened = String(number);
}

// Of a case's bytes: vertices uint16 (S, V, 3), image uint8 (X, Y, Z), and where it is labelled classes uint8 (X, Y, Z).
function unpack(view, buffer) {
  const count = report.structures.length * report.vertices * 3;
  const packed = new Uint16Array(buffer, 0, count);
  const voxels = new Float32Array(count); // places in voxels of the page's grid
  const world = new Float32Array(count); // mm RAS from the middle of all
  for (let place = 0; place < count; place += 1) voxels[place] = view.low[place % 3] + packed[place] * view.step[place % 3];
  for (let place = 0; place < count; place += 3) {
    for (let axis = 0; axis < 3; axis += 1) {
      const row = view.axes[axis];
      world[place + axis] = row[0] * voxels[place] + row[1] * voxels[place + 1] + row[2] * voxels[place + 2];
    }
  }
  const radius = centre(world);
  const size = view.shape[0] * view.shape[1] * view.shape[2];
  const image = new Uint8Array(buffer, 2 * count, size);
  const classes = view.labelled ? new Uint8Array(buffer, 2 * count + size, size) : null;
  return { view, voxels, world, radius, normals: normalsOf(world), image, classes };
}

// Moves points to the middle of their box; the largest distance from there.
function centre(points) {
  const low = [Infinity, Infinity, Infinity];
  const high = [-Infinity, -Infinity, -Infinity];
  points.forEach((value, place) => {
    low[place % 3] = Math.min(low[place % 3], value);
    high[place % 3] = Math.max(high[place % 3], value);
  });
  let square = 1;
  for (let place = 0; place < points.length; place += 3) {
    for (let axis = 0; axis < 3; axis += 1) points[place + axis] -= (low[axis] + high[axis]) / 2;
    square = Math.max(square, points[place] ** 2 + points[place + 1] ** 2 + points[place + 2] ** 2);
  }
  return Math.sqrt(square);
}

// Of each vertex the direction of its faces' areas together.
function normalsOf(points) {
  const normals = new Float32Array(points.length);
  for (let start = 0; start < points.length; start += 3 * report.vertices) {
    for (let face = 0; face < faces.length; face += 3) {
      const [a, b, c] = [start + 3 * faces[face], start + 3 * faces[face + 1], start + 3 * faces[face + 2]];
      const [ux, uy, uz] = [points[b] - points[a], points[b + 1] - points[a + 1], points[b + 2] - points[a + 2]];
      const [vx, vy, vz] = [points[c] - points[a], points[c + 1] - points[a + 1], points[c + 2] - points[a + 2]];
      const across = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx];
      for (const vertex of [a, b, c]) for (let axis = 0; axis < 3; axis += 1) normals[vertex + axis] += across[axis];
    }
  }
  for (let place = 0; place < normals.length; place += 3) {
    const length = Math.hypot(normals[place], normals[place + 1], normals[place + 2]) || 1;
    for (let axis = 0; axis < 3; axis += 1) normals[place + axis] /= length;
  }
  return normals;
}

const channels = (colour) => [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));

// ---- meshes ----

// Opaque structures first, by depth of each pixel; then the see-through triangles from far to near over them.
function drawMeshes() {
  const canvas = find("meshes");
  const side = Math.round(Math.min(canvas.clientWidth * (window.devicePixelRatio || 1), 800)) || 400;
  canvas.width = side;
  canvas.height = side;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = getComputedStyle(canvas).backgroundColor;
  context.fillRect(0, 0, side, side);
  const target = context.getImageData(0, 0, side, side);
  const screen = { pixels: target.data, depth: new Float32Array(side * side).fill(-Infinity), side };
  const points = projected(side);
  const through = [];
  report.structures.forEach((structure, number) => {
    const alpha = state.opacity[number];
    if (!state.shown[number] || alpha === 0) return;
    const colour = channels(structure.colour);
    for (let face = 0; face < faces.length; face += 3) {
      const corners = [0, 1, 2].map((corner) => 4 * (number * report.vertices + faces[face + corner]));
      if (alpha < 1) through.push({ corners, colour, alpha });
      else if (isFront(points, corners)) fill(screen, points, corners, colour, 1);
    }
  });
  for (const triangle of fromFarToNear(through, points)) fill(screen, points, triangle.corners, triangle.colour, triangle.alpha);
  context.putImageData(target, 0, 0);
}

// Of each vertex x, y in pixels, depth towards the viewer in mm, and how bright it is.
function projected(side) {
  const { world, normals, radius } = opened;
  const turn = state.turn;
  const scale = (0.48 * side * state.zoom) / radius;
  const points = new Float32Array((world.length / 3) * 4);
  for (let from = 0, to = 0; from < world.length; from += 3, to += 4) {
    const [x, y, z] = [world[from], world[from + 1], world[from + 2]];
    points[to] = side / 2 + scale * (turn[0] * x + turn[1] * y + turn[2] * z);
    points[to + 1] = side / 2 - scale * (turn[3] * x + turn[4] * y + turn[5] * z);
    points[to + 2] = turn[6] * x + turn[7] * y + turn[8] * z;
    const facing = Math.abs(turn[6] * normals[from] + turn[7] * normals[from + 1] + turn[8] * normals[from + 2]);
    points[to + 3] = 0.3 + 0.75 * facing;
  }
  return points;
}

function isFront(points, [a, b, c]) {
  const [ux, uy] = [points[b] - points[a], points[b + 1] - points[a + 1]];
  return ux * (points[c + 1] - points[a + 1]) < uy * (points[c] - points[a]); // y runs down
}

// A counting sort by depth.
function fromFarToNear(triangles, points) {
  const depths = triangles.map(({ corners: [a, b, c] }) => points[a + 2] + points[b + 2] + points[c + 2]);
  const near = depths.reduce((one, other) => Math.max(one, other), -Infinity);
  const far = depths.reduce((one, other) => Math.min(one, other), Infinity);
  const steps = Array.from({ length: DEPTHS }, () => []);
  triangles.forEach((triangle, number) => {
    const step = Math.floor(((depths[number] - far) / (near - far || 1)) * (DEPTHS - 1));
    steps[step].push(triangle);
  });
  return steps.flat();
}

// A triangle by rows of pixels. Rows and spans are half open, so that no pixel belongs to two faces with a common edge.
function fill({ pixels, depth, side }, points, corners, colour, alpha) {
  const [a, b, c] = corners.slice().sort((one, other) => points[one + 1] - points[other + 1]); // from top to bottom
  const [ax, ay, bx, by, cx, cy] = [points[a], points[a + 1], points[b], points[b + 1], points[c], points[c + 1]];
  const area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay);
  if (area === 0) return;
  const slope = (component) => {
    const [u, v] = [points[b + component] - points[a + component], points[c + component] - points[a + component]];
    return [(u * (cy - ay) - v * (by - ay)) / area, (v * (bx - ax) - u * (cx - ax)) / area];
  };
  const [zx, zy] = slope(2);
  const [lx, ly] = slope(3);
  const last = Math.min(Math.ceil(cy - 0.5), side);
  for (let y = Math.max(Math.ceil(ay - 0.5), 0); y < last; y += 1) {
    const middle = y + 0.5;
    const long = ax + ((cx - ax) * (middle - ay)) / (cy - ay);
    const short = middle < by ? ax + ((bx - ax) * (middle - ay)) / (by - ay) : bx + ((cx - bx) * (middle - by)) / (cy - by);
    const end = Math.min(Math.ceil(Math.max(long, short) - 0.5), side);
    for (let x = Math.max(Math.ceil(Math.min(long, short) - 0.5), 0); x < end; x += 1) {
      const [right, down] = [x + 0.5 - ax, middle - ay];
      const z = points[a + 2] + zx * right + zy * down;
      const pixel = y * side + x;
      if (z < depth[pixel]) continue;
      if (alpha === 1) depth[pixel] = z;
      const light = points[a + 3] + lx * right + ly * down;
      for (let channel = 0; channel < 3; channel += 1) {
        const under = pixels[4 * pixel + channel];
        pixels[4 * pixel + channel] = under + alpha * (Math.min(light * colour[channel], 255) - under);
      }
    }
  }
}

function turnBy(right, down) {
  const [cr, sr, cd, sd] = [Math.cos(right), Math.sin(right), Math.cos(down), Math.sin(down)];
  const about = (m, n, cosine, sine) => {
    for (let axis = 0; axis < 3; axis += 1) {
      const [one, other] = [state.turn[3 * m + axis], state.turn[3 * n + axis]];
      state.turn[3 * m + axis] = cosine * one + sine * other;
      state.turn[3 * n + axis] = cosine * other - sine * one;
    }
  };
  about(0, 2, cr, sr);
  about(1, 2, cd, -sd);
  later(drawMeshes);
}

function zoomBy(factor) {
  state.zoom = Math.min(Math.max(state.zoom * factor, 0.3), 8);
  later(drawMeshes);
}

// ---- slices ----

const planeOf = (normal) => [[1, 2], [0, 2], [0, 1]][normal];

function fillSlices() {
  const { view } = opened;
  for (const normal of [0, 1, 2]) {
    const slider = find(`slice-${normal}`);
    slider.max = view.shape[normal] - 1;
    slider.value = view.start[normal];
    slider.setAttribute("aria-label", `Slice, ${view.planes[normal]}`);
    find(`plane-${normal}`).textContent = view.planes[normal];
  }
}

// A slice in radiological display: the patient's right, or anterior, is on the left.
function drawSlice(normal) {
  const { view } = opened;
  const index = Number(find(`slice-${normal}`).value);
  const [h, v] = planeOf(normal);
  const canvas = find(`canvas-${normal}`);
  const size = [view.shape[h] * view.spacing_mm[h], view.shape[v] * view.spacing_mm[v]];
  const scale = 480 / Math.max(...size);
  canvas.width = Math.round(size[0] * scale);
  canvas.height = Math.round(size[1] * scale);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(sliceImage(normal, index), 0, 0, canvas.width, canvas.height);
  const across = (voxel) => (view.shape[h] - 0.5 - voxel) * view.spacing_mm[h] * scale;
  const down = (voxel) => (view.shape[v] - 0.5 - voxel) * view.spacing_mm[v] * scale;
  report.structures.forEach((structure, number) => {
    if (state.shown[number]) drawContour(context, structure, number, normal, index, across, down);
  });
  context.font = "16px system-ui, sans-serif";
  context.fillStyle = "#fff";
  context.textAlign = "center";
  const [low, high] = [0, 1].map((end) => [view.letters[h][end], view.letters[v][end]]);
  context.strokeStyle = "#000";
  context.lineWidth = 4;
  context.lineJoin = "round";
  const write = (text, x, y) => {
    context.strokeText(text, x, y); // so that it is read on white too
    context.fillText(text, x, y);
  };
  write(high[0], 16, canvas.height / 2);
  write(low[0], canvas.width - 16, canvas.height / 2);
  write(high[1], canvas.width / 2, 18);
  write(low[1], canvas.width / 2, canvas.height - 6);
  find(`place-${normal}`).textContent = `${index + 1} of ${view.shape[normal]}`;
}

function sliceImage(normal, index) {
  const { view, image, classes } = opened;
  const [h, v] = planeOf(normal);
  const strides = [view.shape[1] * view.shape[2], view.shape[2], 1];
  const [columns, rows] = [view.shape[h], view.shape[v]];
  const made = new ImageData(columns, rows);
  const palette = report.structures.map((structure) => channels(structure.colour));
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const voxel = index * strides[normal] + (columns - 1 - column) * strides[h] + (rows - 1 - row) * strides[v];
      const number = classes && state.reference ? classes[voxel] : 0;
      const colour = number > 0 && state.shown[number - 1] ? palette[number - 1] : null;
      const place = 4 * (row * columns + column);
      for (let channel = 0; channel < 3; channel += 1) {
        const grey = image[voxel];
        made.data[place + channel] = colour ? grey + REFERENCE_ALPHA * (colour[channel] - grey) : grey;
      }
      made.data[place + 3] = 255;
    }
  }
  const canvas = element("canvas", { width: columns, height: rows });
  canvas.getContext("2d").putImageData(made, 0, 0);
  return canvas;
}

// Where the slice cuts the mesh itself: a line in each triangle that has corners on both sides.
function drawContour(context, structure, number, normal, index, across, down) {
  const { voxels } = opened;
  const [h, v] = planeOf(normal);
  context.beginPath();
  for (let face = 0; face < faces.length; face += 3) {
    let drawn = 0;
    for (let corner = 0; corner < 3; corner += 1) {
      const a = 3 * (number * report.vertices + faces[face + corner]);
      const b = 3 * (number * report.vertices + faces[face + ((corner + 1) % 3)]);
      const [above, below] = [voxels[a + normal] - index, voxels[b + normal] - index];
      if (above >= 0 === below >= 0) continue;
      const share = above / (above - below);
      const x = across(voxels[a + h] + share * (voxels[b + h] - voxels[a + h]));
      const y = down(voxels[a + v] + share * (voxels[b + v] - voxels[a + v]));
      if (drawn === 0) context.moveTo(x, y);
      else context.lineTo(x, y);
      drawn += 1;
    }
  }
  context.strokeStyle = structure.colour;
  context.lineWidth = 2.5;
  context.stroke();
}

// ---- what is set up once ----

const waiting = new Set();
function later(draw) {
  if (opened === null || waiting.has(draw)) return;
  waiting.add(draw);
  requestAnimationFrame(() => {
    waiting.delete(draw);
    draw();
  });
}

const drawSlices = () => [0, 1, 2].forEach(drawSlice);
function redraw() {
  drawMeshes();
  drawSlices();
}

function setUpStructures() {
  report.structures.forEach((structure, number) => {
    const { name, colour } = structure;
    const show = (event) => {
      state.shown[number] = event.target.checked;
      later(redraw);
    };
    const fade = (event) => {
      state.opacity[number] = Number(event.target.value) / 100;
      later(drawMeshes);
    };
    const box = element("input", { type: "checkbox", id: `show-${number}`, checked: true, onchange: show });
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = colour;
    const slider = element("input", { type: "range", min: 0, max: 100, oninput: fade, "aria-label": `Opacity of ${name}, per cent` });
    slider.value = 100 * state.opacity[number];
    find("structures").append(element("div", { class: "structure" }, element("label", {}, box, swatch, name), slider));
  });
  if (!report.labelled) return;
  const fillIn = (event) => {
    state.reference = event.target.checked;
    later(drawSlices);
  };
  const box = element("input", { type: "checkbox", checked: true, onchange: fillIn });
  find("structures").append(element("p", {}, element("label", {}, box, " label, filled, in the slices")));
}

function setUpSlices() {
  for (const normal of [2, 1, 0]) {
    const draw = () => drawSlice(normal);
    const canvas = element("canvas", { id: `canvas-${normal}`, role: "img", "aria-labelledby": `plane-${normal} place-${normal}` });
    const slider = element("input", { type: "range", min: 0, id: `slice-${normal}`, oninput: () => later(draw) });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      slider.value = Number(slider.value) - Math.sign(event.deltaY);
      later(draw);
    }, { passive: false });
    const words = [element("span", { id: `plane-${normal}` }), " ", element("span", { id: `place-${normal}`, class: "note" })];
    find("slices").append(element("figure", {}, canvas, element("figcaption", {}, ...words), slider));
  }
}

function setUpMeshes() {
  const canvas = find("meshes");
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons & 1) turnBy(event.movementX * 0.01, event.movementY * 0.01);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * 0.001));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = 0.12;
    const turns = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const zooms = { "+": 1.15, "=": 1.15, "-": 1 / 1.15 };
    if (event.key in turns) turnBy(...turns[event.key]);
    else if (event.key in zooms) zoomBy(zooms[event.key]);
    else return;
    event.preventDefault();
  });
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => {
      state.turn = VIEWS[button.dataset.view].slice();
      state.zoom = 1;
      later(drawMeshes);
    });
  }
  window.addEventListener("resize", () => later(drawMeshes));
}

function setUpMetrics() {
  const known = METRICS.filter(([key]) => report.cases.some((item) => valuesOf(item, key).length));
  state.metric = known[0][0];
  const select = find("metric");
  for (const [key, title] of known) select.append(element("option", { value: key }, title));
  select.addEventListener("change", () => {
    state.metric = select.value;
    drawTable();
    drawSpread();
  });
}

function setUpTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  find("theme").addEventListener("click", () => {
    const now = root.style.colorScheme || (dark.matches ? "dark" : "light");
    root.style.colorScheme = now === "dark" ? "light" : "dark";
    later(drawMeshes);
  });
  dark.addEventListener("change", () => later(drawMeshes));
}

function setUpWords() {
  const doubtful = report.cases.filter((item) => item.warnings !== "").length;
  const failed = Object.entries(report.failed);
  find("summary").textContent = `${report.cases.length} cases, ${doubtful} with warnings, ${failed.length} failed`;
  for (const [name, sentence] of failed) find("failed").append(element("li", {}, `${name} failed: ${sentence}`));
  for (const [key, value] of Object.entries(report.settings)) {
    const long = value.includes("\n");
    const shown = long ? element("details", {}, element("summary", {}, "show"), element("pre", {}, value)) : value;
    find("made").append(element("dt", {}, key), element("dd", {}, shown));
  }
}

setUpWords();
setUpTheme();
setUpStructures();
setUpSlices();
setUpMeshes();
setUpMetrics();
drawTable();
drawSpread();
open(0);
