"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const table = at("concepts"), body = table.tBodies[0], map = at("map");
  if (!map) return;
  document.documentElement.classList.add("scripted");
  const rows = [...body.rows];
  let chosen = 0, stage = data.parts[0].level;

  const drawCurve = (part) => {
    at("curve-figure").hidden = part.curve.length < 2;
    if (part.curve.length < 2) return;
    const low = Math.min(0, ...part.curve), high = Math.max(0, ...part.curve), span = high - low || 1;
    const y = (value) => 48 - (46 * (value - low)) / span;
    const points = part.curve.map((value, n) => `${(100 * n) / (part.curve.length - 1)},${y(value)}`).join(" ");
    const line = (name, values) => Object.entries(values).reduce((made, [key, value]) => (made.setAttribute(key, value), made), document.createElementNS("http://www.w3.org/2000/svg", name));
    at("curve").replaceChildren(
      line("line", { x1: 0, x2: 100, y1: y(0), y2: y(0), stroke: "currentColor", "stroke-width": 0.4, "stroke-dasharray": 2 }),
      line("polyline", { points, fill: "none", stroke: "currentColor", "stroke-width": 2, "vector-effect": "non-scaling-stroke" }));
    at("curve-said").textContent = `Masking curve of ${part.word}: share of the probability lost after masking 0 to ${part.curve.length - 1} channels, from ${low.toPrecision(2)} to ${high.toPrecision(2)}.`;
  };

  const sayThreshold = () => {
    at("threshold-said").textContent = ((at("threshold").value / 100) * Number(at("top").textContent)).toPrecision(2);
  };

  const show = (index, level) => {
    const part = data.parts[index];
    chosen = index;
    stage = level ?? part.level;
    map.src = part.maps[stage];
    map.style.setProperty("--share", at("own").checked ? 1 : part.shares[stage]);
    at("top").textContent = (at("own").checked ? part.shares[stage] * data.largest : data.largest).toPrecision(3);
    sayThreshold();
    at("picture").setAttribute("aria-label", `The photograph, and where the network sees ${part.word} at ${data.stages[stage]}`);
    const name = document.createElement("strong");
    name.textContent = part.word;
    at("said").replaceChildren("Region of ", name, ` at ${data.stages[stage]}${part.present ? "" : ", absent"}.`);
    rows.forEach((row) => row.setAttribute("aria-selected", row.dataset.index == index));
    at("stages").replaceChildren(...part.maps.map((_, number) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = `${data.stages[number]} ${part.association[number]?.toFixed(2) ?? ""}`;
      button.setAttribute("aria-pressed", number === stage);
      button.addEventListener("click", () => { show(chosen, number); at("stages").children[number].focus(); });
      return button;
    }));
    drawCurve(part);
  };

  for (const row of rows) {
    row.tabIndex = 0;
    for (const event of ["mouseenter", "focus", "click"]) row.addEventListener(event, () => { if (chosen != row.dataset.index) show(Number(row.dataset.index)); });
    row.addEventListener("keydown", (event) => {
      const next = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling }[event.key];
      if (next) { event.preventDefault(); next.focus(); }
    });
  }

  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const title = cell.textContent;
    if (column === 2) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = title;
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const order = (a, b) => (isNaN(key(a)) || isNaN(key(b)) ? key(b).localeCompare(key(a)) : key(b) - key(a));
      rows.sort((a, b) => (down ? order(a, b) : order(b, a)));
      body.replaceChildren(...rows);
    });
  });

  const filter = document.querySelector("#colors feComponentTransfer");
  at("colormap").addEventListener("change", (event) => {
    const tables = data.colormaps[event.target.value];
    [...filter.children].forEach((part, channel) => part.setAttribute("tableValues", tables[channel]));
    const stops = tables.map((values) => values.split(" ").map((value) => Math.round(255 * value)));
    document.documentElement.style.setProperty("--legend", `linear-gradient(to right, ${stops[0].map((red, n) => `rgb(${red} ${stops[1][n]} ${stops[2][n]})`).join(", ")})`);
  });
  const usual = at("alpha").getAttribute("tableValues").split(" ").map(Number);
  at("threshold").addEventListener("input", (event) => {
    const cut = Number(event.target.value) / 100, steps = 100;
    sayThreshold();
    at("alpha").setAttribute("type", cut ? "discrete" : "table");
    at("alpha").setAttribute("tableValues", cut ? Array.from({ length: steps }, (_, n) => (n / steps < cut ? 0 : 1)).join(" ") : usual.join(" "));
  });
  at("opacity").addEventListener("input", (event) => { document.querySelectorAll(".photograph img").forEach((image) => { image.style.opacity = event.target.value / 100; }); });
  at("own").addEventListener("change", () => show(chosen, stage));
  show(0);
})();
