// Paths as a matrix: senders down, receivers across, and apart at the edge what each sender does in all. There may be a
// hundred thousand cells: only those in sight are in the page, between spaces as large as the others.
const CELL = { height: 22, width: 22, step: 10, least: 0.05 };
// What stays in sight at both sides: of a narrow window no more than leaves room for ten columns between.
const SIDES = { wide: { names: 190, beside: 84 }, narrow: { names: 114, beside: 48 } };
const sides = () => SIDES[matchMedia("(max-width: 600px)").matches ? "narrow" : "wide"];

// A path by its numbers: `row` and `column` are places among the labels.
const pathsOf = (view) => {
  const { part, isMean, numbers, shown, metric, direction, scaled, signed, sharesInWords, meanInWords } = view;
  const labels = () => (isMean() ? part.mean : part);
  const number = (name, row, column) => numbers()[name]?.[row]?.[column] ?? null;
  const effect = (name, row, column) => {
    if (name !== "interaction" || numbers().interaction) return number(name, row, column);
    const [lost, back] = [number("disruption", row, column), number("restoration", row, column)];
    return lost === null || back === null ? null : lost - back;
  };
  const status = (row, column) => STATUS_LETTERS[numbers().status[row][column]];
  const beside = () => labels().receivers.findIndex(({ group }) => group === "beside");
  const called = (row, column) => `${labels().senders[row].name}${column === beside() ? ", every path (what it does in all)" : ` → ${labels().receivers[column].name}`}`;
  const tested = (row, column) => (name) => ["low", "high", "p_adjusted"].map((end) => number(`${name}_${end}`, row, column));
  const words = (row, column) => {
    const kind = status(row, column), why = kind === "ok" ? "" : ` · ${kind.replaceAll("_", " ")}`;
    const at = (name) => effect(name, row, column), whole = effect(direction(), row, beside());
    const said = isMean() ? meanInWords(part.effects, at, tested(row, column), number("clusters", row, column)) : sharesInWords(part.effects, metric(), at);
    const all = column === beside() || whole === null ? "" : ` · in all ${signed(whole)}`;
    return `${called(row, column)}: ${said}${why}${all}`;
  };
  const faint = (row, column) => isMean() && (number(`${direction()}_p_adjusted`, row, column) ?? 0) >= 0.05;
  const size = (row, column) => Math.max(...["restoration", "disruption"].map((name) => Math.abs(number(name, row, column) ?? 0)));
  const value = (row, column) => scaled(effect(direction(), row, column), metric());
  // The largest of paths alone, by any effect: a scale that all of them share; of the edge one of its own.
  const largest = (ofEdge) => {
    let most = 0;
    labels().senders.forEach((_, row) => labels().receivers.forEach((__, column) => {
      if ((column === beside()) === ofEdge) for (const name of part.effects) most = Math.max(most, Math.abs(effect(name, row, column) ?? 0));
    }));
    return most || 1;
  };
  // A page is drawn anew for every switch: what was looked for in all of a pair's numbers is kept.
  const kept = new WeakMap();
  const once = (name, make) => {
    const known = kept.get(shown()) ?? kept.set(shown(), {}).get(shown());
    return (known[`${name} ${metric()}`] ??= make());
  };
  return { labels, effect, number, status, beside, called, words, faint, value, size, tested,
    largest: (ofEdge) => Math.abs(scaled(once(`largest ${ofEdge}`, () => largest(ofEdge)), metric())), once };
};

