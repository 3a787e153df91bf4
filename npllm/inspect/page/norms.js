// Residual stream

shows.norms = () => {
  const added = { // a name, a colour and a pattern of dashes for each curve
    residual: ["the residual stream", "--ink", ""],
    attention: ["attention adds", "--accent", "7 3"],
    feedforward: ["the feedforward network adds", "--warm", "2 3"],
  };
  const values = Object.fromEntries(Object.keys(added).map((name) => [name, numbers(Float32Array, data.norms[name])]));
  const chart = byId("norms-chart"), slider = byId("norms-token");
  let at = L; // 0 is the embedding, before anything is added
  slider.max = T - 1;
  slider.value = T - 1;
  const length = (name, place) => values[name][place * T + Number(slider.value)];

  function draw() {
    const position = Number(slider.value), width = Math.max(chart.clientWidth, 220), height = 300;
    const box = { left: 44, right: width - 8, top: 30, bottom: height - 40 };
    const all = Object.keys(added).flatMap((name) => Array.from({ length: L + 1 }, (_, place) => length(name, place)))
      .filter((value) => Number.isFinite(value) && value > 0).map(Math.log10);
    const low = Math.floor(Math.min(0, ...all) * 2) / 2, high = Math.ceil(Math.max(low + 1, ...all) * 2) / 2;
    const x = (place) => box.left + (box.right - box.left) * place / L;
    const y = (value) => box.bottom - (box.bottom - box.top) * (Math.log10(value) - low) / (high - low);
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (let power = Math.ceil(low); power <= high; power++) {
      const at = y(10 ** power);
      drawing.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }),
        svg("text", { x: box.left - 6, y: at + 4, "text-anchor": "end" }, whole(10 ** power)));
    }
    const every = Math.ceil(L / Math.max(2, Math.floor(width / 70)));
    for (let place = 1; place <= L; place += every) {
      drawing.append(svg("text", { x: x(place), y: box.bottom + 18, "text-anchor": "middle" }, String(place - 1)));
    }
    drawing.append(svg("text", { x: box.left, y: height - 4 }, "from the embedding"),
      svg("text", { x: box.right, y: height - 4, "text-anchor": "end" }, "to after the last block"),
      svg("line", { class: "at", x1: x(at), x2: x(at), y1: box.top, y2: box.bottom }));
    let legend = box.left;
    for (const [name, [words, colour, dashes]] of Object.entries(added)) {
      let path = "", pen = "M";
      for (let place = 0; place <= L; place++) {
        const value = length(name, place);
        if (!(value > 0 && Number.isFinite(value))) { pen = "M"; continue; }
        path += `${pen}${x(place).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = "L";
      }
      const curve = svg("path", { class: "curve", d: path, "stroke-dasharray": dashes });
      const sample = svg("path", { class: "curve", d: `M${legend} 10h26`, "stroke-dasharray": dashes });
      curve.style.stroke = sample.style.stroke = `var(${colour})`;
      const short = width < 520 ? name : words;
      drawing.append(curve, sample, svg("text", { x: legend + 32, y: 14 }, short));
      legend += (short === words ? 56 : 42) + 6.6 * short.length;
      if (length(name, at) > 0) {
        const dot = svg("circle", { cx: x(at), cy: y(length(name, at)), r: 4 });
        dot.style.fill = `var(${colour})`;
        drawing.append(dot);
      }
    }
    chart.replaceChildren(drawing);
    const written = (name) => (Number.isFinite(length(name, at)) ? length(name, at).toPrecision(4) : "NaN");
    byId("norms-token-value").replaceChildren(`${position} `, token(data.ids[position]));
    const reading = at
      ? `Block ${at - 1}: attention adds a vector of norm ${written("attention")}, the feedforward network one of `
        + `${written("feedforward")}; the residual stream then has norm ${written("residual")}.`
      : `Embedding: the residual stream begins with norm ${written("residual")}.`;
    byId("norms-reading").textContent = reading;
    chart.setAttribute("aria-label", `Norms at token ${position}, arrow keys move from block to block. ${reading}`);
  }

  chart.onpointermove = (event) => {
    const frame = chart.getBoundingClientRect();
    const next = between(Math.round((event.clientX - frame.left - 44) / (frame.width - 52) * L), 0, L);
    if (next !== at) { at = next; draw(); }
  };
  chart.onkeydown = (event) => {
    const next = moved(event, at, 0, L);
    if (next !== null) { at = next; draw(); }
  };
  slider.oninput = draw;
  return draw;
};
