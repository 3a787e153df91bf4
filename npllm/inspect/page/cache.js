// The KV cache

shows.cache = () => {
  const steps = data.cache.steps, slider = byId("cache-step"), most = steps.at(-1).tokens;
  slider.max = steps.length;
  slider.value = Math.min(2, steps.length);
  const made = (step) => (step.made === null ? "a new token" : label(step.made));

  function chart(title, computed, step) {
    const room = byId("cache-charts").clientWidth, width = room > 680 ? (room - 40) / 2 : Math.max(room, 240);
    const left = 84, high = 15, cell = (width - left) / most;
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${steps.length * (high + 3)}`, "aria-hidden": "true" });
    steps.forEach((one, i) => {
      const y = i * (high + 3), fresh = computed(one), old = one.tokens - fresh;
      const name = made(one).length > 11 ? `${made(one).slice(0, 10)}…` : made(one);
      drawing.append(svg("g", i >= step ? { class: "later" } : {},
        svg("text", { x: left - 8, y: y + high - 3, "text-anchor": "end" }, name),
        svg("rect", { class: "read", x: left, y, width: cell * old, height: high }),
        svg("rect", { class: "computed", x: left + cell * old, y, width: cell * fresh, height: high })));
    });
    for (let i = 1; i < most && cell >= 4; i++) { // between the tokens
      const gap = svg("rect", { x: left + i * cell - 0.5, y: 0, width: 1, height: steps.length * (high + 3) });
      gap.style.fill = "var(--paper)";
      drawing.append(gap);
    }
    return el("div", {}, el("h3", {}, title), drawing);
  }

  function showStep() {
    const step = Number(slider.value), now = steps[step - 1], sum = (how, what) =>
      steps.slice(0, step).reduce((total, one) => total + one[how][what], 0);
    byId("cache-step-value").replaceChildren(`${step} of ${steps.length}`);
    slider.setAttribute("aria-valuetext", `step ${step} of ${steps.length}, makes ${made(now)}`);
    byId("cache-charts").replaceChildren(
      chart("With the cache", (one) => one.with.streams, step), chart("Without it", (one) => one.tokens, step));
    const line = (name, write, how) =>
      el("tr", {}, rowHead(name), number(write(how("with"))), number(write(how("without"))));
    byId("cache-table").replaceChildren(
      el("thead", {}, el("tr", {}, el("td"), columnHead("with the cache"), columnHead("without"))),
      el("tbody", {},
        line("streams computed in this step", whole, (how) => now[how].streams),
        line("arithmetic of this step", flops, (how) => now[how].flops),
        line("bytes read in this step", bytes, (how) => now[how].bytes),
        line("streams computed so far", whole, (how) => sum(how, "streams")),
        line("arithmetic so far", flops, (how) => sum(how, "flops")),
        line("the cache holds", bytes, (how) => (how === "with" ? now.cache_bytes : 0))));
  }

  slider.oninput = showStep;
  return showStep;
};
