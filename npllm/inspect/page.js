"use strict";
// This script draws the page from the JSON embedded next to it. Everything in the JSON is inserted as text, never as
// HTML: a prompt may contain anything.

const data = JSON.parse(document.getElementById("data").textContent);
const T = data.ids.length, L = data.model.layers, N = data.model.heads, V = data.model.vocab_size;
const byId = (id) => document.getElementById(id);


// Helpers

/** An element with attributes and children; a string child becomes a text node. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A typed array from base64, in little-endian order. */
function numbers(Kind, base64) {
  return new Kind(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer);
}

/** A token's text, with visible spaces and escaped unprintable characters; or its id, if it has no text. */
const label = (id) => data.vocabulary[id] ?? `#${id}`;
const quoted = (id) => `“${label(id)}”`;
const token = (id) => el("bdi", { class: "token" }, label(id));

/** A probability as a percentage with three significant digits. */
function percent(share) {
  if (!Number.isFinite(share)) return "NaN";
  if (share > 0 && share < 1e-6) return "<0.0001\u00a0%";
  return `${share === 0 ? "0" : String(Number((100 * share).toPrecision(15)).toPrecision(3))}\u00a0%`;
}

/** A large number with a unit prefix: 1.35 G. */
function amount(count) {
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (count >= size) return `${(count / size).toPrecision(3)}\u00a0${unit}`;
  }
  return `${count}\u00a0`;
}

const bytes = (count) => (count ? `${amount(count)}B` : "–");
const flops = (count) => (count ? `${amount(count)}FLOP` : "–");
const whole = (count) => count.toLocaleString("en");
const between = (value, low, high) => Math.min(Math.max(value, low), high);

/** Table cells: a row header, the header of a column of numbers, a number, and an empty one. */
const rowHead = (...children) => el("th", { scope: "row" }, ...children);
const columnHead = (...children) => el("th", { scope: "col", class: "number" }, ...children);
const number = (...children) => el("td", { class: "number" }, ...children);
const nothing = () => el("td", { class: "number out" }, "–");

/** The filled part of a bar. */
function filled(share) {
  const bar = el("div", { class: "bar" });
  bar.style.width = `${100 * (share || 0)}%`;
  return bar;
}

/** Probabilities as a list of bars. rows: [{id, share, is}]; `is` marks the token in the text. */
function bars(list, rows) {
  list.replaceChildren(...rows.map(({ id, share, is }) => el("li", { class: is ? "is" : null }, token(id),
    el("div", { class: "track" }, filled(share)), el("span", { class: "share" }, percent(share)))));
  return list;
}

/**
 * Make elements share one tab stop: arrow keys move among them, in rows of `columns` elements. `look` is called with the
 * index of the element that has the focus or the pointer.
 */
function roving(items, columns, look) {
  const moves = { ArrowRight: 1, ArrowLeft: -1 };
  if (columns < items.length) Object.assign(moves, { ArrowDown: columns, ArrowUp: -columns });
  const stop = (index) => items.forEach((item, i) => { item.tabIndex = i === index ? 0 : -1; });
  items.forEach((item, index) => {
    item.addEventListener("focus", () => { stop(index); look(index); });
    item.addEventListener("pointerenter", () => look(index));
    item.addEventListener("keydown", (event) => {
      const first = index - index % columns;
      const next = { Home: first, End: first + columns - 1 }[event.key] ?? index + moves[event.key];
      if (Number.isNaN(next)) return; // another key
      event.preventDefault();
      const inRow = event.key === "ArrowUp" || event.key === "ArrowDown" || (next >= first && next < first + columns);
      if (inRow) items[next]?.focus();
    });
  });
  stop(0);
}

/** The number after a key press, kept between bounds; null for a key that does not move it. */
function moved(event, value, low, high) {
  const next = { ArrowLeft: value - 1, ArrowRight: value + 1, Home: low, End: high }[event.key];
  if (next === undefined) return null;
  event.preventDefault();
  return between(next, low, high);
}


// Colour: one scale for all probabilities, from the background's colour to the text's.

const painters = []; // what to redraw when colours or sizes change
let heatColours = [];

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const stops = [0, 1, 2, 3].map((i) => {
    const hex = style.getPropertyValue(`--heat-${i}`).trim();
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  });
  heatColours = Array.from({ length: 256 }, (_, i) => {
    const place = i / 255 * 3, from = Math.min(Math.floor(place), 2);
    return stops[from].map((value, channel) => Math.round(value + (stops[from + 1][channel] - value) * (place - from)));
  });
}

/** The colour of a level from 0 to 1. */
const heat = (level) => heatColours[Math.round(255 * between(Number.isFinite(level) ? level : 0, 0, 1))];

const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

/** Black or white, whichever has more contrast on a colour, by relative luminance as in WCAG. */
function inkOn(colour) {
  const [r, g, b] = colour.map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000000" : "#ffffff";
}

/** Give an element a level's background colour, and a text colour with enough contrast. */
function tint(element, level) {
  element.style.backgroundColor = css(heat(level));
  element.style.color = inkOn(heat(level));
}

