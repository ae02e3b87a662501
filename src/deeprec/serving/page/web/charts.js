"use strict";

/** Two small charts of the last hour, drawn by hand; each says its figures in a table as well. */
deeprec.charts = (() => {
  const { make, svg, milliseconds, plural } = deeprec.dom;
  const HEIGHT = 150, LEFT = 56, BOTTOM = 20, TOP = 8;
  const NARROW = matchMedia("(max-width: 46rem)");
  const PATHS = ["policy", "trm", "popularity"];
  const NAMES = { policy: "policy", trm: "TRM", popularity: "popularity" };

  const clock = (minute) => new Date(1000 * minute).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

  /** The sixty minutes up to `at`, those without a request as well; times are the server's, in unix seconds. */
  function hour(minutes, at) {
    const known = new Map(minutes.map((one) => [Math.floor(one.minute / 60), one]));
    const newest = Math.floor(at / 60);
    return Array.from({ length: 60 }, (_, place) => {
      const minute = newest - 59 + place;
      return known.get(minute) ?? { minute: 60 * minute, requests: 0, paths: {}, p50: null, p99: null };
    });
  }

  /** The least of 1, 2, 5, 10, 20, … that is not below the value. */
  function ceiling(value) {
    const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
    return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
  }

  /** Units across a chart: fewer on a narrow screen, so that its words stay as large. */
  const width = () => (NARROW.matches ? 330 : 600);
  const x = (place) => LEFT + (width() - LEFT) * place / 60;
  const y = (value, most) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / most);

  function frame(rows, most, label, unit, ...drawn) {
    const marks = [0, most / 2, most].map((value) => [
      svg("line", { class: "grid", x1: LEFT, x2: width(), y1: y(value, most), y2: y(value, most) }),
      svg("text", { class: "axis", x: LEFT - 6, y: y(value, most) + 4, "text-anchor": "end" }, unit(value)),
    ]);
    const times = [0, 15, 30, 45].map((place) => svg("text", { class: "axis", x: x(place), y: HEIGHT - 4 }, clock(rows[place].minute)));
    return svg("svg", { viewBox: `0 0 ${width()} ${HEIGHT}`, role: "img", "aria-label": label, class: "chart" }, marks, times, drawn);
  }

  function figure(caption, legend, chart, columns, rows) {
    return make("figure", { class: "figure" },
      make("figcaption", {}, caption, make("span", { class: "legend" }, legend)),
      chart,
      make("details", {}, make("summary", {}, "The same as a table"),
        make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${caption}, table` },
          make("table", {},
            make("thead", {}, make("tr", {}, columns.map((name) => make("th", { scope: "col" }, name)))),
            make("tbody", {}, rows.length ? rows.map(([first, ...rest]) => make("tr", {},
              make("th", { scope: "row" }, first), rest.map((cell) => make("td", {}, cell))))
              : make("tr", {}, make("td", { colspan: columns.length }, "No request in the last hour.")))))));
  }

  const key = (kind, name) => make("span", { class: `key ${kind}` }, make("i", { "aria-hidden": "true" }), name);

  /** Requests by minute, stacked by the path that answered. */
  function traffic(minutes, at) {
    const rows = hour(minutes, at), most = ceiling(Math.max(2, ...rows.map((row) => row.requests)));
    const bars = rows.map((row, place) => {
      let sum = 0;
      return PATHS.map((path) => {
        const count = row.paths[path] ?? 0, top = y(sum + count, most), height = y(sum, most) - top;
        sum += count;
        return count ? svg("rect", { class: `bar-${path}`, x: x(place) + 1, width: x(1) - x(0) - (NARROW.matches ? 1 : 2), y: top, height }) : null;
      });
    });
    const total = rows.reduce((sum, row) => sum + row.requests, 0), busy = rows.filter((row) => row.requests);
    return figure("Requests by minute", PATHS.map((path) => key(`bar-${path}`, NAMES[path])),
      frame(rows, most, `${plural(total, "request")} in the last hour, at most ${Math.max(...rows.map((row) => row.requests))} in a minute.`,
        (value) => (Number.isInteger(value) ? value.toLocaleString("en") : ""), pattern(), bars),
      ["Minute", "Requests", ...PATHS.map((path) => NAMES[path])],
      busy.reverse().map((row) => [clock(row.minute), row.requests, ...PATHS.map((path) => row.paths[path] ?? 0)]));
  }

  /** Stripes, so that the TRM's bars differ from the policy's by more than colour. */
  function pattern() {
    return svg("defs", {}, svg("pattern", { id: "stripes", width: 4, height: 4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      svg("rect", { class: "stripe-ground", width: 4, height: 4 }), svg("rect", { class: "stripe", width: 2, height: 4 })));
  }

  /** Median and 99th percentile by minute. */
  function latency(minutes, at, deadline) {
    const rows = hour(minutes, at);
    const busy = rows.filter((row) => row.requests);
    const most = ceiling(Math.max(10, ...busy.map((row) => row.p99)));
    const line = (name) => busy.length ? [
      svg("path", { class: `line-${name}`, d: path(rows, name, most) }),
      rows.map((row, place) => row.requests ? svg("circle", { class: `dot-${name}`, cx: x(place + 0.5), cy: y(row[name], most), r: 2 }) : null),
    ] : null;
    const limit = deadline <= most ? svg("line", { class: "deadline", x1: LEFT, x2: width(), y1: y(deadline, most), y2: y(deadline, most) }) : null;
    const slowest = busy.length ? `99th percentile between ${milliseconds(Math.min(...busy.map((row) => row.p99)))} and ${milliseconds(Math.max(...busy.map((row) => row.p99)))} by minute.` : "No request in the last hour.";
    return figure("Latency by minute",
      [key("line-p50", "median"), key("line-p99", "99th percentile"), limit ? key("deadline", "deadline") : null],
      frame(rows, most, slowest, (value) => (value ? milliseconds(value).replace(".0", "") : "0"), limit, line("p99"), line("p50")),
      ["Minute", "Requests", "Median", "99th percentile"],
      busy.reverse().map((row) => [clock(row.minute), row.requests, milliseconds(row.p50), milliseconds(row.p99)]));
  }

  /** A line through neighbouring minutes that have requests; it breaks where a minute has none. */
  function path(rows, name, most) {
    let drawn = "", pen = "M";
    rows.forEach((row, place) => {
      if (!row.requests) { pen = "M"; return; }
      drawn += `${pen}${x(place + 0.5).toFixed(1)} ${y(row[name], most).toFixed(1)}`;
      pen = "L";
    });
    return drawn;
  }

  return { traffic, latency };
})();
