// Which part said it: what each part adds to a token's logit

loads.attribution = () => attribute(data.attributed?.position === at - 1 ? data.attributed.token : undefined);

/** Ask for the parts of this token's logit; by default of the likeliest next token. */
async function attribute(id) {
  const [best] = highest(numbers(Float32Array, data.logits), 1);
  const attributed = await ask("attribution", { run, token: id ?? best, position: at - 1 });
  show({ ...data, attributed }, ["attribution", "ideas"]);
}

/** The parts as [{name, value, part, layer, index}], the largest first. */
function partsOf({ heads, feedforward, attention_bias: biases, others }) {
  const rows = [
    ...Array.from(numbers(Float32Array, heads), (value, i) =>
      ({ name: `head ${Math.floor(i / N)}.${i % N}`, value, part: "head", layer: Math.floor(i / N), index: i % N })),
    ...Array.from(numbers(Float32Array, feedforward), (value, layer) =>
      ({ name: `feedforward ${layer}`, value, part: "feedforward", layer })),
    ...Array.from(numbers(Float32Array, biases), (value, layer) => ({ name: `bias of attention ${layer}`, value })),
    ...Object.entries(others).map(([name, value]) => ({ name, value })),
  ].filter(({ value }) => value !== 0);
  return rows.sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
}

shows.attribution = () => {
  const { attributed } = data;
  if (!attributed) return undefined;
  const rows = partsOf(attributed), most = Math.max(...rows.map(({ value }) => Math.abs(value))) || 1;
  byId("attribution-token").replaceChildren(token(attributed.token));
  byId("attribution-sum").textContent = `Its logit is ${fixed(attributed.logit)}, the sum of ${rows.length} parts${attributed.capped ? ", before the cap" : ""}.`;
  const choices = [...new Set([attributed.token, ...highest(numbers(Float32Array, data.logits), 10)])];
  byId("attribution-choice").replaceChildren(...choices.map((id) => el("option", { value: id }, label(id))));
  byId("attribution-choice").value = attributed.token;
  valueBars(byId("attribution-list"), rows.slice(0, 12).map((row) => ({ name: row.name, value: row.value,
    text: fixed(row.value), press: row.part && (() => propose(row)) })), most);
  const heads = numbers(Float32Array, attributed.heads), feedforward = numbers(Float32Array, attributed.feedforward);
  const cells = [
    ...Array.from({ length: L * N }, (_, i) => ({ layer: i % L, index: Math.floor(i / L), part: "head" }))
      .map((cell) => ({ ...cell, value: heads[cell.layer * N + cell.index], words: `head ${cell.layer}.${cell.index}` })),
    ...Array.from(feedforward, (value, layer) =>
      ({ layer, part: "feedforward", value, words: `the feedforward network of layer ${layer}` })),
  ].map((cell) => ({ ...cell, level: cell.value / most, name: `${cell.words}: ${fixed(cell.value)}` }));
  const look = (index) => {
    const { words, value } = cells[index];
    byId("attribution-reading").replaceChildren(`${words[0].toUpperCase()}${words.slice(1)} adds ${fixed(value)} to the logit of `,
      token(attributed.token), ". Enter or a click fills in the form that switches it off.");
  };
  const repaint = cellGrid(byId("attribution-grid"), layersOf(), [...headsOf(), "feedforward"],
    "Contributions: a column for each layer, a row for each head, and one for the feedforward networks. Arrow keys move.",
    cells, look, (index) => propose(cells[index]));
  look(cells.reduce((best, cell, i) => (cell.value > cells[best].value ? i : best), 0));
  return repaint;
};

starts.attribution = () => {
  byId("attribution-choice").addEventListener("change", (event) =>
    attempt("attribution", () => attribute(Number(event.target.value))));
};