/** A probability on a logarithmic scale from `least` to 1. */
const logarithmic = (share, least) => (share > 0 ? 1 - Math.log(share) / Math.log(least) : 0);

function paint() {
  readColours();
  for (const painter of painters) painter();
}


// The header of the page, and the figures and source lines below each title

function source({ path, line, name }) {
  const address = `${path}:${line}`;
  return [el("a", { href: `#${address}` }, el("code", {}, address)), name ? ` ${name}` : ""];
}

const figure = (numbers) => `${/,|to/.test(numbers) ? "Figures" : "Figure"} ${numbers}`;

function head() {
  const { model } = data;
  document.title = `${data.text.slice(0, 60)} – npllm inspect`;
  byId("model").textContent = `· ${model.name}`;
  byId("text").textContent = data.text;
  byId("text").classList.toggle("long", data.text.length > 90);
  if (byId("text").scrollHeight > byId("text").clientHeight) byId("text").tabIndex = 0; // makes it scrollable by keyboard
  byId("facts").textContent = [
    `${whole(T)} ${T === 1 ? "token" : "tokens"}`, `${L} blocks`, `${N} heads`, `${model.kv_heads} key/value heads`,
    `vectors of ${whole(model.hidden_size)}`, `vocabulary of ${whole(V)}`, `context of ${whole(model.context)}`,
  ].join(" · ");
  for (const [id, { figures, sources }] of Object.entries(data.sections)) {
    const parts = sources.flatMap((one) => ["  ·  ", ...source(one)]);
    byId(`${id}-title`).after(el("p", { class: "where" }, figure(figures), ...parts));
  }
  byId("made-by").textContent = `Made by npllm ${data.version} from one forward pass; attention weights are stored in `
    + "8 bits. This page loads nothing from the network.";
  const wrong = Object.entries(data.not_finite);
  if (wrong.length) {
    byId("not-finite").hidden = false;
    byId("not-finite").append(
      ...wrong.slice(0, 5).map(([name, count]) =>
        el("p", {}, el("code", {}, name), `: ${whole(count)} elements are NaN or infinite`)),
      ...(wrong.length > 5 ? [el("p", {}, `and ${wrong.length - 5} more values after these`)] : []));
  }
}


// Tokens

const given = numbers(Float32Array, data.given); // the probability that the model gave each token
const lensIds = numbers(Uint32Array, data.lens.ids); // [L + 1, T, k]
const lensShares = numbers(Float32Array, data.lens.shares);
const lensNext = numbers(Float32Array, data.lens.next); // [L + 1, T]

/** The k likeliest tokens after a position, in a row of the lens: 0 is the embedding, L the last block. */
function alternatives(row, position) {
  const k = data.lens.k, start = (row * T + position) * k, follows = data.ids[position + 1];
  const best = Array.from({ length: k }, (_, i) =>
    ({ id: lensIds[start + i], share: lensShares[start + i], is: lensIds[start + i] === follows }));
  if (position + 1 < T && !best.some((one) => one.is)) {
    best.push({ id: follows, share: lensNext[row * T + position], is: true });
  }
  return best;
}

function tokens() {
  const detail = byId("token-detail");
  const buttons = data.ids.map((id, position) => {
    const odds = position ? `${percent(given[position])}, rank ${whole(data.ranks[position])}` : "the first";
    return el("button", {
      type: "button", "aria-pressed": "false", "aria-label": `token ${position}, ${label(id)}, ${odds}`,
      class: [position ? "" : "unread", position >= data.prompt_length ? "new" : ""].join(" ").trim(),
    }, token(id), el("span", { class: "id" }, String(id)));
  });
  byId("token-list").append(...buttons);
  byId("new-tokens").hidden = data.prompt_length === T;

  function look(position) {
    const id = data.ids[position];
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === position)));
    const about = el("div", {}, el("p", { class: "big" }, token(id)),
      el("p", { class: "note" }, `token ${position} of ${T} · id ${id}`),
      el("p", { class: "note" }, `bytes ${data.bytes[position] ?? "unknown"}`));
    const expected = el("div");
    if (position) {
      about.append(el("p", {}, `The model gave it ${percent(given[position])}: `
        + `${data.ranks[position] === 1 ? "the likeliest" : `rank ${whole(data.ranks[position])} of ${whole(V)}`}.`));
      expected.append(el("h3", {}, "What it expected after ", token(data.ids[position - 1])),
        bars(el("ol", { class: "bars" }), alternatives(L, position - 1)));
    } else {
      expected.append(el("p", {}, "The first token has no predecessor, so the model cannot predict it."));
    }
    detail.replaceChildren(about, expected);
  }

  roving(buttons, T, look);
  buttons.forEach((button, position) => button.addEventListener("click", () => button.focus()));
  painters.push(() => buttons.forEach((button, position) => {
    if (position) tint(button, logarithmic(given[position], 1e-4));
  }));
  look(T - 1);
}


