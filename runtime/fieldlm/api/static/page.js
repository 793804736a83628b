"use strict";
// The conversation on the page. What the model says goes through markdown.js; everything else is set as text.

const LIVE_MS = 400;
const DRAW_MS = 80;
const KEEP_MS = 1000;
const WARNING_S = 20;
let talk = loadConversation();
let running = null;
let editing = null; // the place of the question that is being written anew
const hint = get("hint");
const view = new Map(); // exchange → what shows it

// Heard by a screen reader: finished answers and what happened, not every piece.
function say(text) {
  get("heard").textContent = "";
  get("heard").textContent = text;
}

// Change what was said, and stay at its end unless somebody has scrolled back to read.
function following(change) {
  const said = get("said");
  const follows = said.scrollHeight - said.scrollTop - said.clientHeight < 80;
  change();
  if (follows) said.scrollTop = said.scrollHeight;
}

function button(words, act, className = "small") {
  const made = element("button", words, className);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

// ---- what is shown of an exchange

function show(exchange) {
  const box = element("article", "", "exchange");
  const mine = element("div", "", "acts mine");
  mine.append(button(t("edit"), () => edit(exchange)));
  const who = element("p", t("answer"), "unseen"); // where a turn stands tells eyes alone who speaks
  const thought = element("details", "", "thought");
  thought.append(element("summary", t("thought")), element("p", ""));
  const turn = element("div", "", "turn assistant");
  const notes = element("div", "", "notes");
  const acts = element("div", "", "acts");
  box.append(element("p", t("you"), "unseen"), element("p", exchange.question, "turn user"), mine, thought, who, turn, notes, acts);
  view.set(exchange, { box, who, thought, turn, notes, acts });
  get("said").append(box);
  return view.get(exchange);
}

function isThinking(exchange) {
  return exchange.ended === "running" && Boolean(exchange.thought) && !exchange.answer;
}

function drawAnswer(exchange) {
  const { who, thought, turn } = view.get(exchange);
  const isWaiting = exchange.ended === "running";
  turn.classList.toggle("waiting", isWaiting);
  who.hidden = turn.hidden = !exchange.answer && !isWaiting;
  thought.hidden = !exchange.thought;
  following(() => {
    thought.lastChild.textContent = exchange.thought ?? "";
    turn.replaceChildren(isThinking(exchange) ? element("p", t("thinking"), "soft") : markdown(exchange.answer));
  });
}

function drawEnd(exchange) {
  const { notes, acts } = view.get(exchange);
  const isLast = talk.exchanges.at(-1) === exchange;
  const lines = [bySmallOrLarge(exchange), endOf(exchange)].filter(Boolean);
  if (exchange.ended === "stop" && !exchange.answer) lines.push(t("said_nothing"));
  const shown = lines.map((text) => element("p", text, "note"));
  if (exchange.ended === "error") {
    const failed = element("div", "", "note failed");
    failed.append(element("p", exchange.error));
    shown.push(failed);
  }
  following(() => {
    notes.replaceChildren(...shown);
    const offers = exchange.answer ? [copyButton(() => exchange.answer, t("copy"))] : [];
    if (isLast && exchange.ended !== "running") offers.push(button(t("ask_again"), () => retry(exchange)));
    acts.replaceChildren(...offers);
  });
}

function drawAll() {
  view.clear();
  get("said").replaceChildren(...(talk.exchanges.length ? [] : [hint]));
  for (const exchange of talk.exchanges) {
    show(exchange);
    drawAnswer(exchange);
    drawEnd(exchange);
  }
  drawTrimmed();
  get("said").scrollTop = get("said").scrollHeight;
}

function drawTrimmed() {
  document.querySelectorAll(".trimmed").forEach((note) => note.remove());
  if (!talk.from || !talk.exchanges[talk.from]) return;
  following(() => view.get(talk.exchanges[talk.from]).box.before(element("p", t("trimmed"), "note trimmed")));
}

// ---- asking

async function failure(response) {
  if (response.status === 401) askForKey();
  const document = await response.json().catch(() => ({}));
  const code = document.error?.code;
  const error = new Error(forCustomers(response.status, code) || document.error?.message || t("status", { status: response.status }));
  error.code = code;
  return error;
}

// The device's own words are English and for who programs it.
function forCustomers(status, code) {
  if (!IS_KIOSK) return "";
  if (code === "context_length_exceeded") return t("too_long");
  return t([429, 503].includes(status) ? "busy" : "status", { status });
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

function request(exchange) {
  const { temperature, max_tokens, seed } = talk.settings;
  const messages = messagesOf(talk, talk.exchanges.indexOf(exchange));
  return JSON.stringify({ messages, stream: true, metadata: { session: talk.session }, temperature, max_tokens, seed });
}

async function answer(exchange, signal) {
  const sent = { "content-type": "application/json", ...headers() };
  const response = await fetch("v1/chat/completions", { method: "POST", headers: sent, body: request(exchange), signal });
  if (!response.ok) {
    const error = await failure(response);
    const isOldest = talk.exchanges[talk.from] === exchange;
    if (error.code !== "context_length_exceeded" || isOldest || signal.aborted) throw error;
    talk.from += 1; // the oldest question and its answer
    drawTrimmed();
    return answer(exchange, signal);
  }
  let drawnMs = 0, keptMs = performance.now(), ended = null;
  for await (const event of events(response)) {
    if (event.error) throw new Error(IS_KIOSK ? t("broke_off") : event.error.message);
    const own = event.fieldlm;
    ended = event.choices?.[0]?.finish_reason ?? own?.outcome ?? ended;
    if (event.model) exchange.model = event.model;
    if (own?.answered_by) Object.assign(exchange, { by: own.answered_by, why: own.escalation });
    const { content, reasoning_content: thought } = event.choices?.[0]?.delta ?? {};
    if (!content && !thought) continue;
    const hadThought = Boolean(exchange.thought);
    const nowMs = performance.now();
    arriving = { pieces: (arriving?.pieces ?? 0) + 1, firstMs: arriving?.firstMs ?? nowMs, lastMs: nowMs };
    exchange.answer += content ?? "";
    exchange.thought += thought ?? "";
    if (!hadThought && isThinking(exchange)) say(t("thinking"));
    if (nowMs - drawnMs > DRAW_MS) {
      drawAnswer(exchange);
      drawnMs = nowMs;
    }
    if (nowMs - keptMs > KEEP_MS && talk.exchanges.includes(exchange)) {
      keepConversation(talk);
      keptMs = nowMs;
    }
  }
  if (ended === null) throw new Error(t("broke_off"));
  return ended;
}

// A browser's own words for a lost connection differ and help nobody.
function words(error) {
  return error instanceof TypeError ? t("out_of_reach") : error.message;
}

function setRunning(controller) {
  running = controller;
  get("send").hidden = Boolean(controller);
  get("stop").hidden = !controller;
  document.body.classList.toggle("busy", Boolean(controller));
}

async function run(exchange) {
  const mine = new AbortController();
  Object.assign(exchange, { answer: "", thought: "", ended: "running", error: "", by: "", why: "" });
  setRunning(mine);
  arriving = null;
  show(exchange);
  drawAnswer(exchange);
  get("said").scrollTop = get("said").scrollHeight;
  keepConversation(talk);
  const live = setInterval(showSpeed, LIVE_MS);
  try {
    exchange.ended = await answer(exchange, mine.signal);
  } catch (error) {
    exchange.ended = error.name === "AbortError" ? "stopped" : "error";
    exchange.error = exchange.ended === "error" ? words(error) : "";
  }
  clearInterval(live);
  if (!talk.exchanges.includes(exchange)) return; // a new conversation has begun
  arriving = null;
  drawAnswer(exchange);
  drawEnd(exchange);
  keepConversation(talk);
  const { turn, notes } = view.get(exchange);
  say([turn.hidden ? "" : turn.innerText, notes.innerText].filter(Boolean).join("\n"));
  if (running === mine) setRunning(null);
  // Stop has gone with its focus; where fingers type, a focus would bring the keyboard up.
  if (document.activeElement === document.body && matchMedia("(pointer: fine)").matches) get("question").focus();
  poll();
}

function ask(question) {
  if (editing !== null) cutFrom(editing);
  stopEditing();
  hint.remove();
  const before = talk.exchanges.at(-1);
  const exchange = { question, answer: "" };
  talk.exchanges.push(exchange);
  if (before) drawEnd(before); // it is no longer the last
  run(exchange);
}

function cutFrom(place) {
  talk.exchanges.length = place;
  talk.from = Math.min(talk.from, place);
  drawAll();
}

function retry(exchange) {
  if (running) return;
  stopEditing();
  cutFrom(talk.exchanges.indexOf(exchange));
  ask(exchange.question);
}

function edit(exchange) {
  if (running) return;
  editing = talk.exchanges.indexOf(exchange);
  get("editing").hidden = false;
  get("question").value = exchange.question;
  grow();
  get("question").focus();
}

function stopEditing() {
  editing = null;
  get("editing").hidden = true;
}

get("keep").addEventListener("click", () => {
  stopEditing();
  get("question").value = "";
  grow();
  get("question").focus();
});

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
  } else if (event.key === "Escape" && editing !== null) {
    get("keep").click();
  }
});

