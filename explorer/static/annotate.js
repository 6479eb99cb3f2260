// Annotating by keyboard; what is typed outlives a closed page until it is saved.
"use strict";
(() => {
  const form = document.getElementById("answer");
  if (!form) return;
  const text = form.elements.text, by = form.elements.by;
  const key = `draft ${location.pathname} ${form.elements.item.value}`;

  if (!by.value) by.value = localStorage.getItem("by") || "";
  if (!text.value) text.value = localStorage.getItem(key) || "";
  text.addEventListener("input", () => localStorage.setItem(key, text.value));
  form.addEventListener("submit", () => {
    localStorage.setItem("by", by.value);
    // Kept until the answer comes: the next page is another feature's.
    sessionStorage.setItem("sent", key);
  });
  if (document.querySelector(".saved") && sessionStorage.getItem("sent")) {
    localStorage.removeItem(sessionStorage.getItem("sent"));
    sessionStorage.removeItem("sent");
  }

  addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
    if (!event.altKey) return;
    const field = { 1: "text", 2: "interpretability", 3: "complexity" }[event.key];
    const choice = { 4: "yes", 5: "no" }[event.key];
    if (field) { event.preventDefault(); form.elements[field].focus(); }
    if (choice && form.elements.relevant) { event.preventDefault(); form.elements.relevant.value = choice; }
  });
})();
