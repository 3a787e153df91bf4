// The state of the lab: the run, which is also what the link holds, and what the server said about it.

const FIRST = { prompt: "The capital of France is", chat: false, ids: null, prompt_length: null, edits: [], patches: [],
  other: null };
const run = { ...FIRST };
let turn = 0; // counts what was asked for: a running answer ends when something else was
let accepted = { ...FIRST }; // the last run that the server computed
let passing = 0; // the turn of the pass that is being made, if one is
let at = 0; // how many tokens are in force: the next one is predicted after them
let model; // what does not depend on the run

/** A prompt as the server takes it: with a model without a tokenizer, the ids in it. */
const promptOf = (prompt, chat) =>
  (model.vocabulary.length ? { prompt, chat } : { ids: (prompt.match(/\d+/g) ?? []).map(Number) });

/** Draw everything from a new pass over the run. `keep` is the number of tokens that stay in force; by default all. */
async function pass(keep = Infinity) {
  const mine = passing = ++turn;
  abort();
  const done = await attempt("bench", async () => {
    note("computing…");
    const result = await ask("run", { run }).finally(() => mine === turn && note(""));
    const { ids, prompt_length } = result, computed = { ...run, ids, prompt_length };
    const count = between(keep, 1, ids.length);
    const { listings, sections, letters, vocabulary, version } = model;
    const next = { version, model: model.model, letters, sections, listings, vocabulary, ...result };
    if (count < ids.length) Object.assign(next, await ask("logits", { run: computed, position: count - 1 }));
    Object.assign(run, accepted = computed);
    at = count;
    held.clear();
    if (data.patched?.key === patchingKey()) next.patched = data.patched;
    Object.assign(map, { query: next.ids.length - 1, key: 0 });
    show(next, present(shows).filter((id) => !LAZY.includes(id) && id !== "source"));
    note(`One pass over ${T} ${T === 1 ? "token" : "tokens"}: ${(1000 * result.seconds).toFixed(0)} ms.`);
    remember();
    for (const id of LAZY) stale.add(id);
    refresh();
  });
  if (passing === mine) passing = 0;
  return done;
}

/** Predict after another number of tokens of the same text: the pass has been made. While one is made, do nothing. */
async function step(to) {
  if (passing || !run.ids) return;
  const count = between(to, 1, run.ids.length);
  turn++;
  abort("generate", "logits", "attribution");
  await attempt("bench", async () => {
    const { logits, base } = await ask("logits", { run, position: count - 1 });
    at = count;
    show({ ...data, logits, base, attributed: undefined }, ["answer", "next", "funnel", "tokens", "ideas"]);
    remember();
    stale.add("attribution").add("lens");
    refresh();
  });
}

/** The run over other ids of the same text; patches beyond their end are gone. */
const runOver = (ids) => ({ ...run, ids, prompt_length: Math.min(run.prompt_length, ids.length),
  patches: run.patches.filter(({ position }) => position < ids.length) });

/** Continue with this token after `keep` tokens. */
async function take(id, keep = at) {
  if (!run.ids) return undefined; // a new prompt is being computed
  if (run.ids[keep] === id) return step(keep + 1);
  const kept = run.ids.slice(0, keep);
  return change({ ...runOver(kept), ids: [...kept, id] }, Infinity);
}

/** Change the run. If the server refuses, the run is again the last one computed, unless a newer change is under way. */
async function change(changes, keep = at) {
  Object.assign(run, changes);
  const passed = pass(keep), mine = turn, done = await passed;
  if (!done && mine === turn) Object.assign(run, accepted);
  return done;
}

const note = (words) => { byId("status").textContent = words; };


// Parts that are computed only when they are looked at

const LAZY = ["heads", "attribution", "attention", "lens"];
const stale = new Set(), seen = new Set(), loading = new Set();
const loads = {}; // for each of them, what asks the server and draws it

/** Load what is seen and out of date. The attribution is loaded in any case, for the ideas, but last. */
function refresh() {
  const wanted = LAZY.filter((id) => seen.has(id) && stale.has(id));
  if (wanted.length && loading.has("attribution") && !seen.has("attribution")) abort("attribution");
  if (!wanted.length && !loading.size && stale.has("attribution")) wanted.push("attribution");
  for (const id of wanted) {
    stale.delete(id);
    loading.add(id);
    attempt(id, loads[id]).then((done) => {
      loading.delete(id);
      if (done) refresh();
      else stale.add(id);
    });
  }
}

function watch() {
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) seen.add(target.id);
      else seen.delete(target.id);
    }
    refresh();
  });
  for (const id of LAZY) {
    if (!byId(`${id}-problem`)) byId(id).append(el("p", { id: `${id}-problem`, class: "problem", role: "alert" }));
    observer.observe(byId(id));
  }
}


// The link

function remember() {
  const state = { ...run, at, settings: { ...settings } };
  history.replaceState(null, "", `${location.pathname}${location.search}#${encodeURIComponent(JSON.stringify(state))}`);
}

/** The state in the link: {run, at, settings}, or null if there is none or it cannot be read. */
function remembered() {
  try {
    const { at, settings, ...rest } = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    const known = Object.fromEntries(Object.keys(FIRST).map((name) => [name, rest[name] ?? FIRST[name]]));
    return { run: known, at: Number(at) || Infinity, settings: settings ?? {} };
  } catch {
    return null;
  }
}
