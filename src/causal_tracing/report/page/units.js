"use strict";
// Single heads and single neurons; what is not measured has no section. The argument is what the map's script shares.
const unitSections = ({ data, $, make, drawn, options, state, pair, unit, signed, percent, spoken, switches, drawLegend, drawGrid, listen, focusOn, sharesInWords, meanInWords, tested, chartWidth, redraw }) => {
  const { heads, neurons } = data;
  const STATUS = { o: "ok", z: "structural_zero", c: "cut", n: "undefined", u: "unpaired", f: "failed" };
  const isMean = () => pair() === data.mean;
  const shownOf = (part) => (isMean() ? part.mean : part.pairs[data.pairs.indexOf(pair())]);
  const asShare = () => state.v === "fraction" && !isMean(); // shares of a mean have intervals of their own
  // A page holds heads and neurons by fewer metrics than the map where they are many.
  const metricOf = (part) => (part.metrics.includes(state.m) ? state.m : part.metrics[0]);
  const directionOf = (part) => (part.effects.includes(state.d) ? state.d : part.effects[0]);
  const scaled = (number, metric) => {
    const { total, fraction_reason: reason } = pair().metrics[metric];
    if (number === null || !asShare()) return number;
    return reason || total === null ? null : number / total;
  };
  const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  const instead = (part) => [
    part.metrics.includes(state.m) ? "" : `They are on this page by ${part.metrics[0]} only.`,
    isMean() ? `The mean over pairs, with its 95 % interval and p over the map of ${part === heads ? "heads" : "neurons"}; each is in the unit of the metric.` : "",
    part.effects.includes(state.d) ? "" : `${spoken("d", state.d)} was not measured for them: this is ${spoken("d", part.effects[0])}.`,
  ];
  const everywhere = (name) => (isMean() ? `trace.evidence("${name}")` : `trace.${name}`);
  const say = (node, sentences) => { node.textContent = sentences.filter(Boolean).join(" "); };

  // Heads: a map of layers and heads, at one position or summed over all.
  const headNumbers = () => shownOf(heads).metrics[metricOf(heads)];
  const headNumber = (name, component, position, layer, head) => headNumbers()[name]?.[component]?.[position]?.[layer]?.[head] ?? null;
  const headEffect = (name, ...place) => {
    const at = (one) => headNumber(one, ...place);
    if (name !== "interaction") return at(name);
    const [lost, back] = [at("disruption"), at("restoration")];
    return lost === null || back === null ? null : lost - back;
  };
  // The mean may be by role, and has no sum: where it lacks the position that is chosen, its strongest one is shown.
  const placed = () => (isMean() ? heads.mean : heads);
  const headPosition = () => (placed().positions.includes(state.hp) ? state.hp : placed().strongest);
  const positionIndex = () => placed().positions.indexOf(headPosition());
  const isSum = () => headPosition() === "sum";
  const headRow = () => shownOf(heads).rows[positionIndex()];
  // One scale for every component, direction and single position; sums have one of their own, being larger.
  const largestHead = () => {
    let most = 0;
    placed().positions.forEach((name, position) => {
      if ((name === "sum") !== isSum()) return;
      for (const direction of heads.effects) for (const component of heads.components) heads.layers.forEach((_, layer) => {
        for (let head = 0; head < heads.counts[component]; head++) most = Math.max(most, Math.abs(headEffect(direction, component, position, layer, head) ?? 0));
      });
    });
    return Math.abs(scaled(most || 1, metricOf(heads)));
  };
  const readersOf = (component, head) => heads.readers[component][head];
  const headStatus = (layer, head) => STATUS[headNumbers().status[state.hc][positionIndex()][layer][head]];
  const headWords = (layer, head) => {
    const kind = headStatus(layer, head), why = kind === "ok" ? "" : ` · ${kind.replaceAll("_", " ")}`;
    const readers = readersOf(state.hc, head), read = readers ? ` (read by query heads ${readers})` : "";
    const place = [state.hc, positionIndex(), layer, head];
    const tested = (name) => ["low", "high", "p_adjusted"].map((part) => headNumber(`${name}_${part}`, ...place));
    const shares = isMean() ? meanInWords(heads.effects, (name) => headEffect(name, ...place), tested, headNumber("clusters", ...place))
      : sharesInWords(heads.effects, metricOf(heads), (name) => headEffect(name, ...place));
    return `${state.hc} · layer ${heads.layers[layer]} · head ${head}${read} · ${headRow().spoken}: ${shares}${why}`;
  };
  const positionChooser = () => {
    const select = make("select", { name: "hp" });
    placed().positions.forEach((position, n) => {
      const { label } = shownOf(heads).rows[n], number = /^\d+$/.test(position) && label !== position ? `${position}  ` : "";
      select.append(make("option", { value: position, textContent: number + label, selected: position === headPosition() }));
    });
    select.addEventListener("change", () => { state.hp = select.value; redraw(); });
    return make("fieldset", {}, make("label", { className: "choice" }, make("span", { className: "name", textContent: "position" }), select));
  };
  const chooseHead = (...at) => { state.head = at; redraw(); focusOn($("heads"), at); };
  const readHead = (layer, head) => { $("heads-readout").textContent = headWords(layer, head); };
  const drawHeads = () => {
    const metric = metricOf(heads), direction = directionOf(heads), count = heads.counts[state.hc], most = largestHead();
    const kept = placed().positions.filter((position) => position !== "sum").length, { measured } = placed();
    if (state.head && state.head[1] >= count) state.head = [state.head[0], count - 1];
    switches($("heads-switches"), isMean() ? ["d", "hc"] : ["d", "hc", "v"], "heads-");
    if (placed().positions.length > 1) $("heads-switches").append(positionChooser());
    say($("heads-note"), [
      isSum() ? `The effects of ${plural(measured, "position")}, patched one at a time and added up: not the effect of patching a head at all of them together.` : `Each head patched alone, at ${headRow().spoken}.`,
      kept < measured ? `On this page are the ${kept} of ${measured} positions with the strongest heads; ${everywhere("heads")} has all.` : "",
      ...instead(heads),
    ]);
    drawLegend($("heads-legend"), most, [...(isMean() ? ["faint"] : []), "zero", "none"], unit(metric), asShare());
    drawGrid($("heads"), {
      corner: "head ↓ layer →", columns: heads.layers, most, at: state.head, choose: chooseHead,
      rows: Array.from({ length: count }, (_, head) => {
        const readers = readersOf(state.hc, head);
        return { label: `head ${head}`, title: readers ? `read by query heads ${readers}` : `head ${head}` };
      }),
      cell: (layer, head) => ({
        value: scaled(headEffect(direction, state.hc, positionIndex(), layer, head), metric), status: headStatus(layer, head), words: headWords(layer, head),
        faint: isMean() && (headNumber(`${direction}_p_adjusted`, state.hc, positionIndex(), layer, head) ?? 0) >= 0.05,
      }),
    });
    $("heads").setAttribute("aria-label", `${spoken("d", direction)} of ${state.hc} by head and layer, ${headRow().spoken}`);
    if (state.head) readHead(...state.head);
  };

  // Neurons: all of them as a curve by rank, the strongest as a table.
  const neuronNumbers = () => shownOf(neurons).metrics[metricOf(neurons)];
  const neuronEffect = (row, name) => row[3 + neurons.effects.indexOf(name)];
  const neuronTested = (row, name) => row.slice(3 + neurons.effects.length + 3 * neurons.effects.indexOf(name)).slice(0, 3);
  const strongestNeurons = (direction, count) => neuronNumbers().top.filter((row) => neuronEffect(row, direction) !== null)
    .sort((a, b) => Math.abs(neuronEffect(b, direction)) - Math.abs(neuronEffect(a, direction))).slice(0, count);
  const drawTable = (direction, metric) => {
    const head = make("tr", {}, make("th", { scope: "col", className: "number", textContent: "rank" }), make("th", { scope: "col", textContent: "neuron" }));
    if (neurons.positions.length > 1) head.append(make("th", { scope: "col", textContent: "position" }));
    for (const name of neurons.effects) {
      const title = make("th", { scope: "col", className: "number", textContent: `${spoken("d", name)} (${unit(metric)})` });
      if (name === direction) title.setAttribute("aria-sort", "descending");
      head.append(title);
    }
    const { total, fraction_reason: reason } = pair().metrics[metric];
    const body = make("tbody");
    strongestNeurons(direction, Number(state.n)).forEach((row, n) => {
      const line = make("tr", {}, make("td", { className: "number", textContent: n + 1 }), make("th", { scope: "row", textContent: `layer ${row[0]} · neuron ${row[1]}` }));
      if (neurons.positions.length > 1) line.append(make("td", { textContent: shownOf(neurons).rows[row[2]].spoken }));
      for (const name of neurons.effects) {
        const found = neuronEffect(row, name);
        const share = found === null || reason || total === null || name === "interaction" ? "" : ` (${percent(found / total, 1)})`;
        if (isMean() && found !== null) {
          line.append(make("td", { className: "number", textContent: signed(found) + tested(...neuronTested(row, name), "") }));
          continue;
        }
        line.append(make("td", { className: "number", textContent: found === null ? "–" : signed(found) + share }));
      }
      body.append(line);
    });
    $("neurons").replaceChildren(make("thead", {}, head), body);
  };
  const drawCurve = (curve, direction, metric) => {
    const [width, height, left, right, top, bottom] = [chartWidth($("neurons-curve")), 280, 64, 24, 16, 60];
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${spoken("d", direction)} of ${curve.count} single neurons by rank` });
    const parts = ["supports", "opposes"].map((name) => [name, curve[name].map(([rank, one]) => [rank, scaled(one, metric)])]);
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
    nameStrongest(svg, direction, metric, x, y);
    $("neurons-curve").replaceChildren(svg);
  };
  // Names beside the first points, while they leave room for one another.
  const nameStrongest = (svg, direction, metric, x, y) => {
    for (const sign of [1, -1]) {
      let before = -Infinity;
      strongestNeurons(direction, 20).filter((row) => sign * neuronEffect(row, direction) > 0).slice(0, 6).forEach((row, n) => {
        const [across, down] = [x(n + 1), y(scaled(neuronEffect(row, direction), metric))];
        if (across - before < 92) return;
        before = across;
        svg.append(drawn("text", { class: "named", x: across + 7, y: down + (sign > 0 ? -3 : 13) }, `layer ${row[0]} · ${row[1]}`));
      });
    }
  };
  const drawNeurons = () => {
    const metric = metricOf(neurons), direction = directionOf(neurons), curve = neuronNumbers().curves[direction];
    const where = neurons.positions.length === 1 ? ` at ${shownOf(neurons).rows[0].spoken}` : "";
    switches($("neurons-switches"), isMean() ? ["d", "n"] : ["d", "v", "n"], "neurons-");
    say($("neurons-note"), [
      `Each neuron patched alone${where}: ${plural(curve.count, "effect")}, of which ${curve.supports_count.toLocaleString("en")} support the clean behaviour and ${curve.opposes_count.toLocaleString("en")} oppose it.`,
      curve.half ? `Half of their summed size is in the ${curve.half.toLocaleString("en")} strongest.` : "",
      ...instead(neurons),
    ]);
    drawCurve(curve, direction, metric);
    drawTable(direction, metric);
    say($("neurons-left-out"), [
      `On this page are the ${neurons.kept} strongest by each direction, and the curve at some ranks of all; ${everywhere("neurons")} has every number.`,
      "What is zero by construction is left out.",
    ]);
  };

  const draw = () => {
    for (const [part, name, drawPart] of [[heads, "heads", drawHeads], [neurons, "neurons", drawNeurons]]) {
      if (!part) continue;
      $(`${name}-section`).hidden = !shownOf(part); // they may have no mean over pairs
      if (part.metrics.length && shownOf(part)) drawPart();
    }
  };
  if (heads) listen($("heads"), () => [heads.layers.length, heads.counts[state.hc]], chooseHead, readHead);
  return { draw };
};
