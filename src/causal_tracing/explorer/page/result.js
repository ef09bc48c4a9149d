// One trace on the page: the report's own map, filled while it is computed, with its words when they come.
import { follow } from "/static/talk.js";

const $ = (id) => document.getElementById(id);
const make = (name, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
};
const list = (texts) => make("ul", { className: "notes" }, ...texts.map((text) => make("li", { textContent: text })));
const asked = ([prompt, follows]) => [`${prompt} → `, make("b", { textContent: follows.trim() || follows })];
const told = (texts) => texts.map((text) => make("p", { className: "warning", textContent: text }));

const storyOf = (words) => {
  const heading = make("h1", {}, ...asked(words.sides[0]), make("small", {}, "against ", ...asked(words.sides[1])));
  const story = make("div", { className: "story" }, heading, make("p", { className: "finding", textContent: words.sentences[0] }), make("p", { className: "total", textContent: words.total }), ...told(words.warnings));
  story.dataset.pair = words.pair;
  return story;
};
const tableOf = (words) => {
  const heads = ["site", `restoration (${words.unit})`, `disruption (${words.unit})`, `interaction (${words.unit})`, "what the two mean together"];
  const number = (n) => (n > 0 && n < 4 ? "number" : "");
  const head = make("tr", {}, ...heads.map((text, n) => make("th", { scope: "col", className: number(n), textContent: text })));
  const rows = words.sites.map((cells) => make("tr", {}, ...cells.map((text, n) => make("td", { className: number(n), textContent: text }))));
  const sites = make("section", {}, make("h2", { textContent: "Strongest sites" }), list(words.sentences.slice(1)), make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "strongest sites" }, make("table", { className: "sites" }, make("thead", {}, head), make("tbody", {}, ...rows))), make("p", { className: "quiet", textContent: "Cuts and structural zeros are left out." }));
  const said = words.choices.map(([called, prompt, choices]) => make("div", {}, make("p", {}, make("strong", { textContent: called }), " ", make("code", { textContent: prompt }), " →"), make("ol", {}, ...choices.map(([token, prob]) => make("li", {}, make("code", { textContent: token }), ` ${prob}`)))));
  const would = make("section", {}, make("h2", { textContent: "What the model would say" }), make("div", { className: "choices" }, ...said));
  const tables = make("div", {}, sites, would);
  tables.dataset.pair = words.pair;
  return tables;
};

// What a patch in a cell can change at all: later layers, at its token and behind it.
const cone = (table, data) => {
  const rowOf = (n) => data.pairs[0].rows[n]?.token;
  const mark = (at) => {
    for (const cell of table.querySelectorAll("td.reach")) cell.classList.remove("reach");
    if (!at || rowOf(at[1]) === undefined) return;
    for (const cell of table.querySelectorAll("td")) {
      const [layer, row] = cell.dataset.at.split(",").map(Number);
      if (layer > at[0] && rowOf(row) >= rowOf(at[1])) cell.classList.add("reach");
    }
  };
  const place = (event) => event.target.dataset?.at?.split(",").map(Number);
  for (const kind of ["mouseover", "focusin"]) table.addEventListener(kind, (event) => mark(place(event)));
  for (const kind of ["mouseleave", "focusout"]) table.addEventListener(kind, () => mark(null));
};

