"use strict";
const STATUS_LETTERS = { o: "ok", z: "structural_zero", c: "cut", n: "undefined", u: "unpaired", f: "failed", g: "given", p: "not_patched", x: "no_window", w: "not_computed_yet" };
// A section for each kind whose sites are parts of a component: a map where the kind is drawn, else a curve by rank and
// a table. What is not measured has none. `shared` is what the map's script shares.
const partSections = (shared) => {
  const { data, $, state, pair, spoken } = shared;
  const isMean = () => pair() === data.mean;
  const asShare = () => state.v === "fraction" && !isMean(); // shares of a mean have intervals of their own
  const scaled = (number, metric) => {
    const { total, fraction_reason: reason } = pair().metrics[metric];
    if (number === null || !asShare()) return number;
    return reason || total === null ? null : number / total;
  };
  const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  // What both forms of a section need of its kind.
  const of = (part) => {
    const shown = () => (isMean() ? part.mean : part.pairs[data.pairs.indexOf(pair())]);
    // A page holds parts by fewer metrics than the map where they are many.
    const metric = () => (part.metrics.includes(state.m) ? state.m : part.metrics[0]);
    const direction = () => (part.effects.includes(state.d) ? state.d : part.effects[0]);
    return {
      ...shared, part, isMean, asShare, scaled, plural, shown, metric, direction,
      node: (name) => $(`${part.kind}-${name}`),
      key: (name) => `${part.kind}-${name}`,
      numbers: () => shown().metrics[metric()],
      everywhere: () => (isMean() ? `trace.evidence("${part.kind}")` : `trace.of("${part.kind}")`),
      say: (node, sentences) => { node.textContent = sentences.filter(Boolean).join(" "); },
      instead: () => [
        part.metrics.includes(state.m) ? "" : `They are on this page by ${part.metrics[0]} only.`,
        isMean() ? `The mean over pairs, with its 95 % interval and p over the map of ${part.kind.replaceAll("_", " ")}; each is in the unit of the metric.` : "",
        part.effects.includes(state.d) ? "" : `${spoken("d", state.d)} was not measured for them: this is ${spoken("d", part.effects[0])}.`,
      ],
    };
  };
  const made = (part) => [part, (part.matrix ? matrixSection : part.drawn ? mapSection : rankSection)(of(part))];
  const sections = data.parts.map(made);
  let later = []; // sections of what is looked into, as long as it is
  const look = (part) => { later = part ? [made(part)] : []; };
  const draw = () => {
    for (const [part, drawPart] of [...sections, ...later]) {
      const { shown, node } = of(part);
      node(part.within ?? "section").hidden = !shown(); // there may be no mean over pairs
      if (part.metrics.length && shown()) drawPart();
    }
  };
  return { draw, look };
};

