// What is inside a cell: parts of its layer at its token, where the layer's heads look, and where goes what it adds.
import { ask, follow } from "/static/talk.js";

const $ = (id) => document.getElementById(id);
const make = (name, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
};
const drawn = (name, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const SAID = {
  heads: "the heads", neurons: "the neurons (the 20 strongest)", experts: "the experts", pattern: "where the heads look",
  "paths attn_out": "paths from attention", "paths mlp_out": "paths from the MLP", "paths mixer_out": "paths from the mixer",
};
const HEAD = "paths z", QUICK = ["heads", "pattern"]; // what is shown again of the next cell

// A bar from the middle, as long as the effect is large.
const bar = (value, scale) => {
  const svg = drawn("svg", { width: 150, height: 14, "aria-hidden": "true" });
  const long = Math.min(75, (75 * Math.abs(value)) / (scale || 1));
  svg.append(drawn("rect", { class: value >= 0 ? "supports" : "opposes", x: value >= 0 ? 75 : 75 - long, y: 1, width: long, height: 12 }));
  return svg;
};
const partTable = (noun, found, { signed, percent }, behind) => {
  const { directions, rows, unit } = found, count = directions.length;
  const scale = Math.max(...rows.map((row) => Math.max(...row.slice(1, 1 + count).map(Math.abs))), 1e-9);
  const head = make("tr", {}, make("th", { scope: "col", textContent: noun }), ...directions.flatMap((name) => [make("th", { scope: "col", textContent: `${name} (${unit})` }), make("td", {})]), ...(behind ? [make("td", {})] : []));
  const body = rows.map((row) => make("tr", {}, make("th", { scope: "row", textContent: `${noun} ${row[0]}` }), ...directions.flatMap((_, n) => {
    const share = row[1 + count + n];
    const text = signed(row[1 + n]) + (share === null ? "" : ` (${percent(share)})`);
    return [make("td", { textContent: text }), make("td", { className: "bar-cell" }, bar(row[1 + n], scale))];
  }), ...(behind ? [make("td", {}, behind(row[0]))] : [])));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: `${noun}s of this layer` }, make("table", { className: "inside" }, make("thead", {}, head), make("tbody", {}, ...body)));
};
const patternOf = (title, { tokens, heads }, head) => {
  const size = 16, left = 90, top = 84, count = tokens.length, found = heads[head];
  const [width, height] = [left + size * count + 44, top + size * count + 4];
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width: 1.4 * width, height: 1.4 * height, role: "img", "aria-label": `${title}: where head ${head} looks; each row is a token that looks, each column one that is looked at` });
  svg.append(drawn("rect", { class: "frame", x: left, y: top, width: size * count, height: size * count }));
  tokens.forEach((token, n) => {
    const shown = token.trim().slice(0, 10) || "␣";
    svg.append(drawn("text", { x: left - 6, y: top + size * n + 12, "text-anchor": "end" }, shown));
    svg.append(drawn("text", { transform: `translate(${left + size * n + 11} ${top - 6}) rotate(-60)` }, shown));
    found[n].forEach((share, key) => {
      if (key > n || share < 0.005) return;
      const cell = drawn("rect", { x: left + size * key, y: top + size * n, width: size - 1, height: size - 1, "fill-opacity": Math.min(1, share) });
      cell.append(drawn("title", {}, `${tokens[n]} looks at ${tokens[key]}: ${(100 * share).toFixed(1)} %`));
      svg.append(cell);
    });
  });
  return make("figure", {}, make("figcaption", { textContent: title }), svg);
};

export const inside = ({ tab, offered }) => {
  let leave = null, cell = null, kind = null, paths = null, asked = 0;
  const refused = new Set(); // what was tried on the model, and does not hold there
  const empty = () => { leave?.(); leave = paths = null; asked += 1; cell?.page.look(null); $("deeper-shown").replaceChildren(); };
  const close = () => { empty(); $("deeper").hidden = true; };
  const button = (text, press, properties = {}) => {
    const made = make("button", { type: "button", textContent: text, ...properties });
    made.addEventListener("click", press);
    return made;
  };
  const state = (text) => { if ($("deeper-state").textContent !== text) $("deeper-state").textContent = text; };
  const pattern = ({ sides }) => {
    const figures = make("div", { className: "patterns" });
    const choose = make("select", {}, ...sides.clean.heads.map((_, n) => make("option", { value: n, textContent: `head ${n}` })));
    const draw = () => figures.replaceChildren(patternOf("clean run", sides.clean, Number(choose.value)), patternOf("corrupt run", sides.corrupt, Number(choose.value)));
    choose.addEventListener("change", draw);
    $("deeper-shown").replaceChildren(make("p", {}, make("label", {}, "which head ", choose)), figures);
    draw();
  };
  const parts = (data) => {
    const heads = kind === "heads" && offers(HEAD) && ((head) => button("paths", () => show(HEAD, head), { ariaLabel: `paths from head ${head}` }));
    $("deeper-shown").replaceChildren(partTable(kind.slice(0, -1), data, cell.page, heads));
    if (kind !== "heads") state(`${data.measured.toLocaleString("en")} ${kind} measured${data.rows.length < data.measured ? `; the ${data.rows.length} strongest of them` : ""}.`);
  };
  // The report's own matrix and graph: they stay while numbers come, and with them the focus.
  const follows = ({ part }) => {
    if (paths) { Object.assign(paths, part); cell.page.draw(); return; }
    paths = part;
    $("deeper-shown").replaceChildren($("paths-form").content.cloneNode(true));
    cell.page.look(paths);
  };
  const hear = (event, data) => {
    if (event === "parts") parts(data);
    if (event === "paths") follows(data);
    if (event === "pattern") pattern(data);
    if (event === "done" && paths) state(`What ${paths.senders[0].name} adds to the stream, followed to every receiver behind it.`);
    if (event === "done" && QUICK.includes(kind)) state("");
    if (event === "error") state(data.message);
    if (event === "error" && data.type === "ComponentNotOffered") refused.add(kind);
    if (event === "cancelled") state("Stopped.");
  };
  const show = async (which, head) => {
    empty();
    kind = which;
    for (const each of $("deeper-switches").children) each.setAttribute("aria-pressed", String(each.dataset.kind === which));
    const [of, sender] = which.split(" "), mine = asked, more = sender ? { sender, ...(head === undefined ? {} : { part: head }) } : {};
    state(`Computing ${head === undefined ? SAID[which] : `paths from head ${head}`} …`);
    try {
      const { id } = await (await ask(`traces/${cell.id}/deeper`, { method: "POST", body: { kind: of, layer: cell.layer, position: cell.position, tab, ...more } })).json();
      if (mine === asked) leave = follow(id, hear, (error) => state(error.message));
    } catch (error) { if (mine === asked) state(error.message); }
  };
  const offers = (which) => !refused.has(which) && (offered()[which]?.includes(cell.layer) ?? false);
  const open = (chosen) => {
    empty(); // of the cell before
    cell = chosen;
    const kinds = Object.keys(SAID).filter(offers);
    $("deeper").hidden = !kinds.length;
    if (!kinds.length) return;
    $("deeper-title").textContent = `Inside layer ${chosen.layer}, ${chosen.spoken}`;
    $("deeper-switches").replaceChildren(...kinds.map((each) => {
      const made = button(SAID[each], () => show(each));
      made.dataset.kind = each;
      return made;
    }));
    show(QUICK.includes(kind) && kinds.includes(kind) ? kind : kinds[0]);
  };
  return { open, close };
};