// Shapes

function flow() {
  const item = (value) => el("li", { class: value.name.startsWith("residual_after") ? "adds" : null },
    el("div", { class: "line" }, el("span", { class: "name" }, value.name),
      el("span", { class: "shape" }, el("span", { class: "letters" }, `[${value.letters.split(" ").join(", ")}] = `),
        `[${value.shape.map(whole).join(", ")}]`)),
    el("div", { class: "words" }, `${value.words} · `, el("span", {}, ...source(value.source)), " · ",
      el("span", {}, figure(value.figures))));
  const list = (group) => el("ol", {}, ...data.flow.filter((value) => value.group === group).map(item));
  byId("flow-chart").append(
    el("div", { class: "outside" }, list("before")),
    el("div", { class: "block" }, el("h3", {}, L === 1 ? "1 block" : `${L} blocks in sequence, each:`),
      el("div", { class: "halves" },
        el("div", {}, el("h3", {}, "Attention: information from other tokens"), list("attention")),
        el("div", {}, el("h3", {}, "Feedforward network: each token on its own"), list("feedforward")))),
    el("div", { class: "outside" }, list("after")));
  const letters = Object.entries(data.letters).map(([letter, words]) => `${letter} ${words}`);
  byId("letters").textContent = letters.join(" · ");
}


// Attention

const packedWeights = numbers(Uint8Array, data.attention); // the square root of each share in 8 bits, row after row
const TRIANGLE = T * (T + 1) / 2;
let scale = "log";

/** The attention weights of token `position` on the tokens up to itself; they sum to 1, or are all 0 if unknown. */
function row(layer, head, position) {
  const start = (layer * N + head) * TRIANGLE + position * (position + 1) / 2;
  const shares = Float64Array.from(packedWeights.subarray(start, start + position + 1), (root) => root * root);
  const sum = shares.reduce((a, b) => a + b, 0);
  return sum ? shares.map((share) => share / sum) : shares;
}

const shade = (share) => heat(scale === "log" ? logarithmic(share, 1e-3) : share);

