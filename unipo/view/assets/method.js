// What is being computed: the formula, what it changes in the method it grew from, settings, and what happened.

let methodDrawn = "";

function drawMethod() {
  const shown = shownRuns();
  const key = JSON.stringify(shown.map((run) => [run.k, run.events, run.broken]));
  if (key === methodDrawn) return; // what a reader has unfolded stays so
  methodDrawn = key;
  byId("method").replaceChildren(...shown.map(methodParts), ...(shown.length > 1 ? [differences(shown)] : []));
}

function rowsOf(header, rows, empty) {
  if (!rows.length) return h("p", { class: "dim" }, empty);
  return h("div", { class: "wide-table" }, h("table", {}, h("thead", {}, h("tr", {}, header.map((t) => h("th", { scope: "col" }, t)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, n) => h(n ? "td" : "th", n ? {} : { scope: "row" }, cell)))))));
}

function remarks(title, texts) {
  return texts && texts.length ? [h("h3", {}, title), h("ul", {}, texts.map((t) => h("li", {}, t)))] : [];
}

function methodParts(run) {
  const { about } = run, method = about.method, key = h("i", { class: "key" });
  key.style.background = `var(${run.colour})`;
  const paper = method.paper ? (String(method.url || "").startsWith("https://") ? h("a", { href: method.url, rel: "noreferrer" }, method.paper) : method.paper) : null;
  const events = run.events.map((e) => [e.event, e.times, e.first, e.last, JSON.stringify(e.detail)]);
  return h("article", { class: "card" },
    h("h2", {}, key, `${run.name}: ${method.name || "?"}`),
    h("p", {}, method.summary ? `${method.summary} ` : "", paper),
    h("p", { class: "dim" }, `${about.model} on ${about.task}, ${about.path}`),
    h("h3", {}, "Formula"), h("pre", { class: "formula", tabindex: 0 }, (method.formula || []).join("\n")),
    method.parent ? [h("h3", {}, `What it changes in ${method.parent}`), rowsOf(["part", method.parent, method.name], method.diff, "nothing")]
      : h("p", { class: "dim" }, method.diff ? "It grew from no other method." : "This run did not write down what its method changes."),
    method.own_settings?.length ? [h("h3", {}, "Set by this run"), rowsOf(["part", "catalogue", "here"], method.own_settings, "")] : null,
    remarks("Details", method.notes), remarks("What the paper leaves open", method.doubts), remarks("Where it loses", method.limits),
    h("h3", {}, "Events"), rowsOf(["event", "times", "first step", "last step", "last detail"], events, "None."),
    run.broken ? h("p", { class: "note" }, `${run.broken} lines of its files could not be read.`) : null,
    h("details", {}, h("summary", {}, "Configuration"), rowsOf(["setting", "value"], Object.entries(about.config), "")));
}

function differences(shown) {
  const names = [...new Set(shown.flatMap((run) => Object.keys(run.about.config)))].filter((n) => n !== "run");
  const rows = names.map((n) => [n, ...shown.map((run) => run.about.config[n] ?? "–")]).filter(([, ...values]) => new Set(values).size > 1);
  return h("article", { class: "card" }, h("h2", {}, "Where their configurations differ"), rowsOf(["setting", ...shown.map((r) => r.name)], rows, "Nowhere."));
}
