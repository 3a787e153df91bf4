// The header of the page, and the figures and source lines below each title

/** A link to a line of the source; without the listings, only its address. */
function source({ path, line, name }) {
  const address = `${path}:${line}`, code = el("code", {}, address);
  return [byId("source") ? el("a", { href: `#${address}` }, code) : code, name ? ` ${name}` : ""];
}

const figure = (numbers) => `${/,|to/.test(numbers) ? "Figures" : "Figure"} ${numbers}`;

starts.text = () => document.documentElement.classList.add("whole");

shows.text = () => {
  const { model } = data, text = byId("text");
  document.title = `${data.text.slice(0, 60)} – npllm inspect`;
  byId("model").textContent = `· ${model.name}`;
  text.textContent = data.text;
  text.classList.toggle("long", data.text.length > 90);
  if (text.scrollHeight > text.clientHeight) text.tabIndex = 0; // makes it scrollable by keyboard
  byId("facts").textContent = [
    `${whole(T)} ${T === 1 ? "token" : "tokens"}`, `${L} blocks`, `${N} heads`, `${model.kv_heads} key/value heads`,
    `vectors of ${whole(model.hidden_size)}`, `vocabulary of ${whole(V)}`, `context of ${whole(model.context)}`,
  ].join(" · ");
  byId("made-by").textContent = `Made by npllm ${data.version} from one forward pass; attention weights are stored in `
    + "8 bits. This page loads nothing from the network.";
};

shows["not-finite"] = () => {
  const wrong = Object.entries(data.not_finite);
  byId("not-finite").hidden = !wrong.length;
  byId("not-finite").replaceChildren(
    ...wrong.slice(0, 5).map(([name, count]) =>
      el("p", {}, el("code", {}, name), `: ${whole(count)} elements are NaN or infinite`)),
    ...(wrong.length > 5 ? [el("p", {}, `and ${wrong.length - 5} more values after these`)] : []));
};

/** The figures of the chapter and the lines of the source, below the title of each part. */
function places() {
  for (const [id, { figures, sources }] of Object.entries(data.sections)) {
    const parts = sources.flatMap((one) => ["  ·  ", ...source(one)]);
    byId(`${id}-title`)?.after(el("p", { class: "where" }, figure(figures), ...parts));
  }
}
