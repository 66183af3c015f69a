"use strict";

/* A run's tree: folds search events into nodes, lays them out and draws them as SVG. Knows nothing of the chat. */
class TreeView {
  constructor(svg, onSelect) {
    this.svg = svg;
    this.onSelect = onSelect;
    this.clear();
  }

  clear() {
    this.nodes = new Map();
    this.chosen = [];
    this.stopReason = null;
    this.selected = null;
    this.isStale = false;
    this.svg.replaceChildren();
    this.svg.setAttribute("width", 0);
    this.svg.setAttribute("height", 0);
  }

  /* Take over a snapshot, as GET /v1/runs/{id}/tree gives it. */
  show(snapshot) {
    this.nodes = new Map(snapshot.nodes.map((node) => [node.id, node]));
    this.chosen = snapshot.chosen;
    this.stopReason = snapshot.stop_reason;
    this.draw();
  }

  /* Take over one event, as GET /v1/runs/{id}/events gives it; many at once are drawn together. */
  apply(event) {
    const node = this.nodes.get(event.branch);
    if (event.kind === "grown") {
      const state = event.finish === null ? "kept" : "finished";
      this.nodes.set(event.branch, { ...event, id: event.branch, score: null, state });
    } else if (event.kind === "scored" && node) {
      node.score = event.value;
    } else if (event.kind === "resampled" && node) {
      node.resampled = event.copies;
    } else if (event.kind === "chosen") {
      this.chosen = event.branches;
      for (const id of event.branches) {
        if (this.nodes.has(id)) this.nodes.get(id).state = "chosen";
      }
    } else if (event.kind === "ended") {
      this.stopReason = event.stop_reason;
    } else if (node) {
      node.state = event.kind;
      node.why = event.why;
    }
    if (!this.isStale) {
      this.isStale = true;
      requestAnimationFrame(() => this.draw());
    }
  }

  /* Text from the root to just before a node; a denoising branch shows all of its text itself, masks included. */
  textBefore(node) {
    if (node.shown !== undefined) return "";
    const parts = [];
    for (let at = this.nodes.get(node.parent); at; at = this.nodes.get(at.parent)) parts.unshift(at.text);
    return parts.join("");
  }

  counts() {
    const states = {};
    let depth = 0;
    for (const node of this.nodes.values()) {
      if (node.parent !== null) states[node.state] = (states[node.state] || 0) + 1;
      depth = Math.max(depth, node.depth);
    }
    return { states, depth, nodes: Math.max(0, this.nodes.size - 1) };
  }

  layout() {
    const children = new Map();
    const roots = [];
    for (const node of [...this.nodes.values()].sort((a, b) => a.id - b.id)) {
      if (node.parent === null || !this.nodes.has(node.parent)) roots.push(node);
      else children.set(node.parent, [...(children.get(node.parent) || []), node]);
    }
    const places = new Map();
    let column = 0;
    // depth first without recursion: a leaf takes the next column, a parent the middle of its children
    const stack = roots.reverse().map((node) => [node, false]);
    while (stack.length) {
      const [node, isDone] = stack.pop();
      const below = children.get(node.id) || [];
      if (!below.length) {
        places.set(node.id, { x: column++, y: node.depth });
      } else if (isDone) {
        const xs = below.map((child) => places.get(child.id).x);
        places.set(node.id, { x: (Math.min(...xs) + Math.max(...xs)) / 2, y: node.depth });
      } else {
        stack.push([node, true], ...[...below].reverse().map((child) => [child, false]));
      }
    }
    return { places, columns: Math.max(1, column) };
  }

  draw() {
    this.isStale = false;
    if (!this.nodes.size) return;
    const { places, columns } = this.layout();
    const room = this.svg.parentElement.clientWidth - 60;
    const step = Math.max(26, Math.min(120, room / columns));
    const depth = Math.max(...[...places.values()].map((place) => place.y));
    const down = Math.max(52, Math.min(110, (this.svg.parentElement.clientHeight - 90) / Math.max(1, depth)));
    const radius = Math.min(11, step / 2.6);
    const at = (id) => ({ x: (places.get(id).x + 0.5) * step, y: places.get(id).y * down + 24 });
    this.svg.setAttribute("width", columns * step);
    this.svg.setAttribute("height", depth * down + 60);
    const onWay = this.way();
    const links = [];
    const dots = [];
    for (const node of this.nodes.values()) {
      const to = at(node.id);
      if (places.has(node.parent)) {
        const from = at(node.parent);
        const middle = (from.y + to.y) / 2;
        const d = `M${from.x},${from.y} C${from.x},${middle} ${to.x},${middle} ${to.x},${to.y}`;
        const link = element("path", { d, class: onWay.has(node.id) ? "on-way" : "" });
        links[onWay.has(node.id) ? "push" : "unshift"](link);
      }
      dots.push(this.dot(node, to, radius, step));
    }
    this.svg.replaceChildren(...links, ...dots);
  }

  dot(node, place, radius, step) {
    const isRoot = node.parent === null;
    const state = isRoot ? "root" : node.state;
    const group = element("g", { class: node.id === this.selected ? "selected" : "" });
    const circle = element("circle", {
      cx: place.x, cy: place.y, r: isRoot ? radius * 0.8 : radius, class: state, tabindex: 0, "data-id": node.id,
    });
    const title = element("title", {});
    const score = node.score === null ? "not scored" : `score ${node.score.toFixed(4)}`;
    const size = node.shown === undefined ? `${node.tokens} tokens` : `step ${node.step} of ${node.steps}: ${node.shown}`;
    title.textContent = isRoot ? "prompt" : `branch ${node.id} · ${node.state} · ${score} · ${size}`;
    circle.append(title);
    const choose = () => {
      this.selected = node.id;
      this.draw();
      this.onSelect(node);
    };
    circle.addEventListener("click", choose);
    circle.addEventListener("keydown", (event) => event.key === "Enter" && choose());
    group.append(circle);
    if (node.score !== null && step >= 34) {
      const label = element("text", { x: place.x, y: place.y + radius + 12 });
      label.textContent = node.score.toFixed(2);
      group.append(label);
    }
    return group;
  }

  /* Ids from the root to the first chosen branch. */
  way() {
    const ids = new Set();
    for (let node = this.nodes.get(this.chosen[0]); node; node = this.nodes.get(node.parent)) ids.add(node.id);
    return ids;
  }
}

function element(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
