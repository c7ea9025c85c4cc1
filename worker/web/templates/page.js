"use strict";
// Fetches the page again every five seconds and replaces <main> with the new one.
(() => {
  const EVERY_MS = 5000;
  const note = document.getElementById("note");
  let timer;

  // not location.href: it may contain a password, and fetch refuses such an address
  const address = location.origin + location.pathname;

  function notify(text) {
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
      if (!answer.ok) throw new Error(`answers with status ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      // a selection would be lost: somebody may be copying text
      if (document.getSelection().isCollapsed) show(fresh);
      notify("");
    } catch (error) {
      const shown = document.querySelector("main header time").textContent;
      const answered = error instanceof Error && error.message.startsWith("answers ");
      const what = answered ? error.message : "does not answer";
      notify(`The worker’s web process ${what}. This page shows the state of ${shown}.`);
    }
    schedule();
  }

  function schedule() {
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(refresh, EVERY_MS);
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
  schedule();
})();