const matrixSection = (shared) => {
  const view = { ...shared, ...pathsOf(shared) };
  const { part, make, state, unit, switches, drawLegend, listen, paintCell, isMean, asShare, plural, metric, node, key, say, instead, direction, spoken } = view;
  const { labels, status, beside, words, faint, value, size, largest, once } = view;
  const graph = graphSection(view);
  const least = () => CELL.least * once("most", () => labels().senders.reduce((most, _, row) => (
    labels().receivers.reduce((found, __, column) => (column === beside() ? found : Math.max(found, size(row, column))), most)
  ), 0));
  // The senders and receivers that are shown, by their places among the labels: at first those with a path worth a look.
  const strong = () => once("strong", () => {
    const found = { rows: new Set(), columns: new Set() };
    labels().senders.forEach((_, row) => labels().receivers.forEach((__, column) => {
      if (column !== beside() && size(row, column) >= least() && size(row, column) > 0) { found.rows.add(row); found.columns.add(column); }
    }));
    return found;
  });
  const lines = () => {
    const places = (all) => all.map((_, n) => n), folded = state[key("f")] === "strongest" && part.large && strong().rows.size > 0;
    const rows = places(labels().senders), columns = places(labels().receivers).filter((n) => n !== beside());
    return { rows: folded ? rows.filter((n) => strong().rows.has(n)) : rows, columns: [...(folded ? columns.filter((n) => strong().columns.has(n)) : columns), beside()] };
  };
  let at = [0, 0], keyed = false, inSight = "", now = null;

  // What is written over some columns that lie together: one cell for each run of the same.
  const runs = (columns, name) => {
    const found = [];
    columns.forEach((column, n) => {
      const text = name(labels().receivers[column], labels().receivers[columns[n - 1]]);
      if (found.length && found.at(-1).text === text) found.at(-1).count += 1; else found.push({ text, count: 1 });
    });
    return found;
  };
  const GROUPS = { attn_out: "attention", mixer_out: "mixer", mlp_out: "MLP", named: "", logits: "", beside: "" };
  const heads = (columns, space) => {
    const group = (one) => GROUPS[one.group] ?? one.group, layer = (one) => `${one.group} ${one.layer}`;
    const head = (text, properties) => make(text ? "th" : "td", { ...(text ? properties : { colSpan: properties.colSpan ?? 1 }), textContent: text });
    const line = (some, first) => make("tr", { role: "row" }, head(first, { scope: "col" }), ...space(), ...some, ...space());
    const over = (name, told) => runs(columns, name).map(({ text, count }) => head(told(text), { scope: "colgroup", colSpan: count }));
    const edge = make("th", { scope: "col", rowSpan: 3, className: "beside", textContent: labels().receivers[beside()].name });
    edge.ariaColIndex = String(now.columns.length + 1);
    const named = columns.map((column) => {
      const { name, part: text } = labels().receivers[column];
      return make("th", { scope: "col", className: text.length > 3 ? "turned" : "", title: name, ariaLabel: name }, make("span", { textContent: text }));
    });
    const first = line(over(group, (text) => text), "");
    first.append(edge);
    const last = line(named, "sender ↓ receiver →"); // as tall whatever is in sight of it
    if (now.columns.some((column) => column !== beside() && labels().receivers[column].part.length > 3)) last.className = "tall";
    return [first, line(over(layer, (text) => text.replace(/^(named|logits|attn_out|mixer_out|mlp_out) .*/, "").split(" ").at(-1)), "layer"), last];
  };
  const cellAt = (row, column, r, c) => {
    const cell = make("td", { role: "gridcell", tabIndex: at[0] === c && at[1] === r ? 0 : -1 });
    paintCell(cell, { value: value(row, column), status: status(row, column), words: words(row, column), faint: faint(row, column) }, largest(column === beside()));
    if (column === beside()) cell.classList.add("beside");
    cell.dataset.at = `${c},${r}`;
    cell.ariaColIndex = String(c + 2);
    return cell;
  };
  const sight = () => {
    const box = node("scroll"), parts = (from, length, one, count) => [
      Math.max(0, Math.floor(from / one / CELL.step) * CELL.step),
      Math.min(count, Math.ceil((from + length) / one / CELL.step) * CELL.step),
    ];
    return [parts(box.scrollTop, box.clientHeight || 600, CELL.height, now.rows.length), parts(box.scrollLeft, box.clientWidth || 1100, CELL.width, now.columns.length - 1)];
  };
  const build = (anew) => {
    const [[top, bottom], [left, right]] = sight(), told = [top, bottom, left, right].join();
    if (told === inSight && !anew) return;
    inSight = told;
    const columns = now.columns.slice(left, right), table = node("map"), focused = table.contains(document.activeElement);
    const widths = [sides().names, left * CELL.width, ...columns.map(() => CELL.width), (now.columns.length - 1 - right) * CELL.width, sides().beside];
    const space = () => [make("td", { className: "space", ariaHidden: "true" })];
    const tall = (count) => make("tr", { className: "space", ariaHidden: "true" }, Object.assign(make("td", { colSpan: widths.length, className: "space" }), { style: `height:${count * CELL.height}px` }));
    const body = make("tbody", {}, ...(top ? [tall(top)] : []));
    now.rows.slice(top, bottom).forEach((row, n) => {
      const r = top + n, { name, layer } = labels().senders[row];
      const begins = r > 0 && layer !== labels().senders[now.rows[r - 1]].layer;
      const line = make("tr", { role: "row", className: begins ? "begins" : "" }, make("th", { scope: "row", textContent: name, title: name }), ...space());
      line.ariaRowIndex = String(r + 4);
      columns.forEach((column, m) => line.append(cellAt(row, column, r, left + m)));
      line.append(...space(), cellAt(row, beside(), r, now.columns.length - 1));
      body.append(line);
    });
    if (bottom < now.rows.length) body.append(tall(now.rows.length - bottom));
    const cols = make("colgroup", {}, ...widths.map((width) => Object.assign(make("col"), { style: `width:${width}px` })));
    table.replaceChildren(cols, make("thead", {}, ...heads(columns, space)), body);
    table.style.width = `${widths.reduce((sum, one) => sum + one, 0)}px`;
    if (!current()) table.querySelector('td[role="gridcell"]').tabIndex = 0; // what is chosen is out of sight
    if (focused) current().focus({ preventScroll: true });
  };
  // Into the middle part of the box: what is sticky must not cover it.
  const reveal = ([column, row]) => {
    const box = node("scroll"), head = node("map").tHead.offsetHeight;
    const into = (name, start, one, length) => { if (start < box[name]) box[name] = start; else if (start + one > box[name] + length) box[name] = start + one - length; };
    into("scrollTop", row * CELL.height, CELL.height, box.clientHeight - head);
    if (column < now.columns.length - 1) into("scrollLeft", column * CELL.width, CELL.width, box.clientWidth - sides().names - sides().beside);
  };
  const current = () => node("map").querySelector('td[tabindex="0"]');
  // Only what is looked at changes: the cells in sight are made anew where others come into sight.
  const choose = (...to) => {
    [at, keyed] = [to, true];
    node("scroll").scrollIntoView({ block: "nearest" });
    reveal(at);
    build(false);
    current().tabIndex = -1;
    const cell = node("map").querySelector(`td[data-at="${at.join(",")}"]`);
    cell.tabIndex = 0;
    cell.focus({ preventScroll: true });
  };
  const read = (column, row) => { // what comes under a mouse that rests, as cells move, is not pointed at
    if (!keyed || (column === at[0] && row === at[1])) node("readout").textContent = words(now.rows[row], now.columns[column]);
  };
  node("map").addEventListener("mousemove", () => { keyed = false; });
  listen(node("map"), () => [now.columns.length, now.rows.length], choose, read);
  node("scroll").addEventListener("scroll", () => { if (now) build(false); }, { passive: true });

  const counted = (senders, receivers) => [[senders, "sender"], [receivers, "receiver"]].filter(([count]) => count).map(([count, word]) => plural(count, word)).join(" and ");
  const note = () => {
    const gone = counted(...labels().left_out), left = [labels().senders.length - now.rows.length, labels().receivers.length - now.columns.length];
    return [
      "A sender is patched; a receiver alone reads what it adds to the stream.",
      counted(...left) ? `${counted(...left)} are folded away: none of their paths is ${unitOf(least())} or more.` : "",
      gone ? `${gone} with weaker paths are not on this page: trace.of("${part.kind}") has all.` : "",
      ...instead(),
    ];
  };
  const unitOf = (found) => `${Number(found.toPrecision(2))} ${unit(metric())}`;
  return () => {
    now = lines();
    at = [Math.min(at[0], now.columns.length - 1), Math.min(at[1], Math.max(0, now.rows.length - 1))];
    switches(node("switches"), [...(isMean() ? ["d"] : ["d", "v"]), ...(part.large ? [key("f")] : [])], `${part.kind}-`);
    say(node("note"), note());
    drawLegend(node("legend"), largest(false), [...(isMean() ? ["faint"] : []), "zero", "none", ...(part.filling ? ["waiting"] : [])], unit(metric()), asShare());
    drawLegend(node("beside"), largest(true), [], unit(metric()), asShare());
    node("beside").prepend(make("span", { textContent: `${labels().receivers[beside()].name}: the sender patched as ever, on a scale of its own` }));
    node("map").ariaRowCount = String(now.rows.length + 3);
    node("map").ariaColCount = String(now.columns.length + 1);
    node("map").setAttribute("aria-label", `${spoken("d", direction())} by sender and receiver`);
    build(true);
    graph();
  };
};
