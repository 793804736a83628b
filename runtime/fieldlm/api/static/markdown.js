"use strict";
// Markdown that a model wrote, as elements: read by marked, and of its HTML only what is named here is let in.

const MARKS = [
  "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "strong",
  "table", "tbody", "td", "th", "thead", "tr", "ul",
];
const ALLOWED = {
  ALLOWED_TAGS: MARKS, ALLOWED_ATTR: ["href", "start"], ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i, RETURN_DOM_FRAGMENT: true,
};

const written = (text) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
marked.use({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => written(text), // it is shown as it was written, and never is an element
    image: ({ text, href }) => written(`[${text || "image"}: ${href}]`), // nothing is fetched
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

// Returns a fragment. Whatever marked trips over stays the text that it is.
function markdown(text) {
  let made;
  try {
    made = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  } catch {
    made = new DocumentFragment();
    made.append(element("p", text));
  }
  for (const link of made.querySelectorAll("a")) {
    if (IS_KIOSK || !link.getAttribute("href")) {
      link.replaceWith(...link.childNodes);
      continue;
    }
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
    link.title = link.href;
  }
  // A page has one first heading, and it is not the model's.
  for (const heading of made.querySelectorAll("h1, h2, h3, h4, h5, h6")) {
    const lower = element("h2", "");
    lower.append(...heading.childNodes);
    heading.replaceWith(lower);
  }
  for (const wide of made.querySelectorAll("table")) {
    const frame = element("div", "", "scroll");
    Object.assign(frame, { tabIndex: 0, role: "region", ariaLabel: t("table") });
    wide.replaceWith(frame);
    frame.append(wide);
  }
  for (const code of made.querySelectorAll("pre")) {
    const frame = element("div", "", "code");
    Object.assign(code, { tabIndex: 0, role: "region", ariaLabel: t("code") });
    code.replaceWith(frame);
    frame.append(code, copyButton(() => code.textContent, t("copy_code")));
  }
  return made;
}

function copyButton(text, words) {
  const button = element("button", words, "small");
  button.type = "button";
  button.addEventListener("click", async () => {
    const isCopied = await copy(text());
    button.textContent = t(isCopied ? "copied" : "not_copied");
    say(button.textContent);
    setTimeout(() => { button.textContent = words; }, 2000);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over http from another machine a page has no clipboard but this one.
    const box = element("textarea", text, "unseen");
    document.body.append(box);
    box.select();
    const isCopied = document.execCommand("copy");
    box.remove();
    return isCopied;
  }
}
