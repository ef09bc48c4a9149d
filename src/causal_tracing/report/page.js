"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
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
    p: data.pairs.map((pair) => pair.id), m: data.metrics.map((metric) => metric.name), c: data.components,
    d: data.directions.length === 2 ? [...data.directions, "interaction"] : data.directions, v: ["effect", "fraction"],
  };
  const names = { p: "pair", m: "metric", c: "component", d: "direction", v: "shown as" };
  const state = Object.fromEntries(Object.keys(options).map((key) => [key, options[key][0]]));
  state.cell = null; // [layer index, position index]

  // The state of the switches lives in the fragment, so that a view can be linked.
  const restore = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const key of Object.keys(options)) if (options[key].includes(asked.get(key))) state[key] = asked.get(key);
    const cell = /^(\d{1,5}),(\d{1,5})$/.exec(asked.get("cell") || "");
    if (cell && +cell[1] < data.layers.length && +cell[2] < data.positions.length) state.cell = [+cell[1], +cell[2]];
  };
  const remember = () => {
    const parts = new URLSearchParams();
    for (const key of Object.keys(options)) if (options[key].length > 1) parts.set(key, state[key]);
    if (state.cell) parts.set("cell", state.cell.join(","));
    history.replaceState(null, "", "#" + parts);
  };

  const pair = () => data.pairs[options.p.indexOf(state.p)];
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
    return found === null || state.v === "effect" ? found : found / numbers().total;
  };
  const status = (component, layer, position) => numbers().status[component][layer][position];
  const largest = () => {
    let most = 0;
    for (const name of options.d) for (const component of data.components) data.layers.forEach((_, layer) => data.positions.forEach((_, position) => {
      most = Math.max(most, Math.abs(effect(name, component, layer, position) ?? 0));
    }));
    most = most || 1;
    return state.v === "fraction" ? most / Math.abs(numbers().total) : most;
  };
  const unit = () => data.metrics.find((metric) => metric.name === state.m).unit;
  const signed = (number, digits = 3) => (number >= 0 ? "+" : "−") + Math.abs(Number(number.toPrecision(digits)));
  const percent = (share) => `${Math.round(100 * share)} %`.replace("-", "−");

  const RAMPS = {
    light: [["#f6f5f8", "#cfc4e2", "#9a80c2", "#6a45a3", "#35146e"], ["#f6f5f8", "#fbd3a2", "#ee9a4d", "#c4660f", "#7f3b08"]],
    dark: [["#211e2a", "#45366b", "#7456b3", "#a588ec", "#e0d3ff"], ["#211e2a", "#5c3613", "#a35c14", "#ea9438", "#ffdcae"]],
  };
  const isDark = () => document.documentElement.classList.contains("dark");
  const colour = (share) => {
    const ramp = RAMPS[isDark() ? "dark" : "light"][share >= 0 ? 0 : 1];
    const along = Math.min(1, Math.abs(share)) * (ramp.length - 1);
    const low = Math.min(ramp.length - 2, Math.floor(along));
    const parts = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
    const mixed = parts(ramp[low]).map((part, n) => Math.round(part + (parts(ramp[low + 1])[n] - part) * (along - low)));
    return `rgb(${mixed.join(",")})`;
  };

  const switchFor = (key) => {
    const set = make("fieldset", {}, make("legend", { textContent: names[key] }));
    for (const option of options[key]) {
      const input = make("input", { type: "radio", name: key, value: option, checked: state[key] === option });
      input.addEventListener("change", () => { state[key] = option; draw(); });
      set.append(make("label", {}, input, make("span", { textContent: option })));
    }
    return set;
  };
  const drawSwitches = () => {
    const active = document.activeElement?.name;
    $("switches").replaceChildren(...["d", "c", "v", "m"].filter((key) => options[key].length > 1).map(switchFor));
    const fraction = document.querySelector('input[name=v][value=fraction]');
    if (fraction && fractionReason()) { fraction.disabled = true; fraction.parentNode.title = "Undefined: " + fractionReason(); }
    if (options.p.length > 1) { $("pairs").hidden = false; $("pairs").replaceChildren(switchFor("p")); }
    if (active) document.querySelector(`input[name="${CSS.escape(active)}"]:checked`)?.focus();
    for (const part of document.querySelectorAll("[data-pair]")) part.hidden = part.dataset.pair !== state.p;
  };
  const drawLegend = () => {
    const bar = drawn("svg", { width: 220, height: 14, role: "img", "aria-label": "colour scale" });
    for (let n = 0; n < 44; n++) bar.append(drawn("rect", { x: 5 * n, y: 0, width: 5, height: 14, fill: colour((n - 21.5) / 21.5) }));
    const most = state.v === "fraction" ? percent(largest()) : `${Number(largest().toPrecision(3))} ${unit()}`;
    const swatch = (kind, words) => make("span", {}, make("span", { className: `swatch ${kind}`, textContent: kind === "zero" ? "·" : "" }), words);
    $("legend").replaceChildren(make("span", {}, `−${most} `, bar, ` +${most}`), swatch("zero", "structural zero"), swatch("cut", "cut: the total effect by construction"), swatch("none", "undefined"));
  };

  const tokenOf = (position) => pair().rows[position];
  const drawMap = () => {
    const head = make("tr", { role: "row" }, make("th", { textContent: "token ↓ layer →" }));
    const every = Math.max(1, Math.ceil(data.layers.length / 16));
    data.layers.forEach((layer, n) => head.append(make("th", { scope: "col", textContent: n % every ? "" : layer, ariaLabel: `layer ${layer}` })));
    const most = largest();
    const body = make("tbody");
    const [focusLayer, focusPosition] = state.cell || [0, 0];
    data.positions.forEach((_, position) => {
      const row = make("tr", { role: "row", className: state.cell && focusPosition === position ? "shown" : "" });
      const title = make("th", { scope: "row", textContent: tokenOf(position).label, title: tokenOf(position).label, className: tokenOf(position).differs ? "differs" : "" });
      title.addEventListener("click", () => choose(focusLayer, position));
      row.append(title);
      data.layers.forEach((layer, n) => {
        const found = value(state.c, n, position), kind = status(state.c, n, position);
        const cell = make("td", { role: "gridcell", tabIndex: n === focusLayer && position === focusPosition ? 0 : -1, ariaLabel: words(n, position) });
        cell.className = found === null ? "none" : kind === "structural_zero" ? "zero" : kind === "cut" ? "cut" : "";
        if (found !== null && kind !== "structural_zero") cell.style.backgroundColor = colour(found / most);
        cell.dataset.at = `${n},${position}`;
        row.append(cell);
      });
      body.append(row);
    });
    $("map").setAttribute("aria-label", `${state.d} of ${state.c} by token and layer`);
    $("map").style.minWidth = `${8 + 1.35 * data.layers.length}em`;
    $("map").replaceChildren(make("thead", {}, head), body);
  };
  const words = (layer, position) => {
    const token = tokenOf(position), kind = status(state.c, layer, position), total = numbers().total;
    const shares = [...data.directions, ...(options.d.length === 3 ? ["interaction"] : [])].map((name) => {
      const found = effect(name, state.c, layer, position);
      if (found === null) return `${name} undefined`;
      const share = fractionReason() || total === null || name === "interaction" ? "" : ` (${percent(found / total)} of the total effect)`;
      return `${name} ${signed(found)} ${unit()}${share}`;
    });
    const why = kind === "ok" ? "" : ` · ${kind.replace("_", " ")}`;
    return `${state.c} · layer ${data.layers[layer]} · ${token.spoken}: ${shares.join(", ")}${why}`;
  };

  const chart = (series, most) => {
    const [width, height, left, right, top, bottom] = [1100, 240, 56, 90, 12, 28];
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "effect of MLP and attention by layer" });
    const count = data.layers.length;
    const x = (n) => left + (count > 1 ? n / (count - 1) : 0.5) * (width - left - right);
    const y = (one) => top + (1 - (one / most + 1) / 2) * (height - top - bottom);
    for (const tick of [-most, 0, most]) {
      svg.append(drawn("line", { class: "axis", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
      svg.append(drawn("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, state.v === "fraction" ? percent(tick) : String(Number(tick.toPrecision(2))).replace("-", "−")));
    }
    const every = Math.max(1, Math.ceil(count / 16));
    data.layers.forEach((layer, n) => { if (n % every === 0) svg.append(drawn("text", { x: x(n), y: height - 8, "text-anchor": "middle" }, layer)); });
    for (const [name, line] of Object.entries(series)) {
      const points = line.map((one, n) => (one === null ? null : [x(n), y(one)])).filter(Boolean);
      svg.append(drawn("polyline", { class: name, points: points.join(" "), "stroke-width": 2.5 }));
      const end = points.at(-1);
      if (end) svg.append(drawn("text", { class: name, x: end[0] + 10, y: end[1] + (name === "mlp_out" ? -4 : 12) }, name));
    }
    return svg;
  };
  const drawCurves = () => {
    const shown = ["mlp_out", "attn_out"].filter((name) => data.components.includes(name));
    $("curves-section").hidden = shown.length < 2;
    if (shown.length < 2) return;
    const strongest = (component, layer) => data.positions.map((_, position) => value(component, layer, position))
      .filter((one) => one !== null).reduce((most, one) => (Math.abs(one) > Math.abs(most ?? 0) ? one : most), null);
    const at = state.cell ? state.cell[1] : data.positions.length === 1 ? 0 : null;
    const series = Object.fromEntries(shown.map((name) => [name, data.layers.map((_, layer) => (at === null ? strongest(name, layer) : value(name, layer, at)))]));
    $("curves-note").textContent = `${state.d} ` + (at === null ? "of the strongest single token in each layer (choose a row of the map for one token)" : `at ${tokenOf(at).spoken}`);
    const most = Math.max(...Object.values(series).flat().map((one) => Math.abs(one ?? 0))) || 1;
    $("curves").replaceChildren(chart(series, most));
  };

  const choose = (layer, position) => { state.cell = [layer, position]; draw(); document.querySelector(`td[data-at="${layer},${position}"]`).focus(); };
  const read = (at) => { const [layer, position] = at.split(",").map(Number); $("readout").textContent = words(layer, position); };
  const draw = () => {
    if (fractionReason()) state.v = "effect";
    drawSwitches(); drawLegend(); drawMap(); drawCurves(); remember();
    if (state.cell) read(state.cell.join(","));
  };

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-1e6, 0], End: [1e6, 0], PageUp: [0, -1e6], PageDown: [0, 1e6] };
  const within = (number, size) => Math.max(0, Math.min(size - 1, number));
  $("map").addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move || !event.target.dataset.at) return;
    event.preventDefault();
    const [layer, position] = event.target.dataset.at.split(",").map(Number);
    choose(within(layer + move[0], data.layers.length), within(position + move[1], data.positions.length));
  });
  $("map").addEventListener("click", (event) => { if (event.target.dataset.at) choose(...event.target.dataset.at.split(",").map(Number)); });
  for (const kind of ["mouseover", "focusin"]) $("map").addEventListener(kind, (event) => { if (event.target.dataset.at) read(event.target.dataset.at); });
  $("copy").addEventListener("click", () => {
    getSelection().selectAllChildren($("provenance"));
    $("copied").textContent = document.execCommand("copy") ? "copied" : "selected: press Ctrl-C";
  });
  const paint = (dark) => { document.documentElement.classList.toggle("dark", dark); $("theme").setAttribute("aria-pressed", dark); };
  $("theme").addEventListener("click", () => { paint(!isDark()); draw(); });
  paint(matchMedia("(prefers-color-scheme: dark)").matches);
  addEventListener("hashchange", () => { restore(); draw(); });
  restore();
  draw();
})();