// A map of layers and parts, at one position or summed over all.
const mapSection = ({ part, $, make, state, unit, spoken, switches, drawLegend, drawGrid, listen, focusOn, sharesInWords, meanInWords, redraw, isMean, asShare, scaled, plural, shown, metric, direction, node, key, numbers, everywhere, say, instead }) => {
  const { chosen = "position", across = "layer" } = part; // of edges by query a head is chosen, and queries go across
  const component = () => state[key("c")];
  const number = (name, one, position, layer, n) => numbers()[name]?.[one]?.[position]?.[layer]?.[n] ?? null;
  const effect = (name, ...place) => {
    const at = (one) => number(one, ...place);
    if (name !== "interaction") return at(name);
    const [lost, back] = [at("disruption"), at("restoration")];
    return lost === null || back === null ? null : lost - back;
  };
  // The mean may be by role, and has no sum: where it lacks the position that is chosen, its strongest one is shown.
  const placed = () => (isMean() ? part.mean : part);
  const position = () => (placed().positions.includes(state[key("p")]) ? state[key("p")] : placed().strongest);
  const positionIndex = () => placed().positions.indexOf(position());
  const isSum = () => position() === "sum";
  const row = () => shown().rows[positionIndex()];
  // One scale for every component, direction and single position; sums have one of their own, being larger.
  const largest = () => {
    let most = 0;
    placed().positions.forEach((name, at) => {
      if ((name === "sum") !== isSum()) return;
      for (const one of part.effects) for (const whole of part.components) part.layers.forEach((_, layer) => {
        for (let n = 0; n < (shown().lines?.length ?? part.counts[whole]); n++) most = Math.max(most, Math.abs(effect(one, whole, at, layer, n) ?? 0));
      });
    });
    return Math.abs(scaled(most || 1, metric()));
  };
  const count = () => shown().lines?.length ?? part.counts[component()]; // the mean may be by role
  const readersOf = (n) => part.readers[component()]?.[n] ?? "";
  const status = (layer, n) => STATUS_LETTERS[numbers().status[component()][positionIndex()][layer][n]];
  const words = (layer, n) => {
    const kind = status(layer, n), why = kind === "ok" ? "" : ` · ${kind.replaceAll("_", " ")}`;
    const readers = readersOf(n) && ` (${readersOf(n)})`, place = [component(), positionIndex(), layer, n];
    const tested = (name) => ["low", "high", "p_adjusted"].map((end) => number(`${name}_${end}`, ...place));
    const shares = isMean() ? meanInWords(part.effects, (name) => effect(name, ...place), tested, number("clusters", ...place))
      : sharesInWords(part.effects, metric(), (name) => effect(name, ...place));
    const { queries, lines } = shown(), [first, last] = part.windows?.[component()]?.[layer] ?? [0, 0];
    const here = queries ? `${component()} · ${row().spoken} · from ${queries[layer].spoken} · key at ${lines[n].spoken}`
      : lines && `${component()} · layer ${part.layers[layer]}${last > first ? ` (layers ${first} to ${last} together)` : ""} · ${lines[n].spoken}`;
    return `${here ?? `${component()} · layer ${part.layers[layer]} · ${part.noun} ${n}${readers} · ${row().spoken}`}: ${shares}${why}`;
  };
  const positionChooser = () => {
    const select = make("select", { name: key("p") });
    placed().positions.forEach((name, n) => {
      const { label, token } = shown().rows[n], number = token === undefined ? "" : `${token}  `;
      select.append(make("option", { value: name, textContent: number + label, selected: name === position() }));
    });
    select.addEventListener("change", () => { state[key("p")] = select.value; redraw(); });
    return make("fieldset", {}, make("label", { className: "choice" }, make("span", { className: "name", textContent: chosen }), select));
  };
  const choose = (...at) => { state[key("at")] = at; redraw(); focusOn(node("map"), at); };
  const read = (layer, n) => { node("readout").textContent = words(layer, n); };
  listen(node("map"), () => [part.layers.length, count()], choose, read);
  const named = (n) => shown().lines?.[n] ?? { label: `${part.noun} ${n}`, title: readersOf(n) || `${part.noun} ${n}` };
  const lead = () => {
    if (part.lead) return part.lead;
    if (part.chosen) return `What each query (across) sees at each key (down) alone, as the other run has it: ${row().spoken}.`;
    return isSum() ? `The effects of ${plural(placed().measured, "position")}, patched one at a time and added up: not the effect of patching a ${part.noun} at all of them together.` : `Each ${part.noun} patched alone, at ${row().spoken}.`;
  };
  return () => {
    const most = largest(), at = state[key("at")];
    const kept = placed().positions.filter((name) => name !== "sum").length, { measured } = placed();
    if (at && at[1] >= count()) state[key("at")] = [at[0], count() - 1];
    switches(node("switches"), isMean() ? ["d", key("c")] : ["d", key("c"), "v"], `${part.kind}-`);
    if (placed().positions.length > 1) node("switches").append(positionChooser());
    say(node("note"), [
      lead(),
      kept < measured ? `On this page are the ${kept} of ${measured} ${chosen}s with the strongest ${part.chosen ? "edges" : part.kind}; ${everywhere()} has all.` : "",
      ...instead(),
    ]);
    drawLegend(node("legend"), most, [...(isMean() ? ["faint"] : []), "zero", ...(part.lead ? ["cut"] : []), "none"], unit(metric()), asShare());
    drawGrid(node("map"), {
      corner: `${part.noun} ↓ ${across} →`, columns: part.layers, across, most, at: state[key("at")], choose,
      rows: Array.from({ length: count() }, (_, n) => named(n)),
      cell: (layer, n) => ({
        value: scaled(effect(direction(), component(), positionIndex(), layer, n), metric()), status: status(layer, n), words: words(layer, n),
        faint: isMean() && (number(`${direction()}_p_adjusted`, component(), positionIndex(), layer, n) ?? 0) >= 0.05,
      }),
    });
    node("map").setAttribute("aria-label", `${spoken("d", direction())} of ${component()} by ${part.noun} and ${across}${row().spoken && `, ${row().spoken}`}`);
    if (state[key("at")]) read(...state[key("at")]);
  };
};