function drawThumb(canvas, layer, head) {
  const image = new ImageData(T, T), pixels = image.data;
  for (let position = 0; position < T; position++) {
    row(layer, head, position).forEach((share, key) => pixels.set([...shade(share), 255], 4 * (position * T + key)));
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** A sentence on where a head attends, averaged over all tokens but the first. */
function habits(layer, head) {
  const name = `Layer ${layer}, head ${head}`;
  if (T === 1) return `${name}: there is only one token, and it attends to itself.`;
  let first = 0, self = 0, before = 0;
  for (let position = 1; position < T; position++) {
    const shares = row(layer, head, position);
    first += shares[0] / (T - 1);
    self += shares[position] / (T - 1);
    before += shares[position - 1] / (T - 1);
  }
  return `${name}: on average a token gives ${percent(first)} to the first token, ${percent(self)} to itself`
    + ` and ${percent(before)} to the one before it.`;
}

function attention() {
  const grid = byId("thumbs"), buttons = [];
  grid.style.gridTemplateColumns = `max-content repeat(${L}, minmax(1.75rem, 1fr))`;
  const every = L > 16 ? 5 : 1;
  const axis = (text, kind = "") => el("span", { class: `axis ${kind}`, "aria-hidden": "true" }, text);
  const layers = Array.from({ length: L }, (_, layer) => axis(layer % every ? "" : String(layer)));
  grid.append(axis("layer", "head"), ...layers);
  for (let head = 0; head < N; head++) {
    grid.append(axis(head ? String(head) : "head 0", "head"));
    for (let layer = 0; layer < L; layer++) {
      const canvas = el("canvas", { width: T, height: T, "aria-hidden": "true" });
      canvas.style.imageRendering = T < 48 ? "pixelated" : "auto";
      const button = el("button", { type: "button", "aria-label": `layer ${layer}, head ${head}: enlarge` }, canvas);
      button.addEventListener("click", () => openMap(layer, head));
      buttons.push(button);
      grid.append(button);
    }
  }
  const look = (index) => { byId("thumb-reading").textContent = habits(index % L, Math.floor(index / L)); };
  roving(buttons, L, look);
  look(0);
  painters.push(() => buttons.forEach((button, index) => {
    drawThumb(button.firstChild, index % L, Math.floor(index / L));
  }));
  for (const input of document.querySelectorAll("input[name=scale]")) {
    input.addEventListener("change", () => {
      scale = input.value;
      byId("scale-from").textContent = scale === "log" ? "0.1\u00a0%" : "0\u00a0%";
      paint();
    });
  }
  return (layer, head) => buttons[head * L + layer];
}

// The enlarged map: a canvas with a cursor that pointer and arrow keys move

const map = { layer: 0, head: 0, query: T - 1, key: 0, cell: 0, edge: 0 };

function openMap(layer, head) {
  Object.assign(map, { layer, head });
  byId("map").showModal();
  drawMap();
  describeMap();
  byId("map-canvas").focus();
}

function drawMap() {
  if (!byId("map").open) return;
  const canvas = byId("map-canvas"), context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, mark] = ["--ink", "--soft", "--warm"].map((name) => style.getPropertyValue(name).trim());
  const family = style.getPropertyValue("--mono");
  const room = byId("map-scroll").clientWidth - 10;
  const font = (size, weight = "") => { context.font = `${weight} ${size}px ${family}`; };
  font(12);
  map.edge = Math.round(between(Math.max(...data.ids.map((id) => context.measureText(label(id)).width)) + 12, 30, 118));
  map.cell = between(Math.floor((Math.min(room, 720, window.innerHeight - 140) - map.edge) / T), 10, 52);
  const side = map.edge + map.cell * T + 2, ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(side * ratio);
  canvas.style.width = canvas.style.height = `${side}px`;
  context.scale(ratio, ratio);
  const size = between(map.cell - 1, 9, 12), gap = map.cell >= 18 ? 1 : 0;
  const fitted = (id) => {
    let text = label(id);
    while (text.length > 1 && context.measureText(text).width > map.edge - 10) text = `${text.slice(0, -2)}…`;
    return text;
  };
  context.textBaseline = "middle";
  data.ids.forEach((id, i) => {
    const middle = map.edge + (i + 0.5) * map.cell;
    context.fillStyle = i === map.query ? ink : soft;
    font(size, i === map.query ? "bold" : "");
    context.textAlign = "right";
    context.fillText(fitted(id), map.edge - 6, middle);
    context.save();
    context.translate(middle, map.edge - 6);
    context.rotate(-Math.PI / 2);
    context.fillStyle = i === map.key ? ink : soft;
    font(size, i === map.key ? "bold" : "");
    context.textAlign = "left";
    context.fillText(fitted(id), 0, 0);
    context.restore();
  });
  for (let query = 0; query < T; query++) {
    row(map.layer, map.head, query).forEach((share, key) => {
      const colour = shade(share);
      const x = map.edge + key * map.cell, y = map.edge + query * map.cell;
      context.fillStyle = css(colour);
      context.fillRect(x, y, map.cell - gap, map.cell - gap);
      if (map.cell >= 34) {
        context.fillStyle = inkOn(colour);
        context.textAlign = "center";
        font(11);
        context.fillText(String(Math.round(100 * share)), x + map.cell / 2, y + map.cell / 2);
      }
    });
  }
  context.strokeStyle = mark;
  context.lineWidth = 1;
  const left = map.edge + map.key * map.cell, top = map.edge + map.query * map.cell;
  context.strokeRect(map.edge - 0.5, top - 0.5, (map.query + 1) * map.cell + 1, map.cell + 1);
  context.lineWidth = map.cell < 16 ? 2 : 3;
  context.strokeRect(left - 1, top - 1, map.cell + 2, map.cell + 2);
}

/** Show the weight under the cursor, and its whole row. */
function describeMap() {
  const { layer, head, query, key } = map, shares = row(layer, head, query);
  const sum = shares.reduce((a, b) => a + b, 0);
  byId("map-title").textContent = `Layer ${layer}, head ${head}`;
  byId("map-canvas").setAttribute("aria-label",
    `Attention map of layer ${layer}, head ${head}, ${T} tokens. Arrow keys move; ${quoted(data.ids[query])} attends to `
    + `${quoted(data.ids[key])}: ${percent(shares[key])}`);
  byId("map-reading").replaceChildren(token(data.ids[query]), ` (${query}) attends to `, token(data.ids[key]),
    ` (${key}): `, el("strong", {}, percent(shares[key])));
  const list = bars(byId("map-row"), Array.from(shares, (share, i) => ({ id: data.ids[i], share, is: i === key })));
  list.scrollTop = list.children[key].offsetTop - list.offsetTop - list.clientHeight / 2;
  byId("map-sum").textContent = sum ? `The row sums to ${percent(sum)}.` : "The weights of this row are not numbers.";
  byId("layer-before").disabled = layer === 0;
  byId("layer-after").disabled = layer === L - 1;
  byId("head-before").disabled = head === 0;
  byId("head-after").disabled = head === N - 1;
}

function point(query, key) {
  query = between(query, 0, T - 1);
  key = between(key, 0, query);
  if (query === map.query && key === map.key) return;
  Object.assign(map, { query, key });
  drawMap();
  describeMap();
}

function mapDialog(thumb) {
  const canvas = byId("map-canvas"), dialog = byId("map");
  canvas.addEventListener("pointermove", (event) => {
    const query = Math.floor((event.offsetY - map.edge) / map.cell);
    const key = Math.floor((event.offsetX - map.edge) / map.cell);
    if (query >= 0 && key >= 0) point(query, key);
  });
  canvas.addEventListener("keydown", (event) => {
    const to = {
      ArrowUp: [map.query - 1, map.key], ArrowDown: [map.query + 1, map.key], ArrowLeft: [map.query, map.key - 1],
      ArrowRight: [map.query, map.key + 1], Home: [map.query, 0], End: [map.query, map.query],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    point(...to);
    byId("map-scroll").scrollTop = Math.max(0, map.edge + map.query * map.cell - byId("map-scroll").clientHeight / 2);
  });
  const go = (layer, head) => () => {
    map.layer = between(map.layer + layer, 0, L - 1);
    map.head = between(map.head + head, 0, N - 1);
    drawMap();
    describeMap();
  };
  byId("layer-before").addEventListener("click", go(-1, 0));
  byId("layer-after").addEventListener("click", go(1, 0));
  byId("head-before").addEventListener("click", go(0, -1));
  byId("head-after").addEventListener("click", go(0, 1));
  byId("map-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => thumb(map.layer, map.head).focus());
  painters.push(drawMap);
}


// Logit lens

function lens() {
  const k = data.lens.k, cells = [];
  const table = el("table", { class: "lens" });
  const heads = data.ids.map((id, position) =>
    el("th", { scope: "col", title: `token ${position}: ${label(id)}` }, token(id)));
  table.append(el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "after"), ...heads)));
  const body = el("tbody");
  for (let at = 0; at <= L; at++) {
    const name = at ? `block ${at - 1}` : "embedding";
    const line = el("tr", {}, el("th", { scope: "row" }, name));
    for (let position = 0; position < T; position++) {
      const best = (at * T + position) * k, is = lensIds[best] === data.ids[position + 1];
      const cell = el("td", { class: is ? "is" : null }, token(lensIds[best]));
      cells.push(cell);
      line.append(cell);
    }
    body.append(line);
  }
  table.append(body);
  table.setAttribute("role", "grid");
  table.setAttribute("aria-label", "Logit lens: a row for each block, a column for each token. Arrow keys move.");
  byId("lens-scroll").append(table);

  function look(index) {
    const at = Math.floor(index / T), position = index % T;
    const where = at ? `after block ${at - 1}` : "from the embedding alone";
    const about = el("div", {}, el("p", { class: "big" }, token(data.ids[position])),
      el("p", { class: "note" }, `token ${position}, ${where}`));
    if (position + 1 < T) {
      about.append(el("p", {}, "The actual next token, ", token(data.ids[position + 1]), ", has ",
        percent(lensNext[at * T + position]), " here."));
    } else {
      about.append(el("p", {}, "The text ends here; this is the model's prediction."));
    }
    byId("lens-detail").replaceChildren(about, el("div", {}, el("h3", {}, "It would predict"),
      bars(el("ol", { class: "bars" }), alternatives(at, position))));
  }

  roving(cells, T, look);
  look(cells.length - 1);
  painters.push(() => cells.forEach((cell, index) => tint(cell, lensShares[index * k])));
}


