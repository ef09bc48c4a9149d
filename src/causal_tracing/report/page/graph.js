// The strongest paths as lines between heads and MLPs, layers from bottom to top; drawn without a layout: places are
// layers and numbers. A node is a head (its query and its output), a head of keys and values, an MLP, or the logits.
const BAND = { height: 74, node: 26, gap: 12, letter: 7.5, left: 84 };

const graphSection = (view) => {
  const { part, make, drawn, state, unit, signed, switches, chartWidth, metric, direction, node, key, numbers } = view;
  const { isMean, say, labels, effect, status, beside, words, faint } = view;
  const name = ({ node: [id] }) => id;

  const strongest = (count) => {
    const found = [];
    labels().senders.forEach((sender, row) => labels().receivers.forEach((receiver, column) => {
      const size = Math.abs(effect(direction(), row, column) ?? 0);
      if (column !== beside() && size > 0 && status(row, column) === "ok") found.push({ row, column, size, from: name(sender), to: name(receiver) });
    }));
    return found.sort((a, b) => b.size - a.size).slice(0, count);
  };
  const amount = (row, column) => signed(effect(direction(), row, column) ?? 0);
  // A node in words: what each of its senders does in all and by the logits alone, and its lines.
  const told = (id, lines) => {
    const senders = labels().senders.flatMap((one, row) => (name(one) === id ? [row] : []));
    const logits = labels().receivers.findIndex(({ group }) => group === "logits");
    const sent = senders.map((row) => {
      const whole = effect(direction(), row, beside()), alone = logits < 0 ? null : effect(direction(), row, logits);
      const undone = numbers().hidden?.[direction()]?.[row];
      return [
        `${labels().senders[row].name}: ${whole === null ? "" : `in all ${signed(whole)} ${unit(metric())}`}`,
        alone === null ? "" : `to the ${labels().receivers[logits].name} directly ${signed(alone)}${undone ? ": hidden in what it does in all" : ""}`,
        undone?.length ? `the other way ${undone.map((column) => `${labels().receivers[column].name} ${amount(row, column)}`).join(", ")}` : "",
        ...lines.filter((line) => line.row === row && line.column !== logits && !undone?.includes(line.column)).map((line) => `to ${labels().receivers[line.column].name} ${amount(row, line.column)}`),
      ].filter(Boolean).join(", ");
    });
    const got = lines.filter((line) => line.to === id).map((line) => `${labels().receivers[line.column].name} from ${labels().senders[line.row].name} ${amount(line.row, line.column)}`);
    return [id, sent.length ? `sends ${sent.join("; ")}` : "", got.length ? `receives ${got.join(", ")}` : ""].filter(Boolean).join(" · ");
  };

  // Nodes by band: a layer each from the bottom, then receivers of several layers, the logits on top.
  const bandsOf = (lines) => {
    const nodes = new Map();
    for (const { row, column } of lines) for (const one of [labels().senders[row], labels().receivers[column]]) {
      const [id, label, band, side, order] = one.node;
      nodes.set(id, { id, label, band, side, order, width: Math.max(40, label.length * BAND.letter + 16) });
    }
    const height = (band) => (band === -1 ? 1e9 : band === -2 ? 1e8 : band), found = new Map();
    for (const one of nodes.values()) found.set(one.band, [...(found.get(one.band) ?? []), one]);
    return [...found].sort(([a], [b]) => height(a) - height(b)).map(([band, some]) => ({ band, nodes: some.sort((a, b) => a.order - b.order) }));
  };
  const placed = (bands, room) => {
    const wide = (some) => some.reduce((sum, one) => sum + one.width + BAND.gap, 0);
    const side = (which) => Math.max(...bands.map(({ nodes }) => wide(nodes.filter((one) => one.side === which && one.band !== -1))));
    const [left, right] = [side("left"), side("right")], width = Math.max(Math.min(room, 760), BAND.left + left + right + 40), height = bands.length * BAND.height + 16;
    bands.forEach(({ band, nodes }, n) => {
      const spread = (some, from, space) => {
        let x = from + (space - wide(some)) / 2;
        for (const one of some) { one.x = x + one.width / 2; one.y = height - 8 - (n + 0.5) * BAND.height; x += one.width + BAND.gap; }
      };
      const start = BAND.left, middle = width - right - 20;
      if (band === -1) spread(nodes, start, width - start);
      else { spread(nodes.filter((one) => one.side === "left"), start, middle - start); spread(nodes.filter((one) => one.side === "right"), middle, right); }
    });
    return { width, height };
  };
  const curve = (from, to, shift) => {
    const half = BAND.node / 2;
    if (from.y === to.y) return `M${from.x} ${from.y - half}C${from.x} ${from.y - half - 24} ${to.x} ${to.y - half - 24} ${to.x} ${to.y - half}`;
    const [start, end] = [from.y - half, to.y + half], bend = Math.max(20, (start - end) / 2);
    const aside = Math.abs(from.x - to.x) < BAND.node && start - end > BAND.height ? 50 + shift : shift; // past the nodes between
    return `M${from.x} ${start}C${from.x - aside} ${start - bend} ${to.x - aside} ${end + bend} ${to.x} ${end}`;
  };

  let at = null; // the node that is looked at, by its name
  const look = (svg, id, lines) => {
    for (const one of svg.querySelectorAll(".line")) one.classList.toggle("dim", id !== null && one.dataset.from !== id && one.dataset.to !== id);
    if (id !== null) node("graph-readout").textContent = told(id, lines);
  };
  // The arrow keys go along a layer, and to the nearest node of the next one.
  const next = (bands, id, pressed) => {
    const n = bands.findIndex(({ nodes }) => nodes.some((one) => one.id === id)), here = [...bands[n].nodes].sort((a, b) => a.x - b.x);
    const place = here.findIndex((one) => one.id === id);
    if (pressed === "ArrowLeft" || pressed === "ArrowRight") return here[place + (pressed === "ArrowLeft" ? -1 : 1)]?.id;
    const beyond = bands[n + (pressed === "ArrowUp" ? 1 : -1)]?.nodes ?? [];
    return [...beyond].sort((a, b) => Math.abs(a.x - here[place].x) - Math.abs(b.x - here[place].x))[0]?.id;
  };
  const drawLines = (svg, lines, bands) => {
    const nodes = new Map(bands.flatMap((band) => band.nodes).map((one) => [one.id, one])), most = lines[0]?.size ?? 1, seen = new Map();
    for (const line of [...lines].reverse()) {
      const pair = `${line.from} ${line.to}`, count = seen.get(pair) ?? 0;
      seen.set(pair, count + 1);
      const good = effect(direction(), line.row, line.column) > 0;
      const one = drawn("path", { class: `line ${good ? "supports" : "opposes"}${faint(line.row, line.column) ? " pale" : ""}`, d: curve(nodes.get(line.from), nodes.get(line.to), 18 * count), "stroke-width": (1 + (9 * line.size) / most).toFixed(1) });
      Object.assign(one.dataset, { from: line.from, to: line.to });
      one.append(drawn("title", {}, words(line.row, line.column)));
      one.addEventListener("mouseover", () => { node("graph-readout").textContent = words(line.row, line.column); });
      svg.append(one);
    }
  };
  const drawNodes = (svg, lines, bands) => {
    const all = bands.flatMap((band) => band.nodes);
    if (!all.some((one) => one.id === at)) at = null;
    for (const one of all) {
      const group = drawn("g", { class: "node", role: "img", tabindex: one.id === (at ?? all.at(-1).id) ? 0 : -1, "aria-label": told(one.id, lines) });
      group.dataset.id = one.id;
      group.append(
        drawn("rect", { x: one.x - one.width / 2, y: one.y - BAND.node / 2, width: one.width, height: BAND.node, rx: one.side === "left" ? 12 : 2 }),
        drawn("text", { x: one.x, y: one.y + 4, "text-anchor": "middle" }, one.label),
      );
      svg.append(group);
    }
    const find = (id) => [...svg.querySelectorAll(".node")].find((one) => one.dataset.id === id);
    for (const kind of ["focusin", "mouseover"]) svg.addEventListener(kind, (event) => {
      const found = event.target.closest(".node");
      if (found) look(svg, found.dataset.id, lines);
    });
    for (const kind of ["focusout", "mouseout"]) svg.addEventListener(kind, () => look(svg, null, lines));
    svg.addEventListener("keydown", (event) => {
      const id = event.target.closest(".node")?.dataset.id;
      if (!id || !event.key.startsWith("Arrow")) return;
      event.preventDefault();
      const to = next(bands, id, event.key);
      if (!to) return;
      find(id).setAttribute("tabindex", -1);
      at = to;
      find(to).setAttribute("tabindex", 0);
      find(to).focus();
    });
  };
  return () => {
    switches(node("graph-switches"), [key("e")], "");
    const lines = strongest(Number(state[key("e")])), bands = bandsOf(lines);
    say(node("graph-note"), [
      "Layers from bottom to top, heads on the left, MLPs on the right; solid supports the clean behaviour, dashed opposes it.",
      isMean() ? "Pale is not told from 0 by the test over the map." : "",
      "Each line was measured alone: two of them one behind the other are no effect that was measured.",
    ]);
    if (!lines.length) { node("graph").replaceChildren(make("p", { className: "quiet", textContent: "No path has an effect." })); return; }
    const { width, height } = placed(bands, chartWidth(node("graph")));
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": `The ${lines.length} strongest paths, by layer` });
    bands.forEach(({ band }, n) => {
      const y = height - 8 - (n + 0.5) * BAND.height;
      svg.append(drawn("line", { class: "axis", x1: BAND.left - 12, x2: width, y1: y, y2: y }), drawn("text", { x: 0, y: y + 4 }, band >= 0 ? `layer ${band}` : ""));
    });
    drawLines(svg, lines, bands);
    drawNodes(svg, lines, bands);
    node("graph").replaceChildren(svg);
  };
};
