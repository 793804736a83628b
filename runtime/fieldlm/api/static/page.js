// What the device does, and a conversation with it. Everything that comes from the model is set as text, never as HTML.
"use strict";

const get = (id) => document.getElementById(id);
const POLL_MS = 1500;
const LIVE_MS = 400;
const messages = [];
let key = sessionStorage.getItem("key") || "";
let running = null;
let recent = []; // the device's figures of its last answers
let arriving = null; // of the answer that is being written: pieces, and when the first and the last came

function headers() {
  return key ? { authorization: `Bearer ${key}` } : {};
}

function askForKey() {
  if (get("door").open) return;
  get("refused").hidden = !key;
  get("door").showModal();
}

get("unlock").addEventListener("submit", () => {
  key = get("key").value.trim();
  sessionStorage.setItem("key", key);
  poll();
});

// ---- what runs

function mb(value) {
  return value === undefined ? "–" : `${Math.round(value).toLocaleString()} MB`;
}

function showFacts(status) {
  const queue = status.waiting ? `${status.running} + ${status.waiting} waiting` : String(status.running);
  const rows = [
    ["Model", status.model], ["Generation", status.generation], ["Weights", `${status.quant}${status.adapter ? " + adapter" : ""}`],
    ["Engine", status.engine], ["Context", `${status.context} × ${status.parallel}`],
    ["Memory", mb(status.memory_mb.process)], ["of which weights", mb(status.memory_mb.weights)],
    ["Temperature", status.temperature_c === null ? "no sensor" : `${Math.round(status.temperature_c)} °C`],
    ["Answering", queue],
  ];
  get("facts").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function element(kind, text, className = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = className;
  return made;
}

function draw(id, values) {
  const shape = (name, attributes, className) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries({ ...attributes, class: className })) made.setAttribute(key, value);
    return made;
  };
  const most = Math.max(...values, 1e-9);
  const step = 300 / Math.max(values.length - 1, 1);
  const points = values.map((value, i) => `${(i * step).toFixed(1)},${(68 - (60 * value) / most).toFixed(1)}`);
  if (points.length === 1) points.push(points[0].replace(/^[^,]*/, "300"));
  const line = points.join(" ");
  const parts = [shape("line", { x1: 0, y1: 70, x2: 300, y2: 70 }, "base")];
  if (points.length) {
    parts.push(shape("polygon", { points: `0,70 ${line} 300,70` }, "area"), shape("polyline", { points: line }, "line"));
  }
  get(id).replaceChildren(...parts);
}

// The last answers as the device timed them and, while one is being written, that one as it arrives here.
function showSpeed() {
  const speeds = recent.map((point) => point.tokens_per_s).filter((value) => value !== null);
  const waits = recent.map((point) => point.ttft_ms).filter((value) => value !== null);
  const now = arriving && arriving.pieces > 2 ? (1000 * (arriving.pieces - 1)) / (arriving.lastMs - arriving.firstMs) : 0;
  if (now && Number.isFinite(now)) speeds.push(now);
  get("speed").textContent = speeds.length ? speeds.at(-1).toFixed(1) : "–";
  get("ttft").textContent = waits.length ? Math.round(waits.at(-1)) : "–";
  get("glance").textContent = speeds.length ? `${speeds.at(-1).toFixed(0)} tok/s` : "";
  get("speed-range").textContent = range(speeds, (value) => value.toFixed(1));
  get("ttft-range").textContent = range(waits, (value) => Math.round(value));
  draw("speeds", speeds);
  draw("ttfts", waits);
}

function range(values, spell) {
  return values.length > 1 ? `${spell(Math.min(...values))} to ${spell(Math.max(...values))}` : "";
}

function showState(kind, words) {
  get("dot").className = kind;
  get("state").textContent = words;
}

async function poll() {
  try {
    const response = await fetch("status", { headers: headers(), cache: "no-store" });
    if (response.status === 401) {
      showState("bad", "locked");
      askForKey();
      return;
    }
    const status = await response.json();
    get("model").textContent = status.model;
    showState(status.ready ? "good" : "", status.ready ? "ready" : status.status);
    showFacts(status);
    recent = status.recent;
    showSpeed();
  } catch {
    showState("bad", "no connection");
  }
}

// ---- the conversation

const hint = get("said").firstElementChild;

function add(role, text) {
  hint.remove();
  const turn = element("p", text, `turn ${role}`);
  get("said").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

async function failure(response) {
  if (response.status === 401) askForKey();
  const document = await response.json().catch(() => ({}));
  return new Error(document.error?.message || `the device answered ${response.status}`);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function answer(turn, signal) {
  const body = JSON.stringify({ messages, stream: true });
  const sent = { "content-type": "application/json", ...headers() };
  const response = await fetch("v1/chat/completions", { method: "POST", headers: sent, body, signal });
  if (!response.ok) throw await failure(response);
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const piece = event.choices?.[0]?.delta?.content;
    if (!piece) continue;
    const nowMs = performance.now();
    arriving = { pieces: (arriving?.pieces ?? 0) + 1, firstMs: arriving?.firstMs ?? nowMs, lastMs: nowMs };
    following(() => turn.append(document.createTextNode(piece)));
    turn.classList.remove("waiting");
  }
}

// Change what was said, and stay at its end unless somebody has scrolled back to read.
function following(change) {
  const said = get("said");
  const follows = said.scrollHeight - said.scrollTop - said.clientHeight < 80;
  change();
  if (follows) said.scrollTop = said.scrollHeight;
}

function setRunning(controller) {
  running = controller;
  get("send").hidden = Boolean(controller);
  get("stop").hidden = !controller;
}

async function ask(question) {
  add("user", question);
  messages.push({ role: "user", content: question });
  const turn = add("assistant", "");
  turn.classList.add("waiting");
  const mine = new AbortController();
  setRunning(mine);
  arriving = null;
  const live = setInterval(showSpeed, LIVE_MS);
  try {
    await answer(turn, mine.signal);
  } catch (error) {
    if (error.name === "AbortError") following(() => turn.after(element("p", "stopped", "note")));
    else {
      turn.classList.add("failed");
      turn.append(document.createTextNode(error.message));
      turn.dataset.failed = "1";
    }
  }
  clearInterval(live);
  turn.classList.remove("waiting");
  if (!turn.isConnected) return; // a new conversation has begun
  arriving = null;
  if (turn.dataset.failed || !turn.textContent) messages.pop();
  else messages.push({ role: "assistant", content: turn.textContent });
  if (running === mine) setRunning(null);
  poll();
}

get("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = get("question").value.trim();
  if (!question || running) return;
  get("question").value = "";
  grow();
  ask(question);
});

get("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    get("ask").requestSubmit();
  }
});

function grow() {
  const box = get("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 3}px`; // and its border
}

get("question").addEventListener("input", grow);
get("stop").addEventListener("click", () => running?.abort());
get("clear").addEventListener("click", () => {
  running?.abort();
  setRunning(null);
  arriving = null;
  messages.length = 0;
  get("said").replaceChildren(hint);
  get("question").focus();
});
get("more").addEventListener("click", () => {
  get("more").setAttribute("aria-expanded", String(document.body.classList.toggle("open")));
});

(async function watch() {
  for (;;) {
    if (!document.hidden && !get("door").open) await poll();
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
})();
