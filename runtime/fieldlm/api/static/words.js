"use strict";
// What the page says, in the language of who stands before it. WORDS and KIOSK are in kiosk.js, which the device makes
// of words.json and of the kiosk file; KIOSK is null where there is none.

const RIGHT_TO_LEFT = ["ar", "fa", "he", "ur"];
// A screen in a public place takes questions and nothing else: no options, no export, no links that lead away.
const IS_KIOSK = KIOSK !== null || new URLSearchParams(location.search).has("kiosk");

// The kiosk file's language, else the first of the browser's that is here, else English.
const tongue = (() => {
  const here = ["en", ...Object.keys(KIOSK?.words ?? {})];
  const short = (tag) => tag.toLowerCase().split("-")[0];
  for (const wanted of KIOSK?.language ? [KIOSK.language] : navigator.languages) {
    const found = here.find((tag) => tag.toLowerCase() === wanted.toLowerCase()) ?? here.find((tag) => short(tag) === short(wanted));
    if (found) return found;
  }
  return "en";
})();
const spoken = { ...WORDS, ...KIOSK?.words?.[tongue] };

function t(name, values = {}) {
  return spoken[name].replace(/\{(\w+)\}/g, (blank, key) => values[key] ?? blank);
}

document.documentElement.lang = tongue;
if (RIGHT_TO_LEFT.includes(tongue.split("-")[0])) document.documentElement.dir = "rtl";
for (const each of document.querySelectorAll("[data-word]")) each.textContent = t(each.dataset.word);
for (const each of document.querySelectorAll("[data-label]")) each.ariaLabel = t(each.dataset.label);
for (const each of document.querySelectorAll("[data-placeholder]")) each.placeholder = t(each.dataset.placeholder);
if (KIOSK?.title) {
  document.title = KIOSK.title;
  document.getElementById("title").textContent = KIOSK.title;
}
if (KIOSK?.logo) {
  document.getElementById("logo").src = "kiosk-logo";
  document.getElementById("logo").hidden = false;
}
