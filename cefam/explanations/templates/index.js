"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const cards = [...document.getElementById("cards").children];
  const selects = [...document.querySelectorAll("select")];
  document.documentElement.classList.add("scripted");
  const filter = () => cards.forEach((card, number) => {
    card.hidden = !selects.every(({ value, dataset }) => !value || data[number][dataset.key].includes(value));
  });
  for (const select of selects) select.addEventListener("change", filter);
})();
