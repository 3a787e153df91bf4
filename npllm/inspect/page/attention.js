// Attention

const held = new Map(); // for "layer.head", its weights, row after row: their square roots in 8 bits, or themselves
let scale = "log", skipFirst = false;

/** The layer and head of each map: those of data.heads, or all. */
const headsShown = () => data.heads
  ?? Array.from({ length: L * N }, (_, i) => [Math.floor(i / N), i % N]);

function holdMaps() {
  if (!data.attention) return;
  const packed = numbers(Uint8Array, data.attention), size = T * (T + 1) / 2;
  held.clear();
  headsShown().forEach(([layer, head], i) => held.set(`${layer}.${head}`, packed.subarray(i * size, (i + 1) * size)));
}

/** The attention weights of token `position` on the tokens up to itself; they sum to 1, or are all 0 if unknown. */
function row(layer, head, position) {
  let weights = held.get(`${layer}.${head}`), start = position * (position + 1) / 2;
  if (!weights) [weights, start] = [data.thumbs.maps, ((layer * N + head) * T + position) * T]; // a map of all tokens
  const roots = weights instanceof Uint8Array;
  const shares = Float64Array.from(weights.subarray(start, start + position + 1), (value) => (roots ? value ** 2 : value));
  if (skipFirst) shares[0] = 0;
  const sum = shares.reduce((a, b) => a + b, 0);
  return sum ? shares.map((share) => share / sum) : shares;
}

const shade = (share) => heat(scale === "log" ? logarithmic(share, 1e-3) : share);

/** Whether all weights of a head are there: not in a small picture of many tokens. */
const isKnown = (layer, head) => held.has(`${layer}.${head}`) || data.thumbs?.size === T;

