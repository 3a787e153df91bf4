// The prompt, the text with the answer, and the table of the next token

let shown = 10; // rows of the table

/** The text of tokens `from` to `to`: their bytes, decoded together. Unprintable characters are escaped. */
function textOf(from, to) {
  const ascii = (text) => Array.from(text, (letter) => letter.charCodeAt(0).toString(16)).join(" ");
  const tokens = data.bytes.slice(from, to).map((one, i) => one ?? ascii(`#${data.ids[from + i]} `));
  return printable(new TextDecoder("utf-8", { ignoreBOM: true }).decode(unhex(tokens)));
}

shows.answer = () => {
  const end = run.prompt_length, parts = [
    ["prompt", 0, Math.min(at, end)], ["new", end, at], ["ahead", Math.max(at, 0), T],
  ];
  byId("answer").replaceChildren(...parts.filter(([, from, to]) => from < to)
    .map(([kind, from, to]) => el("span", { class: kind }, textOf(from, to))),
  at < T ? "" : el("span", { class: "cursor", "aria-hidden": "true" }));
  byId("back").disabled = at <= 1;
  byId("to-prompt").disabled = at === end;
};

/** The probabilities of all tokens, from logits. */
function softmax(packed) {
  const values = Float64Array.from(numbers(Float32Array, packed));
  const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] = Math.exp(values[i] - most);
  return values.map((value) => value / sum);
}

/** A difference of probabilities in percentage points, with its sign. */
const points = (change) => `${change > 0 ? "+" : change < 0 ? "−" : "±"}${(100 * Math.abs(change)).toFixed(
  Math.abs(change) < 0.0995 ? 2 : 1)}`;

/** The ids of the highest values, the highest first, ties in order of id. */
function highest(values, count) {
  const ids = [];
  for (let id = 0; id < values.length; id++) {
    if (ids.length === count && !(values[id] > values[ids.at(-1)])) continue;
    let place = ids.length;
    while (place && values[id] > values[ids[place - 1]]) place--;
    ids.splice(place, 0, id);
    if (ids.length > count) ids.pop();
  }
  return ids;
}

shows.next = () => {
  const now = softmax(data.logits), others = [];
  if (data.base) others.push(["untouched", "change", softmax(data.base)]);
  if (data.other) others.push(["second prompt", "difference", softmax(data.other.logits)]);
  byId("next-words").replaceChildren("After ", token(data.ids[at - 1]), at === T ? ", the end of the text."
    : `, token ${at} of ${T}.`, " Click a token to continue with it.", !others.length ? ""
    : ` Differences are in percentage points; the marks on the bars are the ${data.base ? "untouched run" : "second prompt"}.`);
  if (Number.isNaN(now[0])) {
    byId("next-table").replaceChildren(el("caption", {}, "The logits are not all finite, so there are no probabilities."));
    return undefined;
  }
  const all = [now, ...others.map(([, , shares]) => shares)];
  const ids = highest(all.reduce((most, shares) => most.map((share, id) => Math.max(share, shares[id]))), shown);
  const rest = (shares) => Math.max(0, 1 - ids.reduce((sum, id) => sum + shares[id], 0));
  const line = (name, share) => el("tr", {}, rowHead(name),
    el("td", { class: "share" }, el("div", { class: "track" }, filled(share(now)),
      ...others.slice(0, 1).map(([, , shares]) => mark(share(shares))))),
    number(percent(share(now))),
    ...others.flatMap(([, , shares]) => {
      const by = share(now) - share(shares);
      return [number(percent(share(shares))), el("td", { class: `number ${by < 0 ? "less" : "more"}` }, points(by))];
    }));
  byId("next-table").replaceChildren(
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "token"), el("td"), columnHead(others.length ? "now" : "probability"),
      ...others.flatMap(([name, by]) => [columnHead(name), columnHead(by)]))),
    el("tbody", {}, ...ids.map((id) => line(choice(id), (shares) => shares[id])), line("all others", rest)));
  byId("second-text").textContent = data.other ? `The second prompt: ${printable(data.other.text)}` : "";
  return undefined;
};

/** A thin mark at another run's share. */
function mark(share) {
  const line = el("div", { class: "was" });
  line.style.left = `${100 * share}%`;
  return line;
}

/** The tokens from which the one that was just written was chosen. */
function showTop({ id, top }) {
  byId("next-words").replaceChildren("Just generated: ", token(id), ", chosen from these.");
  byId("next-table").replaceChildren(
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "token"), el("td"), columnHead("probability"))),
    el("tbody", {}, ...top.map(([one, logprob]) => el("tr", { class: one === id ? "is" : null }, rowHead(token(one)),
      el("td", { class: "share" }, el("div", { class: "track" }, filled(Math.exp(logprob)))),
      number(percent(Math.exp(logprob)))))));
}

/** Write on, token by token, with the sliders' settings, until the end, the limit, or a click on stop. */
async function write() {
  if (passing || !run.ids) return;
  if (at >= model.most_tokens) {
    note(`The text has reached the lab's limit of ${model.most_tokens} tokens.`);
    return;
  }
  abort();
  const mine = ++turn, ids = run.ids.slice(0, at), { temperature, top_k, top_p, min_p } = settings;
  const most = between(Math.round(byId("most").value) || 1, 1, Math.min(1000, model.most_tokens - at));
  const written = runOver(ids), body = { run: written, max_new_tokens: most, temperature, top_k, top_p, min_p };
  const added = el("span", { class: "new" });
  byId("answer").querySelector(".ahead")?.remove();
  byId("answer").querySelector(".cursor")?.remove();
  byId("answer").append(added, el("span", { class: "cursor", "aria-hidden": "true" }));
  byId("stop").hidden = false;
  byId("bench").classList.add("writing");
  byId("write").hidden = true;
  let ended = "";
  await attempt("bench", async () => {
    for await (const line of lines("generate", body)) {
      if (line.id === undefined) continue;
      ids.push(line.id);
      added.append(printable(line.text));
      showTop(line);
      note(`Tokens written: ${ids.length - at}.`);
      ended = line.finish_reason;
    }
  });
  const problem = byId("bench-problem").textContent;
  byId("bench").classList.remove("writing");
  byId("stop").hidden = true;
  byId("write").hidden = false;
  if (mine !== turn) return; // something else was asked for meanwhile
  await change(written, Infinity); // its ids are the longer text now
  if (problem) byId("bench-problem").textContent = problem;
  if (ended === "stop") note("The model ended its answer.");
}

starts.answer = () => {
  const area = byId("prompt"), form = byId("prompt-form");
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const chat = form.elements.chat.value === "chat";
    const text = { prompt: area.value, chat, ids: null, ...promptOf(area.value, chat) };
    change({ ...text, prompt_length: null, patches: [] }, Infinity);
  });
  byId("back").addEventListener("click", () => step(at - 1));
  byId("to-prompt").addEventListener("click", () => step(run.prompt_length));
  byId("forward").addEventListener("click", () => {
    if (at < T) return step(at + 1);
    const id = drawnToken;
    if (settings.temperature) setSlider.uniform(Math.random() * 0.999); // for the token after it
    return take(id);
  });
  byId("write").addEventListener("click", write);
  byId("stop").addEventListener("click", () => abort("generate"));
  byId("next-more").addEventListener("click", () => { shown += 20; shows.next(); });
  byId("copy-link").addEventListener("click", async () => {
    const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
    byId("copied").textContent = copied ? "copied" : "Could not copy; the link is in the address bar.";
  });
};

let drawnToken = null; // what the funnel draws: the next token of a step forward
