// One chart: a line per run, smoothed, with a band, over the raw values. Drawn by uPlot.

const GRID = 600; // points at which a smoothed line is computed
const DASHES = [[], [6, 4], [2, 3]];

// Mean and 10 % and 90 % quantiles of the values in a window around each of at most GRID places.
function smoothed(x, y, window) {
  const places = [], middle = [], low = [], high = [];
  const stride = Math.max(1, Math.ceil(x.length / GRID));
  const half = Math.floor(window / 2);
  const at = (k) => {
    const from = Math.max(0, k - half), to = Math.min(y.length, k + window - half);
    const known = [];
    for (let i = from; i < to; i++) if (y[i] !== null && y[i] !== undefined) known.push(y[i]);
    if (!known.length) return;
    places.push(x[k]);
    middle.push(known.reduce((a, b) => a + b, 0) / known.length);
    known.sort((a, b) => a - b);
    low.push(known[Math.floor(0.1 * (known.length - 1))]);
    high.push(known[Math.ceil(0.9 * (known.length - 1))]);
  };
  for (let k = 0; k < x.length; k += stride) at(k);
  if (x.length && (x.length - 1) % stride) at(x.length - 1);
  return { x: places, middle, low, high };
}

// The x values of a run's steps: steps themselves, tokens sampled so far, or minutes of training so far.
function abscissa(run, kind) {
  if (kind === "step") return run.series.step;
  const values = run.series[kind === "tokens" ? "tokens/sampled" : "seconds/step"] || [];
  let sum = 0;
  return run.series.step.map((_, i) => (sum += (values[i] || 0) / (kind === "tokens" ? 1 : 60)));
}

// lines: [{run, x, y, low, high, raw, dash, points, label}] -> uPlot's aligned data and series.
function aligned(lines) {
  const tables = [], series = [{}], bands = [];
  for (const line of lines) {
    const stroke = colour(line.run.colour);
    const columns = [line.x];
    const add = (values, options) => {
      columns.push(values);
      series.push({ spanGaps: true, points: { show: false }, ...options });
      return series.length - 1;
    };
    if (line.low) {
      const high = add(line.high, { stroke: "transparent" });
      const low = add(line.low, { stroke: "transparent" });
      bands.push({ series: [high, low], fill: `${stroke}33` });
    }
    line.index = add(line.y, {
      stroke, width: 2, dash: line.dash, points: { show: Boolean(line.points), size: 7, fill: stroke },
    });
    tables.push(columns);
    if (line.raw) {
      series.push({ spanGaps: true, points: { show: false }, stroke: `${stroke}55`, width: 1 });
      tables.push(line.raw);
    }
  }
  return { data: tables.length ? uPlot.join(tables) : [[]], series, bands };
}

class Chart {
  constructor(title, meaning, lines) {
    this.title = title;
    this.lines = lines; // () -> lines
    this.plot = null;
    this.place = h("div", { class: "plot" });
    this.reading = h("figcaption", { class: "reading" });
    this.node = h("figure", { class: "chart", "data-title": title }, h("h3", { title: meaning }, title), this.place, this.reading);
    this.seen = new IntersectionObserver((entries) => {
      this.near = entries.some((e) => e.isIntersecting);
      if (this.near && this.stale) this.draw();
    }, { rootMargin: "300px" });
    this.seen.observe(this.node);
    this.size = new ResizeObserver(() => {
      if (this.plot && this.place.clientWidth) this.plot.setSize({ width: this.place.clientWidth, height: 190 });
    });
    this.size.observe(this.place);
  }

  // Draws now if it can be seen, else when it comes near.
  update() {
    this.stale = true;
    if (this.near) this.draw();
  }

  draw() {
    this.stale = false;
    const zoom = this.axis === curves.x ? this.zoomed() : null;
    this.axis = curves.x;
    if (this.plot) this.plot.destroy();
    this.drawn = this.lines();
    const { data, series, bands } = aligned(this.drawn);
    const axis = { stroke: colour("--dim"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    this.plot = new uPlot({
      width: this.place.clientWidth || 320,
      height: 190,
      series, bands,
      legend: { show: false },
      cursor: { sync: { key: "x" }, drag: { x: true, y: false }, points: { size: 6 } },
      scales: { x: { time: false } },
      axes: [
        { ...axis, size: 30, space: 60, values: (u, ticks) => ticks.map(compact) },
        { ...axis, size: 54, values: (u, ticks) => ticks.map(compact) },
      ],
      hooks: { setCursor: [(u) => this.read(u.cursor.idx)] },
    }, data, this.place);
    if (zoom) this.plot.setScale("x", zoom);
    this.read(null);
  }

  // The part of the axis that a reader has zoomed into, which new data leaves as it is.
  zoomed() {
    const x = this.plot?.data[0];
    if (!x?.length) return null;
    const { min, max } = this.plot.scales.x;
    return min > x[0] || max < x[x.length - 1] ? { min, max } : null;
  }

  // Writes the values under the cursor, or the last ones, below the chart; also what a screen reader says of it.
  read(index) {
    if (!this.plot) return;
    const at = index === null || index === undefined ? -1 : index;
    const parts = this.drawn.map((line) => {
      const values = this.plot.data[line.index];
      const k = at < 0 ? lastKnown(values, values.length - 1) : lastKnown(values, at);
      const value = k < 0 ? null : values[k];
      const key = h("i", { class: "key" });
      key.style.background = `var(${line.run.colour})`;
      return h("span", {}, key, `${line.label} ${num(value, 3)} `);
    });
    const x = at < 0 ? null : this.plot.data[0][at];
    this.reading.replaceChildren(h("b", {}, x === null ? "last " : `${compact(x)}: `), ...parts);
    if (at < 0) this.node.setAttribute("aria-label", `${this.title}: ${this.reading.textContent}`);
  }
}

function lastKnown(values, k) {
  while (k >= 0 && (values[k] === null || values[k] === undefined)) k--;
  return k;
}

function compact(x) {
  if (x === null || x === undefined) return "";
  if (Math.abs(x) >= 1e6) return `${Number((x / 1e6).toPrecision(3))}M`;
  if (Math.abs(x) >= 1e4) return `${Number((x / 1e3).toPrecision(3))}k`;
  return num(x, 3);
}