function drawThumb(canvas, layer, head) {
  if (!isKnown(layer, head)) return drawPicture(canvas, data.thumbs, layer * N + head);
  const image = new ImageData(T, T), pixels = image.data;
  for (let position = 0; position < T; position++) {
    row(layer, head, position).forEach((share, key) => pixels.set([...shade(share), 255], 4 * (position * T + key)));
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Draw a small picture of many tokens: the largest weight in each cell. */
function drawPicture(canvas, { size, maps }, index) {
  const image = new ImageData(size, size);
  for (let place = 0; place < size * size; place++) {
    if (place % size > Math.floor(place / size)) continue; // no token attends to later ones
    image.data.set([...shade((maps[index * size * size + place] / 255) ** 2), 255], 4 * place);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/**
 * Where a head attends, averaged over all tokens but the first: to the first token, and to the token itself; and to the
 * one before it, averaged from the third token on, since the one before the second is the first.
 */
function habits(layer, head) {
  let first = 0, self = 0, before = 0;
  for (let position = 1; position < T; position++) {
    const shares = row(layer, head, position);
    first += shares[0] / (T - 1);
    self += shares[position] / (T - 1);
    if (position > 1) before += shares[position - 1] / (T - 2);
  }
  return { first, self, before };
}

function habitsInWords(layer, head) {
  const name = `Layer ${layer}, head ${head}`;
  if (!isKnown(layer, head)) return `${name}: each cell is the largest weight of several tokens. Enlarge it for the others.`;
  if (T === 1) return `${name}: there is only one token, and it attends to itself.`;
  const { first, self, before } = habits(layer, head);
  return `${name}: on average a token gives ${skipFirst ? "" : `${percent(first)} to the first token, `}${percent(self)} to itself`
    + `${T > 2 ? ` and, from the third token on, ${percent(before)} to the one before it` : ""}.`;
}

starts.attention = () => {
  for (const input of document.querySelectorAll("input[name=scale]")) {
    input.addEventListener("change", () => {
      scale = input.value;
      byId("scale-from").textContent = scale === "log" ? "0.1\u00a0%" : "0\u00a0%";
      paint();
    });
  }
  byId("skip-first").addEventListener("change", (event) => {
    skipFirst = event.target.checked;
    if (actions.reloadMaps) actions.reloadMaps();
    else show(data, ["attention"]);
  });
  startMap();
};

const thumbs = new Map(); // for "layer.head", the button with its small map

shows.attention = () => {
  holdMaps();
  thumbs.clear();
  Object.assign(map, { query: T - 1, key: 0 });
  byId("thumbs").replaceChildren();
  if (data.heads?.length === 1) return showOneMap(...data.heads[0]);
  const layers = [...new Set(headsShown().map(([layer]) => layer))].sort((a, b) => a - b);
  const heads = [...new Set(headsShown().map(([, head]) => head))].sort((a, b) => a - b);
  const grid = byId("thumbs"), places = [];
  grid.style.gridTemplateColumns = `max-content repeat(${layers.length}, minmax(1.75rem, ${data.heads ? "6rem" : "1fr"}))`;
  const every = layers.length > 16 ? 5 : 1;
  const axis = (text, kind = "") => el("span", { class: `axis ${kind}`, "aria-hidden": "true" }, text);
  grid.append(axis("layer", "head"), ...layers.map((layer) => axis(layer % every ? "" : String(layer))));
  for (const [i, head] of heads.entries()) {
    grid.append(axis(i ? String(head) : `head ${head}`, "head"));
    for (const layer of layers) {
      if (data.heads && !held.has(`${layer}.${head}`)) { grid.append(el("span")); continue; }
      const size = data.thumbs?.size ?? T, canvas = el("canvas", { width: size, height: size, "aria-hidden": "true" });
      canvas.style.imageRendering = size < 48 ? "pixelated" : "auto";
      const button = el("button", { type: "button", "aria-label": `layer ${layer}, head ${head}: enlarge` }, canvas);
      button.addEventListener("click", () => openMap(layer, head));
      thumbs.set(`${layer}.${head}`, button);
      places.push([layer, head]);
      grid.append(button);
    }
  }
  const look = (index) => { byId("thumb-reading").textContent = habitsInWords(...places[index]); };
  roving([...thumbs.values()], data.heads ? thumbs.size : L, look);
  look(0);
  return () => {
    [...thumbs.values()].forEach((button, index) => drawThumb(button.firstChild, ...places[index]));
    drawMap();
  };
};

/** A page with one map shows it enlarged, in its place. */
function showOneMap(layer, head) {
  byId("thumbs-scroll").replaceWith(byId("map"));
  byId("map").classList.add("in-place");
  byId("map").setAttribute("open", ""); // show() would move the focus
  byId("attention-words").textContent = "Which tokens each token attends to: a row for each token, a column for each token "
    + "that it can attend to, itself and those before it.";
  Object.assign(map, { layer, head });
  byId("thumb-reading").textContent = habitsInWords(layer, head);
  describeMap();
  return drawMap;
}

// The enlarged map: a canvas with a cursor that pointer and arrow keys move

const map = { layer: 0, head: 0, query: 0, key: 0, cell: 0, edge: 0 };

async function openMap(layer, head) {
  if (actions.loadMap && !await actions.loadMap(layer, head)) return;
  Object.assign(map, { layer, head, opener: document.activeElement });
  if (!byId("map").open) byId("map").showModal();
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
  const high = byId("map").classList.contains("in-place") ? 560 : window.innerHeight - 140;
  map.cell = between(Math.floor((Math.min(room, 720, high) - map.edge) / T), 10, 52);
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
  for (const [name, [layers, heads]] of Object.entries(NEIGHBOURS)) {
    const [l, h] = [layer + layers, head + heads];
    byId(name).disabled = data.attention ? !held.has(`${l}.${h}`) : l < 0 || l >= L || h < 0 || h >= N;
  }
}

function point(query, key) {
  query = between(query, 0, T - 1);
  key = between(key, 0, query);
  if (query === map.query && key === map.key) return;
  Object.assign(map, { query, key });
  drawMap();
  describeMap();
}

const NEIGHBOURS = { "layer-before": [-1, 0], "layer-after": [1, 0], "head-before": [0, -1], "head-after": [0, 1] };

function startMap() {
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
  for (const [name, [layers, heads]] of Object.entries(NEIGHBOURS)) {
    byId(name).addEventListener("click", async () => {
      if (actions.loadMap && !await actions.loadMap(map.layer + layers, map.head + heads)) return;
      map.layer += layers;
      map.head += heads;
      drawMap();
      describeMap();
    });
  }
  byId("map-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    if (map.opener?.closest("#thumbs")) thumbs.get(`${map.layer}.${map.head}`)?.focus();
  });
}
