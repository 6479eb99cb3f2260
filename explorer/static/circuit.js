// A circuit's picture: thresholds, pointing, pinning. The state is in the address.
"use strict";
(() => {
  const canvas = document.getElementById("canvas");
  if (!canvas) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const panel = document.getElementById("panel");
  const stage = canvas.parentNode;
  const state = new URLSearchParams(location.search);

  const nodes = new Map();
  for (const element of canvas.querySelectorAll(".node")) {
    const { name, effect } = element.dataset;
    element.tabIndex = 0;
    element.setAttribute("role", "button");
    element.setAttribute("aria-label", element.querySelector("title").textContent);
    nodes.set(name, { element, name, size: Math.abs(effect), edges: [] });
  }
  const edges = [];
  for (const element of canvas.querySelectorAll(".edge")) {
    const { upstream, downstream, weight } = element.dataset;
    const edge = { element, upstream, downstream, size: Math.abs(weight) };
    edges.push(edge);
    for (const name of [upstream, downstream]) nodes.get(name)?.edges.push(edge);
  }

  const remember = (key, value) => {
    if (value) state.set(key, value); else state.delete(key);
    const query = state.toString();
    // Files opened from a disk have no address to keep it in.
    try { history.replaceState(null, "", query ? `?${query}` : location.pathname); } catch { }
    for (const link of document.querySelectorAll(".sizes a")) {
      const target = new URL(link.href);
      for (const part of ["node", "edge", "pin"])
        if (state.get(part)) target.searchParams.set(part, state.get(part));
        else target.searchParams.delete(part);
      link.href = target;
    }
  };

  // -- thresholds -----------------------------------------------------------------------------

  const count = value => value.toLocaleString("en");
  const shown = { node: -1, edge: -1 };
  function draw() {
    const alive = name => name === "metric" || nodes.get(name).size > shown.node;
    for (const node of nodes.values())
      node.element.classList.toggle("off", node.size <= shown.node);
    for (const edge of edges)
      edge.element.classList.toggle(
        "off", edge.size <= shown.edge || !alive(edge.upstream) || !alive(edge.downstream));
  }

  function slide(kind, steps, n) {
    const input = document.getElementById(`${kind}-threshold`);
    const output = document.getElementById(`${kind}-count`);
    input.max = steps.thresholds.length - 1;
    const asked = parseFloat(state.get(kind));
    if (asked > 0) {
      const place = steps.thresholds.findIndex(t => t >= asked * 0.9999);
      input.value = place < 0 ? input.max : place;
    }
    const move = () => {
      const place = Number(input.value);
      const threshold = steps.thresholds[place];
      shown[kind] = place ? threshold : -1;
      const left = place ? steps.counts[place] : n;
      output.textContent = `${count(left)} of ${count(n)}` + (place ? ` above ${threshold}` : "");
      input.setAttribute("aria-valuetext", output.textContent);
      if (kind === "node") tell(place, left);
      draw();
    };
    input.addEventListener("input", move);
    input.addEventListener("change", () =>
      remember(kind, Number(input.value) ? String(steps.thresholds[input.value]) : ""));
    move();
  }

  // Faithfulness at the chosen threshold, and where that is on the curve.
  function tell(place, left) {
    const box = document.getElementById("faith");
    const policies = Object.entries(data.faithfulness);
    box.replaceChildren(policies.length ? "faithfulness" : "");
    for (const [policy, values] of policies) {
      const part = document.createElement("span");
      const figure = document.createElement("b");
      const value = values[place];
      figure.textContent = value === null ? "\u2013" : value.toFixed(2).replace("-", "\u2212");
      part.append(figure, ` errors: ${policy}`);
      box.append(part);
    }
    const cursor = document.getElementById("cursor");
    if (!cursor) return;
    const { left: start, width, most } = cursor.dataset;
    const x = Number(start) + width * Math.min(1, Math.log10(1 + left) / most);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
  }

  // -- pointing -------------------------------------------------------------------------------

  let pinned = null;
  function light(name) {
    const node = nodes.get(name);
    canvas.classList.toggle("lit", Boolean(node));
    const near = new Set(node ? [name] : []);
    for (const edge of node ? node.edges : []) near.add(edge.upstream).add(edge.downstream);
    for (const other of nodes.values()) other.element.classList.toggle("near", near.has(other.name));
    for (const edge of edges)
      edge.element.classList.toggle("near", edge.upstream === name || edge.downstream === name);
  }

  // -- pinning --------------------------------------------------------------------------------

  async function fill(name) {
    const address = stage.dataset.nodeAddress;
    if (!address) {
      const held = [...document.querySelectorAll("template[data-node]")]
        .find(one => one.dataset.node === name);
      panel.replaceChildren(held ? held.content.cloneNode(true) : "");
      return;
    }
    try {
      const answer = await fetch(`${address}?name=${encodeURIComponent(name)}`);
      if (!answer.ok) throw new Error(`it answers ${answer.status}`);
      const piece = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (pinned === name) panel.replaceChildren(...piece.body.childNodes);
    } catch (error) {
      const notice = document.createElement("p");
      notice.className = "notice";
      notice.textContent = `${name} cannot be read (${error.message}): is the explorer still running?`;
      panel.replaceChildren(notice);
    }
  }

  function pin(name, { focus = false } = {}) {
    pinned = nodes.has(name) ? name : null;
    for (const node of nodes.values()) {
      node.element.classList.toggle("pinned", node.name === pinned);
      node.element.setAttribute("aria-pressed", node.name === pinned);
    }
    light(pinned);
    panel.hidden = !name;
    if (name && panel.querySelector("[data-name]")?.dataset.name !== name) fill(name);
    if (!name) panel.replaceChildren();
    remember("pin", name || "");
    if (focus && pinned) nodes.get(pinned).element.focus();
  }

  // The neighbour in a direction: along the strongest edge, or in the same row.
  function neighbour(name, key) {
    const node = nodes.get(name);
    if (key === "ArrowUp" || key === "ArrowDown") {
      const [mine, other] = key === "ArrowUp" ? ["upstream", "downstream"] : ["downstream", "upstream"];
      const ways = node.edges.filter(edge => edge[mine] === name && nodes.has(edge[other])
        && !edge.element.classList.contains("off"));
      ways.sort((a, b) => b.size - a.size);
      return ways[0]?.[other];
    }
    const place = element => element.getBBox();
    const here = place(node.element);
    const side = key === "ArrowRight" ? 1 : -1;
    const row = [...nodes.values()].filter(one => one !== node && !one.element.classList.contains("off")
      && Math.abs(place(one.element).y - here.y) < here.height
      && side * (place(one.element).x - here.x) > 0);
    row.sort((a, b) => side * (place(a.element).x - place(b.element).x));
    return row[0]?.name;
  }

  for (const node of nodes.values()) {
    node.element.addEventListener("pointerenter", () => light(node.name));
    node.element.addEventListener("pointerleave", () => light(pinned));
    node.element.addEventListener("focus", () => light(node.name));
    node.element.addEventListener("blur", () => light(pinned));
    node.element.addEventListener("click", () => pin(pinned === node.name ? null : node.name));
    node.element.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        pin(pinned === node.name ? null : node.name);
      } else if (event.key.startsWith("Arrow")) {
        event.preventDefault();
        const next = neighbour(node.name, event.key);
        if (next && pinned) pin(next, { focus: true });
        else if (next) nodes.get(next).element.focus();
      }
    });
  }
  panel.addEventListener("click", event => {
    const go = event.target.closest("[data-go]");
    if (go) pin(go.dataset.go);
    if (event.target.closest(".close")) pin(null);
  });
  addEventListener("keydown", event => {
    if (event.key === "Escape" && pinned && !event.target.closest("input")) pin(null);
  });

  const fit = document.getElementById("fit");
  const fitted = yes => {
    canvas.classList.toggle("fit", yes);
    fit.setAttribute("aria-pressed", yes);
  };
  fit.addEventListener("click", () => {
    fitted(!canvas.classList.contains("fit"));
    remember("fit", canvas.classList.contains("fit") ? "" : "no");
  });
  fitted(state.get("fit") !== "no");

  slide("node", data.nodes, data.n_nodes);
  slide("edge", data.edges, data.n_edges);
  if (state.get("pin")) pin(state.get("pin"));
})();
