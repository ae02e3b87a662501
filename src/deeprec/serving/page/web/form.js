"use strict";

/** The form: who is asked for, and under which conditions. */
deeprec.form = (() => {
  const { byId, make, fill, unseen, title, plural, announce, get } = deeprec.dom;
  const { combobox } = deeprec;
  const SIGNS = { "=": "is", "!=": "is not", ">=": "at least", "<=": "at most" };
  const NEWEST = 5;

  let facets = null, history = [], filters = [], shownUser = null;

  async function start() {
    facets = await get("v1/facets");
    byId("k").max = facets.limits.max_k;
    byId("deadline").max = facets.limits.max_deadline_ms;
    byId("deadline").value = facets.limits.deadline_ms;
    combobox(byId("user"), { find: findUsers, pick: (one) => { byId("user").value = one.value; showHad(); } });
    combobox(byId("item"), { find: findItems, pick: (one) => { byId("item").value = ""; add(one.item); } });
    combobox(byId("preference"), { find: findPhrases, pick: (one) => { byId("preference").value = one.value; } });
    byId("user").addEventListener("change", () => showHad());
    for (const radio of radios()) radio.addEventListener("change", () => { choose(radio.value); showHad(); });
    byId("add-filter").addEventListener("click", () => {
      filters.push({ column: facets.columns[0].name, operator: "=", value: "" });
      drawFilters();
      byId(`filter-value-${filters.length - 1}`).focus();
    });
    byId("add-filter").disabled = facets.columns.length === 0;
    if (!facets.users) {
      fill(byId("had"), make("p", { class: "hint" }, "This server has no feature store, so users are unknown; give a history instead."));
    }
    drawFilters();
    drawHistory();
    return facets;
  }

  const radios = () => document.querySelectorAll('input[name="who"]');
  const who = () => document.querySelector('input[name="who"]:checked').value;

  function choose(value) {
    for (const radio of radios()) radio.checked = radio.value === value;
    byId("who-user").hidden = value !== "user";
    byId("who-history").hidden = value !== "history";
  }

  // ------------------------------------------------------------------------------------------------------ suggestions

  async function findUsers(text, signal) {
    const { users } = await get("v1/users", { query: text.trim().slice(0, 100) }, signal);
    return users.map((user) => ({ value: user.id, label: user.id, detail: plural(user.interactions, "interaction") }));
  }

  async function findItems(text, signal) {
    const { items } = await get("v1/items", { query: text.trim() }, signal);
    return items.filter((item) => !history.some((one) => one.id === item.id))
      .map((item) => ({ value: item.id, label: item.title, detail: item.phrases.slice(0, 3).join(", "), item }));
  }

  /** The catalogue's phrases for what stands after the last semicolon. */
  async function findPhrases(text) {
    const cut = text.lastIndexOf(";") + 1, typed = text.slice(cut).trim().toLowerCase();
    const kept = text.slice(0, cut).split(";").map((piece) => piece.trim()).filter(Boolean);
    return facets.phrases
      .filter(({ value }) => value.includes(typed) && value !== typed && !kept.includes(value))
      .slice(0, 8)
      .map(({ value, count }) => ({ value: [...kept, value].join("; "), label: value, detail: plural(count, "item") }));
  }

  // ---------------------------------------------------------------------------------------------------------- history

  /** The newest items of the user named, with a button that lets one change them. */
  async function showHad({ again = false } = {}) {
    const user = byId("user").value.trim();
    if (!user || who() !== "user" || (user === shownUser && !again)) return;
    shownUser = user;
    try {
      const had = await get("v1/history", { user_id: user });
      if (shownUser === user) drawHad(had);
    } catch (error) {
      fill(byId("had"), make("p", { class: "hint" }, error.message));
    }
  }

  function drawHad(had) {
    const newest = had.items.slice(-NEWEST).reverse(), more = had.interactions - newest.length;
    fill(byId("had"),
      !had.known ? make("p", { class: "hint" }, "Not known to the feature store.") : [
        make("p", { class: "label" }, "Newest of ", plural(had.interactions, "interaction")),
        make("ul", {}, newest.map((item) => make("li", {}, title(item.title)))),
        make("div", { class: "had-foot" },
          more > 0 ? make("span", { class: "hint" }, `and ${more.toLocaleString("en")} before`) : null,
          make("button", {
            type: "button", class: "link", disabled: had.items.length === 0, onclick: () => edit(had.items),
          }, "Ask with a changed history")),
      ]);
  }

  function edit(items) {
    history = items.map(({ id, title: name }) => ({ id, title: name }));
    drawHistory();
    choose("history");
    byId("history").scrollTop = byId("history").scrollHeight;
    byId("item").focus();
    announce(`${plural(items.length, "item")} taken over.`);
  }

  function add(item) {
    if (history.length >= facets.limits.max_shown) {
      announce(`A history typed here has at most ${facets.limits.max_shown} items.`);
      return;
    }
    history.push({ id: item.id, title: item.title });
    drawHistory();
    byId("history").scrollTop = byId("history").scrollHeight;
    announce(`${item.title} added as the newest of ${history.length}.`);
  }

  function drawHistory(focus = null) {
    fill(byId("history"), history.map((item, place) => make("li", {},
      title(item.title),
      make("span", { class: "moves" },
        mover(place, "earlier", "↑", place === 0), mover(place, "later", "↓", place === history.length - 1),
        make("button", { type: "button", class: "icon", id: `remove-${place}`, onclick: () => remove(place) },
          make("span", { "aria-hidden": "true" }, "×"), unseen(`Remove ${item.title}`))))));
    byId("history-empty").hidden = history.length > 0;
    if (focus !== null) byId(focus)?.focus();
  }

  function mover(place, where, sign, disabled) {
    return make("button", {
      type: "button", class: "icon", id: `${where}-${place}`, "aria-disabled": disabled ? "true" : null,
      onclick: () => { if (!disabled) move(place, where); },
    }, make("span", { "aria-hidden": "true" }, sign), unseen(`Move ${history[place].title} ${where}`));
  }

  function move(place, where) {
    const to = where === "earlier" ? place - 1 : place + 1;
    [history[place], history[to]] = [history[to], history[place]];
    drawHistory(`${where}-${to}`);
    announce(`${history[to].title} is now ${to + 1} of ${history.length}.`);
  }

  function remove(place) {
    const [gone] = history.splice(place, 1);
    drawHistory();
    (byId(`remove-${Math.min(place, history.length - 1)}`) ?? byId("item")).focus();
    announce(`${gone.title} removed.`);
  }

  // ---------------------------------------------------------------------------------------------------------- filters

  function drawFilters() {
    fill(byId("filters"), filters.map((filter, place) => drawFilter(filter, place)));
    filters.forEach((filter, place) => combobox(byId(`filter-value-${place}`), {
      find: (text) => findValues(filter.column, text),
      pick: (one) => { filter.value = one.value; byId(`filter-value-${place}`).value = one.value; },
    }));
    byId("add-filter").hidden = facets !== null && filters.length >= facets.limits.max_filters;
  }

  function drawFilter(filter, place) {
    const column = facets.columns.find((one) => one.name === filter.column);
    const signs = column && !column.numeric ? ["=", "!="] : ["=", "!=", ">=", "<="];
    if (!signs.includes(filter.operator)) filter.operator = "=";
    const names = facets.columns.map((one) => one.name);
    if (!column) names.push(filter.column);
    const range = column?.numeric ? `${column.low} to ${column.high}` : null;
    return make("div", { class: "filter", role: "group", "aria-label": `Filter ${place + 1}` },
      chooser(`filter-column-${place}`, "Column", names, filter.column, (value) => {
        Object.assign(filter, { column: value, value: "" });
        drawFilters();
        byId(`filter-column-${place}`).focus();
      }),
      chooser(`filter-sign-${place}`, "Comparison", signs, filter.operator, (value) => { filter.operator = value; }, SIGNS),
      make("div", { class: "combobox" },
        make("input", {
          id: `filter-value-${place}`, type: "text", role: "combobox", "aria-autocomplete": "list", autocomplete: "off",
          "aria-expanded": "false", "aria-controls": `filter-options-${place}`, maxlength: "200", placeholder: range,
          "aria-label": range ? `Value, ${range}` : "Value",
          oninput: (event) => { filter.value = event.target.value; },
        }),
        make("ul", { id: `filter-options-${place}`, role: "listbox", "aria-label": "Values", hidden: true })),
      make("button", { type: "button", class: "icon", onclick: () => removeFilter(place) },
        make("span", { "aria-hidden": "true" }, "×"), unseen(`Remove filter ${place + 1}`)));
  }

  function chooser(id, label, values, chosen, change, words = {}) {
    return make("select", { id, "aria-label": label, onchange: (event) => change(event.target.value) },
      values.map((value) => make("option", { value, selected: value === chosen }, words[value] ?? value)));
  }

  function removeFilter(place) {
    filters.splice(place, 1);
    drawFilters();
    byId("add-filter").focus();
    announce(`Filter ${place + 1} removed.`);
  }

  async function findValues(name, text) {
    const column = facets.columns.find((one) => one.name === name), typed = text.trim().toLowerCase();
    return (column?.values ?? []).filter(({ value }) => value.toLowerCase().includes(typed)).slice(0, 10)
      .map(({ value, count }) => ({ value, label: value, detail: plural(count, "item") }));
  }

  // --------------------------------------------------------------------------------------------- reading and restoring

  /** The request that the form holds. Throws an Error of one sentence, its `field` the id of what to mend. */
  function read() {
    const request = { ...deeprec.request.blank(), who: who(), user: byId("user").value.trim() };
    request.history = history.map((item) => item.id);
    request.preference = byId("preference").value.trim();
    request.k = number("k", "Items");
    request.deadline = number("deadline", "The deadline");
    request.filters = filters.map((filter, place) => condition(filter, place));
    if (request.who === "user" && !request.user) throw wrong("user", "Name a user, or give a history.");
    if (request.who === "history" && !history.length && !request.preference) {
      throw wrong("item", "Add an item to the history, or write a preference.");
    }
    return request;
  }

  function number(id, name) {
    const field = byId(id), value = Number(field.value);
    if (field.value !== "" && Number.isInteger(value) && value >= 1 && value <= Number(field.max)) return value;
    throw wrong(id, `${name} must be a whole number from 1 to ${Number(field.max).toLocaleString("en")}.`);
  }

  function condition({ column, operator, value }, place) {
    const numeric = facets.columns.find((one) => one.name === column)?.numeric;
    const text = String(value).trim(), parsed = Number(text);
    if (text === "") throw wrong(`filter-value-${place}`, `Give the filter on ${column} a value, or remove it.`);
    if (numeric && !Number.isFinite(parsed)) {
      throw wrong(`filter-value-${place}`, `The filter on ${column} compares numbers; give a number.`);
    }
    return { column, operator, value: numeric ? parsed : text };
  }

  function wrong(field, text) {
    return Object.assign(new Error(text), { field });
  }

  /** Fill the form from a request, as a shared address gives one. */
  async function restore(request) {
    choose(request.who);
    byId("user").value = request.user;
    byId("preference").value = request.preference;
    byId("k").value = request.k ?? 10;
    byId("deadline").value = request.deadline ?? facets.limits.deadline_ms;
    filters = request.filters.slice(0, facets.limits.max_filters).map((filter) => ({ ...filter }));
    drawFilters();
    filters.forEach((filter, place) => { byId(`filter-value-${place}`).value = filter.value; });
    const ids = request.history.slice(-facets.limits.max_shown);
    const known = ids.length ? (await get("v1/items", ids.map((id) => ["id", id]))).items : [];
    const titles = new Map(known.map((item) => [item.id, item.title]));
    history = ids.map((id) => ({ id, title: titles.get(id) ?? `${id} (not in the catalogue)` }));
    drawHistory();
  }

  return { start, read, restore, showHad };
})();
