"use strict";
// Asks for the page again every five seconds and puts the new <main> in the old one's place.
(() => {
  const EVERY_MS = 5000;
  const note = document.getElementById("note");
  let timer;

  // not location.href: it may hold a password, and fetch refuses such an address
  const address = location.origin + location.pathname;

  function say(text) {
    if (note.textContent !== text) note.textContent = text;
    note.hidden = text === "";
  }

  function show(fresh) {
    document.title = fresh.title;
    const icon = "link[rel=icon]";
    document.querySelector(icon).replaceWith(fresh.querySelector(icon));
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
  }

  async function refresh() {
    clearTimeout(timer);
    try {
      const answer = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(EVERY_MS) });
      if (!answer.ok) throw new Error(`it answers with ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      // somebody is marking text to copy it: that would be lost
      if (document.getSelection().isCollapsed) show(fresh);
      say("");
    } catch (error) {
      const shown = document.querySelector("main header time").textContent;
      const why = error instanceof Error && error.message.startsWith("it ") ? error.message : "it does not answer";
      say(`No news from the worker’s web process: ${why}. What you see is of ${shown}.`);
    }
    plan();
  }

  function plan() {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(refresh, EVERY_MS);
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
  plan();
})();
