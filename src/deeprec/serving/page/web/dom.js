"use strict";

/** Names shared between the page's scripts; each script adds one. */
const deeprec = {};

/** Building nodes. Text always becomes text nodes, so that markup in a title or preference stays text. */
deeprec.dom = (() => {
  const byId = (id) => document.getElementById(id);

  /** An element; `on…` attributes are listeners, null, undefined and false are left out, true is an empty attribute. */
  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    set(node, attributes);
    put(node, children);
    return node;
  }

  function svg(tag, attributes = {}, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    set(node, attributes);
    put(node, children);
    return node;
  }

  function set(node, attributes) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : String(value));
    }
  }

  function put(node, children) {
    for (const child of children.flat(3)) {
      if (child === null || child === undefined || child === false) continue;
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
  }

  function fill(node, ...children) {
    node.replaceChildren();
    put(node, children);
    return node;
  }

  /** Text for screen readers only. */
  const unseen = (text) => make("span", { class: "unseen" }, text);

  /** Catalogue text: its own direction, never that of the page. */
  const title = (text, tag = "span") => make(tag, { class: "title", dir: "auto" }, text);

  const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

  function milliseconds(value) {
    if (value === null || value === undefined) return "–";
    if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
    return `${value >= 10 ? Math.round(value).toLocaleString("en") : value.toFixed(1)} ms`;
  }

  /** Say something through the polite live region; a text that is said twice is said twice. */
  let spoken = 0;
  function announce(text) {
    const line = make("p", {}, text);
    const region = byId("announcer");
    if (spoken++ % 20 === 0) region.replaceChildren();
    region.append(line);
  }

  const PLAIN_FAILURE = "The server cannot be reached. Is it still running?";

  /** Decoded JSON of a GET; an Error whose message is one sentence when there is none. */
  async function get(path, parameters = {}, signal = undefined) {
    const query = new URLSearchParams(parameters).toString();
    let response;
    try {
      response = await fetch(query ? `${path}?${query}` : path, { headers: { Accept: "application/json" }, signal });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error(PLAIN_FAILURE);
    }
    if (!response.ok) throw new Error(await sentence(response));
    return response.json();
  }

  /** What an answer that is no success says. */
  async function sentence(response) {
    try {
      const body = await response.json();
      if (typeof body.error === "string") return sentenced(body.error);
    } catch {
      /* not JSON: the status has to do */
    }
    return response.status === 429 ? "The server is busy; try again in a moment."
      : `The server answered with status ${response.status}.`;
  }

  function sentenced(text) {
    const first = text.charAt(0).toUpperCase() + text.slice(1);
    return /[.!?]$/.test(first) ? first : `${first}.`;
  }

  return { byId, make, svg, fill, unseen, title, plural, milliseconds, announce, get, sentence, sentenced, PLAIN_FAILURE };
})();
