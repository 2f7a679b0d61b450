// The report's page: a table of all cases, distributions, and the meshes and slices of one case at a time.

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
  ["faces_crossing_others", "Faces that cross another mesh", 0],
  ["move_mean_mm", "Move by the repair, mean, mm", 3],
  ["move_p95_mm", "Move by the repair, 95th percentile, mm", 3],
  ["smallest_angle_p05_deg", "Smallest angle of a face, 5th percentile, degrees", 1],
  ["aspect_ratio_p95", "Aspect ratio of a face, 95th percentile", 2],
  ["edge_mean_mm", "Length of an edge, mean, mm", 2],
  ["edge_sd_mm", "Length of an edge, standard deviation, mm", 2],
];
const REFERENCE_ALPHA = 0.35;

Object.assign(state, {
  metric: null,
  column: "rank",
  rising: true,
  current: null, // the opened case's number
  reference: true,
});

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
    key: "crossing", title: "Crossing faces", digits: 0, of: (item) => sum(valuesOf(item, "self_intersecting_faces")) + sum(valuesOf(item, "faces_crossing_others")),
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

const drawSlices = () => [0, 1, 2].forEach(drawSlice);
function redraw() {
  drawMeshes();
  drawSlices();
}

function setUpReference() {
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
setUpStructures(redraw);
setUpReference();
setUpSlices();
setUpMeshes();
setUpMetrics();
drawTable();
drawSpread();
open(0);
