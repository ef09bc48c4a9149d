"use strict";
const isDark = () => document.documentElement.classList.contains("dark");
// Dark or light: as the system prefers, until the button says otherwise.
const darkness = (redraw) => {
  const button = document.getElementById("theme");
  const paint = (dark) => { document.documentElement.classList.toggle("dark", dark); button.setAttribute("aria-pressed", dark); };
  button.addEventListener("click", () => { paint(!isDark()); redraw(); });
  paint(matchMedia("(prefers-color-scheme: dark)").matches);
};

// The page of these data. They may still be filling: what is changed in them is shown by `refill`, and `drawn` is called
// when it shows something else. A later page in the same place ends this one by its `signal`.
const reportPage = (data, { signal, drawn: told = () => {} } = {}) => {
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
  const options = {
    p: [...(data.mean ? [data.mean.id] : []), ...data.pairs.map((pair) => pair.id)], m: data.metrics.map((metric) => metric.name), c: data.components,
    d: data.effects, v: ["effect", "fraction"],
  };
  const names = { p: "pair", m: "metric", c: "component", d: "direction", v: "shown as", n: "rows", f: "senders and receivers", e: "lines" };
  // A section's own switches are named by its kind: "heads-c" is the component that is shown of heads.
  const optionsOf = (part) => {
    if (part.matrix) return { [`${part.kind}-f`]: ["strongest", "all"], [`${part.kind}-e`]: ["10", "20", "40"] };
    if (part.drawn) return { [`${part.kind}-c`]: part.components, [`${part.kind}-p`]: [...new Set([...part.positions, ...(part.mean?.positions ?? [])])] };
    return { [`${part.kind}-n`]: ["20", "100"] };
  };
  Object.assign(options, ...data.parts.map(optionsOf));
  const state = Object.fromEntries(Object.keys(options).map((key) => [key, options[key][0]]));
  state.cell = null; // [layer index, position index]
  const maps = data.parts.filter((part) => part.drawn);
  for (const part of maps) { state[`${part.kind}-p`] = part.strongest; state[`${part.kind}-at`] = null; } // [layer index, part]

  // The state of the switches lives in the fragment, so that a view can be linked.
  const restore = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const key of Object.keys(options)) if (options[key].includes(asked.get(key))) state[key] = asked.get(key);
    const place = (key, columns, rows) => {
      const found = /^(\d{1,5}),(\d{1,5})$/.exec(asked.get(key) || "");
      if (found && +found[1] < columns && +found[2] < rows) state[key] = [+found[1], +found[2]];
    };
    place("cell", data.layers.length, pair().rows.length);
    for (const part of maps) place(`${part.kind}-at`, part.layers.length, part.counts[state[`${part.kind}-c`]]);
  };
  const remember = () => {
    const parts = new URLSearchParams();
    for (const key of Object.keys(options)) if (options[key].length > 1) parts.set(key, state[key]);
    for (const key of ["cell", ...maps.map((part) => `${part.kind}-at`)]) if (state[key]) parts.set(key, state[key].join(","));
    if (location.protocol !== "about:") history.replaceState(null, "", "#" + parts);  // a notebook's frame has no address
  };

  const pair = () => (data.mean?.id === state.p ? data.mean : data.pairs.find((one) => one.id === state.p));
  const numbers = () => pair().metrics[state.m];
  const fractionReason = () => numbers().fraction_reason;
  const effect = (name, component, layer, position) => {
    const at = (direction) => numbers()[direction]?.[component]?.[layer]?.[position] ?? null;
    if (name !== "interaction") return at(name);
    const [lost, back] = [at("disruption"), at("restoration")];
    return lost === null || back === null ? null : lost - back;
  };
  const value = (component, layer, position) => {
    const found = effect(state.d, component, layer, position);
    if (found === null || state.v === "effect") return found;
    return numbers().shares?.[state.d]?.[component]?.[layer]?.[position] ?? found / numbers().total;
  };
  const status = (component, layer, position) => data.statuses[numbers().status[component][layer][position]];
  const largest = () => {
    let most = 0;
    for (const name of options.d) for (const component of data.components) data.layers.forEach((_, layer) => pair().rows.forEach((_, position) => {
      most = Math.max(most, Math.abs(effect(name, component, layer, position) ?? 0));
    }));
    most = numbers().scale || most || 1; // a map that is filling has its scale before its numbers
    return state.v === "fraction" ? most / Math.abs(numbers().total) : most;
  };
  const unit = (name = state.m) => data.metrics.find((metric) => metric.name === name).unit;
  const signed = (number, digits = 3) => (number >= 0 ? "+" : "−") + Math.abs(Number(number.toPrecision(digits)));
  // In whole per cent; what is less than a tenth or a half, where the words change, is told so.
  const percent = (share) => {
    const size = Math.abs(share), level = [0.1, 0.5].find((one) => size < one && Math.round(100 * size) === Math.round(100 * one));
    const told = level ? Math.min(100 * size, 100 * level - 0.1).toFixed(1) : `${Math.round(100 * size)}`;
    return `${share < 0 && told !== "0" ? "−" : ""}${told} %`;
  };

  const RAMPS = {
    light: [["#f6f5f8", "#cfc4e2", "#9a80c2", "#6a45a3", "#35146e"], ["#f6f5f8", "#fbd3a2", "#ee9a4d", "#c4660f", "#7f3b08"]],
    dark: [["#211e2a", "#45366b", "#7456b3", "#a588ec", "#e0d3ff"], ["#211e2a", "#5c3613", "#a35c14", "#ea9438", "#ffdcae"]],
  };
  const colour = (share) => {
    const ramp = RAMPS[isDark() ? "dark" : "light"][share >= 0 ? 0 : 1];
    const along = Math.min(1, Math.abs(share)) * (ramp.length - 1);
    const low = Math.min(ramp.length - 2, Math.floor(along));
    const parts = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
    const mixed = parts(ramp[low]).map((part, n) => Math.round(part + (parts(ramp[low + 1])[n] - part) * (along - low)));
    return `rgb(${mixed.join(",")})`;
  };

  const spoken = (key, option) => (key === "d" ? option.replaceAll("_", " ") : option);
  // A switch may stand in several sections: each has radio buttons of its own, and all show one state.
  const MOST_RADIOS = 6;
  const chooser = () => {
    const select = make("select", { name: "p" }, ...options.p.map((id) => make("option", { value: id, textContent: id === data.mean?.id ? data.mean.name : id, selected: id === state.p })));
    select.addEventListener("change", () => open(select.value));
    return make("fieldset", {}, make("label", { className: "choice" }, make("span", { className: "name", textContent: names.p }), select));
  };
  const switchFor = (key, place = "") => {
    if (key === "p" && options.p.length > MOST_RADIOS) return chooser();
    const own = key.split("-"), name = own.length > 1 ? key : place + key;
    const set = make("fieldset", {}, make("legend", { textContent: names[own.at(-1)] }));
    for (const option of options[key]) {
      const input = make("input", { type: "radio", name, value: option, checked: state[key] === option });
      if (key === "v" && option === "fraction" && fractionReason()) input.disabled = true;
      if (key === "m" && !place) input.disabled = !pair().metrics[option];
      input.addEventListener("change", () => { if (key === "p") open(option); else { state[key] = option; draw(); } });
      const label = make("label", {}, input, make("span", { textContent: key === "p" && option === data.mean?.id ? data.mean.name : spoken(key, option) }));
      if (input.disabled && key === "v") label.title = "Undefined: " + fractionReason();
      set.append(label);
    }
    return set;
  };
  const switches = (node, keys, place) => node.replaceChildren(...keys.filter((key) => options[key].length > 1).map((key) => switchFor(key, place)));
  const drawSwitches = () => {
    switches($("switches"), ["d", "c", "v", "m"]);
    if (options.p.length > 1) { $("pairs").hidden = false; $("pairs").replaceChildren(switchFor("p")); }
    for (const part of document.querySelectorAll("[data-pair]")) part.hidden = part.dataset.pair !== state.p;
    $("of-pairs").hidden = state.p === data.mean?.id;
  };
  const SWATCHES = { faint: "not told from 0", zero: "structural zero", cut: "cut: the total effect by construction", none: "undefined", waiting: "not computed yet" };
  const WAITING = "not_computed_yet";
  const drawLegend = (node, most, kinds, unitName = unit(), asShare = state.v === "fraction") => {
    const bar = drawn("svg", { width: 220, height: 14, role: "img", "aria-label": "colour scale" });
    for (let n = 0; n < 44; n++) bar.append(drawn("rect", { x: 5 * n, y: 0, width: 5, height: 14, fill: colour((n - 21.5) / 21.5) }));
    const end = asShare ? percent(most) : `${Number(most.toPrecision(3))} ${unitName}`;
    const swatch = (kind) => make("span", {}, make("span", { className: `swatch ${kind}`, textContent: kind === "zero" ? "·" : kind === "faint" ? "○" : "" }), SWATCHES[kind]);
    node.replaceChildren(make("span", {}, `−${end} `, bar, ` +${end}`), ...kinds.map(swatch));
  };

  // A map as a table: `at` is the chosen [column, row], `cell(column, row)` says value, status and words of a cell. A
  // table that is there already is painted anew: it keeps its cells, and with them the focus.
  const pointed = new Map();
  const drawGrid = (table, grid) => {
    const shape = JSON.stringify([grid.corner, grid.columns, grid.rows]);
    if (table.dataset.shape !== shape) { buildGrid(table, grid); pointed.delete(table); }
    table.dataset.shape = shape;
    const [focusColumn, focusRow] = grid.at || [0, 0];
    [...table.tBodies[0].rows].forEach((row, r) => {
      row.className = grid.at && focusRow === r ? "shown" : "";
      grid.columns.forEach((_, n) => {
        const node = row.cells[n + 1];
        node.tabIndex = n === focusColumn && r === focusRow ? 0 : -1;
        paintCell(node, grid.cell(n, r), grid.most);
      });
    });
    pointed.get(table)?.(); // what is said of the cell that is pointed at is said anew
  };
  const paintCell = (node, { value: found, status: kind, words: said, faint }, most) => {
    const empty = kind === WAITING ? "waiting" : "none", marked = { structural_zero: "zero", cut: "cut" }[kind] ?? "";
    node.ariaLabel = said;
    node.className = found === null ? empty : marked;
    node.style.backgroundColor = found !== null && kind !== "structural_zero" ? colour(found / most) : "";
    if (faint && found !== null) node.classList.add("faint");
  };
  const buildGrid = (table, { corner, columns, across = "layer", rows, choose }) => {
    const head = make("tr", { role: "row" }, make("th", { textContent: corner }));
    const every = Math.max(1, Math.ceil(columns.length / 16));
    columns.forEach((layer, n) => head.append(make("th", { scope: "col", textContent: n % every ? "" : layer, ariaLabel: `${across} ${layer}` })));
    const body = make("tbody");
    rows.forEach(({ label, differs, title = label }, r) => {
      const row = make("tr", { role: "row" });
      const name = make("th", { scope: "row", textContent: label, title, className: differs ? "differs" : "" });
      name.addEventListener("click", () => choose(Number(table.querySelector('td[tabindex="0"]').dataset.at.split(",")[0]), r));
      row.append(name);
      columns.forEach((_, n) => {
        const node = make("td", { role: "gridcell" });
        node.dataset.at = `${n},${r}`;
        row.append(node);
      });
      body.append(row);
    });
    table.style.setProperty("--columns", columns.length);
    table.replaceChildren(make("thead", {}, head), body);
  };
  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-1e6, 0], End: [1e6, 0], PageUp: [0, -1e6], PageDown: [0, 1e6] };
  const within = (number, size) => Math.max(0, Math.min(size - 1, number));
  const focusOn = (table, at) => table.querySelector(`td[data-at="${at.join(",")}"]`).focus();
  const listen = (table, size, choose, read) => {
    const placeOf = (event) => event.target.dataset.at?.split(",").map(Number);
    table.addEventListener("keydown", (event) => {
      const [move, at, [columns, rows]] = [MOVES[event.key], placeOf(event), size()];
      if (!move || !at) return;
      event.preventDefault();
      choose(within(at[0] + move[0], columns), within(at[1] + move[1], rows));
    });
    table.addEventListener("click", (event) => { const at = placeOf(event); if (at) choose(...at); });
    for (const kind of ["mouseover", "focusin"]) table.addEventListener(kind, (event) => {
      const at = placeOf(event);
      if (at) { pointed.set(table, () => read(...at)); read(...at); }
    });
  };
  // What a cell is said to be worth: every effect, with its share of the total; sums and the like only where there are any.
  const ALWAYS_SAID = ["restoration", "disruption", "interaction"];
  const sharesInWords = (effects, metric, at) => effects.map((name) => {
    const found = at(name), { total, fraction_reason: reason } = pair().metrics[metric];
    if (found === null) return ALWAYS_SAID.includes(name) ? `${name} undefined` : null;
    const share = reason || total === null || name === "interaction" ? "" : ` (${percent(found / total)} of the total effect)`;
    return `${spoken("d", name)} ${signed(found)} ${unit(metric)}${share}`;
  }).filter(Boolean).join(", ");

  // A mean's interval and its p over the map, behind its estimate.
  const tested = (low, high, p, name = unit()) => {
    const between = low === null ? "" : ` [${signed(low)}, ${signed(high)}]`;
    const test = p === null ? "" : ` (p ${p < 0.001 ? "< 0.001" : p < 0.05 && p.toPrecision(2) >= 0.05 ? "< 0.05" : `= ${Number(p.toPrecision(2))}`} over the map)`;
    return between + (name ? ` ${name}` : "") + test;
  };
  const meanInWords = (effects, at, testedAt, clusters) => {
    const said = effects.filter((name) => at(name) !== null).map((name) => `${name} ${signed(at(name))}${tested(...testedAt(name))}`);
    return `${said.join(", ") || "undefined"} · ${clusters} clusters`;
  };

  const tokenOf = (position) => pair().rows[position];
  const windowOf = (layer) => {
    const [first, last] = data.windows[state.c]?.[layer] ?? [0, 0];
    return last > first ? ` (layers ${first} to ${last} together)` : "";
  };
  const words = (layer, position) => {
    const kind = status(state.c, layer, position), why = kind === "ok" ? "" : ` · ${kind.replaceAll("_", " ")}`;
    const at = (name) => effect(name, state.c, layer, position);
    const known = kind === WAITING ? options.d.filter((name) => at(name) !== null) : options.d;
    const shares = mean.is?.() ? mean.words(state.c, layer, position) : sharesInWords(known, state.m, at);
    return `${state.c} · layer ${data.layers[layer]}${windowOf(layer)} · ${tokenOf(position).spoken}: ${shares}${why}`;
  };
  // What the stream behind a layer would say at a token, in both runs.
  const lensWords = (layer, position) => {
    const said = ["clean", "corrupt"].map((run) => {
      const [top, prob, answer, difference] = pair().lens?.[run]?.[layer]?.[position] ?? [];
      const parts = [
        top && prob !== null ? `${top} ${prob.toFixed(2)}` : "",
        answer === undefined || answer === null ? "" : `p(answer) ${Number(answer.toPrecision(2))}`,
        difference === undefined || difference === null ? "" : `answer − foil ${signed(difference)} logits`,
      ].filter(Boolean);
      return parts.length ? `${run} run: ${parts.join(", ")}` : "";
    }).filter(Boolean);
    return said.length ? `Logit lens behind layer ${data.layers[layer]}, a readout and no effect · ${said.join(" · ")}` : "";
  };
  const drawMap = () => {
    $("map").closest("section").hidden = !data.components.length;
    if (!data.components.length) return;
    const most = largest();
    $("map").classList.toggle("filling", Boolean(data.filling)); // nothing fades while torch works beside it
    drawLegend($("legend"), most, [...(mean.is?.() ? ["faint"] : []), "zero", "cut", "none", ...(data.filling ? ["waiting"] : [])]);
    drawGrid($("map"), {
      corner: "token ↓ layer →", columns: data.layers, rows: pair().rows, most, at: state.cell, choose,
      cell: (layer, position) => ({ value: value(state.c, layer, position), status: status(state.c, layer, position), words: words(layer, position), faint: mean.is?.() && mean.faint(state.c, layer, position) }),
    });
    $("map").setAttribute("aria-label", `${spoken("d", state.d)} of ${state.c} by token and layer`);
  };

  // Charts are drawn as wide as there is room, so that their text keeps its size on a phone.
  const chartWidth = (node) => Math.max(340, Math.min(1100, node.clientWidth || 1100));
  const chart = (series, most) => {
    const [width, height, left, right, top, bottom] = [chartWidth($("curves")), 240, 56, 90, 12, 28];
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "effect of MLP and attention by layer" });
    const count = data.layers.length;
    const x = (n) => left + (count > 1 ? n / (count - 1) : 0.5) * (width - left - right);
    const y = (one) => top + (1 - (one / most + 1) / 2) * (height - top - bottom);
    for (const tick of [-most, 0, most]) {
      svg.append(drawn("line", { class: "axis", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
      svg.append(drawn("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, state.v === "fraction" ? percent(tick) : String(Number(tick.toPrecision(2))).replace("-", "−")));
    }
    const every = Math.max(1, Math.ceil(count / (width / 60)));
    data.layers.forEach((layer, n) => { if (n % every === 0) svg.append(drawn("text", { x: x(n), y: height - 8, "text-anchor": "middle" }, layer)); });
    const last = (line) => line.findLast((one) => one !== null) ?? 0;
    const upper = last(series.mlp_out) >= last(series.attn_out) ? "mlp_out" : "attn_out";
    for (const [name, line] of Object.entries(series)) {
      const points = line.map((one, n) => (one === null ? null : [x(n), y(one)])).filter(Boolean);
      svg.append(drawn("polyline", { class: name, points: points.join(" "), "stroke-width": 2.5 }));
      const end = points.at(-1);
      if (end) svg.append(drawn("text", { class: name, x: end[0] + 10, y: end[1] + (name === upper ? -4 : 12) }, name));
    }
    return svg;
  };
  const drawCurves = () => {
    const shown = ["mlp_out", "attn_out"].filter((name) => data.components.includes(name));
    $("curves-section").hidden = shown.length < 2;
    if (shown.length < 2) return;
    const strongest = (component, layer) => pair().rows.map((_, position) => value(component, layer, position))
      .filter((one) => one !== null).reduce((most, one) => (Math.abs(one) > Math.abs(most ?? 0) ? one : most), null);
    const at = state.cell ? state.cell[1] : pair().rows.length === 1 ? 0 : null;
    const series = Object.fromEntries(shown.map((name) => [name, data.layers.map((_, layer) => (at === null ? strongest(name, layer) : value(name, layer, at)))]));
    const inUnit = state.v === "fraction" ? "share of the total effect" : unit();
    $("curves-note").textContent = `${spoken("d", state.d)} (${inUnit}) ` + (at === null ? "of the strongest single token in each layer (choose a row of the map for one token)" : `at ${tokenOf(at).spoken}`);
    const most = Math.max(...Object.values(series).flat().map((one) => Math.abs(one ?? 0))) || 1;
    $("curves").replaceChildren(chart(series, most));
  };

  const choose = (...at) => { state.cell = at; draw(); focusOn($("map"), at); };
  const read = (layer, position) => {
    const said = words(layer, position);
    if ($("readout").textContent !== said) $("readout").textContent = said; // what is read aloud is read once
    const lens = lensWords(layer, position);
    $("lens").hidden = !lens;
    $("lens").textContent = lens;
  };
  listen($("map"), () => [data.layers.length, pair().rows.length], choose, read);
  const open = (id) => { state.p = id; state.cell = null; draw(); $("map-title").scrollIntoView({ block: "nearest" }); };
  // The cell that is chosen, or the strongest one.
  const cellPlace = () => {
    if (state.cell) return state.cell;
    let [found, most] = [[0, 0], 0];
    data.layers.forEach((_, layer) => pair().rows.forEach((_, position) => {
      const one = status(state.c, layer, position) === "ok" ? Math.abs(value(state.c, layer, position) ?? 0) : 0;
      if (one > most) [found, most] = [[layer, position], one];
    }));
    return found;
  };
  const parts = partSections({ data, $, make, drawn, options, state, pair, unit, signed, percent, spoken, switches, drawLegend, drawGrid, paintCell, listen, focusOn, sharesInWords, meanInWords, tested, chartWidth, redraw: () => draw() });
  const mean = meanSection({ data, $, make, drawn, state, unit, signed, meanInWords, chartWidth, place: cellPlace, open });
  const draw = () => {
    if (!pair().metrics[state.m]) state.m = Object.keys(pair().metrics)[0];
    if (fractionReason()) state.v = "effect";
    const active = document.activeElement?.name;
    drawSwitches(); drawMap(); mean.draw(); drawCurves(); parts.draw(); remember();
    if (active) document.querySelector(`input[name="${CSS.escape(active)}"]:checked, select[name="${CSS.escape(active)}"]`)?.focus();
    if (state.cell) read(...state.cell);
    told();
  };

  $("copy").addEventListener("click", () => {
    getSelection().selectAllChildren($("provenance"));
    $("copied").textContent = document.execCommand("copy") ? "copied" : "selected: press Ctrl-C";
  });
  addEventListener("resize", () => { drawCurves(); parts.draw(); }, { signal });
  addEventListener("hashchange", () => { restore(); draw(); }, { signal });
  restore();
  draw();
  // A part that is looked into beside those of the data; none: it is not looked at any more.
  const look = (part) => {
    for (const [key, names] of Object.entries(part ? optionsOf(part) : {})) { options[key] = names; state[key] ??= names[0]; }
    parts.look(part);
    if (part) draw();
  };
  const refill = () => { drawMap(); drawCurves(); if (state.cell) read(...state.cell); };
  return { state, draw, refill, look, words, make, drawn, drawGrid, drawLegend, listen, focusOn, signed, percent, unit, value, status, largest, spoken };
};

const written = document.getElementById("data");
if (written) {
  const shown = {};
  darkness(() => shown.page.draw());
  shown.page = reportPage(JSON.parse(written.textContent));
}
