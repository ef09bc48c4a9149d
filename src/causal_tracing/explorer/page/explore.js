// The explorer: what is typed, the trace that is shown, what is inside its cells, and what this session has seen.
import { ask } from "/static/talk.js";
import { form } from "/static/ask.js";
import { inside } from "/static/deeper.js";
import { besideOf, result } from "/static/result.js";

const $ = (id) => document.getElementById(id);
const TAB = "causal-tracing-tab", SHOWN = "causal-tracing-shown", MINE = "causal-tracing-mine";
const tab = sessionStorage.getItem(TAB) ?? Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
sessionStorage.setItem(TAB, tab);
let about = null, shown = null, other = null, running = null, quarter = -1;

const say = (text) => { if ($("state").textContent !== text) $("state").textContent = text; };
const failed = (error) => { say(""); typed.wrong(error.said ?? { message: error.message }); };
const begin = (id) => { running = id; quarter = -1; $("stop").hidden = !about.live; Object.assign($("progress"), { hidden: false, value: 0 }); };
const end = (text) => { running = null; $("stop").hidden = true; $("progress").hidden = true; say(text); history(); };

// Only quarters are said: who listens to the page is not told every step.
const progress = ({ done, of }) => {
  $("progress").value = done / of;
  if (Math.floor((4 * done) / of) > quarter) { quarter = Math.floor((4 * done) / of); say(quarter < 4 ? `${["Tracing", "A quarter of the work is done", "Half of the work is done", "Three quarters of the work are done"][quarter]} …` : "Checking some cells again …"); }
};
const checked = (found) => (found?.cells ? ` ${found.cells} cells run again on whole forwards differ by at most ${found.largest_difference.toExponential(1)}.` : "");
const heard = (kind, data, self) => {
  if (self !== shown) return;
  if (kind === "queued" && data.ahead) say(`${data.ahead} ${data.ahead === 1 ? "trace comes" : "traces come"} before this one.`);
  if (kind === "progress") progress(data);
  if (kind === "view") { $("keep").hidden = false; for (const [name, text] of [["copy-command", data.command], ["copy-python", data.python]]) $(name).hidden = !text; $("save").hidden = !about.live; }
  if (kind === "done") end(data.seconds ? `Finished: ${(data.worlds - data.worlds_skipped).toLocaleString("en")} worlds in ${data.seconds.toFixed(1)} s (${data.engine}).${checked(data.spot_checks)}${data.engine_note ? ` ${data.engine_note}` : ""}` : "");
  if (kind === "cancelled") end("Stopped. Trace again when you like.");
  if (kind === "error") { end(""); typed.wrong(data); }
};
const chosen = (layer, position) => {
  if (!about.live || !shown.view) return;
  const { data, page } = shown, name = data.positions[position];
  deeper.open({ id: shown.id, layer: data.layers[layer], position: /^\d+$/.test(name) ? Number(name) : name, spoken: data.pairs[0].rows[position].spoken, page });
};
const show = (id) => {
  shown?.close();
  deeper.close();
  beside(null);
  $("keep").hidden = true; $("saved").textContent = ""; $("copied-it").textContent = "";
  sessionStorage.setItem(SHOWN, id);
  begin(id);
  shown = result(id, { told: (...event) => heard(...event), opened: chosen, drawn: () => drawBeside(), lost: (error) => { end(""); failed(error); } });
  history();
};
// What another tab began is left to it.
const stop = async (anyones = false) => {
  const id = running;
  if (!id || !(anyones || id === sessionStorage.getItem(MINE))) return;
  running = null;
  await ask(`traces/${id}`, { method: "DELETE" });
};
const start = async (request) => {
  typed.wrong(null);
  say("Asking …");
  try {
    const { id } = await (await ask("traces", { method: "POST", body: request })).json();
    sessionStorage.setItem(MINE, id);
    show(id);
  } catch (error) { failed(error); }
};

