"use strict";
// What the device does: its status, its figures, and the key that opens it.

const get = (id) => document.getElementById(id);
const POLL_MS = 1500, REST_MS = 15_000;
let key = sessionStorage.getItem("key") || "";
let runs = null; // the device's last status
let recent = []; // its figures of its last answers
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

const LEAVES = ["nothing", "figures", "text"];

// What leaves the device, as its status says; nothing is promised before it is known.
// Where a large model stands beside this one, questions may go to it, whatever else.
function whatLeaves(status) {
  const said = LEAVES.includes(status.leaves) ? t(`leaves_${status.leaves}`) : "";
  if (!status.large || status.large.text === "nothing") return said;
  const goes = t(status.large.text === "redacted" ? "asks_large_redacted" : "asks_large", { model: status.large.model });
  return `${goes} ${status.leaves === "nothing" ? "" : said}`.trim();
}

function mb(value) {
  return value === undefined ? "–" : `${Math.round(value).toLocaleString()} MB`;
}

function showFacts(status) {
  const queue = status.waiting ? `${status.running} + ${status.waiting} waiting` : String(status.running);
  const rows = [
    ["Model", status.model], ["Generation", status.generation], ["Weights", `${status.quant}${status.adapter ? " + adapter" : ""}`],
    ...(status.large ? [["Large model", `${status.large.model}, ${status.large.reachable ? "reachable" : "out of reach"}`]] : []),
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
      showState("bad", t("locked"));
      askForKey();
      return;
    }
    const status = await response.json();
    runs = status;
    get("model").textContent = status.model;
    showState(status.ready ? "good" : "", status.ready ? t("ready") : IS_KIOSK ? t("starting") : status.status);
    showFacts(status);
    get("promise").textContent = whatLeaves(status);
    recent = status.recent;
    showSpeed();
  } catch {
    showState("bad", t("no_connection"));
    get("facts").replaceChildren(); // they are of another time
    get("glance").textContent = "";
  }
}

(async function watch() {
  for (;;) {
    if (!document.hidden && !get("door").open) await poll();
    // A kiosk at which nobody stands shows no figures, and its device may sleep.
    const rests = IS_KIOSK && runs?.ready && !isUnlocked && !isBegun();
    await new Promise((resolve) => setTimeout(resolve, rests ? REST_MS : POLL_MS));
  }
})();
