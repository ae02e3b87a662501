"use strict";

/** An editable combobox with a list (WAI-ARIA's pattern): arrows move, Enter picks, Escape closes, focus stays put. */
deeprec.combobox = (() => {
  const { byId, make, fill, announce, plural } = deeprec.dom;
  const PAUSE = 120;

  /**
   * @param {HTMLInputElement} input - has role combobox; the listbox is the element that aria-controls names.
   * @param {object} options
   * @param {(text: string, signal: AbortSignal) => Promise<{value: string, label: string, detail?: string}[]>} options.find
   * @param {(option: object) => void} options.pick - told what was picked.
   */
  function combobox(input, { find, pick }) {
    const list = byId(input.getAttribute("aria-controls"));
    let found = [], active = -1, asked = null, timer = 0;

    function close() {
      clearTimeout(timer);
      asked?.abort();
      list.hidden = true;
      input.setAttribute("aria-expanded", "false");
      move(-1);
    }

    function move(to) {
      list.children[active]?.setAttribute("aria-selected", "false");
      active = to;
      const option = list.children[active];
      if (!option) {
        input.removeAttribute("aria-activedescendant");
        return;
      }
      option.setAttribute("aria-selected", "true");
      input.setAttribute("aria-activedescendant", option.id);
      option.scrollIntoView({ block: "nearest" });
    }

    function show(options) {
      found = options;
      active = -1;
      input.removeAttribute("aria-activedescendant");
      fill(list, found.map((option, place) => make("li", {
        role: "option", id: `${list.id}-${place}`, "aria-selected": "false",
        onpointerdown: (event) => event.preventDefault(),
        onclick: () => take(place),
      }, make("span", { class: "option-label", dir: "auto" }, option.label),
      option.detail ? make("span", { class: "option-detail" }, option.detail) : null)));
      list.hidden = found.length === 0;
      input.setAttribute("aria-expanded", String(found.length > 0));
      if (found.length) list.scrollIntoView({ block: "nearest" });
      announce(found.length ? `${plural(found.length, "suggestion")}.` : "No suggestion.");
    }

    async function ask() {
      asked?.abort();
      asked = new AbortController();
      const mine = asked;
      try {
        const options = await find(input.value, mine.signal);
        if (mine === asked && !mine.signal.aborted && document.activeElement === input) show(options);
      } catch (error) {
        if (error.name !== "AbortError") {
          close();
          byId("problem").textContent = error.message;
        }
      }
    }

    function take(place) {
      const option = found[place];
      close();
      pick(option);
    }

    input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(ask, PAUSE);
    });
    input.addEventListener("click", () => { if (list.hidden) ask(); });
    input.addEventListener("blur", close);
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        const step = event.key === "ArrowDown" ? 1 : -1;
        if (list.hidden) ask();
        else move(active < 0 && step < 0 ? found.length - 1 : (active + step + found.length) % found.length);
      } else if (event.key === "Enter" && !list.hidden && active >= 0) {
        event.preventDefault();
        take(active);
      } else if (event.key === "Escape" && !list.hidden) {
        event.preventDefault();
        close();
      }
    });
    return { close };
  }

  return combobox;
})();
