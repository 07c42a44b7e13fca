"use strict";
// Everything works without this file: it only spares a click or a wait.

// The price of a free amount while it is typed; the server computes it again.
for (const form of document.querySelectorAll("form[data-price-nano]")) {
  const input = form.querySelector("input[name=credits]");
  const output = form.querySelector("output");
  const perCredit = BigInt(form.dataset.priceNano);
  const digits = Number(form.dataset.minorDigits);
  const prices = JSON.parse(form.dataset.prices);
  const currency = form.dataset.currency;
  const show = () => {
    const match = /^(\d{1,12})(?:\.(\d{1,6}))?$/.exec(input.value.trim().replace(/,(?=\d{3}(,|\.|$))/g, ""));
    if (!match) {
      output.value = "";
      return;
    }
    const micro = BigInt(match[1]) * 1000000n + BigInt((match[2] || "").padEnd(6, "0"));
    if (prices[micro]) {
      output.value = prices[micro] + " " + currency;
      return;
    }
    if (micro < BigInt(form.dataset.least) || micro > BigInt(form.dataset.most)) {
      output.value = "";
      return;
    }
    const scale = 1000000000000000n;
    const minor = (perCredit * micro * 10n ** BigInt(digits) + scale - 1n) / scale;
    const text = minor.toString().padStart(digits + 1, "0");
    const whole = digits ? text.slice(0, -digits) : text;
    const part = digits ? "." + text.slice(-digits) : "";
    output.value = whole.replace(/\B(?=(\d{3})+$)/g, ",") + part + " " + currency;
  };
  input.addEventListener("input", show);
  show();
}

// A form is sent once, and shows that its answer is on its way.
for (const form of document.forms) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "1";
  });
}
// Coming back by the browser's history, forms may be sent again.
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// Where the navigation scrolls sideways, the page one is on is in view.
for (const link of document.querySelectorAll("nav [aria-current=page]")) {
  const nav = link.closest("nav");
  nav.scrollLeft = link.offsetLeft - (nav.clientWidth - link.offsetWidth) / 2;
}
