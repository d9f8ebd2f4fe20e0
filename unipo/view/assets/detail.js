// One response: its prompt, its tokens, what it was worth, and the group beside it.

const detail = { run: null, i: -1, asked: 0 };

function makeDetail() {
  detail.node = h("article", { class: "detail", id: "detail", tabindex: -1, "aria-label": "One response" },
    h("p", { class: "dim" }, "Choose a response: click one, or press j and k."));
  return detail.node;
}

async function openDetail(run, i) {
  detail.run = run;
  detail.i = i;
  tokens.at = -1;
  byId("tip").hidden = true;
  byId("completions").classList.add("opened");
  const number = ++detail.asked;
  let record, why = "";
  try {
    record = await detailOf(run, i);
  } catch (error) {
    why = `It could not be read: ${error.message}`;
  }
  if (number !== detail.asked) return; // another one was opened meanwhile
  if (!record) record = { text: `${run.rows.preview[i]}…`, prompt: run.prompts[run.rows.prompt[i]], cut: true };
  detail.node.replaceChildren(...detailParts(run, i, record, why));
  detail.node.scrollTop = 0;
}

function fact(label, value) {
  return value === undefined || value === null || value === "" ? null : h("div", {}, h("dt", {}, label), h("dd", {}, value));
}

function detailParts(run, i, record, why) {
  const { rows } = run;
  const parts = Object.entries(record.reward_parts || {}).map(([name, x]) => `${name} ${num(x, 3)}`).join(", ");
  const step = (by) => () => select(table.at + by, true);
  return [
    h("div", { class: "bar" },
      h("button", { type: "button", class: "back", onclick: closeDetail }, "← list"),
      h("button", { type: "button", onclick: step(-1), "aria-label": "Previous response" }, "↑"),
      h("button", { type: "button", onclick: step(1), "aria-label": "Next response" }, "↓"),
      h("h2", {}, `${store.runs.length > 1 ? `${run.name}, ` : ""}step ${rows.step[i]}`)),
    h("dl", { class: "facts" },
      fact("reward", num(rows.reward[i])), fact("score", record.score === undefined ? null : num(record.score)), fact("parts", parts),
      fact("advantage", rows.advantage[i] === null ? null : num(rows.advantage[i])), fact("tokens", rows.length[i]),
      fact("prompt", record.prompt_id), fact("expected", record.answer),
      fact("", rows.truncated[i] ? "truncated" : null), fact("", record.demonstration ? "demonstration" : null)),
    why ? h("p", { class: "alarm" }, why) : null,
    record.cut && !why ? h("p", { class: "note" }, "Only its beginning is in this file.") : null,
    h("h3", {}, "Prompt"), h("pre", { class: "prompt", tabindex: 0 }, record.prompt),
    h("h3", {}, "Response"),
    ...(record.pieces ? makeTokens(record) : [
      h("pre", { class: "response", tabindex: 0 }, record.text),
      h("p", { class: "note" }, "Not recorded token by token; --log.tokens says for how many per step that is done."),
    ]),
    ...groupParts(run, i),
  ].filter(Boolean);
}

// The other recorded answers to the same prompt at the same step.
function groupParts(run, i) {
  const { rows } = run;
  const first = rows.step.indexOf(rows.step[i]);
  const members = [];
  for (let k = first; k < rows.step.length && rows.step[k] === rows.step[i]; k++) {
    if (rows.prompt_id[k] === rows.prompt_id[i] && rows.prompt[k] === rows.prompt[i]) members.push(k);
  }
  const known = members.map((k) => rows.reward[k]).filter((x) => x !== null);
  const mean = known.reduce((a, b) => a + b, 0) / (known.length || 1);
  const said = known.length ? `mean reward ${num(mean, 3)}` : "no rewards";
  return [
    h("h3", {}, `Group: ${members.length} recorded ${members.length === 1 ? "answer" : "answers"} to this prompt at this step, ${said}`),
    h("ul", { class: "group" }, members.map((k) => h("li", {}, h("button", {
      type: "button", class: k === i ? "chosen" : "", "aria-current": k === i ? "true" : null, onclick: () => openMember(run, k),
    }, h("span", { class: "worth" }, num(rows.reward[k], 3)), h("span", { class: "dim" }, `adv. ${num(rows.advantage[k], 2)} · ${rows.length[k]} tok${rows.traced[k] ? " ●" : ""}`), h("span", { class: "cut" }, rows.preview[k]))))),
  ];
}

function openMember(run, k) {
  const n = table.order.findIndex(([r, i]) => r === run && i === k);
  if (n >= 0) select(n, true);
  else openDetail(run, k); // the filter hides it
}

function closeDetail() {
  byId("completions").classList.remove("opened");
  byId("tip").hidden = true;
  table.view.focus();
}
