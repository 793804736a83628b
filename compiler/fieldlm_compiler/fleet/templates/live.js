"use strict";
// Keeps a page of the fleet fresh: fetches its own address and puts what is new in its place. Filter, scroll and focus stay;
// nothing moves while it is paused, hidden, or while its reader has marked some text.

const place = () => document.getElementById("live");
const pause = document.getElementById("pause");
const troubled = document.getElementById("troubled");
const everyMs = 1000 * Number(document.currentScript.dataset.every);
let isPaused = false;

pause.hidden = false;
pause.addEventListener("click", () => {
  isPaused = !isPaused;
  pause.textContent = isPaused ? "Go on" : "Pause";
  if (!isPaused) renew();
});

async function renew() {
  if (isPaused || document.hidden || String(getSelection())) return;
  let text = "";
  try {
    const response = await fetch(location.href, { cache: "no-store" });
    text = await response.text();
    if (!response.ok) throw new Error(new DOMParser().parseFromString(text, "text/html").querySelector("main p")?.textContent);
  } catch (error) {
    const why = error instanceof TypeError ? "the server of this page does not answer" : error.message;
    troubled.textContent = `Not fresh: ${why}`;
    return;
  }
  if (isPaused) return;
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const held = place().contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  place().replaceChildren(...fresh.getElementById("live").childNodes);
  document.getElementById("drawn").textContent = fresh.getElementById("drawn").textContent;
  troubled.textContent = "";
  if (held) [...place().querySelectorAll("a")].find((link) => link.getAttribute("href") === held)?.focus({ preventScroll: true });
}

setInterval(renew, everyMs);
