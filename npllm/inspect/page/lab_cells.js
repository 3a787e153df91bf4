// Grids of cells with a number each: a column for each layer, a row for each head or other part

/** The colour of a number between -1 and 1: blue above 0, orange below. */
function signedColour(level) {
  const style = getComputedStyle(document.documentElement);
  const [from, to] = ["--heat-0", level < 0 ? "--warm" : "--accent"].map((name) => {
    const hex = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
  });
  const part = between(Math.abs(level) || 0, 0, 1);
  return from.map((value, channel) => Math.round(value + (to[channel] - value) * part));
}

/**
 * Draw cells in rows of `columns`. cells: [{name, level}], level from -1 to 1; `words` describe the grid; `look` and `press`
 * get an index.
 * Returns what to redraw when colours change.
 */
function cellGrid(grid, columns, rowNames, words, cells, look, press) {
  const every = columns.length > 16 ? 5 : 1;
  const axis = (text, kind = "") => el("span", { class: `axis ${kind}`, "aria-hidden": "true" }, text);
  grid.style.gridTemplateColumns = `max-content repeat(${columns.length}, minmax(1.25rem, 1fr))`;
  grid.replaceChildren(axis("layer", "head"), ...columns.map((column, i) => axis(i % every ? "" : String(column))));
  const buttons = cells.map(({ name }) => el("button", { type: "button", "aria-label": name }));
  rowNames.forEach((name, line) => {
    grid.append(axis(name, "head"), ...buttons.slice(line * columns.length, (line + 1) * columns.length));
  });
  grid.setAttribute("aria-label", words);
  buttons.forEach((button, index) => button.addEventListener("click", () => press(index)));
  roving(buttons, columns.length, look);
  return () => buttons.forEach((button, index) => {
    button.style.backgroundColor = css(signedColour(cells[index].level));
  });
}

/** Named values as a list of bars, each a button. rows: [{name, value, text, press}] */
function valueBars(list, rows, most) {
  list.replaceChildren(...rows.map(({ name, value, text, press }) => {
    const button = el("button", { type: "button", class: "choose" }, name);
    if (press) button.addEventListener("click", press);
    const bar = filled(Math.abs(value) / most);
    bar.classList.toggle("less", value < 0);
    return el("li", {}, press ? button : el("span", {}, name), el("div", { class: "track" }, bar),
      el("span", { class: "share" }, text));
  }));
}

const layersOf = () => Array.from({ length: L }, (_, layer) => layer);
const headsOf = () => Array.from({ length: N }, (_, head) => (head ? String(head) : "head 0"));
const fixed = (value) => (Number.isFinite(value) ? value.toFixed(2).replace("-", "−") : "unknown");
