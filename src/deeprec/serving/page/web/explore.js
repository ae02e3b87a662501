"use strict";

/** One exploration as it happens: the turns as they come, then the answer. */
deeprec.explore = (() => {
  const { byId, make, fill, unseen, title, plural, milliseconds, announce, sentenced } = deeprec.dom;
  const { draw, waiting, timing, token, phrases, words, score } = deeprec.compare;
  const SHORT = 10;
  const PATHS = { policy: "The policy answered", trm: "The TRM answered", popularity: "Popular items" };

  let running = null, clock = 0;

  /** Run a request and show it; a run before it is given up. */
  async function run(request) {
    stop();
    const mine = (running = new AbortController()), calls = [];
    begin();
    try {
      for await (const { event, data } of deeprec.stream("v1/explore", deeprec.request.toBody(request), mine.signal)) {
        if (mine !== running) return;
        show(event, data, calls, request);
      }
      if (byId("verdict").hidden) throw new Error("The server ended before it answered; try again.");
    } catch (error) {
      if (mine === running && error.name !== "AbortError") fail(error.message);
    } finally {
      if (mine === running) end();
    }
  }

  function stop() {
    if (running === null) return;
    running.abort();
    running = null;
    end();
    announce("Stopped.");
  }

  function begin() {
    byId("problem").textContent = "";
    byId("welcome").hidden = true;
    byId("verdict").hidden = true;
    byId("stop").hidden = false;
    for (const id of ["turns", "verdict"]) fill(byId(id));
    fill(byId("lists"), make("p", { class: "hint" }, "Waiting for the first list…"));
    byId("result").setAttribute("aria-busy", "true");
    document.body.classList.add("running");
    if (byId("result").getBoundingClientRect().top > innerHeight - 80) byId("result").scrollIntoView();
    announce("Exploring.");
  }

  function end() {
    clearInterval(clock);
    byId("stop").hidden = true;
    byId("result").removeAttribute("aria-busy");
    document.body.classList.remove("running");
    for (const open of document.querySelectorAll(".turn.open")) {
      open.classList.remove("open");
      if (!open.querySelector(".found, .closing")) open.remove();
    }
    running = null;
  }

  function fail(text) {
    fill(byId("lists"));
    byId("problem").textContent = text;
  }

  function show(event, data, calls, request) {
    if (event === "trm" && data.items.length) {
      waiting(data.items, byId("lists"));
      announce(`The TRM's own list is ready: ${plural(data.items.length, "item")}.`);
    } else if (event === "turn") {
      forget(data.turn, calls);
      openTurn(data.turn);
    } else if (event === "call") {
      calls.push(data);
      closeTurn(data);
    } else if (event === "answer") {
      conclude(data, calls, request);
    } else if (event === "error") {
      fail(sentenced(data.error));
    }
  }

  // ------------------------------------------------------------------------------------------------------------ turns

  function turnOf(number) {
    return byId(`turn-${number}`) ?? byId("turns").appendChild(make("li", { class: "turn", id: `turn-${number}` },
      make("div", { class: "turn-head" }, token(number), make("h3", {}, "Turn ", number), make("span", { class: "took" })),
      make("div", { class: "turn-body" })));
  }

  /** A loop that had to begin again tells its turns again: those from this one on are no more. */
  function forget(number, calls) {
    while (calls.length && calls.at(-1).turn >= number) calls.pop();
    for (const turn of [...byId("turns").children].slice(number - 1)) turn.remove();
  }

  function openTurn(number) {
    for (const open of document.querySelectorAll(".turn.open")) open.classList.remove("open");
    const turn = turnOf(number), took = turn.querySelector(".took"), begun = performance.now();
    turn.classList.add("open");
    fill(turn.querySelector(".turn-body"), make("p", { class: "hint thinking" }, "The policy is writing…"));
    clearInterval(clock);
    clock = setInterval(() => { took.textContent = milliseconds(performance.now() - begun); }, 100);
  }

  function closeTurn(call) {
    clearInterval(clock);
    const turn = turnOf(call.turn), fresh = call.items.filter((item) => item.new).length;
    turn.classList.remove("open");
    const asked = call.preference || "anything";
    fill(turn.querySelector(".turn-body"),
      call.thought ? make("p", { class: "thought", dir: "auto" }, unseen("Thought: "), call.thought) : null,
      make("p", { class: "preference" }, make("span", { class: "label" }, "Asks for"),
        asked.split(";").map((piece) => make("span", { class: "chip", dir: "auto" }, piece.trim(), " "))),
      make("p", { class: "hint" }, `${plural(call.items.length, "item")}, ${fresh} new`),
      found(call, call.items.slice(0, SHORT)),
      call.items.length <= SHORT ? null : make("details", { class: "more" },
        make("summary", {}, `${call.items.length - SHORT} more`), found(call, call.items.slice(SHORT), SHORT)));
    announce(`Turn ${call.turn}: asked for ${asked}; ${plural(call.items.length, "item")} found, ${fresh} new.`);
  }

  function found(call, items, before = 0) {
    const wanted = words(call.preference), label = `Found in turn ${call.turn}, from rank ${before + 1}`;
    return make("ol", { class: "found", start: before + 1, "aria-label": label }, items.map((item) => {
      const bar = make("span", { class: "bar", "aria-hidden": "true" }, make("span"));
      bar.firstChild.style.width = `${score(item.score)}%`;
      return make("li", { "data-item": item.id, class: item.new ? "fresh" : "seen" },
        make("span", { class: "mark", "aria-hidden": "true" }, item.new ? "+" : "·"),
        make("span", { class: "line" }, unseen(item.new ? "new: " : "found before: "), title(item.title),
          make("span", { class: "took-rank" })),
        phrases(item, wanted),
        make("span", { class: "match" }, bar, unseen("match "), score(item.score)));
    }));
  }

  // ----------------------------------------------------------------------------------------------------------- answer

  function conclude(answer, calls, request) {
    for (const call of answer.calls ?? []) {
      if (calls.some((one) => one.turn === call.turn)) continue;
      calls.push(call);
      closeTurn(call);
    }
    const turns = answer.milliseconds.turns ?? [];
    turns.forEach((value, place) => {
      turnOf(place + 1).querySelector(".took").textContent = milliseconds(value);
    });
    closing(answer, calls, turns.length);
    fill(byId("verdict"),
      make("p", { class: "path" },
        make("span", { class: `path-name ${answer.path}` }, PATHS[answer.path] ?? answer.path),
        answer.path === "policy" ? null : make("span", { class: "reason" }, sentenced(answer.reason?.sentence ?? "no reason was given"))),
      timing(answer, request.deadline));
    byId("verdict").className = `verdict ${answer.path}`;
    byId("verdict").hidden = false;
    draw(answer, calls, byId("lists"));
    if (answer.path === "policy") mark(answer.items);
    const first = answer.items[0] ? ` First: ${answer.items[0].title}.` : "";
    announce(`${PATHS[answer.path]} in ${milliseconds(answer.milliseconds.total)}: ${plural(answer.items.length, "item")}.${first}`);
  }

  /** What the turn after the last call did: it answered, or ended for the reason that stands with the answer. */
  function closing(answer, calls, turns) {
    const open = Number(document.querySelector(".turn.open")?.id.slice("turn-".length) ?? 0);
    const last = Math.max(turns, open, calls.length + (answer.path === "policy" ? 1 : 0));
    if (last === 0) {
      fill(byId("turns"), make("li", { class: "turn none" }, make("p", { class: "hint closing" }, "The policy took no turn.")));
    }
    if (last <= calls.length) return;
    const turn = turnOf(last);
    turn.classList.remove("open");
    fill(turn.querySelector(".turn-body"), make("p", { class: "closing" }, answer.path === "policy"
      ? "Ranks what was found, and answers." : "Ends here, for the reason that stands with the answer."));
  }

  /** Say in the turns which of the items found were answered, and at which rank. */
  function mark(items) {
    const ranks = new Map(items.map((item) => [item.id, item.rank]));
    for (const row of document.querySelectorAll(".found li")) {
      const rank = ranks.get(row.dataset.item);
      if (rank === undefined) continue;
      row.classList.add("answered");
      fill(row.querySelector(".took-rank"), make("span", { "aria-hidden": "true" }, `→ ${rank}`), unseen(`, answered at rank ${rank}`));
    }
    for (const more of document.querySelectorAll(".more")) {
      const count = more.querySelectorAll("li").length, answered = more.querySelectorAll(".answered").length;
      more.querySelector("summary").textContent = answered ? `${count} more, ${answered} of them answered` : `${count} more`;
    }
  }

  /** Light up one item wherever it stands while the pointer or the focus is on it. */
  function trace(event) {
    const id = event.target.closest?.("[data-item]")?.dataset.item;
    for (const lit of document.querySelectorAll(".lit")) lit.classList.remove("lit");
    if (id === undefined) return;
    for (const same of document.querySelectorAll(`[data-item="${CSS.escape(id)}"]`)) same.classList.add("lit");
  }

  function start() {
    byId("stop").addEventListener("click", () => { stop(); byId("run").focus(); });
    for (const kind of ["pointerover", "focusin"]) byId("view-explore").addEventListener(kind, trace);
  }

  return { run, stop, start };
})();
