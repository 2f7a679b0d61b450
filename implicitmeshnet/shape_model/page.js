// The shape model's page: the mean, a slider for each of the first modes, and the table of what the modes hold.

const COLUMNS = [
  // key, title, digits
  ["mode", "Mode", 0],
  ["vertex_sd_mm", "Vertex SD, mm", 2],
  ["compactness", "Compactness", 3],
  ["generalisation_mm", "Generalisation, mm", 2],
  ["specificity_mm", "Specificity, mm", 2],
];
const FARTHEST = 3; // standard deviations

let mean = null; // mm, Float32Array (S, V, 3)
let modes = null; // what one standard deviation of each moves, mm: (K, S, V, 3)

const sliders = () => Array.from(document.querySelectorAll("#modes input"));

function drawShape() {
  const world = mean.slice();
  sliders().forEach((slider, mode) => {
    const deviations = Number(slider.value);
    find(`place-${mode}`).textContent = deviations.toFixed(1);
    const start = mode * mean.length;
    for (let place = 0; place < mean.length; place += 1) world[place] += deviations * modes[start + place];
  });
  opened.world = world;
  opened.normals = normalsOf(world);
  drawMeshes();
}

function showDeviations(deviations) {
  sliders().forEach((slider, mode) => {
    slider.value = deviations[mode];
  });
  later(drawShape);
}

function setUpModes() {
  report.modes.forEach((row, mode) => {
    if (mode >= report.shown) return;
    const name = `Mode ${row.mode}, ${(100 * row.variance_share).toFixed(0)} %`;
    const attributes = { type: "range", min: -FARTHEST, max: FARTHEST, step: 0.1, "aria-label": `${name} of the variance` };
    const slider = element("input", { ...attributes, id: `mode-${mode}`, oninput: () => later(drawShape) });
    slider.value = 0;
    const place = element("span", { id: `place-${mode}`, class: "note" }, "0.0");
    find("modes").append(element("div", { class: "structure" }, element("span", {}, name, " ", place), slider));
  });
  const select = find("case");
  select.append(element("option", { value: "" }, "none"));
  report.cases.forEach((item, number) => select.append(element("option", { value: number }, item.name)));
  const none = new Array(report.shown).fill(0);
  select.addEventListener("change", () => showDeviations(select.value === "" ? none : report.cases[select.value].scores));
  find("mean").addEventListener("click", () => {
    select.value = "";
    showDeviations(none);
  });
}

function drawTable() {
  find("table").tHead.append(element("tr", {}, ...COLUMNS.map(([, title]) => element("th", { scope: "col" }, title))));
  for (const row of report.modes) {
    const cells = COLUMNS.map(([key, , digits]) => element("td", {}, row[key] === null ? "" : row[key].toFixed(digits)));
    find("table").tBodies[0].append(element("tr", {}, ...cells));
  }
}

async function open() {
  faces = new Uint32Array(await inflated("faces"));
  mean = new Float32Array(await inflated("mean-shape"));
  modes = new Float32Array(await inflated("mode-shapes"));
  const radius = 1.15 * centre(mean); // room for what is larger
  opened = { world: mean, normals: normalsOf(mean), radius };
  drawShape();
  document.body.dataset.opened = "model";
}

find("summary").textContent = `${report.cases.length} cases, ${report.structures.length} structures, ${report.modes.length} modes`;
setUpTheme();
setUpStructures(drawMeshes);
setUpMeshes();
setUpModes();
drawTable();
open();