function grow() {
  const box = get("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 3}px`; // and its border
}

get("question").addEventListener("input", grow);
get("stop").addEventListener("click", () => running?.abort());

// ---- options

const FIELDS = { system: String, temperature: Number, max_tokens: Number, seed: Number };

function showOptions() {
  for (const name of Object.keys(FIELDS)) get(name).value = talk.settings[name] ?? "";
  const kept = IDLE_S ? `${Math.round(IDLE_S)} s after the last touch` : "when you say so";
  get("where").textContent = "This conversation and these options are kept in this browser, on the machine that you sit at "
    + `(its localStorage), so that a reload does not lose them. They are forgotten ${kept}, and at once by Forget.`;
  get("options").showModal();
}

get("choose").addEventListener("submit", () => {
  const settings = {};
  for (const [name, type] of Object.entries(FIELDS)) {
    const text = get(name).value.trim();
    if (text) settings[name] = type(text);
  }
  talk.settings = settings;
  keepConversation(talk);
});
get("settings").addEventListener("click", showOptions);
get("close").addEventListener("click", () => get("options").close());
get("forget").addEventListener("click", () => {
  get("options").close();
  startAnew();
  say("The conversation is forgotten.");
});
get("save-md").addEventListener("click", () => download("conversation.md", "text/markdown", asMarkdown(talk)));
get("save-json").addEventListener("click", () => download("conversation.json", "application/json", asDocument(talk)));

// ---- beginning anew

// Without `settings` nothing is left of who was here.
function startAnew(settings = {}) {
  running?.abort();
  setRunning(null);
  arriving = null;
  forgetConversation();
  talk = newConversation(settings);
  keepConversation(talk);
  stopEditing();
  if (get("options").open) get("options").close();
  get("choose").reset();
  get("heard").textContent = "";
  get("question").value = "";
  grow();
  drawAll();
}

get("clear").addEventListener("click", () => {
  startAnew(talk.settings);
  get("question").focus();
});

// Another tab has forgotten the conversation: here, too, it is over.
addEventListener("storage", (event) => {
  if (event.key === null || (event.key === KEPT && event.newValue === null)) startAnew();
});

function touch(event) {
  // Who comes after a sleep of the machine is somebody else; an input is theirs already, and follows a key or a finger.
  if (event?.type !== "input" && isExpired() && isBegun()) leave();
  keepTouch();
  get("idle").hidden = true;
}

// Nobody is here any more, whoever it was.
function leave() {
  startAnew();
  get("attendant").close();
  setUnlocked(false);
}

function isBegun() {
  return talk.exchanges.length > 0 || Object.keys(talk.settings).length > 0 || get("question").value || get("options").open
    || isUnlocked || get("attendant").open;
}

for (const kind of ["pointerdown", "keydown", "input", "wheel"]) addEventListener(kind, touch, { passive: true });

// Count down before a conversation that nobody goes on with is cleared; an answer that is being written is going on.
setInterval(() => {
  if (running) return touch();
  if (!IDLE_S || !isBegun()) return void (touchedMs = Date.now());
  const leftS = Math.ceil(IDLE_S - idleMs() / 1000);
  if (leftS <= 0) {
    leave();
    get("idle").hidden = true;
  } else if (leftS <= WARNING_S) {
    if (get("idle").hidden) say(t("idle_soon"));
    get("idle").textContent = t("idle_in", { seconds: leftS });
    get("idle").hidden = false;
  } else get("idle").hidden = true; // touched in another tab
}, 1000);
get("more").addEventListener("click", () => {
  get("more").setAttribute("aria-expanded", String(document.body.classList.toggle("open")));
});
if (KIOSK?.pin) talk.settings = {}; // an attendant chose them, who has not locked
drawAll();
