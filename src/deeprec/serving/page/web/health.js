"use strict";

/** The view of the server's health, read again every few seconds while it is looked at. */
deeprec.health = (() => {
  const { byId, make, fill, plural, milliseconds, get } = deeprec.dom;
  const { traffic, latency } = deeprec.charts;
  const EVERY = 5000;
  const RECOMMENDERS = [
    ["popularity", "Popularity"], ["trm", "TRM alone"],
    ["trm_everything", "TRM trained on everything"], ["one_list", "One list as long as all calls"],
    ["fusion", "Fusion, first list × policy"], ["scripted", "Scripted explorer"],
    ["start", "Policy, start"], ["stage1", "Policy after stage 1"], ["stage2", "Policy after stage 2"],
  ];
  const FIGURES = [["ndcg@10", "NDCG@10", 4], ["recall@10", "Recall@10", 4], ["mrr", "MRR", 4],
    ["valid_rate", "Valid", 3], ["mean_calls", "Calls", 2]];

  let timer = 0, shown = "";

  /** Read the overview and say in the page's top what serves. */
  async function chip() {
    const overview = await get("v1/overview"), { ready, bundle } = overview;
    fill(byId("served"), make("span", { class: ready ? "dot good" : "dot bad", "aria-hidden": "true" }, ready ? "●" : "○"),
      ready ? " ready" : " not ready", make("span", { class: "served-bundle" }, ", bundle ", make("code", {}, bundle.version)));
    return overview;
  }

  async function look() {
    clearTimeout(timer);
    if (byId("view-health").hidden) return;
    try {
      if (!document.hidden) draw(await chip());
      byId("health-problem").textContent = "";
    } catch (error) {
      if (byId("health-problem").textContent !== error.message) byId("health-problem").textContent = error.message;
    }
    if (!byId("view-health").hidden) timer = setTimeout(look, EVERY);
  }

  /** Draw what changed only, so that a table that is open or being read stays. */
  function draw(overview) {
    const text = JSON.stringify({ ...overview, at: Math.floor(overview.at / 60) });
    if (text === shown) return;
    shown = text;
    const open = [...byId("health").querySelectorAll("details")].map((one) => one.open);
    const focused = document.activeElement?.closest("#health") ? place(document.activeElement) : -1;
    fill(byId("health"), serving(overview), quality(overview), hour(overview));
    [...byId("health").querySelectorAll("details")].forEach((one, number) => { one.open = open[number] ?? false; });
    if (focused >= 0) focusable()[focused]?.focus();
  }

  const focusable = () => [...byId("health").querySelectorAll("summary, [tabindex]")];
  const place = (node) => focusable().indexOf(node);

  const card = (name, id, ...content) => make("section", { class: "card", "aria-labelledby": id }, make("h2", { id }, name), content);

  const facts = (rows) => make("dl", { class: "facts" }, rows.filter(Boolean).map(([name, value]) => make("div", {},
    make("dt", {}, name), make("dd", {}, value))));

  function policyWords(policy, shadow, serve) {
    if (policy === null) return "does not run";
    if (!policy) return "cannot be asked now; the TRM answers";
    if (shadow) return "runs in the TRM’s shadow, only logged";
    return serve === "policy" ? "answers within the deadline" : "answers all the same, as this server was told to";
  }

  function serving({ ready, policy, shadow, bundle, refused, features, deadline_ms }) {
    return card("What serves", "serving-title",
      make("p", { class: `state ${ready ? "good" : "bad"}` }, make("span", { "aria-hidden": "true" }, ready ? "✓ " : "✕ "),
        ready ? "Ready" : "Not ready", make("span", { class: "why-served" }, capital(bundle.why))),
      refused ? make("p", { class: "alert" }, "A newer bundle is refused: ", refused) : null,
      facts([
        ["Bundle", make("code", {}, bundle.version)],
        ["Policy", policyWords(policy, shadow, bundle.serve)],
        ["Catalogue", plural(bundle.items, "item")],
        bundle.created ? ["Made", new Date(bundle.created).toLocaleString()] : null,
        bundle.gate ? ["Gate", bundle.gate] : null,
        ["Text encoder", bundle.text],
        ["Histories", features ? "from the feature store" : "from requests only"],
        ["Default deadline", milliseconds(deadline_ms)],
      ]));
  }

  const capital = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

  function quality({ recommenders, users_evaluated, policy_minus_trm, policy, shadow }) {
    const served = policy !== null && !shadow ? "stage2" : "trm";
    const rows = RECOMMENDERS.filter(([name]) => recommenders[name]);
    if (!rows.length) return card("How good it is", "quality-title", make("p", { class: "hint" }, "The bundle holds no figures."));
    const columns = FIGURES.filter(([figure]) => rows.some(([name]) => typeof recommenders[name][figure] === "number"));
    const most = Math.max(...rows.map(([name]) => recommenders[name]["ndcg@10"] ?? 0));
    return card("How good it is", "quality-title",
      make("p", { class: "hint" }, users_evaluated ? `Test target of ${plural(users_evaluated, "user")}, full ranking; an invalid answer is a miss.` : null),
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Figures by recommender" }, make("table", { class: "quality" },
        make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Recommender"), columns.map(([, name]) => make("th", { scope: "col" }, name)))),
        make("tbody", {}, rows.map(([name, label]) => make("tr", {},
          make("th", { scope: "row" }, label, name === served ? make("span", { class: "in-use" }, "serves") : null),
          columns.map(([figure, , digits]) => cell(recommenders[name][figure], digits, figure === "ndcg@10" ? most : 0))))))),
      policy_minus_trm ? make("p", {}, `Policy minus TRM, NDCG@10: ${signed(policy_minus_trm.mean)}, 95 % interval ${signed(policy_minus_trm.low)} to ${signed(policy_minus_trm.high)}.`) : null);
  }

  function cell(value, digits, most) {
    if (typeof value !== "number") return make("td", {}, "–");
    if (!most) return make("td", {}, value.toFixed(digits));
    const bar = make("span", { class: "bar", "aria-hidden": "true" }, make("span"));
    bar.firstChild.style.width = `${100 * value / most}%`;
    return make("td", { class: "with-bar" }, bar, value.toFixed(digits));
  }

  const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(4)}`;

  function hour({ last_hour, at, deadline_ms }) {
    const { requests, shed, p50, p95, p99, minutes, paths, reasons, described } = last_hour;
    const figure = (value, name, note) => make("div", { class: "big" }, make("dt", {}, name), make("dd", {}, value, note ? make("small", {}, note) : null));
    const share = requests ? `${Math.round(100 * (paths.policy ?? 0) / requests)} %` : "–";
    return card("The last hour", "hour-title",
      make("dl", { class: "bigs" },
        figure(requests.toLocaleString("en"), "requests"), figure(share, "by the policy"), figure(milliseconds(p50), "median"),
        figure(milliseconds(p95), "95th percentile"), figure(milliseconds(p99), "99th percentile"),
        figure((shed ?? 0).toLocaleString("en"), "turned away")),
      make("div", { class: "figures" }, traffic(minutes, at), latency(minutes, at, deadline_ms)),
      why(reasons, described));
  }

  function why(reasons, described) {
    const rows = Object.entries(reasons).sort((a, b) => b[1] - a[1]);
    if (!rows.length) return null;
    return make("div", {}, make("h3", { id: "reasons-title" }, "When it was not the policy"),
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "reasons-title" }, make("table", { class: "reasons" },
        make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Reason"), make("th", { scope: "col" }, "Answers"))),
        make("tbody", {}, rows.map(([reason, count]) => make("tr", {}, make("th", { scope: "row" }, described[reason] ?? reason), make("td", {}, count.toLocaleString("en"))))))));
  }

  matchMedia("(max-width: 46rem)").addEventListener("change", () => { shown = ""; look(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  return { look, chip };
})();
