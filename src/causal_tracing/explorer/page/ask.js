// What is typed: both prompts, what follows them, the subject; what is understood of it, and what its trace will take.
import { ask } from "/static/talk.js";

// Milliseconds after a key until its tokens are asked for, and behind them until the model is; seconds that are long.
const WAIT = 60, REST = 120, LONG = 30;
const SIDES = { clean: ["answer", "subject", "the model's choices"], corrupt: ["foil", "corrupt_subject", "the model's choices"] };
const $ = (id) => document.getElementById(id);
const button = (text, press) => {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  made.addEventListener("click", press);
  return made;
};
const quoted = (text) => `“${text.trim()}”`;

export const form = ({ tab, changed, start }) => {
  const asked = { subject: "", corrupt_subject: "", occurrence: 0, align: "strict", less: {} };
  let timer = 0, pending = null, understood = null, known = "", chosen = { answer: false, foil: false };

  const pair = () => {
    const given = { clean: $("clean").value, corrupt: $("corrupt").value, answer: $("answer").value, foil: $("foil").value, subject: asked.subject, corrupt_subject: asked.corrupt_subject };
    return { ...given, ...(asked.occurrence ? { occurrence: asked.occurrence } : {}) };
  };
  const options = () => ({ ...(asked.align === "strict" ? {} : { align: asked.align }), ...($("with-lens").checked ? { lens: true } : {}), ...asked.less });
  const request = () => ({ pair: pair(), options: options(), tab });

  const wrong = (said, offers = []) => {
    if (said && !offers.length && $("wrong").firstChild?.textContent === said.message) return; // with offers behind it
    $("wrong").replaceChildren();
    for (const field of ["clean", "corrupt", "answer", "foil"]) $(field).removeAttribute("aria-invalid");
    if (!said) return;
    if (["clean", "corrupt", "answer", "foil"].includes(said.field)) $(said.field).setAttribute("aria-invalid", "true");
    $("wrong").append(said.message);
    if (offers.length) $("wrong").append("\n");
    for (const way of offers) $("wrong").append(button(`pair them by ${way}`, () => { asked.align = way; look(0); }), " ");
  };
  const tokensOf = (side, found) => {
    const at = side === "clean" ? 0 : 1, differing = new Set(understood.differing ?? []);
    const paired = new Map((understood.pairing ?? []).map((slot) => [slot[at], slot[0]]));
    const marked = found.tokens.map((text, n) => {
      const span = Object.assign(document.createElement("span"), { textContent: text.replaceAll("\n", "⏎") });
      if (differing.has(paired.get(n))) span.classList.add("differs");
      if (understood.part !== undefined && understood.part !== null && n >= understood.part) span.classList.add("parts");
      if (understood.pairing && !paired.has(n)) span.title = "not paired, and so not patched";
      return span;
    });
    $(`${side}-tokens`).replaceChildren(...marked);
  };
  const choicesOf = (side, found) => {
    const [name] = SIDES[side];
    const offers = found.choices.map(({ token, shown, prob }) => {
      const offer = button(`${shown.trim() || shown} ${prob.toFixed(2)}`, () => { $(name).value = token; chosen[name] = true; look(0); });
      offer.setAttribute("aria-pressed", String($(name).value === token));
      offer.setAttribute("aria-label", `${name}: ${shown.trim() || shown}, probability ${prob.toFixed(2)}`);
      return offer;
    });
    $(`${side}-choices`).replaceChildren(...offers);
  };
  const show = (found, entered) => {
    understood = found;
    $("ask").classList.remove("behind", "unasked");
    $("cost").textContent = "";
    $("less").replaceChildren();
    for (const name of ["answer", "foil"]) if (!chosen[name] && found[name]) $(name).value = found[name];
    for (const side of Object.keys(SIDES)) {
      const mine = found.sides[side];
      if (mine) { tokensOf(side, mine); choicesOf(side, mine); } else { $(`${side}-tokens`).replaceChildren(); $(`${side}-choices`).replaceChildren(); }
    }
    $("warned").replaceChildren(...found.warnings.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
    if (found.error || !entered) wrong(found.error, found.offers); // what was said of a trace that was entered stays
    $("go").disabled = !found.pairing;
    known = JSON.stringify(request());
  };
  // Tokens need no model: they are there before it is asked what it would say.
  const spell = (found) => {
    understood = found;
    $("ask").classList.remove("behind");
    for (const side of Object.keys(SIDES)) if (found.sides[side]) tokensOf(side, found.sides[side]); else $(`${side}-tokens`).replaceChildren();
  };
  const cost = (found) => {
    const seconds = found.seconds < 1 ? "less than a second" : `about ${Math.round(found.seconds)} s`;
    $("cost").textContent = `${(found.worlds - found.worlds_skipped).toLocaleString("en")} worlds, ${seconds}`;
    $("less").replaceChildren();
    if (found.seconds < LONG) return;
    const roles = asked.subject ? ["subject_first", "subject_last", "next", "last"] : ["last"];
    const layers = Array.from({ length: Math.ceil(form.layers / 4) }, (_, n) => 4 * n);
    $("less").append(button("roles only", () => { asked.less = { positions: roles }; look(0); }), " ", button("every fourth layer", () => { asked.less = { layers }; look(0); }));
  };
  const understand = async (priced = true, rest = 0) => {
    pending?.abort();
    const mine = pending = new AbortController();
    const heard = async (path, told) => {
      const found = await (await ask(path, { method: "POST", body: request(), signal: mine.signal })).json();
      if (!mine.signal.aborted) told(found);
    };
    if (!$("clean").value || !$("corrupt").value) $("cost").textContent = "";
    try {
      if (rest) {
        await heard("tokens", spell);
        await new Promise((rested) => setTimeout(rested, rest));
        if (mine.signal.aborted) return;
      }
      await heard("preview", (found) => show(found, !priced));
      if (priced && !mine.signal.aborted && understood.pairing) await heard("estimate", cost);
    } catch (error) {
      if (error.name === "AbortError" || mine.signal.aborted) return;
      $("ask").classList.remove("behind", "unasked");
      wrong(error.said ?? { message: String(error) });
    }
  };
  const look = (wait = WAIT) => { pending?.abort(); $("ask").classList.add("behind", "unasked"); clearTimeout(timer); timer = setTimeout(() => understand(true, wait && REST), wait); };

  // A stretch of the text that is selected may be the subject.
  const selection = (side) => {
    const box = $(side), text = box.value.slice(box.selectionStart, box.selectionEnd);
    const offer = $(`${side}-subject`), name = SIDES[side][1];
    offer.disabled = !text.trim() && !asked[name];
    offer.textContent = text.trim() ? `${quoted(text)} is the subject` : asked[name] ? "no subject" : "select the subject in the text";
  };
  const said = (side) => { const name = SIDES[side][1]; $(`${side}-chosen`).textContent = asked[name] ? `subject: ${quoted(asked[name])}` : ""; selection(side); };
  const choose = (side) => {
    const box = $(side), name = SIDES[side][1], text = box.value.slice(box.selectionStart, box.selectionEnd);
    asked[name] = text.trim();
    if (side === "clean") {
      const start = box.selectionStart + text.indexOf(text.trim());
      asked.occurrence = asked[name] ? Array.from({ length: start }, (_, n) => box.value.startsWith(asked[name], n)).filter(Boolean).length : 0;
    }
    said(side);
    look(0);
  };
  for (const side of Object.keys(SIDES)) {
    const [follows, subject] = SIDES[side];
    $(side).addEventListener("input", () => {
      chosen[follows] = false;
      $(follows).value = "";
      if (asked[subject] && !$(side).value.includes(asked[subject])) { asked[subject] = ""; asked.occurrence = side === "clean" ? 0 : asked.occurrence; }
      asked.align = "strict"; asked.less = {};
      said(side);
      changed();
      look();
    });
    $(side).addEventListener("select", () => selection(side));
    $(side).addEventListener("keyup", () => selection(side));
    $(`${side}-subject`).addEventListener("click", () => choose(side));
    $(follows).addEventListener("input", () => { chosen[follows] = true; changed(); look(); });
    $(side).addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("ask").requestSubmit(); } });
  }
  $("with-lens").addEventListener("change", () => { changed(); look(0); });
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(timer); pending?.abort(); start(request()).then(() => { if (known !== JSON.stringify(request())) understand(false); }); });

  const fill = (given, ways = {}) => {
    for (const name of ["clean", "corrupt", "answer", "foil"]) $(name).value = given[name] ?? "";
    chosen = { answer: Boolean(given.answer), foil: Boolean(given.foil) };
    Object.assign(asked, { subject: given.subject ?? "", corrupt_subject: given.corrupt_subject ?? "", occurrence: given.occurrence ?? 0, align: ways.align ?? "strict", less: {} });
    $("with-lens").checked = Boolean(ways.lens);
    for (const side of Object.keys(SIDES)) said(side);
    look(0);
  };
  const close = (why) => {
    for (const field of $("ask").elements) field.disabled = true;
    Object.assign($("closed"), { textContent: why, hidden: false });
  };
  return { fill, close, wrong };
};
