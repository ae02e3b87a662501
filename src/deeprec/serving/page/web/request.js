"use strict";

/** A request as the page keeps it, as the address's fragment that shares it, and as the body that is sent. */
deeprec.request = (() => {
  const blank = () => ({ who: "user", user: "", history: [], preference: "", k: null, deadline: null, filters: [] });

  /** `#explore?user=u1&k=10…`; empty parts are left out. */
  function toHash(request) {
    const query = new URLSearchParams();
    if (request.who === "user") query.set("user", request.user);
    else if (request.history.length) request.history.forEach((id) => query.append("history", id));
    else query.set("history", "");
    if (request.preference) query.set("preference", request.preference);
    if (request.k) query.set("k", request.k);
    if (request.deadline) query.set("deadline", request.deadline);
    for (const { column, operator, value } of request.filters) {
      query.append("filter", JSON.stringify([column, operator, value]));
    }
    return `#explore?${query}`;
  }

  /** View and request of a fragment; the request is null where it names none. */
  function fromHash(hash) {
    const [view, rest = ""] = hash.replace(/^#/, "").split(/\?(.*)/s);
    if (view === "health") return { view: "health", request: null };
    const query = new URLSearchParams(rest), request = blank();
    if (!query.has("user") && !query.has("history")) return { view: "explore", request: null };
    request.who = query.has("history") ? "history" : "user";
    request.user = query.get("user") ?? "";
    request.history = query.getAll("history").filter((id) => id !== "");
    request.preference = query.get("preference") ?? "";
    request.k = whole(query.get("k"));
    request.deadline = whole(query.get("deadline"));
    request.filters = query.getAll("filter").map(condition).filter((one) => one !== null);
    return { view: "explore", request };
  }

  function whole(text) {
    const number = Number(text);
    return Number.isInteger(number) && number > 0 ? number : null;
  }

  function condition(text) {
    try {
      const [column, operator, value] = JSON.parse(text);
      const kinds = typeof column === "string" && ["string", "number"].includes(typeof value);
      return kinds && ["=", "!=", ">=", "<="].includes(operator) ? { column, operator, value } : null;
    } catch {
      return null;
    }
  }

  /** The JSON body of the request. */
  function toBody(request) {
    const body = { k: request.k, deadline_ms: request.deadline };
    if (request.who === "user") body.user_id = request.user;
    else body.history = request.history;
    if (request.preference) body.preference = request.preference;
    if (request.filters.length) body.filters = request.filters;
    return body;
  }

  return { blank, toHash, fromHash, toBody };
})();
