"use strict";
// Keeps a page that is served up to date: asks for its news, and puts in what has changed where the reader is.
(() => {
  const root = document.documentElement;
  const THEME = "tombola-theme";
  const PARTS = ["#head", "nav", "main"];

  // The theme holds for all pages. This script stands before the page, which so never shows another one first.
  try {
    if (localStorage.getItem(THEME)) root.dataset.theme = localStorage.getItem(THEME);
    new MutationObserver(() => localStorage.setItem(THEME, root.dataset.theme)).observe(root, { attributeFilter: ["data-theme"] });
  } catch {} // where a browser keeps nothing, each page has the system's

  const all = (selector) => [...document.querySelectorAll(selector)];
  const nameOf = (details) => `${details.closest("[id]")?.id} ${details.querySelector("summary").textContent}`;
  const named = (name) => all("table").find((table) => table.dataset.name === name);

  // What the reader has done to the page: it isn't in the news.
  function place() {
    return {
      open: new Set(all("details[open]").map(nameOf)),
      chosen: new Set(all("#choice :checked").map((box) => box.value)),
      sorted: all("th[aria-sort]").map((th) => [th.closest("table").dataset.name, th.textContent, th.getAttribute("aria-sort")]),
    };
  }

  function restore({ open, chosen, sorted }) {
    for (const details of all("details")) {
      if (details.open !== open.has(nameOf(details))) details.open = !details.open;
    }
    for (const box of all("#choice input")) box.checked = chosen.has(box.value);
    for (const [name, heading, order] of sorted) {
      const table = named(name);
      const th = table && [...table.tHead.rows[0].cells].find((cell) => cell.textContent === heading);
      if (!th) continue;
      th.setAttribute("aria-sort", order === "ascending" ? "descending" : "ascending"); // a click turns it around
      th.click();
    }
  }

  // A chart's drawing and the table of its numbers are made here, by the page's script, and stay its business.
  const callbacks = {
    beforeNodeMorphed(known, fresh) {
      if (!(known instanceof Element)) return true;
      if (known.matches(".drawing")) known.setAttribute("aria-label", fresh.getAttribute("aria-label"));
      return !known.matches(".drawing, details.numbers");
    },
    beforeAttributeUpdated: (name) => !["data-drawn", "aria-pressed"].includes(name),
  };

  function swap(fresh) {
    const before = place();
    for (const part of PARTS) Idiomorph.morph(document.querySelector(part), fresh.querySelector(part), { callbacks });
    document.title = fresh.title;
    Object.assign(document.body.dataset, fresh.body.dataset);
    document.dispatchEvent(new Event("tombola:swapped"));
    restore(before);
  }

  function say(words) {
    const trouble = document.getElementById("trouble");
    if (trouble.textContent !== words) trouble.textContent = words;
  }

  async function ask() {
    let answer, text;
    try {
      const headers = { "If-None-Match": `"${document.body.dataset.version}"` };
      answer = await fetch(location.pathname + location.search, { cache: "no-store", headers });
      text = await answer.text();
    } catch {
      return say("The server doesn't answer: what you see is what it said last.");
    }
    if (answer.status === 304) return say("");
    const fresh = new DOMParser().parseFromString(text, "text/html");
    if (!answer.ok) return say(fresh.querySelector("main p")?.textContent ?? `The server says ${answer.status}.`);
    say("");
    swap(fresh);
  }

  let timer;
  async function watch() {
    clearTimeout(timer);
    if (!document.hidden) await ask();
    clearTimeout(timer);
    timer = setTimeout(watch, 1000 * Number(document.body.dataset.every));
  }

  addEventListener("DOMContentLoaded", () => {
    if (!Number(document.body.dataset.every)) return;
    timer = setTimeout(watch, 1000 * Number(document.body.dataset.every));
    document.addEventListener("visibilitychange", () => document.hidden || watch());
  });
})();
