// Cost

shows.cost = () => {
  const parts = data.cost.text.map((text, i) => [text, data.cost.next_token[i]]);
  const [all, one] = parts.at(-1);
  const read = (part) => part.weight_bytes + part.cache_bytes;
  const cell = (write, part, all) => number(write(part), el("div", { class: "track" }, filled(part / all)));
  const pair = (words) => el("th", { scope: "colgroup", colspan: 2, class: "number" }, words);
  byId("cost-table").replaceChildren(
    el("thead", {},
      el("tr", {}, el("td"), pair(`the text in one pass, ${T} tokens`), pair("one more token, with the cache")),
      el("tr", {}, el("th", { scope: "col" }, "part"), columnHead("arithmetic"), columnHead("reads"),
        columnHead("arithmetic"), columnHead("reads"))),
    el("tbody", {}, ...parts.map(([text, next]) => el("tr", { class: text === all ? "total" : null },
      rowHead(text.part), cell(flops, text.flops, all.flops), cell(bytes, read(text), read(all)),
      cell(flops, next.flops, one.flops), cell(bytes, read(next), read(one))))));
};
