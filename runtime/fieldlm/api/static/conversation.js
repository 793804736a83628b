"use strict";
// The conversation as this browser keeps it, in localStorage and nowhere else: it survives a reload, and is forgotten
// with New, with Forget, and when nobody has gone on with it for IDLE_S.

const KEPT = "fieldlm.conversation";
const TOUCHED = "fieldlm.touched";
const FORMAT = 1;
const TOUCH_MS = 2000; // is written no more often
const parameters = new URLSearchParams(location.search);
// A kiosk's next customer must not find the last one's conversation: ?idle=SECONDS, 0 for never.
const asked = Number(parameters.get("idle") ?? KIOSK?.idle ?? 180);
const IDLE_S = asked >= 0 ? asked : 180;
let touchedMs = Date.now();

function newSession() {
  // randomUUID is for https and this machine alone; a kiosk's page may come over http from the next room.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// `exchanges` are questions with their answers, what was thought before these, and how they ended; the device no longer
// sees those before `from`.
function newConversation(settings = {}) {
  return { format: FORMAT, session: newSession(), settings, from: 0, exchanges: [] };
}

// A browser may have no storage, or none left: then a conversation lasts as long as its page.
function stored(use, otherwise = null) {
  try {
    return use(localStorage);
  } catch {
    return otherwise;
  }
}

function isConversation(found) {
  const isExchange = (each) => typeof each?.question === "string" && typeof each?.answer === "string"
    && ["string", "undefined"].includes(typeof each.thought);
  return found?.format === FORMAT && typeof found.session === "string" && Array.isArray(found.exchanges)
    && Number.isInteger(found.from) && typeof found.settings === "object" && found.exchanges.every(isExchange);
}

// Milliseconds since somebody last touched this page in any of its tabs. A clock that went back says nothing: too long.
function idleMs() {
  const last = Math.max(touchedMs, Number(stored((kept) => kept.getItem(TOUCHED))) || 0);
  const passed = Date.now() - last;
  return passed < -60_000 ? Infinity : passed;
}

function isExpired() {
  return IDLE_S > 0 && idleMs() >= 1000 * IDLE_S;
}

function keepTouch() {
  const nowMs = Date.now();
  if (nowMs - touchedMs < TOUCH_MS && nowMs >= touchedMs) return;
  touchedMs = nowMs;
  stored((kept) => kept.setItem(TOUCHED, String(nowMs)));
}

function loadConversation() {
  const text = stored((kept) => kept.getItem(KEPT));
  const lastMs = Number(stored((kept) => kept.getItem(TOUCHED))) || 0;
  if (!text) return newConversation();
  touchedMs = lastMs; // a reload is nobody's touch
  if (!isExpired()) {
    const found = stored(() => JSON.parse(text));
    if (isConversation(found)) {
      for (const each of found.exchanges) if (each.ended === "running") each.ended = "left";
      return found;
    }
  }
  forgetConversation();
  touchedMs = Date.now();
  return newConversation();
}

function keepConversation(talk) {
  const isEmpty = !talk.exchanges.length && !Object.keys(talk.settings).length;
  if (isEmpty) return forgetConversation();
  stored((kept) => {
    kept.setItem(KEPT, JSON.stringify(talk));
    kept.setItem(TOUCHED, String(touchedMs));
  });
}

function forgetConversation() {
  stored((kept) => {
    kept.removeItem(KEPT);
    kept.removeItem(TOUCHED);
  });
}

// What the device is asked with the exchange at `place`; what failed is not told again, and what was thought never.
function messagesOf(talk, place) {
  const { system } = talk.settings;
  const before = talk.exchanges.slice(talk.from, place).filter((each) => each.answer && each.ended !== "error");
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...before.flatMap(({ question, answer }) => [
      { role: "user", content: question }, { role: "assistant", content: answer },
    ]),
    { role: "user", content: talk.exchanges[place].question },
  ];
}

// ---- taken away as a file

const ENDS = ["length", "stopped", "left", "deadline_exceeded", "preempted", "cancelled"];

// How an answer ended, where it did not end by itself.
function endOf(exchange) {
  return ENDS.includes(exchange.ended) ? t(`ended_${exchange.ended}`) : "";
}

function asMarkdown(talk) {
  const parts = [`# Conversation with ${runs?.model ?? "fieldlm"}`, `${new Date().toISOString()}`];
  if (talk.settings.system) parts.push(`System prompt:\n\n${talk.settings.system}`);
  for (const each of talk.exchanges) {
    const notes = [bySmallOrLarge(each), endOf(each), each.error].filter(Boolean).map((text) => `*${text}*`);
    const thought = each.thought ? ["## Thought", each.thought] : [];
    parts.push("## Question", each.question, ...thought, "## Answer", each.answer, ...notes);
  }
  return `${parts.filter(Boolean).join("\n\n")}\n`;
}

function asDocument(talk) {
  const model = runs && { name: runs.model, generation: runs.generation };
  const { settings, exchanges } = talk;
  const messages = exchanges.length ? messagesOf({ ...talk, from: 0 }, exchanges.length - 1) : [];
  if (exchanges.at(-1)?.answer) messages.push({ role: "assistant", content: exchanges.at(-1).answer });
  return JSON.stringify({ exported: new Date().toISOString(), model, settings, messages, exchanges }, null, 2);
}

function bySmallOrLarge(exchange) {
  if (exchange.by !== "large") return "";
  const why = exchange.why && !IS_KIOSK ? ` (${exchange.why})` : ""; // a word of the device's own
  return t("by_large", { model: exchange.model || t("a_large_model"), why });
}

function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
