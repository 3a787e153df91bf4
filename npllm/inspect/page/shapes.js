// Shapes

shows.flow = () => {
  const item = (value) => el("li", { class: value.name.startsWith("residual_after") ? "adds" : null },
    el("div", { class: "line" }, el("span", { class: "name" }, value.name),
      el("span", { class: "shape" }, el("span", { class: "letters" }, `[${value.letters.split(" ").join(", ")}] = `),
        `[${value.shape.map(whole).join(", ")}]`)),
    el("div", { class: "words" }, `${value.words} · `, el("span", {}, ...source(value.source)), " · ",
      el("span", {}, figure(value.figures))));
  const list = (group) => el("ol", {}, ...data.flow.filter((value) => value.group === group).map(item));
  byId("flow-chart").replaceChildren(
    el("div", { class: "outside" }, list("before")),
    el("div", { class: "block" }, el("h3", {}, L === 1 ? "1 block" : `${L} blocks in sequence, each:`),
      el("div", { class: "halves" },
        el("div", {}, el("h3", {}, "Attention: information from other tokens"), list("attention")),
        el("div", {}, el("h3", {}, "Feedforward network: each token on its own"), list("feedforward")))),
    el("div", { class: "outside" }, list("after")));
  const letters = Object.entries(data.letters).map(([letter, words]) => `${letter} ${words}`);
  byId("letters").textContent = letters.join(" · ");
};
