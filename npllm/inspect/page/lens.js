// Logit lens

shows.lens = () => {
  const { k, positions } = data.lens, P = positions.length, cells = [];
  const ids = numbers(Uint32Array, data.lens.ids), shares = numbers(Float32Array, data.lens.shares); // [L + 1, P, k]
  const next = numbers(Float32Array, data.lens.next); // [L + 1, P]: the probability of the token that follows
  const table = el("table", { class: "lens" });
  if (P < T) table.append(el("caption", {}, `Tokens ${positions[0]} to ${positions.at(-1)} of ${T}`));
  const heads = positions.map((position) => data.ids[position]).map((id, i) =>
    el("th", { scope: "col", title: `token ${positions[i]}: ${label(id)}` }, token(id)));
  table.append(el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "after"), ...heads)));
  const body = el("tbody");
  for (let at = 0; at <= L; at++) {
    const name = at ? `block ${at - 1}` : "embedding";
    const line = el("tr", {}, el("th", { scope: "row" }, name));
    positions.forEach((position, i) => {
      const best = ids[(at * P + i) * k];
      const cell = el("td", { class: best === data.ids[position + 1] ? "is" : null }, token(best));
      cells.push(cell);
      line.append(cell);
    });
    body.append(line);
  }
  table.append(body);
  table.setAttribute("role", "grid");
  table.setAttribute("aria-label", "Logit lens: a row for each block, a column for each token. Arrow keys move.");
  byId("lens-scroll").replaceChildren(table);

  function look(index) {
    const at = Math.floor(index / P), position = positions[index % P], follows = data.ids[position + 1];
    const where = at ? `after block ${at - 1}` : "from the embedding alone";
    const about = el("div", {}, el("p", { class: "big" }, token(data.ids[position])),
      el("p", { class: "note" }, `token ${position}, ${where}`));
    if (position + 1 < T) {
      about.append(el("p", {}, "The actual next token, ", token(follows), ", has ",
        percent(next[index]), " here."));
    } else {
      about.append(el("p", {}, "The text ends here; this is the model's prediction."));
    }
    byId("lens-detail").replaceChildren(about, el("div", {}, el("h3", {}, "It would predict"),
      bars(el("ol", { class: "bars" }), alternatives(ids, shares, index * k, k, follows, next[index]))));
  }

  roving(cells, P, look);
  look(cells.length - 1);
  return () => cells.forEach((cell, index) => tint(cell, shares[index * k]));
};
