"use strict";
// Names come from users: they reach the page as text alone, and plotly, which reads markup, through `plain`.

// ---- small helpers

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// plotly also takes what stands between two dollars for a formula.
const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", $: "&#36;" };
const plain = (text) => String(text).replace(/[&<>$]/g, (sign) => ENTITIES[sign]);

function short(text, most) {
  const letters = Array.from(text);
  return plain(letters.length > most ? letters.slice(0, most - 1).join("") + "…" : text);
}

const has = (object, name) => Object.hasOwn(object, name);  // not "name in object": a name may be "constructor"
const digits = (value, count) => (value === null || value === undefined ? "-" : value.toFixed(count));

function fill(select, names) {
  select.replaceChildren(...names.map((name, index) => make("option", { value: index, textContent: name })));
}

// ---- tables: a click sorts up, the next one down, the third gives the order of the report back

// The number that a cell begins with: "1,234", "-12.79 [-13, -12]*", "83.98 ± 2.82", "< 0.001"; NaN for "-" or a word.
function number(text) {
  const bare = text.trim().replace(/^[*†‡]+\s*/, "").replace(/^\u2212/, "-").replace(/,(?=\d{3})/g, "");
  const found = bare.match(/^([<>]?)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)/i);
  if (!found) return NaN;
  const value = Number(found[2]);
  const beyond = { "<": -1e-9, ">": 1e-9, "": 0 }[found[1]];  // "< 0.001" lies before "0.001"
  return value + beyond * Math.max(1e-6, Math.abs(value));
}

function sortable(table) {
  const body = table.tBodies[0], given = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const words = new Intl.Collator("en", { numeric: true });
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", next);
      const text = (row) => row.cells[column].textContent;
      const numeric = !head.classList.contains("text") && given.some((row) => !Number.isNaN(number(text(row))));
      const value = (row) => (numeric ? number(text(row)) : text(row));
      const lacking = (row) => (numeric ? Number.isNaN(value(row)) : ["", "-"].includes(value(row).trim()));
      const order = (a, b) => (numeric ? value(a) - value(b) : words.compare(value(a), value(b)));
      const sign = next === "descending" ? -1 : 1;
      const sorted = [...given];  // the sort is stable: equal rows keep the given order
      if (next !== "none") sorted.sort((a, b) => lacking(a) - lacking(b) || (lacking(a) ? 0 : sign * order(a, b)));
      body.append(...sorted);
    });
  });
}

// ---- plots

function theme() {
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const dark = parseInt(colour("--page").slice(1, 3), 16) < 128;
  return { text: colour("--text"), soft: colour("--soft"), line: colour("--line"), page: colour("--page"),
           card: colour("--card"), full: colour("--full"), accent: colour("--accent"), dark };
}

// The colours of the figures are made for white paper: for a dark page they are mixed with white, and black is grey.
function shown(colour, dark) {
  const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const black = Math.max(...parts) < 20, lighter = parts.map((part) => Math.round(part + (255 - part) * 0.3));
  return `rgb(${(dark ? (black ? [200, 205, 210] : lighter) : parts).join(",")})`;
}

const faint = (colour, share) => colour.replace("rgb(", "rgba(").replace(")", `,${share})`);

function axis(paint, title, more) {
  return { title: { text: title, standoff: 8 }, gridcolor: paint.line, linecolor: paint.line, zeroline: false,
           automargin: true, ...more };
}

