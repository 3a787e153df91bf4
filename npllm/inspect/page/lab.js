// The lab: starts the page, and restores what its link holds.

Object.assign(actions, { take, step, loadMap, reloadMaps: () => attempt("attention", loads.attention) });
Object.assign(settings, { temperature: 0, top_k: 0, top_p: 1 });

/** Put what the link holds, or the first example, into the page, and run it. */
async function restore() {
  const found = remembered();
  Object.assign(run, found?.run ?? FIRST);
  for (const name of Object.keys(settings)) {
    if (!Number.isFinite(found?.settings[name])) continue;
    settings[name] = found.settings[name];
    setSlider[name]?.(settings[name]);
  }
  fillIn();
  const restored = pass(found?.at ?? Infinity), mine = turn;
  if (await restored || !found || mine !== turn) return;
  const problem = byId("bench-problem").textContent; // the link's state does not fit this model
  Object.assign(run, FIRST);
  fillIn();
  await pass();
  byId("bench-problem").textContent = `The link cannot be restored: ${problem}`;
}

/** Put the run's prompts into their fields. */
function fillIn() {
  byId("prompt").value = run.prompt;
  byId("second-prompt").value = run.other?.prompt ?? "";
  byId("prompt-form").elements.chat.value = run.chat ? "chat" : "text";
}

async function begin() {
  start();
  document.documentElement.classList.add("whole");
  byId("funnel").addEventListener("drawn", ({ detail }) => {
    drawnToken = detail;
    const next = at < T ? data.ids[at] : detail;
    byId("forward").replaceChildren(...(next === null ? ["next token ›"] : ["next token: ", token(next), " ›"]));
    byId("forward").disabled = next === null;
    remember();
  });
  document.addEventListener("click", (event) => { // the fragment belongs to the link: these only scroll
    const link = event.target.closest('a[href^="#"]');
    if (!link) return;
    event.preventDefault();
    const address = decodeURIComponent(link.hash.slice(1));
    if (!follow(address)) byId(address)?.scrollIntoView();
  });
  window.addEventListener("hashchange", restore);
  await attempt("bench", async () => {
    model = await ask("model", {});
    const { name, layers, heads } = model.model;
    byId("model").textContent = `${name}: ${layers} layers of ${heads} heads, on this computer`;
    byId("chat-choice").hidden = !model.chat;
    if (!model.vocabulary.length) {
      Object.assign(FIRST, { prompt: "0 1 2", ids: [0, 1, 2] });
      byId("prompt-help").textContent = "This model has no tokenizer: type token ids, then press Enter.";
    }
    byId("made-by").textContent = `npllm ${model.version}. The model runs on this computer; this page talks only to its own server.`;
    data = { ...model, ids: [] };
    [L, N, V] = [layers, heads, model.model.vocab_size];
    watch();
    await restore();
    shows.source();
    places();
  });
  document.documentElement.dataset.ready = "true";
}

begin();