// Two traces side by side: one scale, the larger of the two total effects.
const scale = (data, most) => { for (const [name, numbers] of Object.entries(data.pairs[0].metrics)) numbers.scale = most(name, numbers); };
const both = (name, numbers) => Math.max(...[shown, other].map((one) => Math.abs(one.data.pairs[0].metrics[name]?.total ?? 0)), Math.abs(numbers.total ?? 0)) || null;
let said = null;
const drawBeside = () => { if (other?.data && shown?.page) said = besideOf(other, shown); };
const beside = async (id) => {
  if (!id) {
    $("beside-section").hidden = true;
    if (other && shown?.data) { other = null; scale(shown.data, (_, numbers) => Math.abs(numbers.total ?? 0) || null); shown.page?.draw(); }
    other = null;
    return;
  }
  try {
    const { document: written, label } = await (await ask(`traces/${id}/view`)).json();
    other = { id, data: written.data };
    scale(shown.data, both); scale(other.data, both);
    $("beside-section").hidden = false;
    $("beside-words").textContent = `${label}: ${written.words[0].sentences[0]}`;
    shown.page.draw();
    $("beside-section").scrollIntoView({ block: "nearest" });
  } catch (error) { failed(error); }
};
$("beside-close").addEventListener("click", () => beside(null));
for (const kind of ["mouseover", "focusin"]) $("beside").addEventListener(kind, (event) => { const at = event.target.dataset?.at?.split(",").map(Number); if (at && said) $("beside-readout").textContent = said(...at); });
$("beside").addEventListener("keydown", (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key], at = event.target.dataset?.at?.split(",").map(Number);
  const cell = move && at && $("beside").querySelector(`td[data-at="${at[0] + move[0]},${at[1] + move[1]}"]`);
  if (!cell) return;
  event.preventDefault();
  event.target.tabIndex = -1; cell.tabIndex = 0; cell.focus();
});

// What this session has seen.
const history = async () => {
  const listed = await (await ask("traces")).json();
  $("history").replaceChildren(...listed.reverse().map(({ id, label, state, pair, options }) => {
    const item = document.createElement("li"), text = Object.assign(document.createElement("span"), { className: "asked", textContent: label });
    if (id === shown?.id) item.setAttribute("aria-current", "true");
    item.append(text, Object.assign(document.createElement("span"), { className: "quiet", textContent: state }));
    const press = (name, act) => { const made = Object.assign(document.createElement("button"), { type: "button", textContent: name, ariaLabel: `${name}: ${label}` }); made.addEventListener("click", act); item.append(made); };
    press("open", () => { if (about.live) typed.fill(pair, options); show(id); $("ask").scrollIntoView({ block: "start" }); });
    if (state === "done" && id !== shown?.id) press("beside", () => beside(id));
    return item;
  }));
};

// To keep what is shown.
$("save").addEventListener("submit", async (event) => {
  event.preventDefault();
  try { $("saved").textContent = `saved: ${(await (await ask(`traces/${shown.id}/save`, { method: "POST", body: { name: $("name").value } })).json()).folder}`; } catch (error) { $("saved").textContent = error.message; }
});
for (const get of document.querySelectorAll("[data-get]")) get.addEventListener("click", async () => {
  try {
    const name = get.dataset.get, address = URL.createObjectURL(await (await ask(`traces/${shown.id}/${name}`)).blob());
    Object.assign(document.createElement("a"), { href: address, download: name === "page" ? "report.html" : name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
    $("copied-it").textContent = "downloaded";
  } catch (error) { $("copied-it").textContent = error.message; }
});
for (const [button, what] of [["copy-command", "command"], ["copy-python", "python"]]) $(button).addEventListener("click", async () => {
  try { await navigator.clipboard.writeText(shown.view[what]); $("copied-it").textContent = "copied"; } catch { $("copied-it").textContent = shown.view[what]; }
});

const typed = form({ tab, changed: () => { stop().catch(failed); }, start });
const deeper = inside({ tab, offered: () => about?.deeper ?? {} });
$("stop").addEventListener("click", () => stop(true).catch(failed));
darkness(() => { shown?.page?.draw(); });

const open = async () => {
  about = await (await ask("model")).json();
  form.layers = about.layers;
  $("model").textContent = about.live ? `${about.model} · ${about.layers} layers · ${about.dtype} · ${about.device}` : "saved traces";
  if (!about.live) typed.close(about.why);
  const listed = await (await ask("traces")).json(), there = listed.find(({ id }) => id === sessionStorage.getItem(SHOWN)) ?? listed.find(({ id }) => id === about.example);
  if (there) { if (about.live) typed.fill(there.pair, there.options); show(there.id); } else { say("Type two prompts, and press Enter."); history(); }
};
open().catch(failed);
