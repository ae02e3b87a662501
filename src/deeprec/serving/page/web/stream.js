"use strict";

/** Server-sent events of a POST, which EventSource cannot make. */
deeprec.stream = (() => {
  const { sentence, PLAIN_FAILURE } = deeprec.dom;

  /** Yield `{event, data}` as they come. Throws an Error whose message is one sentence; AbortError when told to stop. */
  async function* events(path, body, signal) {
    let response;
    try {
      response = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
        body: JSON.stringify(body),
        signal,
      });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error(PLAIN_FAILURE);
    }
    if (!response.ok) throw new Error(await sentence(response));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let kept = "";
    for (;;) {
      const { value, done } = await read(reader);
      if (done) return;
      kept += value;
      const blocks = kept.split(/\r?\n\r?\n/);
      kept = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event !== null) yield event;
      }
    }
  }

  async function read(reader) {
    try {
      return await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error("The connection broke before the answer came; try again.");
    }
  }

  function parse(block) {
    let event = "message";
    const data = [];
    for (const line of block.split(/\r?\n/)) {
      if (line.startsWith("event:")) event = line.slice(6).trim();
      else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    }
    return data.length ? { event, data: JSON.parse(data.join("\n")) } : null;
  }

  return events;
})();
