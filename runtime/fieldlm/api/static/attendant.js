"use strict";
// Who looks after a kiosk opens it with a PIN, which the device compares: options, figures and files are there until
// it is locked again, nobody touches it for a while, or the page is loaded anew.

let isUnlocked = false;

function setUnlocked(is) {
  isUnlocked = is;
  const isShut = IS_KIOSK && !is;
  document.documentElement.classList.toggle("kiosk", isShut);
  document.documentElement.classList.toggle("attended", is);
  get("settings").hidden = isShut;
  get("more").disabled = isShut;
  if (isShut) document.body.classList.remove("open");
  get("staff").hidden = !KIOSK?.pin;
  get("staff").textContent = t(is ? "lock" : "staff");
}

function askForPin() {
  get("pin").value = "";
  get("pin-refused").textContent = "";
  get("attendant").showModal();
}

async function tryPin() {
  const sent = { "content-type": "application/json", ...headers() };
  const body = JSON.stringify({ pin: get("pin").value.trim() });
  get("pin").value = "";
  try {
    const response = await fetch("v1/fieldlm/kiosk/unlock", { method: "POST", headers: sent, body });
    if (response.ok) {
      get("attendant").close();
      setUnlocked(true);
    } else if (response.status === 429) {
      get("pin-refused").textContent = t("pin_wait", { seconds: response.headers.get("retry-after") });
    } else get("pin-refused").textContent = response.status === 403 ? t("pin_wrong") : t("status", { status: response.status });
  } catch {
    get("pin-refused").textContent = t("out_of_reach");
  }
}

get("try-pin").addEventListener("submit", (event) => {
  event.preventDefault();
  tryPin();
});
get("cancel-pin").addEventListener("click", () => get("attendant").close());
get("staff").addEventListener("click", () => {
  if (!isUnlocked) return askForPin();
  startAnew(); // what was tried with the options is not the next customer's
  setUnlocked(false);
});
setUnlocked(false);
