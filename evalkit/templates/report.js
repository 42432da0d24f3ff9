// The pairs of a report: a list to filter, each opened on demand. Text goes in as text, never as markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("pairs");
const by = (id) => document.getElementById(id);

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

function option(select, value, text) {
  const item = make("option", "", text);
  item.value = value;
  select.append(item);
}

const count = (values) => values.reduce((seen, v) => seen.set(v, (seen.get(v) || 0) + 1), new Map());
const kinds = count(data.pairs.flatMap((p) => p.kinds));
for (const [kind, text] of Object.entries(data.kinds)) if (kinds.has(kind)) option(by("kind"), kind, `${kind}: ${text} (${kinds.get(kind)})`);
for (const [subset, n] of [...count(data.pairs.map((p) => p.subset))].sort()) option(by("subset"), subset, `${subset || "(none)"} (${n})`);

const signed = (x, digits = 3) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(digits);
const sizes = data.pairs.flatMap((p) => p.spelled ? [...p.spelled.chosen, ...p.spelled.rejected].map((t) => Math.abs(t[1])) : []).sort((a, b) => a - b);
const full = sizes[Math.floor(sizes.length * 0.98)] || 1; // a token this far off is coloured in full

function coloured(tokens) {
  const box = make("div", "text");
  box.dir = "auto";
  for (const [text, ratio] of tokens) {
    const token = make("span", "", text);
    const strength = Math.min(1, Math.abs(ratio) / full) * 0.7;
    if (strength > 0.02) token.style.background = `rgb(var(--${ratio > 0 ? "up" : "down"}) / ${strength.toFixed(2)})`;
    token.title = `${signed(ratio, 2)} nats`;
    box.append(token);
  }
  return box;
}

function plain(text) {
  const box = make("div", "text", text);
  box.dir = "auto";
  return box;
}

function body(pair) {
  const inner = make("div");
  if (pair.texts) inner.append(make("h3", "", "Prompt"), plain(pair.texts.prompt));
  const sides = make("div", "sides");
  ["chosen", "rejected"].forEach((side, i) => {
    const column = make("div");
    column.append(make("h3", "", `${side}: reward ${signed(pair.rewards[i])}, ${pair.tokens[i]} tokens`));
    if (pair.spelled) column.append(coloured(pair.spelled[side]));
    else if (pair.texts) column.append(plain(pair.texts[side]));
    sides.append(column);
  });
  inner.append(sides);
  const others = Object.entries(pair.others).map(([name, m]) => `${name} ${signed(m)}`);
  inner.append(make("p", "soft", [`id ${pair.id}`, `group ${pair.group}`, ...others.map((o) => `margin of ${o}`), pair.kinds.map((k) => data.kinds[k]).join("; ")].join(" · ")));
  return inner;
}

function row(pair) {
  const details = make("details");
  const summary = make("summary");
  const state = pair.hit === 1 ? "right" : pair.hit === 0 ? "wrong" : "tied";
  const prompt = make("span", "prompt", pair.texts ? pair.texts.prompt.slice(0, 200).replace(/\s+/g, " ") : pair.id);
  prompt.dir = "auto";
  summary.append(make("span", `margin is-${state}`, signed(pair.margin)), make("span", `is-${state}`, state + (pair.undecided ? " ±" : "")), make("span", "", pair.subset), make("span", "why soft", pair.kinds.join(", ")), prompt);
  details.append(summary);
  details.addEventListener("toggle", () => { if (details.open && details.children.length === 1) details.append(body(pair)); });
  return details;
}

const haystack = new Map(data.pairs.map((p) => [p, [p.id, p.group, ...Object.values(p.texts || {})].join("\n").toLowerCase()]));
const orders = { margin: (p) => p.margin, "-margin": (p) => -p.margin, size: (p) => Math.abs(p.margin) };

function show() {
  const words = by("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [kind, subset, side] = ["kind", "subset", "side"].map((id) => by(id).value);
  const key = orders[by("order").value];
  const kept = data.pairs.filter((p) => (!kind || p.kinds.includes(kind)) && (!subset || p.subset === subset) && (!side || (side === "±" ? p.undecided : p.hit === Number(side))) && words.every((w) => haystack.get(p).includes(w)));
  list.replaceChildren(...kept.sort((a, b) => key(a) - key(b)).map(row));
  by("count").textContent = `${kept.length} pairs`;
}

by("controls").addEventListener("input", show);
by("controls").addEventListener("submit", (event) => event.preventDefault());
show();
