// The frame: runs, warnings, views, keys, dark and light.

const VIEWS = ["curves", "completions", "method"];
const KEYS = [
  ["1 2 3", "curves, completions, method"], ["j k", "next and previous response"], ["/", "filter"],
  ["c C", "next and previous colouring"], ["t", "to the tokens; arrow keys then move among them"],
  ["Esc", "back to the list"], ["d", "dark or light"], ["?", "these keys"],
];
let view = "curves";
let alarmsOpen = null; // what the reader chose, if anything

function show(name) {
  view = name;
  for (const other of VIEWS) {
    byId(other).hidden = other !== name;
    byId(`tab-${other}`).setAttribute("aria-selected", other === name);
    byId(`tab-${other}`).tabIndex = other === name ? 0 : -1;
  }
  byId("tip").hidden = true;
  draw();
}

function draw() {
  drawFrame();
  if (view === "curves") drawCurves();
  else if (view === "completions") filterRows();
  else drawMethod();
}

function drawFrame() {
  byId("runs").replaceChildren(...store.runs.map((run) => {
    const key = h("i", { class: "key" });
    key.style.background = `var(${run.colour})`;
    return h("button", { type: "button", class: "run", "aria-pressed": run.visible, onclick: () => { run.visible = !run.visible; draw(); } },
      key, run.name, h("span", { class: "dim" }, ` ${run.series.step.at(-1) ?? 0}/${run.about.steps ?? "?"} ${run.state}`));
  }));
  byId("state").textContent = store.lost ? "the server does not answer" : store.setup.live ? "live" : "";
  const alarms = shownRuns().flatMap((run) => run.alarms.map((a) => [run, a]));
  const titles = [...new Set(alarms.map(([, a]) => a.title))].join("; ");
  const open = alarmsOpen ?? (view === "curves" && window.innerWidth > 700);
  byId("alarms").replaceChildren(...(alarms.length ? [h("details", { open },
    h("summary", { onclick: () => { alarmsOpen = !byId("alarms").firstChild.open; } }, `${alarms.length} ${alarms.length === 1 ? "warning" : "warnings"}: ${titles}`),
    h("ul", {}, alarms.map(([run, a]) => h("li", { class: "alarm", "data-name": a.name }, h("b", {}, `${store.runs.length > 1 ? `${run.name}: ` : ""}${a.title}. `), a.text))))] : []));
  const names = shownRuns().map((run) => `${run.k} ${run.name}`).join();
  if (table.runNames !== names) {
    table.runNames = names;
    const before = table.runField.value;
    table.runField.replaceChildren(h("option", { value: "" }, "all"), ...shownRuns().map((run) => h("option", { value: run.k }, run.name)));
    table.runField.value = [...table.runField.options].some((o) => o.value === before) ? before : "";
    byId("run-filter").hidden = shownRuns().length < 2;
  }
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem("unipo-theme", name); } catch { /* a file may not be allowed to remember */ }
}

function firstTheme() {
  let kept = null;
  try { kept = localStorage.getItem("unipo-theme"); } catch { /* as above */ }
  return kept || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function nextColumn(by) {
  const choice = byId("column");
  if (!choice) return;
  const values = [...choice.options].filter((o) => !o.disabled).map((o) => o.value);
  choice.value = values[(values.indexOf(choice.value) + by + values.length) % values.length];
  paint(choice.value);
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && view === "completions") {
    if (event.target.matches("input")) event.target.blur();
    else closeDetail();
    return;
  }
  if (event.target.matches("input, select, textarea") || byId("keys").open) return;
  const does = {
    1: () => show("curves"), 2: () => show("completions"), 3: () => show("method"),
    j: () => { if (view !== "completions") show("completions"); select(table.at + 1, true); },
    k: () => { if (view !== "completions") show("completions"); select(table.at - 1, true); },
    "/": () => { show("completions"); table.fold.open = true; table.form.elements.text.focus(); },
    c: () => nextColumn(1), C: () => nextColumn(-1), t: () => byId("tokens")?.focus(),
    d: () => byId("theme").click(), "?": () => byId("keys").showModal(),
  }[event.key];
  if (!does) return;
  event.preventDefault();
  does();
}

function tabKeys(event) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  const next = VIEWS[(VIEWS.indexOf(view) + by + VIEWS.length) % VIEWS.length];
  show(next);
  byId(`tab-${next}`).focus();
}

async function start() {
  setTheme(firstTheme());
  byId("theme").addEventListener("click", () => { setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); draw(); });
  byId("help").addEventListener("click", () => byId("keys").showModal());
  byId("keys").append(h("h2", {}, "Keys"), h("dl", { class: "keys" }, KEYS.flatMap(([key, what]) => [h("dt", {}, key), h("dd", {}, what)])),
    h("form", { method: "dialog" }, h("button", { autofocus: true }, "Close")));
  for (const name of VIEWS) byId(`tab-${name}`).addEventListener("click", () => show(name));
  byId("tabs").addEventListener("keydown", tabKeys);
  document.addEventListener("keydown", keys);
  byId("completions").append(makeTable(openDetail), makeDetail());
  makeCurves();
  store.listeners.push(later(() => { draw(); document.body.dataset.ready = "yes"; }, 30));
  await load();
  show("curves");
}

start().catch((error) => {
  const why = typeof DecompressionStream === "undefined" ? "This page needs a browser of 2023 or later. " : "";
  byId("alarms").replaceChildren(h("p", { class: "alarm" }, `${why}The page could not be drawn: ${error.message}`));
});
