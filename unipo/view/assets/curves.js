// The curves of all shown runs: the essential ones first, all others on demand.

const ESSENTIAL = [
  ["Reward", ["reward/mean"], "mean total reward of the step's responses"],
  ["Held-out accuracy", "evaluations", "with its 95 % interval"],
  ["Entropy", ["entropy"], "nats per token, of the distribution that was sampled from"],
  ["Response length", ["length/mean"], "tokens"],
  ["Prompts without a signal", ["groups/zero_variance"], "share of prompts whose answers all have the same reward"],
  ["Ratio: 1 %, 50 %, 99 %", ["ratio/q50", "ratio/q01", "ratio/q99"], "policy over old policy, quantiles over tokens"],
  ["Clipped share", ["clip_fraction"], "of tokens whose gradient the objective cut off"],
  ["KL to the reference", ["kl/reference"], "nats per token"],
  ["Sampler–trainer gap", ["gap/mean"], "mean difference of their log-probs, nats"],
  ["Truncated", ["truncated"], "share of responses cut off by max_tokens"],
  ["Gradient norm", ["grad_norm"], "before clipping"],
  ["Loss", ["loss"], "its sign and size mean little for policy gradients"],
  ["Seconds per step", ["seconds/step"], "wall time"],
];

const curves = { charts: [], others: [], smoothing: 0.35, x: "step", band: true, known: "" };

function metricLines(metrics) {
  const lines = [];
  for (const run of shownRuns()) {
    metrics.forEach((metric, j) => {
      const y = run.series[metric];
      if (!y) return;
      const x = abscissa(run, curves.x);
      const s = smoothed(x, y, windowSize());
      const many = shownRuns().length > 1;
      const label = metrics.length > 1 ? `${many ? `${run.name} ` : ""}${metric.split("/").pop()}` : many ? run.name : "";
      const alone = metrics.length === 1;
      lines.push({
        run, label, x: s.x, y: s.middle, dash: DASHES[j % DASHES.length],
        low: curves.band && alone && windowSize() > 1 ? s.low : null, high: s.high,
        raw: alone && windowSize() > 1 && x.length <= 5000 ? [x, y] : null,
      });
    });
  }
  return lines;
}

function evaluationLines() {
  const lines = [];
  for (const run of shownRuns()) {
    const kept = run.evaluations.filter((e) => e.accuracy !== null && e.accuracy !== undefined);
    if (!kept.length) continue;
    const steps = run.series.step, x = abscissa(run, curves.x);
    const place = (step) => (curves.x === "step" ? step : step < (steps[0] ?? 0) ? 0 : x[Math.max(0, lastKnown(steps.map((s) => (s <= step ? s : null)), steps.length - 1))] ?? 0);
    const byStep = new Map(kept.map((e) => [place(e.step), e]));
    const at = [...byStep.keys()].sort((a, b) => a - b);
    const pick = (name) => at.map((k) => byStep.get(k)[name]);
    lines.push({
      run, label: shownRuns().length > 1 ? run.name : "", x: at, y: pick("accuracy"), dash: [], points: true,
      low: curves.band ? pick("low") : null, high: pick("high"), raw: null,
    });
  }
  return lines;
}

// Steps that are averaged: from one to all of the longest run, in equal factors along the slider.
function windowSize() {
  const longest = Math.max(1, ...shownRuns().map((run) => run.series.step.length));
  return Math.round(Math.pow(longest, curves.smoothing));
}

function hasAny(metrics) {
  return store.runs.some((run) =>
    metrics === "evaluations" ? run.evaluations.length : metrics.some((m) => (run.series[m] || []).some((x) => x !== null)));
}

function makeCurves() {
  const smoothing = h("input", { type: "range", min: 0, max: 100, value: 100 * curves.smoothing, id: "smoothing", oninput: () => {
    curves.smoothing = Number(smoothing.value) / 100;
    drawCurves();
  } });
  const axis = h("select", { id: "axis", onchange: () => { curves.x = axis.value; drawCurves(); } },
    h("option", { value: "step" }, "steps"), h("option", { value: "tokens" }, "sampled tokens"), h("option", { value: "minutes" }, "minutes of training"));
  const band = h("input", { type: "checkbox", id: "band", checked: true, onchange: () => { curves.band = band.checked; drawCurves(); } });
  curves.said = h("output", { for: "smoothing" });
  curves.grid = h("div", { class: "charts" });
  curves.more = h("div", { class: "charts" });
  curves.rest = h("details", { ontoggle: () => { if (curves.rest.open) drawOthers(); } }, h("summary", {}, "All other metrics"), curves.more);
  byId("curves").replaceChildren(
    h("div", { class: "controls" },
      h("label", {}, "Smoothing ", smoothing), curves.said,
      h("label", {}, "Over ", axis), h("label", {}, band, " Bands"),
      h("span", { class: "dim desk" }, "Drag in a chart to zoom, double-click to zoom out.")),
    curves.grid, curves.rest);
}

function drawCurves() {
  const names = [...new Set(store.runs.flatMap((run) => Object.keys(run.series)))].filter((n) => n !== "step").sort();
  const key = `${names.join()} ${hasAny("evaluations")}`;
  if (curves.known !== key) {
    curves.known = key;
    const shown = ESSENTIAL.filter(([, metrics]) => hasAny(metrics));
    curves.charts = shown.map(([title, metrics, meaning]) =>
      new Chart(title, meaning, metrics === "evaluations" ? evaluationLines : () => metricLines(metrics)));
    curves.grid.replaceChildren(...curves.charts.map((c) => c.node));
    const taken = new Set(shown.flatMap(([, metrics]) => metrics));
    curves.otherNames = names.filter((n) => !taken.has(n) && hasAny([n]));
    curves.others = [];
    curves.rest.querySelector("summary").textContent = `All other metrics (${curves.otherNames.length})`;
    if (curves.rest.open) drawOthers();
  }
  const w = windowSize();
  curves.said.textContent = w > 1 ? `mean over ${w} steps; band: 10 % to 90 % of them` : "none";
  for (const chart of [...curves.charts, ...curves.others]) chart.update();
}

function drawOthers() {
  if (curves.others.length) return;
  curves.others = curves.otherNames.map((name) => new Chart(name, name, () => metricLines([name])));
  curves.more.replaceChildren(...curves.others.map((c) => c.node));
  for (const chart of curves.others) chart.update();
}
