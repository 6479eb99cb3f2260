// Annotating by keyboard; what is typed outlives a closed page until it is saved.
"use strict";
(() => {
  const form = document.getElementById("answer");
  if (!form) return;
  const field = name => form.elements.namedItem(name);
  const text = field("text"), by = field("by");
  const judging = form.dataset.judging === "yes";
  const key = `draft ${location.pathname} ${field("item").value}`;

  // What was sent is kept until the page after it says that it is saved.
  const sent = sessionStorage.getItem("sent");
  if (sent && document.querySelector(".saved")) localStorage.removeItem(sent);
  sessionStorage.removeItem("sent");
  if (!by.value) by.value = localStorage.getItem("by") || "";
  if (!text.value) text.value = localStorage.getItem(key) || "";
  text.addEventListener("input", () => localStorage.setItem(key, text.value));
  form.addEventListener("submit", () => {
    localStorage.setItem("by", by.value);
    sessionStorage.setItem("sent", key);
  });

  addEventListener("keydown", event => {
    const said = { i: "no", k: "yes" }[event.key];
    const typing = event.target.closest("input:not([type=radio]), textarea, select");
    if (said && judging && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      field("relevant").value = said;
      form.requestSubmit();
    }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
    if (!event.altKey) return;
    const asked = { 1: "text", 2: "interpretability", 3: "complexity" }[event.key];
    const choice = { 4: "yes", 5: "no" }[event.key];
    if (asked) { event.preventDefault(); field(asked).focus(); }
    if (choice && field("relevant")) { event.preventDefault(); field("relevant").value = choice; }
  });
})();
