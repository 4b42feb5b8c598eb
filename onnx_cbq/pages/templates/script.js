"use strict";
// Tables: a click on a head sorts, what is searched for stays.
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0];
  table.tHead.querySelectorAll("th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.tHead.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (one, other) => {
        const [a, b] = [value(one), value(other)];
        const [x, y] = [Number(a), Number(b)];
        const numbers = a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y);
        return numbers ? x - y : a.localeCompare(b);
      };
      const rows = [...body.rows].sort(compare);
      body.append(...(down ? rows.reverse() : rows));
    });
  });
}
for (const field of document.querySelectorAll("input[data-for]")) {
  const table = document.getElementById(field.dataset.for);
  const count = document.getElementById(`${field.dataset.for}-count`);
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} shown`;
  });
}
// Channels: those of most bits first, and of these the ones that most classes need.
const stored = document.getElementById("channels");
if (stored) {
  const { layers, classes } = JSON.parse(stored.textContent);
  const told = document.getElementById("told");
  for (const bar of document.querySelectorAll(".runs[data-layer]")) {
    const layer = layers[Number(bar.dataset.layer)];
    const order = [...layer.bits].map((_, i) => i);
    order.sort((a, b) => layer.bits[b] - layer.bits[a] || (layer.gamma[b] ?? 0) - (layer.gamma[a] ?? 0) || a - b);
    let place = 0;
    const tell = () => {
      const channel = order[place];
      const needs = (layer.needed[channel] ?? []).map((m) => classes[m]).join(", ");
      const gamma = layer.gamma.length ? `; needed by ${layer.gamma[channel]} of ${classes.length} classes` : "";
      told.textContent = `${layer.name}, channel ${channel}: ${layer.bits[channel]} bits${gamma}${needs ? `, most by ${needs}` : ""}`;
    };
    bar.addEventListener("pointermove", (event) => {
      const box = bar.getBoundingClientRect();
      place = Math.max(0, Math.min(order.length - 1, Math.floor(((event.clientX - box.left) / box.width) * order.length)));
      tell();
    });
    bar.addEventListener("focus", tell);
    bar.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, End: order.length, Home: -order.length }[event.key];
      if (!step) return;
      event.preventDefault();
      place = Math.max(0, Math.min(order.length - 1, place + step));
      tell();
    });
  }
}