// Residual stream

function norms() {
  const added = { // a name, a colour and a pattern of dashes for each curve
    residual: ["the residual stream", "--ink", ""],
    attention: ["attention adds", "--accent", "7 3"],
    feedforward: ["the feedforward network adds", "--warm", "2 3"],
  };
  const values = Object.fromEntries(Object.keys(added).map((name) => [name, numbers(Float32Array, data.norms[name])]));
  const chart = byId("norms-chart"), slider = byId("norms-token");
  let at = L; // 0 is the embedding, before anything is added
  slider.max = T - 1;
  slider.value = T - 1;
  const length = (name, place) => values[name][place * T + Number(slider.value)];

  function draw() {
    const position = Number(slider.value), width = Math.max(chart.clientWidth, 220), height = 300;
    const box = { left: 44, right: width - 8, top: 30, bottom: height - 40 };
    const all = Object.keys(added).flatMap((name) => Array.from({ length: L + 1 }, (_, place) => length(name, place)))
      .filter((value) => Number.isFinite(value) && value > 0).map(Math.log10);
    const low = Math.floor(Math.min(0, ...all) * 2) / 2, high = Math.ceil(Math.max(low + 1, ...all) * 2) / 2;
    const x = (place) => box.left + (box.right - box.left) * place / L;
    const y = (value) => box.bottom - (box.bottom - box.top) * (Math.log10(value) - low) / (high - low);
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (let power = Math.ceil(low); power <= high; power++) {
      const at = y(10 ** power);
      drawing.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }),
        svg("text", { x: box.left - 6, y: at + 4, "text-anchor": "end" }, whole(10 ** power)));
    }
    const every = Math.ceil(L / Math.max(2, Math.floor(width / 70)));
    for (let place = 1; place <= L; place += every) {
      drawing.append(svg("text", { x: x(place), y: box.bottom + 18, "text-anchor": "middle" }, String(place - 1)));
    }
    drawing.append(svg("text", { x: box.left, y: height - 4 }, "from the embedding"),
      svg("text", { x: box.right, y: height - 4, "text-anchor": "end" }, "to after the last block"),
      svg("line", { class: "at", x1: x(at), x2: x(at), y1: box.top, y2: box.bottom }));
    let legend = box.left;
    for (const [name, [words, colour, dashes]] of Object.entries(added)) {
      let path = "", pen = "M";
      for (let place = 0; place <= L; place++) {
        const value = length(name, place);
        if (!(value > 0 && Number.isFinite(value))) { pen = "M"; continue; }
        path += `${pen}${x(place).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = "L";
      }
      const curve = svg("path", { class: "curve", d: path, "stroke-dasharray": dashes });
      const sample = svg("path", { class: "curve", d: `M${legend} 10h26`, "stroke-dasharray": dashes });
      curve.style.stroke = sample.style.stroke = `var(${colour})`;
      const short = width < 520 ? name : words;
      drawing.append(curve, sample, svg("text", { x: legend + 32, y: 14 }, short));
      legend += (short === words ? 56 : 42) + 6.6 * short.length;
      if (length(name, at) > 0) {
        const dot = svg("circle", { cx: x(at), cy: y(length(name, at)), r: 4 });
        dot.style.fill = `var(${colour})`;
        drawing.append(dot);
      }
    }
    chart.replaceChildren(drawing);
    const written = (name) => (Number.isFinite(length(name, at)) ? length(name, at).toPrecision(4) : "NaN");
    byId("norms-token-value").replaceChildren(`${position} `, token(data.ids[position]));
    const reading = at
      ? `Block ${at - 1}: attention adds a vector of norm ${written("attention")}, the feedforward network one of `
        + `${written("feedforward")}; the residual stream then has norm ${written("residual")}.`
      : `Embedding: the residual stream begins with norm ${written("residual")}.`;
    byId("norms-reading").textContent = reading;
    chart.setAttribute("aria-label", `Norms at token ${position}, arrow keys move from block to block. ${reading}`);
  }

  chart.addEventListener("pointermove", (event) => {
    const frame = chart.getBoundingClientRect();
    const next = between(Math.round((event.clientX - frame.left - 44) / (frame.width - 52) * L), 0, L);
    if (next !== at) { at = next; draw(); }
  });
  chart.addEventListener("keydown", (event) => {
    const next = moved(event, at, 0, L);
    if (next !== null) { at = next; draw(); }
  });
  slider.addEventListener("input", draw);
  painters.push(draw);
}


// The next token: the steps of npllm's sampling.choose. Each keeps the likeliest tokens, so what remains is a prefix of
// the tokens sorted by probability.

const logits = numbers(Float32Array, data.logits);
const order = Uint32Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
const sorted = Float64Array.from(order, (id) => logits[id]);
const rank = new Uint32Array(V);
order.forEach((id, place) => { rank[id] = place; });

/** The probabilities of the `left` likeliest tokens, likeliest first. */
function shares(temperature, left) {
  const all = sorted.subarray(0, left).map((logit) => Math.exp((logit - sorted[0]) / temperature));
  const sum = all.reduce((a, b) => a + b, 0);
  return all.map((share) => share / sum);
}

/** `left`, extended to the tokens that tie with the last one kept. */
function withTies(left) {
  while (left < V && sorted[left] === sorted[left - 1]) left++;
  return left;
}

/** What remains after each step: [{name, shares}], the probabilities of the kept tokens. Temperature 0 is greedy. */
function funnel({ temperature, top_k, top_p, min_p }) {
  const steps = [{ name: "logits", shares: shares(1, V) }];
  if (temperature === 0) return [...steps, { name: "greedy", shares: Float64Array.of(1) }];
  steps.push({ name: "temperature", shares: shares(temperature, V) });
  let left = V;
  if (top_k > 0) {
    left = withTies(Math.min(top_k, V));
    steps.push({ name: "top_k", shares: shares(temperature, left) });
  }
  if (top_p < 1) {
    const before = steps.at(-1).shares;
    let sum = 0, kept = 0;
    while (kept < left && sum < top_p) sum += before[kept++];
    left = Math.min(withTies(kept), left);
    steps.push({ name: "top_p", shares: shares(temperature, left) });
  }
  if (min_p > 0) {
    const before = steps.at(-1).shares;
    let kept = 1;
    while (kept < left && before[kept] >= min_p * before[0]) kept++;
    left = kept;
    steps.push({ name: "min_p", shares: shares(temperature, left) });
  }
  return steps;
}

/** The `left` likeliest tokens in the order of their ids. */
const byOrderOfIds = (left) => order.slice(0, left).sort();

/** The token at which the cumulative probability, in the order of the ids, exceeds `uniform`. */
function draw(shares, uniform) {
  let sum = 0;
  const ids = byOrderOfIds(shares.length);
  return ids.find((id) => (sum += shares[rank[id]]) > uniform) ?? ids.at(-1);
}

function sampling() {
  const SHOWN = 12;
  const settings = { temperature: 1, top_k: 40, top_p: 0.95, min_p: 0, uniform: 0.5 };
  const counts = [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 100, 200, 500, 1000, 10000]
    .filter((count) => count <= V);
  const off = (words) => (value) => (value ? String(value) : words);
  const sliders = [ // name, words, from, to, step, the value at a place, how to write it
    ["temperature", "temperature", 0, 2, 0.05, (place) => place, (t) => (t ? t.toFixed(2) : "0: greedy")],
    ["top_k", "top-k", 0, counts.length - 1, 1, (place) => counts[place], off("off")],
    ["top_p", "top-p", 0.01, 1, 0.01, (place) => place, (p) => (p < 1 ? p.toFixed(2) : "off")],
    ["min_p", "min-p", 0, 0.5, 0.01, (place) => place, (p) => (p ? p.toFixed(2) : "off")],
    ["uniform", "random number", 0, 0.999, 0.001, (place) => place, (u) => u.toFixed(3)],
  ];
  const update = new Map();
  for (const [name, words, min, max, step, value, write] of sliders) {
    const input = el("input", { type: "range", id: `set-${name}`, min, max, step });
    const output = el("output", { id: `value-${name}`, for: `set-${name}` });
    const start = name === "top_k" ? Math.max(counts.indexOf(settings.top_k), 0) : settings[name];
    update.set(name, (place) => {
      if (place !== undefined) input.value = place;
      settings[name] = value(Number(input.value));
      output.textContent = write(settings[name]);
      input.setAttribute("aria-valuetext", write(settings[name]));
    });
    input.addEventListener("input", () => { update.get(name)(); show(); });
    update.get(name)(start);
    byId("sliders").append(el("label", { class: "slider", for: `set-${name}` }, el("span", {}, words), input, output));
  }
  const button = el("button", { type: "button", id: "another" }, "another random number");
  button.addEventListener("click", () => { update.get("uniform")(Math.random() * 0.999); show(); });
  byId("sliders").append(button);

  const words = { logits: "all tokens", top_k: "top-k", top_p: "top-p", min_p: "min-p" }; // else as they are

  function show() {
    if (!logits.every(Number.isFinite)) {
      byId("drawn").textContent = "The logits of the last token are not all finite, so no token can be chosen.";
      return;
    }
    const steps = funnel(settings), last = steps.at(-1).shares;
    const cell = (share) => (share === undefined ? nothing() : number(percent(share)));
    const rows = Array.from(order.subarray(0, SHOWN), (id, place) => el("tr", {}, rowHead(token(id)),
      ...steps.map((step) => cell(step.shares[place])),
      el("td", { class: "share" }, el("div", { class: "track" }, filled(last[place])))));
    const others = (step) =>
      (step.shares.length > SHOWN ? step.shares.subarray(SHOWN).reduce((a, b) => a + b, 0) : undefined);
    const heads = steps.map((step) =>
      columnHead(words[step.name] ?? step.name, el("br"), `${whole(step.shares.length)} left`));
    byId("funnel-table").replaceChildren(
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "token"), ...heads, el("td"))),
      el("tbody", {}, ...rows,
        el("tr", {}, rowHead("all others"), ...steps.map((step) => cell(others(step))), el("td"))));
    const greedy = steps.at(-1).name === "greedy", drawn = greedy ? order[0] : draw(last, settings.uniform);
    strip(last, drawn);
    byId("drawn").replaceChildren(
      greedy ? "Greedy decoding takes the likeliest: " : `The random number ${settings.uniform.toFixed(3)} falls on `,
      token(drawn), `, which has ${percent(last[rank[drawn]])}.`);
    byId("strip").setAttribute("aria-label",
      `The range from 0 to 1, with a part for each token; ${quoted(drawn)} is drawn.`);
  }

  /** The range from 0 to 1, divided among the remaining tokens by probability, in the order of the ids. */
  function strip(last, drawn) {
    const parts = [];
    let from = 0;
    for (const id of byOrderOfIds(last.length)) {
      const share = last[rank[id]];
      if (share >= 0.002 || id === drawn) {
        const part = el("div", { class: "part" }, share > 0.04 ? token(id) : "");
        part.style.left = `${100 * from}%`;
        part.style.width = `${100 * share}%`;
        tint(part, id === drawn ? 0.75 : 0.35);
        parts.push(part);
      }
      from += share;
    }
    const mark = el("div", { class: "mark" });
    mark.style.left = `${100 * settings.uniform}%`;
    byId("strip").replaceChildren(...parts, ...(settings.temperature ? [mark] : []));
  }

  painters.push(show);
}


// The KV cache

function cache() {
  const steps = data.cache.steps, slider = byId("cache-step"), most = steps.at(-1).tokens;
  slider.max = steps.length;
  slider.value = Math.min(2, steps.length);
  const made = (step) => (step.made === null ? "a new token" : label(step.made));

  function chart(title, computed, step) {
    const room = byId("cache-charts").clientWidth, width = room > 680 ? (room - 40) / 2 : Math.max(room, 240);
    const left = 84, high = 15, cell = (width - left) / most;
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${steps.length * (high + 3)}`, "aria-hidden": "true" });
    steps.forEach((one, i) => {
      const y = i * (high + 3), fresh = computed(one), old = one.tokens - fresh;
      const name = made(one).length > 11 ? `${made(one).slice(0, 10)}…` : made(one);
      drawing.append(svg("g", i >= step ? { class: "later" } : {},
        svg("text", { x: left - 8, y: y + high - 3, "text-anchor": "end" }, name),
        svg("rect", { class: "read", x: left, y, width: cell * old, height: high }),
        svg("rect", { class: "computed", x: left + cell * old, y, width: cell * fresh, height: high })));
    });
    for (let i = 1; i < most && cell >= 4; i++) { // between the tokens
      const gap = svg("rect", { x: left + i * cell - 0.5, y: 0, width: 1, height: steps.length * (high + 3) });
      gap.style.fill = "var(--paper)";
      drawing.append(gap);
    }
    return el("div", {}, el("h3", {}, title), drawing);
  }

  function show() {
    const step = Number(slider.value), now = steps[step - 1], sum = (how, what) =>
      steps.slice(0, step).reduce((total, one) => total + one[how][what], 0);
    byId("cache-step-value").replaceChildren(`${step} of ${steps.length}`);
    slider.setAttribute("aria-valuetext", `step ${step} of ${steps.length}, makes ${made(now)}`);
    byId("cache-charts").replaceChildren(
      chart("With the cache", (one) => one.with.streams, step), chart("Without it", (one) => one.tokens, step));
    const line = (name, write, how) =>
      el("tr", {}, rowHead(name), number(write(how("with"))), number(write(how("without"))));
    byId("cache-table").replaceChildren(
      el("thead", {}, el("tr", {}, el("td"), columnHead("with the cache"), columnHead("without"))),
      el("tbody", {},
        line("streams computed in this step", whole, (how) => now[how].streams),
        line("arithmetic of this step", flops, (how) => now[how].flops),
        line("bytes read in this step", bytes, (how) => now[how].bytes),
        line("streams computed so far", whole, (how) => sum(how, "streams")),
        line("arithmetic so far", flops, (how) => sum(how, "flops")),
        line("the cache holds", bytes, (how) => (how === "with" ? now.cache_bytes : 0))));
  }

  slider.addEventListener("input", show);
  painters.push(show);
}


