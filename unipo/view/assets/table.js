// The responses of all shown runs: filtered, sorted, and only those drawn that can be seen.

const ROW = 34; // pixels
const COLUMNS = [
  // key, title, how it is shown, whether phones have room for it
  ["run", "run", (run) => run.name, false],
  ["step", "step", (run, i) => run.rows.step[i], true],
  ["prompt", "prompt", (run, i) => run.prompts[run.rows.prompt[i]], false],
  ["reward", "reward", (run, i) => num(run.rows.reward[i], 3), true],
  ["advantage", "adv.", (run, i) => num(run.rows.advantage[i], 2), false],
  ["length", "length", (run, i) => run.rows.length[i], true],
  ["traced", "tokens", (run, i) => (run.rows.traced[i] ? "●" : ""), true],
  ["preview", "response", (run, i) => run.rows.preview[i], true],
];
const table = { order: [], sort: "step", down: true, at: -1, key: "", pool: [] };

function makeTable(open) {
  table.open = open;
  const field = (name, label, type, wide) => h("label", { class: wide ? "wide" : "narrow" }, `${label} `,
    h("input", { type, name, step: "any", inputmode: type === "number" ? "decimal" : null, placeholder: name === "text" ? "first 120 char." : null, autocomplete: "off", oninput: filterSoon }));
  table.runField = h("select", { name: "run", onchange: filterSoon });
  table.form = h("form", { id: "filters", role: "search", "aria-label": "Filter responses", onsubmit: (e) => e.preventDefault() },
    h("label", { id: "run-filter" }, "run ", table.runField),
    field("text", "response has", "search", true), field("prompt", "prompt has", "search", true),
    ["step", "reward", "length"].map((name) => h("span", { class: "pair" }, field(`${name}Low`, `${name} ≥`, "number"), field(`${name}High`, "≤", "number"))),
    h("label", {}, h("input", { type: "checkbox", name: "traced", onchange: filterSoon }), " with tokens"),
    h("label", {}, h("input", { type: "checkbox", name: "truncated", onchange: filterSoon }), " truncated"),
    h("button", { type: "reset", onclick: () => setTimeout(filterRows) }, "Clear"));
  table.count = h("p", { id: "count", role: "status" });
  table.head = h("div", { class: "row head", role: "row" }, COLUMNS.map(([key, title, , phone]) =>
    h("div", { role: "columnheader", class: `c-${key}${phone ? "" : " desk"}`, "data-key": key },
      h("button", { type: "button", onclick: () => sortBy(key) }, title))));
  table.body = h("div", { class: "rows", role: "rowgroup" });
  table.view = h("div", { class: "scroller", tabindex: 0, role: "grid", id: "table", "aria-label": "Responses" }, table.head, table.body);
  table.view.addEventListener("scroll", () => requestAnimationFrame(drawRows), { passive: true });
  table.view.addEventListener("keydown", tableKeys);
  table.body.addEventListener("click", (e) => {
    const row = e.target.closest(".row");
    if (row) select(Number(row.dataset.at), true);
  });
  new ResizeObserver(() => drawRows()).observe(table.view);
  table.fold = h("details", { open: window.innerWidth > 900 }, h("summary", {}, "Filter"), table.form);
  return h("div", { class: "list" }, table.fold, table.count, table.view);
}

const filterSoon = later(() => filterRows(), 120);

// The wanted rows of one run. Text is compared in lower case, with the beginnings that the index holds.
function matches(run, wanted) {
  const { rows } = run, found = [];
  const prompts = wanted.prompt ? run.prompts.map((p) => p.toLowerCase().includes(wanted.prompt)) : null;
  const ranges = ["step", "reward", "length"].map((name) => [rows[name], wanted[`${name}Low`], wanted[`${name}High`]])
    .filter(([, low, high]) => low !== null || high !== null);
  for (let i = 0; i < rows.step.length; i++) {
    if (wanted.traced && !rows.traced[i]) continue;
    if (wanted.truncated && !rows.truncated[i]) continue;
    if (prompts && !prompts[rows.prompt[i]]) continue;
    if (ranges.some(([values, low, high]) => values[i] === null || (low !== null && values[i] < low) || (high !== null && values[i] > high))) continue;
    if (wanted.text && !rows.preview[i].toLowerCase().includes(wanted.text)) continue;
    found.push([run, i]);
  }
  return found;
}

function wantedNow() {
  const data = new FormData(table.form);
  const wanted = { text: data.get("text").trim().toLowerCase(), prompt: data.get("prompt").trim().toLowerCase(), traced: data.has("traced"), truncated: data.has("truncated") };
  for (const name of ["step", "reward", "length"]) {
    for (const end of ["Low", "High"]) {
      const text = data.get(name + end).trim();
      wanted[name + end] = text === "" || Number.isNaN(Number(text)) ? null : Number(text);
    }
  }
  return wanted;
}

