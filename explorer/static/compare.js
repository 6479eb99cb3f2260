// Two pictures: what both hold is outlined, and pointing at it in one shows it in the other.
"use strict";
(() => {
  const shared = new Set(JSON.parse(document.getElementById("data").textContent).shared);
  const places = new Map();
  for (const element of document.querySelectorAll(".canvas .node")) {
    const name = element.dataset.name.replace(/^\d+, /, "");
    if (!shared.has(name)) continue;
    element.classList.add("shared");
    element.tabIndex = 0;
    if (!places.has(name)) places.set(name, []);
    places.get(name).push(element);
  }
  for (const elements of places.values())
    for (const element of elements)
      for (const [event, on] of [["pointerenter", true], ["pointerleave", false], ["focus", true], ["blur", false]])
        element.addEventListener(event, () => {
          for (const one of elements) one.classList.toggle("pinned", on);
        });
})();