// Cost

function cost() {
  const parts = data.cost.text.map((text, i) => [text, data.cost.next_token[i]]);
  const [all, one] = parts.at(-1);
  const read = (part) => part.weight_bytes + part.cache_bytes;
  const cell = (write, part, all) => number(write(part), el("div", { class: "track" }, filled(part / all)));
  const pair = (words) => el("th", { scope: "colgroup", colspan: 2, class: "number" }, words);
  byId("cost-table").append(
    el("thead", {},
      el("tr", {}, el("td"), pair(`the text in one pass, ${T} tokens`), pair("one more token, with the cache")),
      el("tr", {}, el("th", { scope: "col" }, "part"), columnHead("arithmetic"), columnHead("reads"),
        columnHead("arithmetic"), columnHead("reads"))),
    el("tbody", {}, ...parts.map(([text, next]) => el("tr", { class: text === all ? "total" : null },
      rowHead(text.part), cell(flops, text.flops, all.flops), cell(bytes, read(text), read(all)),
      cell(flops, next.flops, one.flops), cell(bytes, read(next), read(one))))));
}


// The source: every line has an anchor. A file's lines are filled in when it is opened or a link leads to it

function listings() {
  const files = {};
  for (const [path, text] of Object.entries(data.listings)) {
    const lines = el("pre", { tabindex: 0, "aria-label": path });
    const file = el("details", {}, el("summary", {}, el("code", {}, path)), lines);
    const fill = () => {
      if (lines.childElementCount) return;
      lines.append(...text.trimEnd().split("\n").map((line, i) =>
        el("code", { id: `${path}:${i + 1}`, "data-number": i + 1 }, `${line}\n`)));
    };
    file.addEventListener("toggle", fill);
    files[path] = { file, fill };
    byId("listings").append(file);
  }
  function follow() {
    const address = decodeURIComponent(location.hash.slice(1));
    const found = files[address.replace(/:\d+$/, "")];
    if (!found) return;
    found.fill();
    found.file.open = true;
    const line = byId(address);
    for (const before of document.querySelectorAll("code.here")) before.classList.remove("here");
    line.classList.add("here");
    line.scrollIntoView({ block: "center" });
  }
  window.addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => { // following a link again does not change the address
    if (location.hash && event.target.closest("a")?.hash === location.hash) follow();
  });
  follow();
}


head();
tokens();
flow();
const thumb = attention();
mapDialog(thumb);
lens();
norms();
sampling();
cache();
cost();
listings();
paint();
for (const scroll of document.querySelectorAll(".scroll")) { // scrollable parts must be reachable by keyboard
  if (!scroll.querySelector("[tabindex], button, canvas")) scroll.tabIndex = 0;
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
let resized = 0;
window.addEventListener("resize", () => {
  cancelAnimationFrame(resized);
  resized = requestAnimationFrame(paint);
});
document.documentElement.dataset.ready = "true";