function filterRows() {
  if (!table.form) return;
  const chosen = table.order[table.at];
  const wanted = wantedNow();
  const one = table.runField.value;
  const runs = shownRuns().filter((run) => one === "" || run.k === Number(one));
  table.order = runs.flatMap((run) => matches(run, wanted));
  sortRows();
  table.at = chosen ? table.order.findIndex(([run, i]) => run === chosen[0] && i === chosen[1]) : -1;
  sayCount(runs);
  drawRows(true);
}

function sayCount(runs) {
  const total = runs.reduce((n, run) => n + run.total, 0), here = runs.reduce((n, run) => n + run.rows.step.length, 0);
  const words = [`${table.order.length.toLocaleString("en")} of ${total.toLocaleString("en")} recorded responses`];
  if (runs.some((run) => run.more)) words.push("still reading");
  else if (here < total) words.push(`this file holds ${here.toLocaleString("en")}, those of every n-th step`);
  if (!store.setup.live) {
    const lacking = runs.reduce((n, run) => n + run.rows.pack.reduce((m, p) => m + (p < 0), 0), 0);
    if (lacking) words.push(`full texts of ${lacking.toLocaleString("en")} did not fit (rows in grey): serve the run with unipo view to read them`);
  }
  table.count.textContent = `${words.join("; ")}.`;
}

function sortBy(key) {
  table.down = table.sort === key ? !table.down : key !== "prompt" && key !== "preview" && key !== "run";
  table.sort = key;
  filterRows();
}

function sortRows() {
  const key = table.sort, sign = table.down ? -1 : 1;
  const value = key === "run" ? (run) => run.k : key === "prompt" ? (run, i) => run.prompts[run.rows.prompt[i]] : (run, i) => run.rows[key][i];
  const keyed = table.order.map((pair, n) => [value(pair[0], pair[1]), n, pair]);
  const text = key === "prompt" || key === "preview";
  keyed.sort((a, b) => {
    if (a[0] === b[0]) return a[1] - b[1];
    if (a[0] === null || a[0] === undefined) return 1;
    if (b[0] === null || b[0] === undefined) return -1;
    return sign * (text ? (a[0] < b[0] ? -1 : 1) : a[0] - b[0]) || a[1] - b[1];
  });
  table.order = keyed.map(([, , pair]) => pair);
  for (const cell of table.head.children) {
    const mine = cell.dataset.key === key;
    cell.setAttribute("aria-sort", mine ? (table.down ? "descending" : "ascending") : "none");
  }
}

function drawRows(anew) {
  const { view, body, order } = table;
  if (!view || !view.clientHeight) return;
  body.style.height = `${order.length * ROW}px`;
  view.setAttribute("aria-rowcount", order.length + 1);
  view.classList.toggle("one-run", shownRuns().length < 2);
  const first = Math.max(0, Math.floor(view.scrollTop / ROW) - 4);
  const last = Math.min(order.length, first + Math.ceil(view.clientHeight / ROW) + 8);
  const key = `${first} ${last} ${table.at}`;
  if (!anew && key === table.key) return;
  table.key = key;
  const rows = [];
  for (let n = first; n < last; n++) rows.push(drawnRow(n));
  body.replaceChildren(...rows);
}

function drawnRow(n) {
  const [run, i] = table.order[n];
  const absent = !store.setup.live && run.rows.pack[i] < 0;
  const row = h("div", { class: `row${n === table.at ? " chosen" : ""}${absent ? " absent" : ""}`, role: "row", "aria-rowindex": n + 2, "aria-selected": n === table.at, id: `row-${n}`, "data-at": n },
    COLUMNS.map(([key, , show, phone]) => h("div", { role: "gridcell", class: `c-${key}${phone ? "" : " desk"}` }, show(run, i))));
  row.style.top = `${n * ROW}px`;
  row.firstChild.style.color = `var(${run.colour})`;
  return row;
}

function select(n, open) {
  if (!table.order.length) return;
  table.at = Math.max(0, Math.min(table.order.length - 1, n));
  const top = table.at * ROW, view = table.view;
  const room = view.clientHeight - ROW - 4;
  if (top < view.scrollTop) view.scrollTop = top;
  else if (top + ROW > view.scrollTop + room) view.scrollTop = top + ROW - room;
  drawRows(true);
  view.setAttribute("aria-activedescendant", `row-${table.at}`);
  if (open) table.open(...table.order[table.at]);
}

function tableKeys(event) {
  const page = Math.max(1, Math.floor(table.view.clientHeight / ROW) - 2);
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 };
  if (event.key in moves) select(table.at + moves[event.key], false);
  else if (event.key === "Enter" && table.at >= 0) select(table.at, true);
  else return;
  event.preventDefault();
}
