"use strict";
// The page. Names come from data, so they are only ever set as text, never as markup.

const at = (id) => document.getElementById(id);

function make(name, options = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "text") element.textContent = value;
    else if (key === "click") element.addEventListener("click", value);
    else if (value !== null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

async function ask(path, parameters = {}) {
  const query = new URLSearchParams(parameters);
  const response = await fetch(`explore/api/${path}?${query}`);
  const body = await response.json();
  if (!response.ok) throw new Error(body.detail || response.statusText);
  return body;
}

function tell(error) {
  at("error").textContent = error.message;
  at("error").hidden = false;
  setTimeout(() => { at("error").hidden = true; }, 8000);
}

const go = (id) => { location.hash = `item=${encodeURIComponent(id)}`; };
const chosen = () => {
  const found = /^#item=(.*)$/.exec(location.hash);
  return found ? decodeURIComponent(found[1]) : null;
};
const itemButton = (item) =>
  make("button", { type: "button", text: item.name, click: () => go(item.id) });

// Answers may come in another order than they were asked for: only the last one counts.
let lastFind = 0, lastItem = 0;

async function find(text) {
  const mine = ++lastFind;
  const items = await ask("items", { text });
  if (mine !== lastFind) return;
  at("none").hidden = items.length > 0;
  at("items").replaceChildren(...items.map((item) => make("li", {}, itemButton(item))));
  markChosen();
}

function markChosen() {
  const name = at("name").textContent;
  for (const button of at("items").querySelectorAll("button")) {
    if (button.textContent === name) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

function bar(value, most) {
  const size = 50 * Math.abs(value) / most;
  const drawing = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none" });
  drawing.append(svg("rect", { class: value > 0 ? "plus" : "minus", y: 0, height: 10,
    x: value > 0 ? 50 : 50 - size, width: size }));
  return make("span", { class: "bar", "aria-hidden": "true" }, drawing);
}

async function openAtom(row, button, atom) {
  const open = row.querySelector(".detail");
  button.setAttribute("aria-expanded", String(!open));
  if (open) { open.remove(); return; }
  const detail = make("div", { class: "detail" });
  row.append(detail);
  const found = await ask("atom", { latent: atom.latent, positive: atom.value > 0 });
  const side = found.positive ? "positive" : "negative";
  detail.append(
    make("p", { class: "note", text: `Used by ${found.used_by.toLocaleString("en")} items; ` +
      `these with the largest ${side} values:` }),
    make("ol", {}, ...found.items.map((item) => make("li", {}, itemButton(item),
      make("span", { class: "score", text: item.value.toPrecision(3) })))));
}

const FEW = 12;

function showAtoms(atoms, all = false) {
  at("more").hidden = all || atoms.length <= FEW;
  at("more").textContent = `Show all ${atoms.length}`;
  at("more").onclick = () => showAtoms(atoms, true);
  const most = Math.max(...atoms.map((atom) => Math.abs(atom.value)), 1e-9);
  at("atoms").replaceChildren(...atoms.slice(0, all ? atoms.length : FEW).map((atom) => {
    const row = make("li", { class: "atom" });
    const button = make("button", { type: "button", "aria-expanded": "false",
      click: () => openAtom(row, button, atom).catch(tell) },
    make("span", { class: "latent", text: `#${atom.latent}` }), bar(atom.value, most),
    make("span", { class: "value", text: (atom.value > 0 ? "+" : "\u2212") +
      Math.abs(atom.value).toFixed(3) }),
    make("span", { class: "stands", text: atom.stands_for.join("  \u00b7  ") }));
    row.append(button);
    return row;
  }));
}

function showNeighbours(item) {
  const other = new Set((item.by_original || []).map((one) => one.id));
  const codes = new Set(item.by_code.map((one) => one.id));
  const row = (one, both) => make("li", { class: both ? "both" : null },
    make("span", { class: "score", text: one.score.toFixed(3) }),
    make("span", {}, itemButton(one), ...(one.common && one.common.length ?
      [make("small", { text: "shares " + one.common.map((c) => `#${c.latent}`).join(", ") })] : [])));
  at("by-code").replaceChildren(...item.by_code.map((one) => row(one, other.has(one.id))));
  at("original-side").hidden = item.by_original === null;
  document.querySelector(".pair").classList.toggle("alone", item.by_original === null);
  at("by-original").replaceChildren(
    ...(item.by_original || []).map((one) => row(one, codes.has(one.id))));
  at("shared").textContent = item.by_original === null
    ? "By code alone: start with --x to compare with the original embeddings."
    : `${item.shared} of ${item.by_original.length} are the same; those are set in colour.`;
}

async function show(id) {
  const mine = ++lastItem;
  const item = await ask("item", { id });
  if (mine !== lastItem) return;
  at("name").textContent = item.name;
  document.title = `${item.name} \u2013 sparse_retrieval`;
  showAtoms(item.atoms);
  showNeighbours(item);
  markChosen();
}

async function showCurve(summary) {
  if (!summary.has_originals) {
    at("curve-note").textContent = "Start with --x to measure recall against the originals.";
    return;
  }
  const curve = await ask("curve");
  if (curve === null) {
    at("curve-note").textContent = "This index does not serve the mode dense.";
    return;
  }
  at("curve-note").textContent = `Share of the exact ${curve.depth} nearest that are found, over ` +
    `${curve.queries} ${curve.held_out ? "held-out queries" : "of the items, each without itself"}` +
    `; of this index, the first nonzeros of each row and all of them. An original takes ` +
    `${summary.original_bytes} bytes.`;
  at("curve").replaceChildren(drawCurve(curve));
}

function showFacts(summary) {
  const facts = { items: summary.items.toLocaleString("en"), atoms: summary.dim.toLocaleString("en"),
    "nonzeros an item": summary.nonzeros_per_item ?? "varies",
    "bytes an item": summary.bytes_per_item.toFixed(0), metric: summary.metric.replace("_", " ") };
  at("facts").replaceChildren(...Object.entries(facts).map(([name, value]) =>
    make("div", {}, make("dt", { text: name }), make("dd", { text: value }))));
}

async function begin() {
  const summary = await ask("summary");
  showFacts(summary);
  at("find").addEventListener("input", () => find(at("find").value).catch(tell));
  addEventListener("hashchange", () => { if (chosen() !== null) show(chosen()).catch(tell); });
  await find("");
  if (chosen() === null && summary.first !== null) {
    // named in the address too, so that the way back leads here
    history.replaceState(null, "", `#item=${encodeURIComponent(summary.first.id)}`);
  }
  if (chosen() !== null) await show(chosen());
  await showCurve(summary);
}

begin().catch(tell);
