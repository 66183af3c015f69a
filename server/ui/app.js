"use strict";

const byId = (id) => document.getElementById(id);
const view = new TreeView(byId("tree"), showDetail);
const conversation = [];
let strategies = new Map();
let running = null;

async function start() {
  const [models, known] = await Promise.all([getJson("/v1/models"), getJson("/v1/strategies")]);
  strategies = new Map(known.data.map((strategy) => [strategy.name, strategy]));
  const plain = models.data.filter((model) => !model.id.endsWith(`:${model.bough.strategy}`));
  byId("model").replaceChildren(...plain.map((model) => new Option(model.id)));
  const names = [...strategies.keys()];
  byId("strategy").replaceChildren(...names.map((name) => new Option(name)));
  byId("strategy").value = plain[0].bough.strategy;
  // a link may preset everything but the sending: /?strategy=beam&width=4&seed=7&q=…
  const preset = new URLSearchParams(location.search);
  for (const id of ["model", "strategy", "width", "seed", "temperature"]) {
    if (preset.has(id)) byId(id).value = preset.get(id);
  }
  showWidth();
  if (preset.has("q")) byId("question").value = preset.get("q");
}

async function getJson(path) {
  const response = await fetch(path);
  const body = await response.json();
  if (!response.ok) throw new Error(body.error.message);
  return body;
}

function showWidth() {
  const strategy = strategies.get(byId("strategy").value);
  const width = strategy && strategy.params.properties && strategy.params.properties.width;
  byId("width-label").hidden = !width;
  byId("width").placeholder = width && width.default !== undefined ? width.default : "default";
  byId("strategy").title = strategy ? strategy.description : "";
}

function requestBody() {
  const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));
  const width = byId("width-label").hidden ? undefined : number("width");
  return {
    model: byId("model").value,
    messages: conversation,
    stream: true,
    stream_options: { include_usage: true },
    seed: number("seed"),
    temperature: number("temperature"),
    bough: { strategy: byId("strategy").value, params: width === undefined ? {} : { width } },
  };
}

async function ask(text) {
  conversation.push({ role: "user", content: text });
  addMessage("user", text);
  const bubble = addMessage("assistant waiting", "");
  const run = { controller: new AbortController(), events: null };
  setRunning(run);
  view.clear();
  hideDetail();
  try {
    const answer = await stream(run, bubble);
    conversation.push({ role: "assistant", content: answer });
  } catch (error) {
    conversation.pop();
    bubble.className = run.controller.signal.aborted ? "assistant" : "error";
    bubble.append(run.controller.signal.aborted ? " (stopped)" : error.message);
  } finally {
    bubble.classList.remove("waiting");
    setRunning(null);
  }
}

/* Post the conversation and show the answer as it comes; returns all of it. */
async function stream(run, bubble) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(requestBody()),
    signal: run.controller.signal,
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  const runId = response.headers.get("X-Bough-Run-Id");
  follow(run, runId);
  const text = document.createTextNode("");
  bubble.append(text);
  let last = null;
  for await (const chunk of frames(response.body)) {
    if (chunk.error) throw new Error(chunk.error.message);
    for (const choice of chunk.choices) {
      if (choice.index === 0 && choice.delta.content) {
        bubble.classList.remove("waiting");
        text.data += choice.delta.content;
        scrollDown();
      }
    }
    if (chunk.bough) last = chunk.bough;
  }
  if (last) showFooter(bubble, last);
  await showTree(runId, last);
  return text.data;
}

/* The whole tree of a run that ended; the answer stands whether or not it can still be had. */
async function showTree(runId, bough) {
  try {
    view.show(await getJson(`/v1/runs/${runId}/tree`));
    showFigures(bough);
  } catch (error) {
    byId("figures").textContent = `No tree: ${error.message}`;
  }
}

/* The JSON of every data frame of an event stream. */
async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const pieces = (rest + value).split("\n\n");
    rest = pieces.pop();
    for (const piece of pieces) {
      if (piece.startsWith("data: ") && piece !== "data: [DONE]") yield JSON.parse(piece.slice(6));
    }
  }
}