function draw(place, traces, layout, paint) {
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { color: paint.text, size: 12, family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: paint.card, bordercolor: paint.soft, font: { color: paint.text }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: paint.soft, activecolor: paint.accent },
    margin: { l: 56, r: 16, t: 28, b: 48 }, width: place.parentNode.clientWidth,  // by itself it keeps its first one
  };
  // The buttons are named one by one: by itself plotly adds one that sends the numbers to a server.
  Plotly.react(place, traces, { ...base, ...layout },
               { displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
}

function curveTraces(variant, part, axes, paint, visible) {
  const { epochs, seeds } = variant[part], colour = shown(variant.colour, paint.dark);
  const say = (value) => (part === "miou" ? `mIoU ${digits(value, 2)} %` : `loss ${digits(value, 4)}`);
  const points = epochs.map((epoch, index) => {
    const own = Object.entries(seeds).map(([seed, values]) => [seed, values[index]]).filter((pair) => pair[1] !== null);
    const values = own.map(([, value]) => value);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const lines = own.map(([seed, value]) => `seed ${seed}: ${say(value)}`);
    const head = [short(variant.name, 60), `epochs trained: ${epoch}`, `mean of ${values.length}: ${say(mean)}`];
    return { epoch, mean, low: Math.min(...values), high: Math.max(...values), n: values.length,
             text: [...head, ...lines].join("<br>") };
  });
  const meta = { variant: variant.name }, band = points.filter((point) => point.n > 1);
  return [
    { ...axes, meta, visible, type: "scatter", mode: "lines", hoverinfo: "skip", fill: "toself",
      fillcolor: faint(colour, 0.15), line: { width: 0 },
      x: [...band.map((p) => p.epoch), ...band.map((p) => p.epoch).reverse()],
      y: [...band.map((p) => p.high), ...band.map((p) => p.low).reverse()] },
    { ...axes, meta, visible, type: "scatter", mode: "lines+markers", hoverinfo: "text",
      line: { color: colour, dash: variant.dash, width: 2 }, marker: { color: colour, symbol: variant.marker, size: 6 },
      x: points.map((p) => p.epoch), y: points.map((p) => p.mean), hovertext: points.map((p) => p.text) },
  ];
}

function drawCurves(place, data, off, paint) {
  const beside = place.clientWidth > 720;
  const traces = data.variants.flatMap((variant) => [
    ...curveTraces(variant, "miou", { xaxis: "x", yaxis: "y" }, paint, !off.has(variant.name)),
    ...curveTraces(variant, "loss", { xaxis: "x2", yaxis: "y2" }, paint, !off.has(variant.name)),
  ]);
  const few = Math.max(0, ...data.variants.flatMap((variant) => variant.loss.epochs)) <= 12 ? { dtick: 1 } : {};
  const domain = { first: beside ? [0, 0.46] : [0, 1], second: beside ? [0.54, 1] : [0, 1] };
  draw(place, traces, {
    height: beside ? 400 : 620,
    xaxis: axis(paint, "epochs trained", { domain: domain.first, anchor: "y", ...few }),
    yaxis: axis(paint, "validation mIoU (%)", { domain: [beside ? 0 : 0.58, 1], anchor: "x" }),
    xaxis2: axis(paint, "epochs trained", { domain: domain.second, anchor: "y2", matches: "x", ...few }),
    yaxis2: axis(paint, "training loss (log scale)", { domain: [0, beside ? 1 : 0.42], anchor: "x2", type: "log" }),
  }, paint);
}

const HATCHES = ["", "/", "x", ".", "\\", "-", "+"];

function drawBars(place, data, off, paint) {
  // Classes stand at numbers: as categories, two of one name would be one, and "10" a number.
  const at = data.classes.map((_, index) => index);
  const dashes = [...new Set(["solid", ...data.variants.map((variant) => variant.dash)])];
  const traces = data.variants.map((variant) => {
    const colour = shown(variant.colour, paint.dark);
    return {
      meta: { variant: variant.name }, visible: !off.has(variant.name), type: "bar", x: at,
      // Variants of one colour differ in their line; here, in how they are hatched.
      marker: { color: colour, pattern: { shape: HATCHES[dashes.indexOf(variant.dash) % HATCHES.length],
                                          fillmode: "overlay", fgcolor: paint.page } },
      y: variant.iou.map(([mean]) => mean), hoverinfo: "text", textposition: "none",
      hovertext: variant.iou.map(([mean, std], index) =>
        `${short(variant.name, 60)}<br>${short(data.classes[index], 60)}<br>IoU ${digits(mean, 2)} %` +
        (std === null ? "" : ` ± ${digits(std, 2)} (standard deviation over ${variant.seeds.length} seeds)`)),
      error_y: { type: "data", array: variant.iou.map(([, std]) => std), color: paint.text, thickness: 1, width: 2 },
    };
  });
  const room = place.parentNode.clientWidth;
  const bars = data.classes.length * Math.max(1, data.variants.length - off.size);
  draw(place, traces, {
    width: Math.max(room, 80 + 9 * bars), height: 380, barmode: "group", bargap: 0.25,
    xaxis: axis(paint, "", { tickvals: at, ticktext: data.classes.map((name) => short(name, 18)),
                             tickangle: room < 600 ? -45 : "auto" }),
    yaxis: axis(paint, "IoU (%)", { rangemode: "tozero" }),
  }, paint);
}

function drawConfusion(place, data, variant, paint) {
  const count = data.classes.length, at = data.classes.map((_, index) => index);
  const shares = variant.confusion.map((row) => {
    const all = row.reduce((sum, value) => sum + value, 0);
    return row.map((value) => (all ? (100 * value) / all : null));
  });
  const text = variant.confusion.map((row, truth) => row.map((pixels, predicted) =>
    `true: ${short(data.classes[truth], 60)}<br>predicted: ${short(data.classes[predicted], 60)}<br>` +
    (shares[truth][predicted] === null ? "the class is in none of the images"
      : `${digits(shares[truth][predicted], 2)} % of its pixels<br>${pixels.toLocaleString("en")} pixels, ` +
        `seeds ${variant.seeds.join(", ")}, ${variant.images} predicted images in all`)));
  const room = place.parentNode.clientWidth, written = count <= 14;
  const side = Math.max(Math.min(room, 640), 110 + count * (written ? 30 : 11));
  const ticks = { tickvals: at, ticktext: data.classes.map((name) => short(name, 14)), showgrid: false,
                  tickfont: { size: written ? 12 : 9 } };
  draw(place, [{
    type: "heatmap", x: at, y: at, z: shares, zmin: 0, zmax: 100, hoverinfo: "text", hovertext: text, xgap: 1, ygap: 1,
    colorscale: [[0, paint.card], [1, paint.full]], hoverongaps: false,
    text: shares.map((row) => row.map((share) => (share === null ? "" : digits(share, share && share < 9.95 ? 1 : 0)))),
    texttemplate: written ? "%{text}" : "",
    colorbar: { title: { text: "%" }, thickness: 12, len: 0.8, outlinewidth: 0 },
  }], {
    width: side, height: side - 40,
    xaxis: axis(paint, "predicted", { ...ticks, tickangle: count > 6 || room < 600 ? -45 : "auto" }),
    yaxis: axis(paint, "true", { ...ticks, autorange: "reversed" }),
  }, paint);
}

// A piece of the variant's line, beside its name.
function swatch(template, variant) {
  const piece = template.content.cloneNode(true);
  if (variant.dash !== "solid") piece.querySelector("line").setAttribute("stroke-dasharray", variant.dash);
  return piece;
}

function explore(root, data) {
  const off = new Set(), find = (name) => root.querySelector(`[data-plot="${name}"]`);
  const select = root.querySelector('[data-choose="confusion"]'), chips = root.querySelector(".chips");
  const drawn = data.variants.filter((variant) => variant.seeds.length);
  const every = { ...data, variants: drawn };
  fill(select, drawn.map((variant) => variant.name));

  const part = root.closest("details");

  // Plots are drawn at the width they have, and what is folded has none.
  function update() {
    if (!part.open) return;
    const paint = theme();
    for (const chip of chips.querySelectorAll("[aria-pressed]")) {
      const variant = drawn[chip.value];
      chip.setAttribute("aria-pressed", String(!off.has(variant.name)));
      chip.querySelector("line").setAttribute("stroke", shown(variant.colour, paint.dark));
    }
    drawCurves(find("curves"), every, off, paint);
    drawBars(find("bars"), every, off, paint);
    drawConfusion(find("confusion"), data, drawn[select.value], paint);
  }

  drawn.forEach((variant, index) => {
    const chip = make("button", { type: "button", value: index, title: variant.name },
                      swatch(root.querySelector("template"), variant), make("bdi", { textContent: variant.name }));
    chip.setAttribute("aria-pressed", "true");
    chip.addEventListener("click", () => {
      if (!off.delete(variant.name)) off.add(variant.name);
      update();
    });
    chips.append(chip);
  });
  root.querySelector(".all").addEventListener("click", () => { off.clear(); update(); });
  root.querySelector(".none").addEventListener("click", () => { drawn.forEach((v) => off.add(v.name)); update(); });
  select.addEventListener("change", update);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", update);
  part.addEventListener("toggle", update);
  let width = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (Math.abs(contentRect.width - width) > 1) { width = contentRect.width; update(); }
  }).observe(root);
}

