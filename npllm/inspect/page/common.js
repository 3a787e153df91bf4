"use strict";
// What all parts of the page share. Everything in the data is inserted as text, never as HTML: a prompt may contain
// anything.

const byId = (id) => document.getElementById(id);

let data, T, L, N, V; // what is shown; the numbers of tokens, layers, heads, and tokens of the vocabulary

// The parts of the page, by the ids of their elements. Each draws new data, and returns what to redraw when colours or
// sizes change, if anything. What is set up once, before there is data, is in `starts`.
const shows = {}, starts = {}, paints = {};
const present = (parts) => Object.keys(parts).filter(byId);

function start() {
  for (const id of present(starts)) starts[id]();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  let resized = 0;
  window.addEventListener("resize", () => {
    cancelAnimationFrame(resized);
    resized = requestAnimationFrame(paint);
  });
  if (parent === window) return;
  // In a frame: the page around it can make it as high as its content.
  const height = () => parent.postMessage({ npllm: { height: document.documentElement.offsetHeight } }, "*");
  new ResizeObserver(height).observe(document.documentElement);
}

/** Draw this data in the parts of these ids, or in all. */
function show(next, ids = present(shows)) {
  data = next;
  T = data.ids.length;
  ({ layers: L, heads: N, vocab_size: V } = data.model);
  readColours();
  const restoreFocus = focusPlace();
  for (const id of ids) {
    paints[id] = shows[id]();
    paints[id]?.();
  }
  restoreFocus();
  for (const scroll of document.querySelectorAll(".scroll")) { // scrollable parts must be reachable by keyboard
    if (!scroll.querySelector("[tabindex], button, canvas")) scroll.tabIndex = 0;
    else scroll.removeAttribute("tabindex");
  }
}

/** Where the focus is. Returns a function that puts it there again if the element was drawn anew. */
function focusPlace() {
  const focused = document.activeElement, around = focused?.parentElement?.closest("[id]");
  const stops = () => [...around.querySelectorAll("button, [tabindex]")];
  const index = around ? stops().indexOf(focused) : -1;
  return () => {
    if (index < 0 || focused.isConnected) return;
    const found = stops();
    (found[Math.min(index, found.length - 1)] ?? byId("forward"))?.focus({ preventScroll: true });
  };
}

function paint() {
  readColours();
  for (const repaint of Object.values(paints)) repaint?.();
}


// Helpers

/** An element with attributes and children; a string child becomes a text node. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A typed array from base64, in little-endian order. */
function numbers(Kind, base64) {
  const letters = atob(base64), found = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) found[i] = letters.charCodeAt(i); // Uint8Array.from takes 10 times as long
  return new Kind(found.buffer);
}

/** A token's text, with visible spaces and escaped unprintable characters; or its id, if it has no text. */
const label = (id) => data.vocabulary[id] ?? `#${id}`;
const quoted = (id) => `“${label(id)}”`;
const token = (id) => el("bdi", { class: "token" }, label(id));

/** Text whose control and formatting characters are written out; line breaks and joiners stay. */
const printable = (text) => text.replace(/^[\u200c\u200d]+$|[^\P{C}\n\u200c\u200d]|[\u2028\u2029]/gu,
  (letter) => `\\u{${letter.codePointAt(0).toString(16)}}`);

/** Bytes in hexadecimal: "e2 80 99", a string for each token. */
const unhex = (tokens) => Uint8Array.from(tokens.join(" ").trim().split(" "), (byte) => parseInt(byte, 16));

/**
 * The text in the smallest runs of tokens that are whole characters: [from, to, text]; text is null for a single token,
 * which has its label.
 */
function joinedTokens() {
  const groups = [], decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  function decoded(tokens) {
    try {
      return tokens.includes(null) ? null : decoder.decode(unhex(tokens));
    } catch {
      return null; // these bytes are no whole characters
    }
  }
  for (let from = 0, to; from < T; from = to) {
    to = from + 1;
    let text = decoded(data.bytes.slice(from, to));
    while (text === null && to < T && to - from < 4) text = decoded(data.bytes.slice(from, ++to));
    if (text === null) to = from + 1;
    groups.push([from, to, to > from + 1 ? printable(text).replaceAll(" ", "␣") : null]);
  }
  return groups;
}

// What only the lab can do: take(id, keep), step(count), loadMap(layer, head), reloadMaps()
const actions = {};

/** A token that can be chosen to follow the first `keep` ones, in the lab; by default those in force. */
function choice(id, keep) {
  if (!actions.take) return token(id);
  const button = el("button", { type: "button", class: "choose", title: "continue with this token" }, token(id));
  button.addEventListener("click", () => actions.take(id, keep));
  return button;
}