/* Draw the tree while it grows. */
function follow(run, runId) {
  run.events = new EventSource(`/v1/runs/${runId}/events`);
  run.events.onmessage = (message) => {
    view.apply(JSON.parse(message.data));
    showFigures(null);
  };
  run.events.addEventListener("end", () => run.events.close());
}

function setRunning(run) {
  if (running && running.events) running.events.close();
  running = run;
  byId("send").disabled = run !== null;
  byId("stop").hidden = run === null;
}

function addMessage(kind, text) {
  const item = document.createElement("li");
  item.className = kind;
  if (text) item.append(text);
  byId("messages").append(item);
  scrollDown();
  return item;
}

function scrollDown() {
  byId("messages").scrollTop = byId("messages").scrollHeight;
}

function showFooter(bubble, bough) {
  const footer = document.createElement("footer");
  const score = bough.score === null ? "" : ` · score ${bough.score.toFixed(3)}`;
  const spent = bough.spent;
  const cached = bough.cached ? " · from cache" : "";
  const nfe = spent.nfe ? ` · ${spent.nfe} evaluations` : "";
  footer.textContent =
    `${bough.resolved} · seed ${bough.seed}${score} · ${spent.generated_tokens} tokens${nfe} · ` +
    `${spent.reward_calls} judgements · ${(spent.wall_ms / 1000).toFixed(2)} s · ${bough.stop_reason}${cached}`;
  bubble.append(footer);
  scrollDown();
}

function showFigures(bough) {
  const { states, depth, nodes } = view.counts();
  const parts = Object.entries(states).map(([state, count]) => `${count} ${state}`);
  let text = `${nodes} branches, depth ${depth}${parts.length ? ` (${parts.join(", ")})` : ""}`;
  if (bough && bough.spent.nfe) {
    const { reused_nodes: reused, reused_nfe: nfe } = bough.tree;
    text += reused ? ` · ${reused} of them, ${nfe} evaluations, from earlier requests` : "";
  } else if (bough && bough.tree.logical_tokens) {
    const share = (100 * bough.tree.unique_tokens) / bough.tree.logical_tokens;
    text += ` · ${bough.tree.unique_tokens} of ${bough.tree.logical_tokens} KV tokens are unique (${share.toFixed(0)} %)`;
  }
  byId("figures").textContent = text;
}

function showDetail(node) {
  const facts = {
    state: node.parent === null ? "prompt" : node.state,
    score: node.score === null ? "none" : node.score.toFixed(5),
    tokens: node.shown === undefined ? node.tokens : null,
    denoised: node.shown === undefined ? null : `${node.step} of ${node.steps} steps`,
    from: node.restored ? "an earlier request" : null,
    depth: node.depth,
    finish: node.finish || "open",
    resampled: node.resampled ?? null,
    why: node.why || null,
  };
  byId("detail-title").textContent = node.parent === null ? "Prompt" : `Branch ${node.id}`;
  const rows = Object.entries(facts).filter(([, value]) => value !== null);
  byId("detail-facts").replaceChildren(...rows.map(([name, value]) => fact(name, value)));
  const before = document.createElement("span");
  before.className = "before";
  before.textContent = view.textBefore(node);
  byId("detail-text").replaceChildren(before, node.shown ?? (node.text || ""));
  byId("detail").hidden = false;
}

function fact(name, value) {
  const row = document.createElement("div");
  const term = document.createElement("dt");
  const said = document.createElement("dd");
  term.textContent = name;
  said.textContent = value;
  row.append(term, said);
  return row;
}

function hideDetail() {
  byId("detail").hidden = true;
}

byId("strategy").addEventListener("change", showWidth);
byId("options").addEventListener("submit", (event) => event.preventDefault());
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("question").value.trim();
  if (!text || running) return;
  byId("question").value = "";
  ask(text);
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("ask").requestSubmit();
  }
});
byId("stop").addEventListener("click", () => running && running.controller.abort());
byId("clear").addEventListener("click", () => {
  if (running) return;
  conversation.length = 0;
  byId("messages").replaceChildren();
  view.clear();
  hideDetail();
});
byId("close").addEventListener("click", () => {
  view.selected = null;
  view.draw();
  hideDetail();
});
addEventListener("resize", () => view.draw());
start().catch((error) => addMessage("error", error.message));