// ---- images

function browse(root, data) {
  const find = (selector) => root.querySelector(selector), choose = (name) => find(`[data-choose="${name}"]`);
  const images = choose("picture"), variants = choose("prediction"), stage = find(".stage"), split = find(".split");
  let wanted = data.baseline;

  for (const kind of ["fixed", "worst", "best"]) {
    const options = data.pictures.flatMap((picture, index) =>
      (picture.kinds.includes(kind) ? [make("option", { value: index, textContent: picture.name })] : []));
    if (options.length) images.append(make("optgroup", { label: `${kind} images` }, ...options));
  }
  const names = data.variants.map((variant) => variant.name)
    .filter((name) => data.pictures.some((picture) => has(picture.predictions, name)));
  if (!names.includes(wanted)) wanted = names[0];
  fill(variants, names);
  find(".legend").append(...[...data.classes, "not labelled"].map((name, index) => {
    const patch = make("i");
    patch.style.background = data.colours[index];
    return make("li", {}, patch, make("bdi", { textContent: name }));
  }));

  function tile(tag, picture, name, lines, mask) {
    const frame = make("span", {}, make("img", { src: picture.image, alt: "" }));
    frame.style.aspectRatio = picture.size.join(" / ");
    if (mask) frame.append(make("img", { src: mask, className: "mask", alt: "" }));
    return make(tag, { className: "tile" }, frame, make("bdi", { textContent: name }),
                ...lines.map((line) => make("b", { textContent: line })));
  }

  const miou = ({ mious }, name) => (mious[name] === null ? "mIoU -" : `mIoU ${digits(mious[name], 2)} %`);

  function update() {
    const picture = data.pictures[images.value], [width, height] = picture.size;
    const name = [wanted, ...names].find((one) => has(picture.predictions, one));
    variants.value = names.indexOf(name);
    for (const option of variants.options) option.disabled = !has(picture.predictions, names[option.value]);
    stage.style.aspectRatio = `${width} / ${height}`;
    stage.style.maxWidth = `${(70 * width) / height}vh`;
    find(".base").src = picture.image;
    find(".truth").src = picture.truth;
    find(".prediction").src = picture.predictions[name];
    find(".tag.right bdi").textContent = name;
    find(".said").textContent = `${picture.name} (${picture.kinds.join(", ")}): ${name}, ${miou(picture, name)}`;
    const tiles = names.filter((one) => has(picture.predictions, one)).map((one) => {
      const button = tile("button", picture, one, [miou(picture, one)], picture.predictions[one]);
      button.type = "button";
      button.setAttribute("aria-pressed", String(one === name));
      button.addEventListener("click", () => {
        wanted = one;
        update();
        find('.tile[aria-pressed="true"]').focus();
      });
      return button;
    });
    const given = [tile("div", picture, "image", [], null), tile("div", picture, "truth", [], picture.truth)];
    find(".tiles").replaceChildren(...given, ...tiles);
  }

  function step(by) {
    const count = images.options.length;
    images.selectedIndex = (images.selectedIndex + by + count) % count;
    update();
  }

  for (const button of root.querySelectorAll("[data-step]")) {
    button.addEventListener("click", () => step(Number(button.dataset.step)));
  }
  root.addEventListener("keydown", (event) => {
    const by = { n: 1, p: -1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    step(by);
  });
  images.addEventListener("change", update);
  variants.addEventListener("change", () => { wanted = names[variants.value]; update(); });
  split.addEventListener("input", () => stage.style.setProperty("--split", `${split.value}%`));
  const opacity = choose("opacity");
  opacity.addEventListener("input", () => root.style.setProperty("--opacity", opacity.value / 100));
  update();
}

// ---- configurations

function compare(root, data) {
  const [one, other] = ["one", "other"].map((name) => root.querySelector(`[data-choose="${name}"]`));
  const names = data.variants.map((variant) => variant.name);
  const heads = root.querySelectorAll("th"), said = root.querySelector(".said");
  const seeds = Object.fromEntries(data.variants.map((variant) => [variant.name, variant.seeds]));
  for (const select of [one, other]) fill(select, names);
  one.value = Math.max(0, names.indexOf(data.baseline));
  other.value = names.findIndex((name) => name !== data.baseline);
  if (other.selectedIndex < 0) other.value = one.value;

  function update() {
    const pair = [one, other].map((select) => names[select.value]);
    const [left, right] = pair.map((name) => data.settings[name]);
    const keys = [...new Set([...Object.keys(left), ...Object.keys(right)])].sort();
    const differing = keys.filter((key) => left[key] !== right[key]);
    const cell = (text) => make("td", { className: "text", textContent: text ?? "-" });
    pair.forEach((name, index) => { heads[index + 1].textContent = name; });
    root.querySelector("tbody").replaceChildren(
      ...differing.map((key) => make("tr", {}, ...[key, left[key], right[key]].map(cell))));
    const list = (name) => (seeds[name].length ? seeds[name].join(", ") : "none finished");
    const same = seeds[pair[0]].join() === seeds[pair[1]].join();
    said.textContent = `${keys.length - differing.length} settings are equal and not shown. ` +
      (same ? `Both have the finished seeds ${list(pair[0])}.`
        : `Finished seeds of the first: ${list(pair[0])}; of the second: ${list(pair[1])}.`);
  }

  one.addEventListener("change", update);
  other.addEventListener("change", update);
  update();
}

// ---- start

for (const table of document.querySelectorAll("table.sortable")) sortable(table);
for (const section of document.querySelectorAll("section.experiment")) {
  const data = JSON.parse(section.querySelector('script[type="application/json"]').textContent);
  for (const part of section.querySelectorAll(".script")) part.hidden = false;
  for (const [selector, run] of [[".explore", explore], [".gallery", browse], [".difference", compare]]) {
    const part = section.querySelector(selector);
    if (part) run(part, data);
  }
}
// A link opens what it points into, and what that is folded in.
function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", reveal);
document.querySelector("nav").addEventListener("click", (event) => {
  if (event.target.hash && event.target.hash === location.hash) reveal();  // no change of the hash, but folded again
});
if (matchMedia("(max-width: 75rem)").matches) document.querySelector("nav details").open = false;
reveal();
