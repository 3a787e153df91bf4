// Requests to the server of the lab. A newer request of the same kind aborts the older one.

const secret = new URLSearchParams(location.search).get("token") ?? "";
const client = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
const controls = new Map(); // for each kind of request, what aborts it

/** Abort the requests of these kinds, or all. */
function abort(...kinds) {
  for (const kind of kinds.length ? kinds : [...controls.keys()]) controls.get(kind)?.abort();
}

async function request(name, body) {
  abort(name);
  const control = new AbortController();
  controls.set(name, control);
  let response;
  try {
    response = await fetch(`/api/${name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Npllm-Token": secret, "X-Npllm-Client": client },
      body: JSON.stringify(body),
      signal: control.signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The lab does not answer. Is npllm lab still running?");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: `The lab answered with status ${response.status}.` }));
  throw response.status === 409 ? new DOMException(error, "AbortError") : new Error(error);
}

/** The answer to one request. */
const ask = async (name, body) => (await request(name, body)).json();

/** The lines of a streamed answer, one after the other. */
async function* lines(name, body) {
  const reader = (await request(name, body)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const parts = (rest + (value ?? "")).split("\n");
    rest = parts.pop();
    for (const part of parts) {
      const line = JSON.parse(part);
      if (line.error) throw new Error(line.error);
      if (line.cancelled) throw new DOMException("cancelled", "AbortError");
      yield line;
    }
    if (done) return;
  }
}

const busy = new Map(); // for each part of the page, how many things are being done there

function countBusy(part, by) {
  busy.set(part, (busy.get(part) ?? 0) + by);
  byId(part).setAttribute("aria-busy", String(busy.get(part) > 0));
}

/** Do this; an error is shown in words in this part of the page. Says whether it was done. */
async function attempt(part, work) {
  const problem = byId(`${part}-problem`);
  problem.textContent = "";
  countBusy(part, 1);
  try {
    await work();
    return true;
  } catch (error) {
    if (error.name !== "AbortError") {
      problem.textContent = error.message;
      if (!(error instanceof Error) || error instanceof TypeError) console.error(error);
    }
    return false;
  } finally {
    countBusy(part, -1);
  }
}
