// The mean over pairs: how far the pairs are apart in a cell, and a table from which each of them can be chosen.
const meanSection = ({ data, $, make, drawn, state, unit, signed, meanInWords, chartWidth, place, open }) => {
  const mean = data.mean;
  if (!mean) return { draw: () => {}, words: () => "" };
  const shown = new Map(data.pairs.map((pair) => [pair.id, pair]));
  const metric = Object.keys(mean.metrics)[0], numbers = mean.metrics[metric];
  const is = () => state.p === mean.id;
  let order = "total", upwards = false;

  const interval = (name, component, layer, position) => (
    ["low", "high", "p"].map((kind) => numbers[kind][name]?.[component]?.[layer]?.[position] ?? null)
  );
  const words = (component, layer, position) => {
    const at = (name) => numbers[name]?.[component]?.[layer]?.[position] ?? null;
    return meanInWords(data.effects, at, (name) => interval(name, component, layer, position), numbers.clusters[component][layer][position]);
  };
  // Whether the mean cannot be told from 0, by the test over the whole map.
  const faint = (component, layer, position) => {
    const [, , p] = interval(state.d, component, layer, position);
    return p !== null && p >= 0.05;
  };

  const valuesAt = () => {
    const [layer, position] = place();
    const at = (name) => mean.values[name]?.[state.c]?.[layer]?.[position] ?? [];
    if (state.d !== "interaction") return at(state.d);
    const back = at("restoration");
    return at("disruption").map((lost, n) => (lost === null || back[n] === null ? null : lost - back[n]));
  };
  const drawSpread = () => {
    const [layer, position] = place(), values = valuesAt();
    const width = chartWidth($("spread")), [left, right, height] = [24, 24, 92];
    const most = Math.max(...values.map((one) => Math.abs(one ?? 0))) || 1;
    const x = (one) => left + ((one / most + 1) / 2) * (width - left - right);
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "each pair's value in this cell" });
    svg.append(drawn("line", { class: "axis", x1: left, x2: width - right, y1: 66, y2: 66 }), drawn("line", { class: "axis", x1: x(0), x2: x(0), y1: 8, y2: 72 }));
    for (const tick of [-most, 0, most]) svg.append(drawn("text", { x: x(tick), y: 86, "text-anchor": "middle" }, tick === 0 ? "0" : signed(tick, 2)));
    values.forEach((one, n) => {
      if (one === null) return;
      const dot = drawn("circle", { class: one >= 0 ? "supports" : "opposes", cx: x(one), cy: 14 + ((n * 7) % 9) * 5, r: 4, "fill-opacity": 0.55 });
      dot.append(drawn("title", {}, `${mean.pairs[n]}: ${signed(one)} ${unit(metric)}`));
      if (shown.has(mean.pairs[n])) { dot.style.cursor = "pointer"; dot.addEventListener("click", () => open(mean.pairs[n])); }
      svg.append(dot);
    });
    const [low, high] = interval(state.d, state.c, layer, position), middle = numbers[state.d]?.[state.c]?.[layer]?.[position] ?? null;
    if (low !== null) svg.append(drawn("line", { class: "between", x1: x(low), x2: x(high), y1: 66, y2: 66 }));
    if (middle !== null) svg.append(drawn("line", { class: "between", x1: x(middle), x2: x(middle), y1: 58, y2: 74 }));
    $("spread").replaceChildren(svg);
    const where = `layer ${data.layers[layer]}, ${mean.rows[position].spoken}`;
    $("spread-note").textContent = `${state.d} of ${state.c} at ${where}: a dot a pair, the mean and its interval below them. Choose a pair to see its own map.`;
  };

  const drawBrowser = () => {
    const values = new Map(valuesAt().map((one, n) => [mean.pairs[n], one]));
    const sought = $("find").value.toLowerCase();
    const rows = data.pairs.map((pair) => ({ pair, text: pair.asked, total: pair.metrics[metric].total, value: values.get(pair.id) ?? null }))
      .filter(({ pair, text }) => `${pair.id} ${text}`.toLowerCase().includes(sought));
    rows.sort((a, b) => ((a[order] ?? -Infinity) - (b[order] ?? -Infinity)) * (upwards ? 1 : -1));
    const head = make("tr", {}, make("th", { scope: "col", textContent: "pair" }), make("th", { scope: "col", textContent: "asked" }));
    for (const [name, said] of [["total", "total effect"], ["value", "in this cell"]]) {
      const sort = make("button", { type: "button", textContent: said });
      sort.addEventListener("click", () => { upwards = order === name && !upwards; order = name; drawBrowser(); });
      const cell = make("th", { scope: "col", className: "number" }, sort);
      if (order === name) cell.setAttribute("aria-sort", upwards ? "ascending" : "descending");
      head.append(cell);
    }
    const number = (one) => make("td", { className: "number", textContent: one === null ? "–" : signed(one) });
    const body = make("tbody", {}, ...rows.map(({ pair, text, total, value }) => {
      const choose = make("button", { type: "button", textContent: pair.id });
      choose.addEventListener("click", () => open(pair.id));
      return make("tr", {}, make("th", { scope: "row" }, choose), make("td", { textContent: text }), number(total), number(value));
    }));
    $("browser").replaceChildren(make("thead", {}, head), body);
  };
  $("find").addEventListener("input", drawBrowser);
  const draw = () => {
    const there = is() && data.components.length > 0;
    $("mean-section").hidden = !there;
    if (there) { drawSpread(); drawBrowser(); }
  };
  return { draw, words, faint, is };
};
