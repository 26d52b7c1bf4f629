"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const grid = document.getElementById("cards"), order = document.getElementById("order");
  const cards = [...grid.children];
  document.documentElement.classList.add("scripted");
  const keys = {
    importance: (a, b) => a - b,
    mean: (a, b) => data[b].mean - data[a].mean,
    against: (a, b) => data[a].mean - data[b].mean,
    share: (a, b) => data[b].share - data[a].share,
    spread: (a, b) => data[b].spread - data[a].spread,
    name: (a, b) => data[a].word.localeCompare(data[b].word),
  };
  order.addEventListener("change", () => {
    grid.replaceChildren(...cards.sort((a, b) => keys[order.value](Number(a.dataset.index), Number(b.dataset.index))));
  });
})();
