"use strict";

/** Views, theme, and the address that shares what is shown. */
(() => {
  const { byId, make, fill, announce } = deeprec.dom;
  const THEMES = ["auto", "light", "dark"], SIGNS = { auto: "◐", light: "☀", dark: "☾" };
  const tabs = ["explore", "health"];

  // ------------------------------------------------------------------------------------------------------------ theme

  let theme = "auto";

  function kept() {
    try {
      const found = localStorage.getItem("deeprec-theme");
      return THEMES.includes(found) ? found : "auto";
    } catch {
      return "auto";
    }
  }

  function paint(chosen) {
    theme = chosen;
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    fill(byId("theme"), make("span", { "aria-hidden": "true" }, `${SIGNS[theme]} `), make("span", { class: "unseen" }, "Theme: "), theme);
    try {
      localStorage.setItem("deeprec-theme", theme);
    } catch {
      /* not kept where storage is closed */
    }
  }

  // ------------------------------------------------------------------------------------------------------------ views

  function open(view) {
    for (const name of tabs) {
      const chosen = name === view, tab = byId(`tab-${name}`);
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      byId(`view-${name}`).hidden = !chosen;
    }
    if (view === "health") deeprec.health.look();
  }

  /** The fragment of the exploration shown, to come back to from the other view. */
  let shared = "#explore";

  function turnTo(view) {
    const hash = view === "health" ? "#health" : shared;
    if (location.hash !== hash) history.pushState(null, "", hash);
    open(view);
  }

  function walk(event) {
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const at = tabs.indexOf(event.target.id.slice("tab-".length)), step = steps[event.key];
    const to = Number.isFinite(step) ? (at + step + tabs.length) % tabs.length : step < 0 ? 0 : tabs.length - 1;
    turnTo(tabs[to]);
    byId(`tab-${tabs[to]}`).focus();
  }

  // -------------------------------------------------------------------------------------------------------- exploring

  function submit(event) {
    event.preventDefault();
    for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
    try {
      begin(deeprec.form.read());
    } catch (error) {
      byId("problem").textContent = error.message;
      byId(error.field)?.setAttribute("aria-invalid", "true");
      byId(error.field)?.focus();
    }
  }

  function begin(request) {
    shared = deeprec.request.toHash(request);
    if (location.hash !== shared) history.pushState(null, "", shared);
    deeprec.form.showHad({ again: true });
    deeprec.health.chip().catch(() => {});
    deeprec.explore.run(request);
  }

  async function follow() {
    const { view, request } = deeprec.request.fromHash(location.hash);
    open(view);
    if (request === null || location.hash === shared) return;
    try {
      await deeprec.form.restore(request);
      byId("ask").requestSubmit();
    } catch (error) {
      byId("problem").textContent = error.message;
    }
  }

  function welcome({ example_user, items, users }) {
    fill(byId("welcome"),
      make("p", {}, "The policy, a language model, explores a catalogue of ", make("strong", {}, `${items.toLocaleString("en")} items`),
        " in a few turns. In each it asks the TRM, a fast retrieval model, for items that fit a preference, and reads the list that comes back. Then it ranks what it found."),
      make("p", {}, "Here you see every turn as it happens, and where each recommended item came from."),
      example_user && users ? make("button", { type: "button", class: "quiet", onclick: () => {
        deeprec.form.restore({ ...deeprec.request.blank(), user: example_user }).then(() => byId("ask").requestSubmit());
      } }, `Try it with user ${example_user}`) : null);
  }

  async function start() {
    paint(kept());
    byId("theme").addEventListener("click", () => {
      paint(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
      announce(`Theme: ${theme}.`);
    });
    for (const name of tabs) {
      byId(`tab-${name}`).addEventListener("click", () => turnTo(name));
      byId(`tab-${name}`).addEventListener("keydown", walk);
    }
    byId("ask").addEventListener("submit", submit);
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault();
      byId("main").focus();
    });
    deeprec.explore.start();
    open(deeprec.request.fromHash(location.hash).view);
    try {
      welcome(await deeprec.form.start());
      await deeprec.health.chip();
    } catch (error) {
      byId("problem").textContent = error.message;
      return;
    }
    addEventListener("popstate", follow);
    await follow();
  }

  start();
})();
