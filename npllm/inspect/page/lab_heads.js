// Where to look: heads by what they attend to

const KIND_WORDS = { first_token: "first-token sink", previous_token: "previous token", same_token: "same token",
  induction: "induction" };
let kind = "induction";

loads.heads = async () => {
  const found = await ask("heads", { run });
  show({ ...data, found }, ["heads"]);
};

shows.heads = () => {
  const { found } = data;
  if (!found) return undefined;
  const scores = Object.fromEntries(Object.entries(found.scores).map(([name, packed]) =>
    [name, numbers(Float32Array, packed)]));
  if (byId("kinds").childElementCount < 2) {
    for (const [name, words] of Object.entries(KIND_WORDS)) {
      const input = el("input", { type: "radio", name: "kind", value: name, checked: name === kind });
      input.addEventListener("change", () => { kind = name; show(data, ["heads"]); });
      byId("kinds").append(el("label", {}, input, ` ${words}`));
    }
  }
  byId("kind-words").textContent = found.kinds[kind].definition;
  const values = scores[kind], name = (i) => `layer ${Math.floor(i / N)}, head ${i % N}`;
  const label = (i) => found.labels[Math.floor(i / N)][i % N];
  const places = Array.from({ length: L * N }, (_, i) => (i % L) * N + Math.floor(i / L)); // rows of heads
  const cells = places.map((i) => ({ name: `${name(i)}: ${fixed(values[i])}`, level: Math.max(0, values[i]) }));
  const words = (i) => `Layer ${Math.floor(i / N)}, head ${i % N}: ${Object.entries(KIND_WORDS).map(([key, what]) =>
    `${what} ${fixed(scores[key][i])}`).join(", ")}${label(i) ? `; labelled ${label(i)}` : ""}.`;
  const repaint = cellGrid(byId("heads-grid"), layersOf(), headsOf(),
    `${KIND_WORDS[kind]}: a column for each layer, a row for each head. Arrow keys move, Enter opens the map.`, cells,
    (index) => { byId("heads-reading").textContent = words(places[index]); },
    (index) => openMap(Math.floor(places[index] / N), places[index] % N));
  const best = Array.from(values.keys()).filter((i) => Number.isFinite(values[i]))
    .sort((a, b) => values[b] - values[a]).slice(0, 8);
  byId("heads-reading").textContent = best.length ? words(best[0]) : "The text is too short for this score.";
  valueBars(byId("heads-list"), best.map((i) => ({
    name: `${Math.floor(i / N)}.${i % N}${label(i) ? ` ${label(i)}` : ""}`, value: values[i], text: fixed(values[i]),
    press: () => openMap(Math.floor(i / N), i % N),
  })), 1);
  return repaint;
};


// The maps: small pictures of all heads, and a large one of the head that is looked at

loads.attention = async () => {
  const thumbs = await ask("thumbs", { run, ...(skipFirst && { without_first_token: true }) });
  show({ ...data, thumbs: { size: thumbs.size, maps: numbers(Uint8Array, thumbs.thumbs) } }, ["attention"]);
};

/** Get a map from the server; says whether it is there. */
async function loadMap(layer, head) {
  if (held.has(`${layer}.${head}`)) return true;
  return attempt("bench", async () => {
    const { weights } = await ask("attention", { run, layer, head });
    held.set(`${layer}.${head}`, numbers(Float32Array, weights));
  });
}

loads.lens = async () => {
  const positions = Array.from({ length: Math.min(at, 12) }, (_, i) => at - Math.min(at, 12) + i);
  const { lens } = await ask("lens", { run, positions });
  show({ ...data, lens }, ["lens"]);
};
