// How the page talks to its server. The token comes behind # in the address, is kept for this tab, and goes in a header.
const KEY = "causal-tracing-token", LAST = ["done", "cancelled", "error"], AGAIN = 800;

const hash = new URLSearchParams(location.hash.slice(1));
if (hash.get("token")) {
  sessionStorage.setItem(KEY, hash.get("token"));
  hash.delete("token");
  history.replaceState(null, "", "#" + hash);
}

export class Failed extends Error {
  constructor(status, said) { super(said.message); this.status = status; this.said = said; }
}

const GONE = "The explorer does not answer. Start it again in the terminal, and open the address that it prints.";

export const ask = async (path, { method = "GET", body, signal, after } = {}) => {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (after !== undefined) headers["Last-Event-ID"] = String(after);
  let answer;
  try {
    answer = await fetch(`/api/${path}`, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, { message: GONE });
  }
  if (!answer.ok) throw new Failed(answer.status, await answer.json());
  return answer;
};

const heard = (block) => {
  const found = {};
  for (const line of block.split("\n")) {
    const [, name, value] = /^(id|event|data): (.*)$/.exec(line) ?? [];
    if (name) found[name] = value;
  }
  return found.event ? { kind: found.event, number: Number(found.id), data: JSON.parse(found.data) } : null;
};

// Hears what is told of a job until it ends. While the tab is hidden nothing is open; what was missed comes afterwards.
export const follow = (id, hear, lost) => {
  let after = 0, over = false, open = null;
  const read = async (signal) => {
    const answer = await ask(`traces/${id}/events`, { signal, after });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const event of blocks.map(heard).filter(Boolean)) {
        if (over) return;
        after = event.number;
        over = LAST.includes(event.kind);
        hear(event.kind, event.data);
      }
    }
  };
  const start = async () => {
    if (over || open || document.hidden) return;
    const mine = open = new AbortController();
    let failed = null;
    try { await read(mine.signal); } catch (error) { failed = error; }
    if (open === mine) open = null;
    if (over || mine.signal.aborted) return;
    if (failed instanceof Failed) { over = true; lost(failed); } else setTimeout(start, AGAIN);
  };
  const seen = () => {
    if (!document.hidden) { start(); return; }
    open?.abort();
    open = null;
  };
  document.addEventListener("visibilitychange", seen);
  start();
  return () => { over = true; open?.abort(); document.removeEventListener("visibilitychange", seen); };
};
