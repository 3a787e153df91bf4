// The source: every line has an anchor. A file's lines are filled in when it is opened or a link leads to it

const files = {}; // for each path: its element, and what fills in its lines

/** Open a file at the line of an address such as npllm/rope.py:12. Says whether there is such a file. */
function follow(address) {
  const found = files[address.replace(/:\d+$/, "")];
  if (!found) return false;
  found.fill();
  found.file.open = true;
  const line = byId(address);
  for (const before of document.querySelectorAll("code.here")) before.classList.remove("here");
  line.classList.add("here");
  line.scrollIntoView({ block: "center" });
  return true;
}

shows.source = () => {
  byId("listings").replaceChildren();
  for (const [path, text] of Object.entries(data.listings)) {
    const lines = el("pre", { tabindex: 0, "aria-label": path });
    const file = el("details", {}, el("summary", {}, el("code", {}, path)), lines);
    const fill = () => {
      if (lines.childElementCount) return;
      lines.append(...text.trimEnd().split("\n").map((line, i) =>
        el("code", { id: `${path}:${i + 1}`, "data-number": i + 1 }, `${line}\n`)));
    };
    file.addEventListener("toggle", fill);
    files[path] = { file, fill };
    byId("listings").append(file);
  }
};
