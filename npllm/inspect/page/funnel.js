// The next token: the steps of npllm's sampling.choose. Each keeps the likeliest tokens, so what remains is a prefix of
// the tokens sorted by probability.

let logits, order, sorted, rank; // of the last token; the ids, likeliest first; their logits; the place of each id there

/**
 * The ids of these values, the highest first, ties in order of id. Each value's bits, in an order that sorts, and its id
 * make one number: plain numbers sort much faster than with a function that compares.
 */
function sortedIds(values) {
  const ID = 2 ** 20, keys = Float64Array.from(new Uint32Array(values.slice().buffer), (bits, id) =>
    (bits > 0x80000000 ? bits : 0x7fffffff - bits % 0x80000000) * ID + id);
  return Uint32Array.from(keys.sort(), (key) => key % ID);
}

function sortLogits() {
  logits = numbers(Float32Array, data.logits);
  order = sortedIds(logits);
  sorted = Float64Array.from(order, (id) => logits[id]);
  rank = new Uint32Array(V);
  order.forEach((id, place) => { rank[id] = place; });
}

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

const SHOWN = 12; // rows of the table
const settings = { temperature: 1, top_k: 40, top_p: 0.95, min_p: 0, uniform: 0.5 };
const setSlider = {}; // for each setting, a function that moves its slider to a value

function sliders() {
  const counts = [0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 100, 200, 500, 1000, 10000]
    .filter((count) => count <= V);
  const off = (words) => (value) => (value ? String(value) : words);
  const all = [ // name, words, from, to, step, the value at a place, how to write it
    ["temperature", "temperature", 0, 2, 0.05, (place) => place, (t) => (t ? t.toFixed(2) : "0: greedy")],
    ["top_k", "top-k", 0, counts.length - 1, 1, (place) => counts[place], off("off")],
    ["top_p", "top-p", 0.01, 1, 0.01, (place) => place, (p) => (p < 1 ? p.toFixed(2) : "off")],
    ["min_p", "min-p", 0, 0.5, 0.01, (place) => place, (p) => (p ? p.toFixed(2) : "off")],
    ["uniform", "random number", 0, 0.999, 0.001, (place) => place, (u) => u.toFixed(3)],
  ];
  for (const [name, words, min, max, step, value, write] of all) {
    const input = el("input", { type: "range", id: `set-${name}`, min, max, step });
    const output = el("output", { id: `value-${name}`, for: `set-${name}` });
    setSlider[name] = (to) => {
      if (to !== undefined) input.value = name === "top_k" ? Math.max(counts.indexOf(to), 0) : to;
      settings[name] = value(Number(input.value));
      output.textContent = write(settings[name]);
      input.setAttribute("aria-valuetext", write(settings[name]));
    };
    input.addEventListener("input", () => { setSlider[name](); showFunnel(); });
    setSlider[name](settings[name]);
    byId("sliders").append(el("label", { class: "slider", for: `set-${name}` }, el("span", {}, words), input, output));
  }
  const button = el("button", { type: "button", id: "another" }, "another random number");
  button.addEventListener("click", () => { setSlider.uniform(Math.random() * 0.999); showFunnel(); });
  byId("sliders").append(button);
}

const stepWords = { logits: "all tokens", top_k: "top-k", top_p: "top-p", min_p: "min-p" }; // else as they are

function showFunnel() {
  if (!logits.every(Number.isFinite)) {
    byId("drawn").textContent = "The logits of the last token are not all finite, so no token can be chosen.";
    byId("funnel").dispatchEvent(new CustomEvent("drawn", { detail: null }));
    return;
  }
  const steps = funnel(settings), last = steps.at(-1).shares;
  const cell = (share) => (share === undefined ? nothing() : number(percent(share)));
  const rows = Array.from(order.subarray(0, SHOWN), (id, place) => el("tr", {}, rowHead(choice(id)),
    ...steps.map((step) => cell(step.shares[place])),
    el("td", { class: "share" }, el("div", { class: "track" }, filled(last[place])))));
  const others = (step) =>
    (step.shares.length > SHOWN ? step.shares.subarray(SHOWN).reduce((a, b) => a + b, 0) : undefined);
  const heads = steps.map((step) =>
    columnHead(stepWords[step.name] ?? step.name, el("br"), `${whole(step.shares.length)} left`));
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
  byId("funnel").dispatchEvent(new CustomEvent("drawn", { detail: drawn }));
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

shows.funnel = () => {
  if (!byId("sliders").childElementCount) sliders();
  sortLogits();
  return showFunnel;
};
