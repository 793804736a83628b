// What the device does, and a conversation with it. Everything that comes from the model is set as text, never as HTML.
"use strict";

const get = (id) => document.getElementById(id);
const POLL_MS = 1500;
const messages = [];
let key = sessionStorage.getItem("key") || "";
let running = null;

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
    ["Generation", status.generation], ["Weights", `${status.quant}${status.adapter ? " + adapter" : ""}`],
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

function showSpeed(recent) {
  const speeds = recent.map((point) => point.tokens_per_s).filter((value) => value !== null);
  const waits = recent.map((point) => point.ttft_ms).filter((value) => value !== null);
  get("speed").textContent = speeds.length ? speeds.at(-1).toFixed(1) : "–";
  get("ttft").textContent = waits.length ? Math.round(waits.at(-1)) : "–";
  draw("speeds", speeds);
  draw("ttfts", waits);
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
    showSpeed(status.recent);
  } catch {
    showState("bad", "no connection");
  }
}

// ---- the conversation

function add(role, text) {
  get("hint")?.remove();
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
    const follows = get("said").scrollHeight - get("said").scrollTop - get("said").clientHeight < 80;
    turn.append(document.createTextNode(piece));
    turn.classList.remove("waiting");
    if (follows) turn.scrollIntoView({ block: "end" });
  }
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
  try {
    await answer(turn, mine.signal);
  } catch (error) {
    if (error.name === "AbortError") turn.after(element("p", "stopped", "note"));
    else {
      turn.classList.add("failed");
      turn.append(document.createTextNode(error.message));
      turn.dataset.failed = "1";
    }
  }
  turn.classList.remove("waiting");
  if (!turn.isConnected) return; // a new conversation has begun
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
  box.rows = Math.min(6, Math.max(1, box.value.split("\n").length));
}

get("question").addEventListener("input", grow);
get("stop").addEventListener("click", () => running?.abort());
get("clear").addEventListener("click", () => {
  running?.abort();
  setRunning(null);
  messages.length = 0;
  get("said").replaceChildren();
});

(async function watch() {
  for (;;) {
    if (!document.hidden && !get("door").open) await poll();
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
})();
