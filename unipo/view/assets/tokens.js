// The tokens of a response, coloured by a column.

const tokens = { column: "advantage", at: -1, spans: [], detail: null };

function infoOf(name) {
  return store.setup.columns[name] || { label: name.replaceAll("_", " "), kind: "signed", meaning: "a column that a part of this method adds" };
}

// What full colour stands for: the 95 % quantile of sizes, so that one outlier does not bleach the rest.
function scaleOf(values, kind) {
  const sizes = values.filter((x) => x !== null && x !== undefined).map((x) => Math.abs(kind === "factor" ? Math.log(Math.max(x, 1e-9)) : x)).sort((a, b) => a - b);
  return sizes.length ? sizes[Math.ceil(0.95 * (sizes.length - 1))] || sizes[sizes.length - 1] || 0 : 0;
}

// [class, share of full colour] of a value.
function shade(value, kind, scale) {
  if (value === null || value === undefined) return ["unknown", 0];
  if (kind === "flag") return value ? ["amount", 0.6] : ["off", 0];
  const x = kind === "factor" ? Math.log(Math.max(value, 1e-9)) : value;
  const share = scale > 0 ? Math.min(1, Math.abs(x) / scale) : 0;
  return [kind === "amount" ? "amount" : x > 0 ? "plus" : x < 0 ? "minus" : "zero", share];
}

function makeTokens(detail) {
  const names = Object.keys(detail.columns);
  if (!names.includes(tokens.column)) tokens.column = names.includes("advantage") ? "advantage" : names[0];
  tokens.detail = detail;
  tokens.spans = detail.pieces.map((piece, n) => {
    const tool = (detail.columns.trainable || [])[n] === 0;
    const shown = piece === "" ? "·" : piece.replaceAll("\n", "↵\n");
    return h("span", { class: `t${tool ? " tool" : ""}${piece === "" ? " part" : ""}`, "data-n": n }, shown);
  });
  const absent = Object.keys(store.setup.columns).filter((name) => !names.includes(name));
  const choice = h("select", { id: "column", onchange: () => paint(choice.value) },
    names.map((name) => h("option", { value: name, selected: name === tokens.column }, infoOf(name).label)),
    absent.map((name) => h("option", { value: name, disabled: true }, `${infoOf(name).label} (not in this run)`)));
  tokens.legend = h("p", { class: "legend", role: "status" });
  tokens.text = h("div", { class: "tokens", id: "tokens", tabindex: 0, role: "group", "aria-label": "Response, token by token: arrow keys move, values are read out", "aria-describedby": "values" }, tokens.spans);
  tokens.values = h("p", { id: "values", class: "values", "aria-live": "polite" });
  tokens.text.addEventListener("pointerover", (e) => hover(e.target.closest(".t")));
  tokens.text.addEventListener("pointerleave", () => hover(null));
  tokens.text.addEventListener("click", (e) => point(e.target.closest(".t")));
  tokens.text.addEventListener("keydown", tokenKeys);
  paint(tokens.column);
  return [h("div", { class: "controls" }, h("label", {}, "Colour by ", choice)), tokens.legend, tokens.text, tokens.values];
}

function paint(name) {
  tokens.column = name;
  const values = tokens.detail.columns[name], info = infoOf(name);
  const scale = scaleOf(values, info.kind);
  tokens.spans.forEach((span, n) => {
    const [kind, share] = shade(values[n], info.kind, scale);
    span.classList.remove("plus", "minus", "amount", "off", "zero", "unknown");
    span.classList.add(kind);
    span.style.setProperty("--share", `${Math.round(share * 100)}%`);
  });
  const key = (kind, text) => {
    const box = h("span", { class: `t ${kind}` }, text);
    box.style.setProperty("--share", "100%");
    return box;
  };
  const full = num(info.kind === "factor" ? Math.exp(scale) : scale, 3);
  const keys = {
    signed: [key("minus", ` −${full} `), " 0 ", key("plus", ` +${full} `)],
    factor: [key("minus", ` ${num(Math.exp(-scale), 3)} `), " 1 ", key("plus", ` ${full} `)],
    amount: [" 0 ", key("amount", ` ${name.endsWith("logp") ? "−" : ""}${full} `)],
    flag: [key("amount", " yes "), key("off", " no ")],
  };
  tokens.legend.replaceChildren(h("b", {}, `${info.label}: `), `${info.meaning}. `, ...keys[info.kind],
    tokens.detail.columns.trainable?.includes(0) ? h("span", {}, " ", h("span", { class: "t tool" }, " tool text ")) : "");
}

function describe(n) {
  const columns = Object.entries(tokens.detail.columns);
  return [JSON.stringify(tokens.detail.pieces[n]), columns.map(([name, values]) => {
    const kind = infoOf(name).kind, x = values[n];
    return [infoOf(name).label, kind === "flag" && x !== null ? (x ? "yes" : "no") : num(x)];
  })];
}

function hover(span) {
  const tip = byId("tip");
  tip.hidden = !span;
  if (!span) return;
  const n = Number(span.dataset.n);
  const [text, rows] = describe(n);
  tip.replaceChildren(h("b", {}, `${n + 1}. ${text}`), h("table", {}, rows.map(([label, value]) => h("tr", {}, h("th", {}, label), h("td", {}, value)))));
  const at = span.getClientRects()[0];
  const left = Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = at.bottom + 6 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(4, below ? at.bottom + 6 : at.top - tip.offsetHeight - 6)}px`;
}

function point(span) {
  for (const s of tokens.spans) s.classList.remove("cursor");
  if (!span) return;
  span.classList.add("cursor");
  tokens.at = Number(span.dataset.n);
  const [text, rows] = describe(tokens.at);
  tokens.values.textContent = `Token ${tokens.at + 1}, ${text}: ${rows.map(([label, value]) => `${label} ${value}`).join(", ")}`;
  span.scrollIntoView({ block: "nearest" });
}

function tokenKeys(event) {
  const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -1e9, End: 1e9 };
  if (!(event.key in moves)) return;
  event.preventDefault();
  const n = Math.max(0, Math.min(tokens.spans.length - 1, tokens.at + moves[event.key]));
  point(tokens.spans[n]);
  hover(tokens.spans[n]);
}
