// What is switched off, scaled or patched, and what to try next

const PART_WORDS = { head: "head", attention: "attention layer", feedforward: "feedforward network", neuron: "neuron",
  residual: "residual stream" };
const times = (scale) => (scale === 0 ? "off" : `times ${scale}`);
const editWords = ({ part, layer, index, scale }) => (part === "head" || part === "neuron"
  ? `${PART_WORDS[part]} ${layer}.${index}: ${times(scale)}` : `${PART_WORDS[part]} ${layer}: ${times(scale)}`);
const patchWords = ({ part, layer, position }) =>
  `${PART_WORDS[part]} of layer ${layer} at token ${position}: from the second prompt`;
const samePart = (one, other) => one.part === other.part && one.layer === other.layer && one.index === other.index;

/** Change one part; an earlier change of the same part is replaced. */
const edit = (one, keep) => change({ edits: [...run.edits.filter((other) => !samePart(one, other)), one] }, keep);

/** Fill in the form with this part, and go there. */
function propose({ part, layer, index }) {
  byId("edit-part").value = part;
  byId("edit-layer").value = layer;
  if (index !== undefined) byId("edit-index").value = index;
  byId("edit-scale").value = 0;
  partChosen();
  byId("changes").scrollIntoView();
  byId("edit-form").querySelector("button").focus();
}

function partChosen() {
  const part = byId("edit-part").value;
  byId("edit-index-label").hidden = byId("edit-index").disabled = part !== "head" && part !== "neuron";
  byId("edit-index").max = (part === "neuron" ? model.neurons : N) - 1;
  byId("edit-index-words").textContent = part === "neuron" ? "Neuron" : "Head";
}

shows["in-force"] = () => {
  const rows = [
    ...run.edits.map((one) => [editWords(one), () => change({ edits: run.edits.filter((other) => other !== one) })]),
    ...run.patches.map((one) => [patchWords(one), () => change({ patches: run.patches.filter((other) => other !== one) })]),
  ];
  byId("in-force").hidden = !rows.length;
  byId("edits").replaceChildren(...rows.map(([words, remove]) => {
    const button = el("button", { type: "button", class: "plain", "aria-label": `remove: ${words}` }, "remove");
    button.addEventListener("click", remove);
    return el("li", {}, words, " ", button);
  }));
  byId("edit-layer").max = L - 1;
  byId("edit-part").querySelector("[value=neuron]").hidden = model.neurons === null; // a model with experts
  partChosen();
  return undefined;
};

/** The head, of those that are not changed, that adds most to the token's logit. */
function headThatAddsMost(attributed) {
  return attributed && partsOf(attributed).find(({ part, value, layer, index }) => part === "head" && value > 0
    && !run.edits.some((one) => samePart(one, { part, layer, index })));
}

/** Experiments that follow from what is on the page, as buttons. */
shows.ideas = () => {
  const ideas = [], logits = numbers(Float32Array, data.logits), [first, second] = highest(logits, 2);
  const keep = at, head = headThatAddsMost(data.attributed);
  if (data.attributed === undefined || head) {
    ideas.push([["Switch off the head that adds most to ", token(data.attributed?.token ?? first),
      ...(head ? [` (${head.layer}.${head.index})`] : [])],
    () => attempt("bench", async () => {
      if (!data.attributed) await attribute();
      const found = headThatAddsMost(data.attributed);
      if (found) await edit({ part: "head", layer: found.layer, index: found.index, scale: 0 }, keep);
    })]);
  }
  if (second !== undefined) ideas.push([["Continue with ", token(second), " instead of ", token(first)], () => take(second)]);
  if (run.edits.length || run.patches.length) {
    ideas.push([["Undo all changes"], () => change({ edits: [], patches: [] })]);
  } else if (model.vocabulary.length && run.prompt === FIRST.prompt && at === run.prompt_length && at === T && !run.chat
    && !run.other) {
    ideas.push([["Find the layer and token where France becomes Paris"],
      () => comparePrompts("The capital of Italy is").then((done) => done && showGrid())]);
  }
  byId("ideas").replaceChildren(...ideas.map(([words, press]) => {
    const button = el("button", { type: "button" }, ...words);
    button.addEventListener("click", press);
    return button;
  }));
  return undefined;
};

starts.changes = () => {
  const off = el("button", { type: "button" }, "switch this head off");
  off.addEventListener("click", () => {
    byId("map").close();
    edit({ part: "head", layer: map.layer, index: map.head, scale: 0 }, at);
  });
  byId("map-close").before(off);
  byId("edit-part").addEventListener("change", partChosen);
  byId("edit-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const part = byId("edit-part").value, value = (name) => Number(byId(`edit-${name}`).value);
    const one = { part, layer: value("layer"), scale: value("scale") };
    if (!byId("edit-index-label").hidden) one.index = value("index");
    const done = await edit(one, at);
    // An error belongs beside the form.
    byId("changes-problem").textContent = done ? "" : byId("bench-problem").textContent;
    if (done) byId("bench").scrollIntoView();
    else byId("bench-problem").textContent = "";
  });
  byId("remove-all").addEventListener("click", () => change({ edits: [], patches: [] }));
};