/** A probability as a percentage with three significant digits. */
function percent(share) {
  if (!Number.isFinite(share)) return "NaN";
  if (share > 0 && share < 1e-6) return "<0.0001\u00a0%";
  return `${share === 0 ? "0" : String(Number((100 * share).toPrecision(15)).toPrecision(3))}\u00a0%`;
}

/** A large number with a unit prefix: 1.35 G. */
function amount(count) {
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (count >= size) return `${(count / size).toPrecision(3)}\u00a0${unit}`;
  }
  return `${count}\u00a0`;
}

const bytes = (count) => (count ? `${amount(count)}B` : "–");
const flops = (count) => (count ? `${amount(count)}FLOP` : "–");
const whole = (count) => count.toLocaleString("en");
const between = (value, low, high) => Math.min(Math.max(value, low), high);

/** Table cells: a row header, the header of a column of numbers, a number, and an empty one. */
const rowHead = (...children) => el("th", { scope: "row" }, ...children);
const columnHead = (...children) => el("th", { scope: "col", class: "number" }, ...children);
const number = (...children) => el("td", { class: "number" }, ...children);
const nothing = () => el("td", { class: "number out" }, "–");

/** The filled part of a bar. */
function filled(share) {
  const bar = el("div", { class: "bar" });
  bar.style.width = `${100 * (share || 0)}%`;
  return bar;
}

/** Probabilities as a list of bars. rows: [{id, share, is}]; `is` marks the token in the text. See choice for `keep`. */
function bars(list, rows, keep) {
  list.replaceChildren(...rows.map(({ id, share, is }) => el("li", { class: is ? "is" : null },
    keep === undefined ? token(id) : choice(id, keep),
    el("div", { class: "track" }, filled(share)), el("span", { class: "share" }, percent(share)))));
  return list;
}

/**
 * Make elements share one tab stop: arrow keys move among them, in rows of `columns` elements. `look` is called with the
 * index of the element that has the focus or the pointer.
 */
function roving(items, columns, look) {
  const moves = { ArrowRight: 1, ArrowLeft: -1 };
  if (columns < items.length) Object.assign(moves, { ArrowDown: columns, ArrowUp: -columns });
  const stop = (index) => items.forEach((item, i) => { item.tabIndex = i === index ? 0 : -1; });
  items.forEach((item, index) => {
    item.addEventListener("focus", () => { stop(index); look(index); });
    item.addEventListener("pointerenter", () => look(index));
    item.addEventListener("keydown", (event) => {
      const first = index - index % columns;
      const next = { Home: first, End: first + columns - 1 }[event.key] ?? index + moves[event.key];
      if (Number.isNaN(next)) return; // another key
      event.preventDefault();
      const inRow = event.key === "ArrowUp" || event.key === "ArrowDown" || (next >= first && next < first + columns);
      if (inRow) items[next]?.focus();
    });
  });
  stop(0);
}

/** The number after a key press, kept between bounds; null for a key that does not move it. */
function moved(event, value, low, high) {
  const next = { ArrowLeft: value - 1, ArrowRight: value + 1, Home: low, End: high }[event.key];
  if (next === undefined) return null;
  event.preventDefault();
  return between(next, low, high);
}


// Colour: one scale for all probabilities, from the background's colour to the text's.

let heatColours = [];

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const stops = [0, 1, 2, 3].map((i) => {
    const hex = style.getPropertyValue(`--heat-${i}`).trim();
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  });
  heatColours = Array.from({ length: 256 }, (_, i) => {
    const place = i / 255 * 3, from = Math.min(Math.floor(place), 2);
    return stops[from].map((value, channel) => Math.round(value + (stops[from + 1][channel] - value) * (place - from)));
  });
}

/** The colour of a level from 0 to 1. */
const heat = (level) => heatColours[Math.round(255 * between(Number.isFinite(level) ? level : 0, 0, 1))];

const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

/** Black or white, whichever has more contrast on a colour, by relative luminance as in WCAG. */
function inkOn(colour) {
  const [r, g, b] = colour.map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000000" : "#ffffff";
}

/** Give an element a level's background colour, and a text colour with enough contrast. */
function tint(element, level) {
  element.style.backgroundColor = css(heat(level));
  element.style.color = inkOn(heat(level));
}

/** A probability on a logarithmic scale from `least` to 1. */
const logarithmic = (share, least) => (share > 0 ? 1 - Math.log(share) / Math.log(least) : 0);
