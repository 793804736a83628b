// What the device does, and a conversation with it. Everything that comes from the model is set as text, never as HTML.
"use strict";

const get = (id) => document.getElementById(id);
const POLL_MS = 1500;
const LIVE_MS = 400;
// A kiosk's next customer must not find the last one's conversation: ?idle=SECONDS, 0 for never.
const IDLE_S = Number(new URLSearchParams(location.search).get("idle") ?? 180);
const WARNING_S = 20;
const messages = [];
let session = newSession();
let touchedMs = performance.now();
let key = sessionStorage.getItem("key") || "";
let running = null;
let recent = []; // the device's figures of its last answers
let arriving = null; // of the answer that is being written: pieces, and when the first and the last came

function headers() {
  return key ? { authorization: `Bearer ${key}` } : {};
}

function newSession() {
  // randomUUID is for https and this machine alone; a kiosk's page may come over http from the next room.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
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

// By what leaves the device, as its status says; nothing is promised before it is known.
const LEAVES = {
  nothing: "Nothing leaves this device.",
  figures: "Figures about this device leave it; your words do not.",
  text: "Figures leave this device, and your words too where you have agreed.",
};

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
    hint.textContent = `Ask something. ${LEAVES[status.leaves] ?? ""}`.trim();
    recent = status.recent;
    showSpeed();
  } catch {
    showState("bad", "no connection");
    get("facts").replaceChildren(); // they are of another time
    get("glance").textContent = "";
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
  const error = new Error(document.error?.message || `the device answered ${response.status}`);
  error.code = document.error?.code;
  return error;
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
  const body = JSON.stringify({ messages, stream: true, metadata: { session } });
  const sent = { "content-type": "application/json", ...headers() };
  const response = await fetch("v1/chat/completions", { method: "POST", headers: sent, body, signal });
  if (!response.ok) {
    const error = await failure(response);
    if (error.code !== "context_length_exceeded" || messages.length < 2) throw error;
    messages.splice(0, 2); // the oldest question and its answer
    sayTrimmed(turn);
    return answer(turn, signal);
  }
  let reason = null;
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    reason = event.choices?.[0]?.finish_reason ?? reason;
    const piece = event.choices?.[0]?.delta?.content;
    if (!piece) continue;
    const nowMs = performance.now();
    arriving = { pieces: (arriving?.pieces ?? 0) + 1, firstMs: arriving?.firstMs ?? nowMs, lastMs: nowMs };
    following(() => turn.append(document.createTextNode(piece)));
    turn.classList.remove("waiting");
  }
  if (reason === null) throw new Error("The answer broke off: the connection ended before it did.");
  return reason;
}

// What stands under a turn and is no part of it: notes for people, in words of ours.
function note(turn, text, className = "note") {
  following(() => turn.after(element("p", text, className)));
}

// A browser's own words for a lost connection differ and help nobody.
function words(error) {
  return error instanceof TypeError ? "The device cannot be reached. Is it still on?" : error.message;
}

function sayTrimmed(turn) {
  document.querySelectorAll(".trimmed").forEach((note) => note.remove());
  const words = "The beginning of this conversation no longer fits; the device does not see it any more.";
  following(() => turn.before(element("p", words, "note trimmed")));
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
  const asked = { role: "user", content: question };
  messages.push(asked);
  const turn = add("assistant", "");
  turn.classList.add("waiting");
  const mine = new AbortController();
  let failed = false;
  setRunning(mine);
  arriving = null;
  const live = setInterval(showSpeed, LIVE_MS);
  try {
    const reason = await answer(turn, mine.signal);
    if (reason === "length") note(turn, "cut off: the answer may be no longer");
  } catch (error) {
    if (error.name === "AbortError") note(turn, "stopped");
    else if (turn.isConnected) {
      failed = true;
      note(turn, words(error), "note failed");
      if (!turn.textContent) turn.remove();
      const box = get("question");
      if (!box.value) box.value = question; // to be asked again
      grow();
    }
  }
  clearInterval(live);
  turn.classList.remove("waiting");
  if (messages.at(-1) !== asked) return; // a new conversation has begun
  arriving = null;
  if (failed || !turn.textContent) messages.pop();
  else messages.push({ role: "assistant", content: turn.textContent });
  if (running === mine) setRunning(null);
  // Stop has gone with its focus; where fingers type, a focus would bring the keyboard up.
  if (document.activeElement === document.body && matchMedia("(pointer: fine)").matches) get("question").focus();
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
function startAnew() {
  running?.abort();
  setRunning(null);
  arriving = null;
  messages.length = 0;
  session = newSession();
  get("said").replaceChildren(hint);
  get("question").value = "";
  grow();
}

get("clear").addEventListener("click", () => {
  startAnew();
  get("question").focus();
});

function touch() {
  touchedMs = performance.now();
  get("idle").hidden = true;
}

for (const kind of ["pointerdown", "keydown", "input", "wheel"]) addEventListener(kind, touch, { passive: true });

// Count down before a conversation that nobody goes on with is cleared; an answer that is being written is going on.
setInterval(() => {
  const isBegun = get("said").querySelector(".turn") || get("question").value;
  if (!IDLE_S || !isBegun || running) return touch();
  const leftS = Math.ceil(IDLE_S - (performance.now() - touchedMs) / 1000);
  if (leftS <= 0) {
    startAnew();
    touch();
  } else if (leftS <= WARNING_S) {
    get("idle").textContent = `A new conversation begins in ${leftS} s. Touch the screen to stay.`;
    get("idle").hidden = false;
  }
}, 1000);
get("more").addEventListener("click", () => {
  get("more").setAttribute("aria-expanded", String(document.body.classList.toggle("open")));
});

(async function watch() {
  for (;;) {
    if (!document.hidden && !get("door").open) await poll();
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
})();
