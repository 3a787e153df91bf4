// A second prompt beside the first, and how much of the first one's answer a single vector restores

async function comparePrompts(prompt) {
  byId("second-prompt").value = prompt;
  const done = await change({ other: promptOf(prompt, run.chat), patches: [] }, at);
  byId("second-problem").textContent = done ? "" : byId("bench-problem").textContent;
  if (!done) byId("bench-problem").textContent = "";
  return done;
}

/** What a grid belongs to: it stays while these are the same. */
const patchingKey = () => JSON.stringify([run.ids, run.other]);

async function showGrid() {
  byId("second").scrollIntoView();
  byId("patching-stop").hidden = false;
  await attempt("second", async () => {
    if (!run.ids) return; // a new prompt is being computed
    if (!run.other) throw new Error("Enter a second prompt first, then click compare.");
    if (at !== run.prompt_length) throw new Error("Go back to the end of the prompt first («\u00a0prompt).");
    const part = byId("patching-part").value, key = patchingKey(), rows = [];
    const answer = highest(numbers(Float32Array, data.base ?? data.logits), 1)[0]; // the grid is of the untouched model
    const clean = { ...runOver(run.ids.slice(0, at)), edits: [], patches: [] };
    for await (const line of lines("patching", { run: clean, token: answer, part })) {
      if (line.row) rows[line.layer] = line.row;
      show({ ...data, patched: { key, part, answer, rows, position: at } }, ["patching-scroll"]);
    }
  });
  byId("patching-stop").hidden = true;
}

shows["patching-scroll"] = () => {
  const { patched } = data, place = byId("patching-scroll");
  if (!patched) {
    place.replaceChildren();
    byId("patching-words").textContent = byId("patching-reading").textContent = "";
    return undefined;
  }
  const { rows, answer, part } = patched, cells = [], columns = data.ids.slice(0, rows[0]?.length ?? 0);
  const table = el("table", { class: "lens", role: "grid",
    "aria-label": "Patching: a row for each layer, a column for each token. Arrow keys move." },
  el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "layer"),
    ...columns.map((id) => el("th", { scope: "col" }, token(id))))),
  el("tbody", {}, ...rows.map((row, layer) => el("tr", {}, rowHead(String(layer)), ...row.map((share, position) => {
    const cell = el("td", { class: "number" }, share === null ? "?" : share.toFixed(2).replace("-", "−"));
    cells.push({ cell, share, layer, position });
    return cell;
  })))));
  place.replaceChildren(table);
  byId("patching-words").replaceChildren("How much of ", token(answer),
    " comes back: 0 means as in the second prompt, 1 as in the first. Enter or a click does the reverse: it puts the second prompt's vector into the first.");
  const look = (index) => {
    const { share, layer, position } = cells[index];
    byId("patching-reading").replaceChildren(`The ${PART_WORDS[part]} of layer ${layer} at `, token(data.ids[position]),
      ` (${position}) restores ${share === null ? "an unknown part" : `${(100 * share).toFixed(0).replace("-", "−")}\u00a0%`} of `, token(answer), ".");
  };
  const press = (index) => {
    const { layer, position } = cells[index], one = { layer, position, part };
    change({ patches: [...run.patches, one] }, patched.position).then((done) => done && byId("bench").scrollIntoView());
  };
  cells.forEach(({ cell }, index) => {
    cell.addEventListener("click", () => press(index));
    cell.addEventListener("keydown", (event) => { if (event.key === "Enter") press(index); });
  });
  roving(cells.map(({ cell }) => cell), columns.length || 1, look);
  return () => cells.forEach(({ cell, share }) => {
    const colour = signedColour(share);
    cell.style.backgroundColor = css(colour);
    cell.style.color = inkOn(colour);
  });
};

starts.second = () => {
  byId("second-form").addEventListener("submit", (event) => {
    event.preventDefault();
    comparePrompts(byId("second-prompt").value).then((done) => done && byId("bench").scrollIntoView());
  });
  byId("second-clear").addEventListener("click", () => {
    byId("second-prompt").value = "";
    change({ other: null, patches: [] });
  });
  byId("patching-form").addEventListener("submit", (event) => { event.preventDefault(); showGrid(); });
  byId("patching-stop").addEventListener("click", () => abort("patching"));
};
