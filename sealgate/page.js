"use strict";
for (const box of document.querySelectorAll("[data-filter]")) {
  const items = [...box.querySelectorAll("article, tbody tr:not(.head)")];
  const field = document.createElement("input"), said = document.createElement("span");
  field.type = "search";
  field.className = "filter";
  field.placeholder = "filter: words that must be there";
  field.setAttribute("aria-label", "filter " + box.dataset.filter);
  said.className = "quiet filtered";
  said.setAttribute("role", "status");
  const texts = items.map((item) => item.textContent.toLowerCase());
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    items.forEach((item, place) => {
      item.hidden = !words.every((word) => texts[place].includes(word));
    });
    for (const part of box.tBodies ?? []) {
      part.hidden = ![...part.rows].some((row) => !row.hidden && row.className !== "head");
    }
    const shown = items.filter((item) => !item.hidden).length;
    said.textContent = words.length ? `${shown} of ${items.length}` : "";
  });
  (box.closest(".wide") ?? box).before(field, said);
}
