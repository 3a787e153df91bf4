// Tokens

/**
 * The likeliest tokens, likeliest first, and the one that follows if it is not among them. ids and shares: k of each
 * from `start`; follows: the token that follows, and its share.
 */
function alternatives(ids, shares, start, k, follows, share) {
  const best = Array.from({ length: k }, (_, i) =>
    ({ id: ids[start + i], share: shares[start + i], is: ids[start + i] === follows }));
  if (follows !== undefined && !best.some((one) => one.is)) best.push({ id: follows, share, is: true });
  return best;
}

function prepended(element, child) {
  element.prepend(child);
  return element;
}

shows.tokens = () => {
  const given = numbers(Float32Array, data.given); // the probability that the model gave each token
  const k = data.expected.k, expectedIds = numbers(Uint32Array, data.expected.ids); // [T, k]
  const expectedShares = numbers(Float32Array, data.expected.shares);
  const detail = byId("token-detail");
  const buttons = data.ids.map((id, position) => {
    const odds = position ? `${percent(given[position])}, rank ${whole(data.ranks[position])}` : "the first";
    return el("button", {
      type: "button", "aria-pressed": "false", "aria-label": `token ${position}, ${label(id)}, ${odds}`,
      class: [position ? "" : "unread", position >= data.prompt_length ? "new" : ""].join(" ").trim(),
    }, el("span", { class: "id" }, String(id)));
  });
  byId("token-list").replaceChildren(...joinedTokens().map(([from, to, text]) => {
    if (text === null) return prepended(buttons[from], token(data.ids[from]));
    const made = from >= data.prompt_length ? "joined new" : "joined";
    return el("span", { class: made, title: "several tokens form this text together" },
      el("bdi", { class: "token" }, text), el("span", { class: "members" }, ...buttons.slice(from, to)));
  }));
  byId("new-tokens").hidden = data.prompt_length === T;

  function look(position) {
    const id = data.ids[position];
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === position)));
    const about = el("div", {}, el("p", { class: "big" }, token(id)),
      el("p", { class: "note" }, `token ${position} of ${T} · id ${id}`),
      el("p", { class: "note" }, `bytes ${data.bytes[position] ?? "unknown"}`));
    const expected = el("div");
    if (position) {
      about.append(el("p", {}, `The model gave it ${percent(given[position])}: `
        + `${data.ranks[position] === 1 ? "the likeliest" : `rank ${whole(data.ranks[position])} of ${whole(V)}`}.`));
      expected.append(el("h3", {}, "What it expected after ", token(data.ids[position - 1])),
        bars(el("ol", { class: "bars" }),
          alternatives(expectedIds, expectedShares, (position - 1) * k, k, id, given[position]), position));
    } else {
      expected.append(el("p", {}, "The first token has no predecessor, so the model cannot predict it."));
    }
    if (actions.step) {
      const button = el("button", { type: "button", class: "plain" }, "predict what follows it");
      button.addEventListener("click", () => actions.step(position + 1));
      about.append(button);
    }
    detail.replaceChildren(about, expected);
  }

  roving(buttons, T, look);
  buttons.forEach((button, position) => button.addEventListener("click", () => button.focus()));
  look(T - 1);
  return () => buttons.forEach((button, position) => {
    if (position) tint(button, logarithmic(given[position], 1e-4));
  });
};