// All parts as a curve by rank, the strongest as a table.
const rankSection = ({ part, make, drawn, state, unit, signed, percent, spoken, switches, tested, chartWidth, pair, isMean, asShare, scaled, plural, shown, metric, direction, node, key, numbers, everywhere, say, instead }) => {
  const effect = (row, name) => row[3 + part.effects.indexOf(name)];
  const testedAt = (row, name) => row.slice(3 + part.effects.length + 3 * part.effects.indexOf(name)).slice(0, 3);
  const strongest = (count) => numbers().top.filter((row) => effect(row, direction()) !== null)
    .sort((a, b) => Math.abs(effect(b, direction())) - Math.abs(effect(a, direction()))).slice(0, count);
  const drawTable = () => {
    const head = make("tr", {}, make("th", { scope: "col", className: "number", textContent: "rank" }), make("th", { scope: "col", textContent: part.noun }));
    if (part.positions.length > 1) head.append(make("th", { scope: "col", textContent: "position" }));
    for (const name of part.effects) {
      const title = make("th", { scope: "col", className: "number", textContent: `${spoken("d", name)} (${unit(metric())})` });
      if (name === direction()) title.setAttribute("aria-sort", "descending");
      head.append(title);
    }
    const { total, fraction_reason: reason } = pair().metrics[metric()];
    const body = make("tbody");
    strongest(Number(state[key("n")])).forEach((row, n) => {
      const line = make("tr", {}, make("td", { className: "number", textContent: n + 1 }), make("th", { scope: "row", textContent: `layer ${row[0]} · ${part.noun} ${row[1]}` }));
      if (part.positions.length > 1) line.append(make("td", { textContent: shown().rows[row[2]].spoken }));
      for (const name of part.effects) {
        const found = effect(row, name);
        const share = found === null || reason || total === null || name === "interaction" ? "" : ` (${percent(found / total)})`;
        const behind = isMean() && found !== null ? tested(...testedAt(row, name), "") : share;
        line.append(make("td", { className: "number", textContent: found === null ? "–" : signed(found) + behind }));
      }
      body.append(line);
    });
    node("table").replaceChildren(make("thead", {}, head), body);
  };
  const drawCurve = (curve) => {
    const [width, height, left, right, top, bottom] = [chartWidth(node("curve")), 280, 64, 24, 16, 60];
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${spoken("d", direction())} of ${curve.count} single ${part.kind} by rank` });
    const parts = ["supports", "opposes"].map((name) => [name, curve[name].map(([rank, one]) => [rank, scaled(one, metric())])]);
    const values = parts.flatMap(([, line]) => line.map(([, one]) => one));
    const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)], span = high - low || 1;
    const last = Math.max(10, curve.supports_count, curve.opposes_count);
    const x = (rank) => left + (Math.log10(rank) / Math.log10(last)) * (width - left - right);
    const y = (one) => top + ((high - one) / span) * (height - top - bottom);
    const close = (tick) => tick !== 0 && Math.abs(y(tick) - y(0)) < 14;
    for (const tick of new Set([high, 0, low])) {
      svg.append(drawn("line", { class: "axis", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
      if (!close(tick)) svg.append(drawn("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, asShare() ? percent(tick) : String(Number(tick.toPrecision(2))).replace("-", "−")));
    }
    for (let rank = 1; rank <= last; rank *= 10) svg.append(drawn("text", { x: x(rank), y: height - 26, "text-anchor": "middle" }, rank.toLocaleString("en")));
    svg.append(drawn("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "rank, on a logarithmic axis"));
    for (const [name, line] of parts) {
      svg.append(drawn("polyline", { class: name, points: line.map(([rank, one]) => `${x(rank).toFixed(1)},${y(one).toFixed(1)}`).join(" "), "stroke-width": 2 }));
      for (const [rank, one] of line.slice(0, 20)) svg.append(drawn("circle", { class: name, cx: x(rank).toFixed(1), cy: y(one).toFixed(1), r: 3 }));
    }
    nameStrongest(svg, x, y);
    node("curve").replaceChildren(svg);
  };
  // Names beside the first points, while they leave room for one another.
  const nameStrongest = (svg, x, y) => {
    for (const sign of [1, -1]) {
      let before = -Infinity;
      strongest(20).filter((row) => sign * effect(row, direction()) > 0).slice(0, 6).forEach((row, n) => {
        const [across, down] = [x(n + 1), y(scaled(effect(row, direction()), metric()))];
        if (across - before < 92) return;
        before = across;
        svg.append(drawn("text", { class: "named", x: across + 7, y: down + (sign > 0 ? -3 : 13) }, `layer ${row[0]} · ${row[1]}`));
      });
    }
  };
  return () => {
    const curve = numbers().curves[direction()];
    const where = part.positions.length === 1 ? ` at ${shown().rows[0].spoken}` : "";
    switches(node("switches"), isMean() ? ["d", key("n")] : ["d", "v", key("n")], `${part.kind}-`);
    say(node("note"), [
      `Each ${part.noun} patched alone${where}: ${plural(curve.count, "effect")}, of which ${curve.supports_count.toLocaleString("en")} support the clean behaviour and ${curve.opposes_count.toLocaleString("en")} oppose it.`,
      curve.half ? `Half of their summed size is in the ${curve.half.toLocaleString("en")} strongest.` : "",
      ...instead(),
    ]);
    drawCurve(curve);
    drawTable();
    say(node("left-out"), [
      `On this page are the ${part.kept} strongest by each direction, and the curve at some ranks of all; ${everywhere()} has every number.`,
      "What is zero by construction is left out.",
    ]);
  };
};
