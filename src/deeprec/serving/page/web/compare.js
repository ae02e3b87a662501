"use strict";

/** The recommendation beside the TRM's own list: what moved, what is new, what was dropped, and why each is there. */
deeprec.compare = (() => {
  const { make, svg, fill, unseen, title, plural, milliseconds } = deeprec.dom;

  /** What became of an item between the TRM's own list and the answer, as mark, short words and whole words. */
  function change(rank, before) {
    if (before === undefined) return { kind: "new", mark: "+", short: "new", words: "new: not in the TRM's own list" };
    if (before === rank) return { kind: "same", mark: "=", short: "same", words: "the TRM's own rank" };
    const by = Math.abs(before - rank), up = before > rank;
    return up ? { kind: "up", mark: "▲", short: `${by}`, words: `up ${by}, from the TRM's rank ${before}` }
      : { kind: "down", mark: "▼", short: `${by}`, words: `down ${by}, from the TRM's rank ${before}` };
  }

  const badge = ({ kind, mark, short, words }) => make("span", { class: `change ${kind}` },
    make("span", { "aria-hidden": "true" }, `${mark} ${short}`), unseen(words));

  const token = (turn) => turn > 0
    ? make("span", { class: `token t${((turn - 1) % 5) + 1}` }, unseen("turn "), String(turn))
    : make("span", { class: "token t0" }, "TRM");

  /** An item's phrases, those that a preference named marked. */
  function phrases(item, wanted) {
    return make("span", { class: "phrases" }, (item.phrases ?? []).map((phrase, place) => [
      place ? ", " : "", wanted.has(phrase) ? make("mark", {}, phrase) : phrase,
    ]));
  }

  const words = (preference) => new Set((preference ?? "").split(";").map((piece) => piece.trim().toLowerCase()));

  const score = (value) => Math.round(100 * value);

  /** Where the loop and the TRM met an item, as rows of turn, preference, rank and match score. */
  function sightings(id, calls, trm) {
    const rows = calls.flatMap((call) => call.items.flatMap((item, place) => item.id !== id ? [] : [
      { turn: call.turn, asked: call.preference, rank: place + 1, of: call.items.length, score: item.score }]));
    const alone = trm.findIndex((item) => item.id === id);
    if (alone >= 0) rows.push({ turn: 0, asked: null, rank: alone + 1, of: trm.length, score: trm[alone].score });
    return rows;
  }

  function why(item, calls, trm) {
    const rows = sightings(item.id, calls, trm);
    return make("div", { class: "why" },
      item.phrases?.length ? make("p", {}, make("span", { class: "label" }, "Described as "), phrases(item, words(item.preference))) : null,
      rows.length ? make("table", {},
        make("thead", {}, make("tr", {}, ["Listed for", "Rank", "Match"].map((name) => make("th", { scope: "col" }, name)))),
        make("tbody", {}, rows.map((row) => make("tr", {},
          make("td", {}, origin(row.turn, row.asked ?? "the history alone")),
          make("td", {}, `${row.rank} of ${row.of}`),
          make("td", {}, score(row.score)))))) : make("p", {}, "Neither the loop nor the TRM lists it; it is popular."),
      make("p", { class: "hint" }, "Item ", make("code", {}, item.id)));
  }

  const origin = (turn, text) => make("span", { class: "origin" }, token(turn), make("span", { class: "asked", dir: "auto" }, text));

  function answered(item, calls, trm, before, single) {
    return make("li", { "data-item": item.id },
      make("span", { class: "rank", "aria-hidden": "true" }, item.rank),
      make("details", {},
        make("summary", {},
          make("span", { class: "line" }, title(item.title), single ? null : badge(change(item.rank, before.get(item.id)))),
          single ? phrases(item, words(item.preference)) : origin(item.turn, item.preference ?? "the history alone")),
        why(item, calls, trm)));
  }

  function alone(trm, kept) {
    return make("ol", { class: "ranking alone", "aria-labelledby": "alone-title" }, trm.map((item, place) => make("li", {
      "data-item": item.id, class: kept === null || kept.has(item.id) ? null : "dropped",
    },
    make("span", { class: "rank", "aria-hidden": "true" }, place + 1),
    make("div", {},
      make("span", { class: "line" }, title(item.title),
        kept === null || kept.has(item.id) ? null : make("span", { class: "change gone" }, "dropped")),
      phrases(item, new Set())))));
  }

  /** The TRM's own list while the policy explores. */
  function waiting(trm, lists) {
    fill(lists,
      make("div", { class: "column" },
        make("h3", { id: "alone-title" }, "The TRM’s own list"),
        make("p", { class: "hint" }, "Ready already; it is the answer if the policy is late."),
        alone(trm, null)));
  }

  /**
   * The answer, beside the TRM's own list where the two can differ.
   * @param {object} answer - the final event: items, path, trm, calls.
   */
  function draw(answer, calls, lists) {
    const trm = answer.trm ?? [], single = answer.path !== "policy";
    const before = new Map(trm.map((item, place) => [item.id, place + 1]));
    const kept = new Set(answer.items.map((item) => item.id));
    const own = make("div", { class: "column answer" },
      make("h3", { id: "answer-title" }, single ? "The answer" : "The policy’s ranking"),
      make("p", { class: "hint" }, single ? "Open an item to see how it was found." : "Each with the turn and preference that found it."),
      make("ol", { class: "ranking", "aria-labelledby": "answer-title" },
        answer.items.map((item) => answered(item, calls, trm, before, single))));
    if (single || !trm.length) {
      fill(lists, answer.items.length ? own : make("p", {}, "No item meets the request’s conditions."));
      return;
    }
    const lines = svg("svg", { class: "lines", "aria-hidden": "true", focusable: "false" });
    fill(lists, own, lines, make("div", { class: "column" },
      make("h3", { id: "alone-title" }, "The TRM alone"),
      make("p", { class: "hint" }, "What it lists with no exploration."),
      alone(trm, kept)));
    connect(lists, lines, before);
    const redraw = new ResizeObserver(() => connect(lists, lines, before));
    redraw.observe(lists);
    lists.addEventListener("toggle", () => connect(lists, lines, before), true);
  }

  /** Lines from each answered item to its place in the TRM's own list; drawn from where the rows are. */
  function connect(lists, lines, before) {
    const box = lines.getBoundingClientRect();
    if (!lines.isConnected || box.width === 0) return;
    const [left, right] = lists.querySelectorAll(".ranking");
    const middle = (row) => {
      const place = row.querySelector(".line").getBoundingClientRect();
      return place.top + place.height / 2 - box.top;
    };
    const ends = new Map([...right.children].map((row) => [row.dataset.item, middle(row)]));
    lines.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
    fill(lines, [...left.children].map((row, place) => {
      const from = middle(row), to = ends.get(row.dataset.item), lit = row.classList.contains("lit") ? " lit" : "";
      if (to === undefined) return svg("circle", { class: `new${lit}`, "data-item": row.dataset.item, cx: 4, cy: from, r: 3 });
      const half = box.width / 2;
      return svg("path", {
        class: change(place + 1, before.get(row.dataset.item)).kind + lit, "data-item": row.dataset.item,
        d: `M0 ${from}C${half} ${from} ${half} ${to} ${box.width} ${to}`,
      });
    }));
  }

  /** The time an answer took beside its deadline: what the TRM and each turn used. */
  function timing({ milliseconds: spent, items }, deadline) {
    const turns = spent.turns ?? [];
    const parts = [["TRM", spent.trm, "t0"], ...turns.map((value, place) => [`turn ${place + 1}`, value, `t${(place % 5) + 1}`])]
      .filter(([, value]) => value !== undefined && value !== null);
    const whole = Math.max(deadline, spent.total);
    const bar = make("div", { class: "timing", role: "img", "aria-label":
      `${milliseconds(spent.total)} of a deadline of ${milliseconds(deadline)}: ${parts.map(([name, value]) => `${name} ${milliseconds(value)}`).join(", ")}` });
    for (const [name, value, kind] of parts) {
      const part = make("span", { class: kind, title: `${name}: ${milliseconds(value)}` });
      part.style.flexBasis = `${100 * value / whole}%`;
      bar.append(part);
    }
    return make("div", { class: "spent" }, bar, make("p", { class: "hint" },
      `${plural(items.length, "item")} in ${milliseconds(spent.total)}; the deadline was ${milliseconds(deadline)}`));
  }

  return { draw, waiting, timing, token, phrases, words, score };
})();
