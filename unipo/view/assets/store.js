// What is known of the runs, and where it comes from: blocks of this file, or the server that sent it.

const store = { setup: null, runs: [], listeners: [], lost: false };
const RUN_COLOURS = 6;

// A block is gzipped JSON in base64.
async function unpacked(id) {
  const text = atob(byId(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(plain).json();
}

function emptyRun(about, k) {
  return { k, about, name: about.name, colour: `--run${k % RUN_COLOURS}`, visible: true, generation: -1, ...nothing() };
}

function nothing() {
  return {
    series: { step: [] }, rows: { step: [] }, prompts: [], total: 0, more: true,
    state: "", alarms: [], evaluations: [], events: [], broken: 0, details: new Map(),
  };
}

// Lays what is new over what is known. A run that was resumed from an earlier step begins anew.
function apply(run, record) {
  if (record.generation !== run.generation) Object.assign(run, nothing(), { generation: record.generation });
  const before = record.from.steps;
  for (const [name, values] of Object.entries(record.series)) {
    const known = run.series[name] || (run.series[name] = new Array(before).fill(null));
    known.length = before;
    for (const x of values) known.push(x);
  }
  for (const [name, values] of Object.entries(record.rows)) {
    const known = run.rows[name] || (run.rows[name] = []);
    known.length = record.from.rows;
    for (const x of values) known.push(x);
  }
  run.prompts.length = record.from.prompts;
  for (const text of record.prompts) run.prompts.push(text);
  for (const name of ["total", "more", "state", "alarms", "evaluations", "events", "broken"]) run[name] = record[name];
  run.changed = record.series.step.length > 0 || record.rows.step.length > 0;
}

function tell(what) {
  for (const listener of store.listeners) listener(what);
}

function shownRuns() {
  return store.runs.filter((run) => run.visible);
}

async function load() {
  store.setup = await unpacked("setup");
  store.runs = store.setup.runs.map(emptyRun);
  if (store.setup.live) {
    for (const run of store.runs) follow(run);
    return;
  }
  await Promise.all(store.runs.map(async (run) => apply(run, await unpacked(`r${run.k}`))));
  tell("data");
}

async function ask(path) {
  const reply = await fetch(path);
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

// Asks the server for what is new, less often while nobody looks.
async function follow(run) {
  for (;;) {
    try {
      const place = `generation=${run.generation}&steps=${run.series.step.length}&rows=${run.rows.step.length}&prompts=${run.prompts.length}`;
      const state = run.state;
      apply(run, await ask(`/delta?run=${run.k}&${place}`));
      if (run.changed || state !== run.state || store.lost) {
        store.lost = false;
        tell("data");
      }
    } catch (error) {
      if (!store.lost) {
        store.lost = true;
        tell("data");
      }
      await pause(3000);
    }
    if (!run.more) await pause(document.hidden ? 20000 : run.state === "running" ? 4000 : 8000);
  }
}

function pause(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}

// Everything about one response, or null where this file has no room for it.
async function detailOf(run, i) {
  if (store.setup.live) return ask(`/detail?run=${run.k}&i=${i}`);
  const pack = run.rows.pack[i];
  if (pack < 0) return null;
  if (!run.details.has(pack)) {
    if (run.details.size > 40) run.details.clear();
    run.details.set(pack, unpacked(`r${run.k}-${pack}`));
  }
  return (await run.details.get(pack))[run.rows.place[i]];
}
