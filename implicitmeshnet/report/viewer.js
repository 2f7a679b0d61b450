"use strict";
// What the pages share: structures to show, hide and fade, meshes to turn, light and dark.
// Meshes are drawn by a small rasteriser of our own, not by WebGL: it works without a graphics card and needs no library.
// A page says in `report` which structures there are and how many vertices each has, and puts into `faces` and `opened`
// what is to be drawn.

const report = JSON.parse(document.getElementById("report").textContent);
const VIEWS = {
  // rows: the screen's right, up and towards the viewer, in RAS
  front: [-1, 0, 0, 0, 0, 1, 0, 1, 0],
  left: [0, -1, 0, 0, 0, 1, -1, 0, 0],
  feet: [-1, 0, 0, 0, 1, 0, 0, 0, -1],
};
const DEPTHS = 4096; // steps by which see-through triangles are sorted

const state = {
  shown: report.structures.map(() => true),
  opacity: report.structures.map((structure) => (structure.encloses ? 0.35 : 1)),
  turn: VIEWS.front.slice(),
  zoom: 1,
};
let opened = null; // { world, normals, radius } of the meshes shown, and what else a page keeps
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

async function inflated(id) {
  const text = atob(find(id).textContent.trim());
  const packed = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place += 1) packed[place] = text.charCodeAt(place);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
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

// A line for each structure; `redraw` draws all that its box changes.
function setUpStructures(redraw) {
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