// `told` is called with every event, `opened` when a cell is chosen, `drawn` when the map shows something else.
export const result = (id, { told: tell, opened, drawn, lost }) => {
  const ending = new AbortController(), self = { id, data: null, page: null, view: null, close: null };
  let asleep = true;
  const build = (data) => {
    const [beside, deeper] = [$("beside-section"), $("deeper")]; // they stay, while what they stand in is made anew
    $("result").replaceChildren($("form").content.cloneNode(true));
    $("both").append(beside);
    $("inside").append(deeper);
    for (const section of document.querySelectorAll("#result .of-kind")) if (!data.parts.some(({ kind }) => kind === section.dataset.kind)) section.remove();
    if (!data.mean) $("mean-section").hidden = true;
    if (data.filling) $("stories").append(make("h1", { textContent: data.pairs[0].asked }), make("p", { className: "finding", textContent: "The map is filling; the words come when it is whole." }));
    self.data = data;
    self.page = reportPage(data, { signal: ending.signal, drawn });
    cone($("map"), data);
    const open = (event) => { if (event.target.dataset?.at && (event.type === "click" || event.key === "Enter" || event.key === " ")) { event.preventDefault(); opened(...event.target.dataset.at.split(",").map(Number)); } };
    for (const kind of ["click", "keydown"]) $("map").addEventListener(kind, open);
    $("full-screen").addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : $("full").requestFullscreen()));
  };
  const repaint = () => {
    if (!asleep) return;
    asleep = false;
    requestAnimationFrame(() => { asleep = true; if (!ending.signal.aborted) self.page.refill(); });
  };
  const fill = ({ directions, cells }) => {
    const { metrics } = self.data.pairs[0];
    for (const [c, layer, position, found] of cells) {
      const component = self.data.components[c];
      for (const [metric, [status, ...values]] of Object.entries(found)) {
        metrics[metric].status[component][layer][position] = status;
        directions.forEach((name, n) => { metrics[metric][name][component][layer][position] = values[n]; });
      }
    }
    repaint();
  };
  const finish = (view) => {
    self.view = view;
    if (self.page) { self.data.pairs[0].metrics = view.data.pairs[0].metrics; self.data.filling = false; } else build(view.data);
    $("stories").replaceChildren(...view.words.map(storyOf));
    $("tables").replaceChildren(...view.words.map(tableOf));
    $("elsewhere").textContent = view.elsewhere.length ? `Not shown here: ${view.elsewhere.join(", ")}. The page that can be downloaded below shows them.` : "";
    $("how-to-read").replaceChildren(list(view.how_to_read));
    $("of-pairs").replaceChildren(list(view.words[0].caveats));
    $("provenance").textContent = view.provenance;
    self.page.draw();
  };
  const hear = (kind, data) => {
    if (kind === "map") build(data.data);
    if (kind === "cells") fill(data);
    if (kind === "view") finish(data);
    tell(kind, data, self);
  };
  const leave = follow(id, hear, lost);
  self.close = () => { leave(); ending.abort(); };
  return self;
};

// The map of another trace, drawn with the switches of the one that is shown, on one scale with it.
export const besideOf = (other, main) => {
  const { page } = main, { state } = page, data = other.data, pair = data.pairs[0], numbers = pair.metrics[state.m];
  const table = $("beside");
  if (!numbers || !data.components.includes(state.c)) { $("beside-words").textContent = `It has no ${state.m} of ${state.c}.`; table.replaceChildren(); delete table.dataset.shape; return null; }
  const at = (name, layer, row) => numbers[name]?.[state.c]?.[layer]?.[row] ?? null;
  const effect = (layer, row) => {
    if (state.d !== "interaction") return at(state.d, layer, row);
    const [lost, back] = [at("disruption", layer, row), at("restoration", layer, row)];
    return lost === null || back === null ? null : lost - back;
  };
  const value = (layer, row) => { const found = effect(layer, row); return found === null || state.v === "effect" ? found : found / numbers.total; };
  const words = (layer, row) => {
    const found = value(layer, row), status = data.statuses[numbers.status[state.c][layer][row]];
    const shown = found === null ? "undefined" : state.v === "effect" ? `${page.signed(found)} ${page.unit()}` : page.percent(found);
    return `beside: ${state.c} · layer ${data.layers[layer]} · ${pair.rows[row].spoken}: ${page.spoken("d", state.d)} ${shown}${status === "ok" ? "" : ` · ${status.replaceAll("_", " ")}`}`;
  };
  page.drawGrid(table, {
    corner: "token ↓ layer →", columns: data.layers, rows: pair.rows, most: page.largest(), at: other.at ?? null,
    choose: () => {},
    cell: (layer, row) => ({ value: value(layer, row), status: data.statuses[numbers.status[state.c][layer][row]], words: words(layer, row) }),
  });
  return words;
};
