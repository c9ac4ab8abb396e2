/* Now: what turns, who serves, how production does, what was raised. */
import { get } from "../api.js";
import { Chart, axis, color, drawMarks, gathered, layout, xAxis } from "../charts.js";
import { add, h, replace } from "../dom.js";
import { ago, clock, count, number, percent, plural, seconds, utc, words } from "../format.js";
import { body, card, chip, commands, facts, figure, head, id, note, outcome, segments, time } from "../parts.js";
import { shell } from "../format.js";
import { wheel } from "../wheel.js";
import { share, trying } from "./challenger.js";

const MOST_LINES = 120;

export async function now(shared, to, signal) {
  const parts = { wheel: card(), service: card(), production: card(), alarms: card(), events: card(), story: card() };
  const node = h("div", { class: "view now" });
  const challenger = trying(shared);
  let found = shared.first ?? (await get("now", {}, signal));
  shared.first = null;
  let last = null;
  let shift = null;
  let series = await get("production", {}, signal);
  const pace = h("div", { class: "end" });
  const charts = chartsOf(shared, () => series, (value) => { last = value; refreshSeries(); });

  async function refreshSeries() {
    series = await get("production", { last }, signal);
    charts.set();
    draw();
  }

  async function refresh() {
    found = await get("now", {}, signal);
    shared.heard(found.about);
    draw();
    await point();
  }

  function draw() {
    replace(parts.wheel, ...turning(found));
    replace(parts.service, ...serving(shared, found));
    challenger.show(found.challenger);
    replace(parts.production, ...producing(shared, found, series));
    replace(parts.alarms, ...alarms(shared, found, shift));
    replace(parts.events, ...happened(shared, series));
    replace(pace, found.about.living ? "as it happens" : "to the end");
  }

  const lines = found.story.slice(-MOST_LINES);
  const list = h("ol", { class: "story", tabindex: "0", "aria-label": "What the wheel says, newest first" });
  const tell = () => replace(list, lines.length
    ? lines.slice().reverse().map(sentence)
    : h("li", { class: "muted" }, "The wheel has said nothing yet."));
  add(parts.story, [h("header", {}, h("h2", {}, "What it says"), pace), list]);
  tell();
  draw();
  add(node, [
    h("h1", { class: "unseen", tabindex: "-1" }, `${found.about.run} now`),
    h("div", { class: "lead" }, parts.wheel, parts.service, parts.production, parts.alarms),
    challenger.node,
    charts.node,
    h("div", { class: "duo" }, parts.events, parts.story),
  ]);
  let pointed = null;
  async function point() {
    const shifts = found.signals.filter((each) => each.kind === "shift_detected").length;
    if (!shifts || pointed === shifts) return;
    pointed = shifts;
    shift = await get("shift", {}, signal).catch(() => null);
    draw();
  }
  point().catch(() => {});
  const ticking = setInterval(() => tick(node), 1000);

  return {
    title: "Now", node,
    told(line) {
      const before = lines.at(-1);
      if (before && before.passing && line.passing && before.stage === line.stage && !Object.keys(line.numbers).length) lines.pop();
      lines.push(line);
      if (lines.length > MOST_LINES) lines.shift();
      tell();
      refresh().catch(() => {});
    },
    changed(what) {
      refresh().catch(() => {});
      if (what.includes("production") || what.includes("policies")) refreshSeries().catch(() => {});
    },
    dispose() {
      clearInterval(ticking);
      charts.dispose();
    },
  };
}

function tick(node) {
  for (const each of node.querySelectorAll("[data-since]")) each.textContent = seconds(Date.now() / 1000 - Number(each.dataset.since));
}

function turning({ wheel: state, about, last }) {
  const spent = Object.keys(state.seconds).length ? state.seconds : last?.seconds ?? {};
  const said = state.stage
    ? h("p", { class: "said" }, h("b", {}, words(state.stage)), " for ", h("span", { data: { since: state.since } }, seconds(Date.now() / 1000 - state.since)), h("br"), state.text)
    : h("p", { class: "said" }, about.living ? "A process is up here, and no stage turns." : "No process turns this wheel. ", state.text && !about.living && h("span", {}, `${state.text[0].toUpperCase()}${state.text.slice(1)} ${ago(state.at)}.`));
  return [h("header", {}, h("h2", {}, "The wheel"), h("div", { class: "end" }, state.at ? time(state.at) : "")),
    body(wheel({ ...state, seconds: spent }), said)];
}

function serving(shared, { service, previous, about, challenger, control }) {
  if (!service) {
    return [h("header", {}, h("h2", {}, "In service")), body(note("No policy is in service", "The first one that passes the gate will answer clients. One that was trained elsewhere can be put to the gate, too."),
      commands(["CLI", `flywheel policies add policy.onnx --task ${shell(about.reference)} --run-dir ${shell(about.run_dir)}`]))];
  }
  const span = service.served.at(-1);
  const rate = service.episodes ? service.failed / Math.max(1, service.episodes - service.lost) : null;
  return [h("header", {}, h("h2", {}, "In service"), h("div", { class: "end" }, outcome(service.outcome))),
    body(
      h("p", { class: "champion" }, chip(shared.policies, service.digest)),
      h("div", { class: "figures" },
        figure(number(service.mean_return), "mean return"),
        figure(percent(rate), "failed", `${count(service.failed)} of ${plural(service.episodes, "episode")}`)),
      facts({
        share: challenger?.share ? [`${share(1 - challenger.share)} of new episodes, the rest `, chip(shared.policies, challenger.challenger, false)] : control ? [`${share(1 - control.share)} of new episodes, the rest stays on `, chip(shared.policies, control.policy, false), " as its control"] : "all episodes",
        since: time(span.from),
        "trained by": words(service.trained_on.strategy ?? "elsewhere"),
        "failed at the gate": `${count(service.num_failed)} of ${plural(service.num_trials, "simulation")}`,
        "roll back to": previous ? chip(shared.policies, previous) : "nothing: no former policy is admissible",
      }))];
}

function byPolicy(shared) {
  const rows = [...shared.policies.values()].filter((each) => each.episodes).slice(0, 4);
  return h("table", { class: "small" }, h("caption", { class: "unseen" }, "Production by policy"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "By policy"), ["episodes", "failed", "mean return"].map((each) => h("th", { scope: "col", class: "num" }, each)))),
    h("tbody", {}, rows.map((each) => h("tr", {}, h("td", {}, chip(shared.policies, each.digest, false)), h("td", { class: "num" }, count(each.episodes)),
      h("td", { class: "num" }, percent(each.failed / Math.max(1, each.episodes - each.lost))), h("td", { class: "num" }, number(each.mean_return))))));
}

function producing(shared, { production }, series) {
  const known = series.rolling.filter((value) => value !== null);
  const rates = series.rate.filter((value) => value !== null);
  const whole = production.episodes - production.lost;
  return [h("header", {}, h("h2", {}, "Production"), h("div", { class: "end" }, h("a", { href: "#/episodes" }, plural(production.episodes, "episode")))),
    body(production.episodes === 0
      ? note("No episode yet", "As soon as clients end their first episodes, their returns are here.")
      : [h("div", { class: "figures wide" },
          figure(number(known.at(-1) ?? production.mean_return), `mean return of the last ${count(series.window)}`, known.length ? change(known) : null),
          figure(percent(rates.at(-1) ?? production.failed / Math.max(1, whole)), `failed of the last ${count(series.window)}`)),
        production.estimated ? h("p", { class: "small-note" }, production.estimated) : null,
        byPolicy(shared),
        h("p", { class: "links" }, h("a", { href: "#/episodes?how=failed" }, plural(production.failed, "failed episode")), h("a", { href: "#/episodes?how=lost" }, production.lost ? `${plural(production.lost, "episode")} lost` : "none lost"))])];
}

function change(rolling) {
  const [one, other] = [rolling.at(-Math.min(rolling.length, 60)), rolling.at(-1)];
  const difference = other - one;
  if (Math.abs(difference) < 0.005 * Math.max(1, Math.abs(one))) return "steady";
  return h("span", { class: difference < 0 ? "bad" : "" }, `${difference > 0 ? "▲" : "▼"} ${number(Math.abs(difference), 3)} from ${number(one, 3)}`);
}

function began(shift) {
  const encoded = encodeURIComponent(shift.episode);
  return h("p", { class: "began" }, "The shift began to show at ", h("a", { href: `#/episode/${encoded}${shift.step === null ? "" : `?t=${shift.step}`}` }, shift.step === null ? "" : `step ${shift.step} of `, h("span", { class: "mono" }, shift.episode)),
    `: ${shift.why} `, shift.step !== null && h("a", { href: `#/fork/${encoded}?t=${shift.step}` }, "Fork there"));
}

function alarms(shared, { signals }, shift) {
  const shown = signals.slice().reverse();
  return [h("header", {}, h("h2", {}, "Alarms"), h("div", { class: "end" }, shown.length ? count(shown.length) : "")),
    shown.length === 0
      ? body(h("p", { class: "small-note" }, "None was raised. The monitors raise one false alarm in 10,000 episodes or fewer."))
      : [shift && began(shift), h("ul", { class: "alarms" }, shown.map((each) => h("li", {},
          h("div", {}, h("span", {}, h("b", { class: "bad" }, words(each.kind)), ` by the ${each.monitor} monitor`, each.evidence.stratum && `, most among “${each.evidence.stratum}”`), h("span", { class: "muted" }, time(each.at))),
          h("div", {}, h("span", {}, "at ", id(each.at_episode, `#/episode/${encodeURIComponent(each.at_episode)}`)), chip(shared.policies, each.digest, false)),
          h("div", {}, h("span", {}, "since ", id(each.since_episode, `#/episode/${encodeURIComponent(each.since_episode)}`)), each.value === null ? "evidence beyond any number" : `evidence ${count(each.value)} of ${count(each.threshold)}`))))]];
}

const EVENT = { verdict: "verdict", challenge: "challenge", release: "release", change: "change" };
function happened(shared, series) {
  const shown = series.marks.filter((mark) => EVENT[mark.kind]).reverse();
  return [h("header", {}, h("h2", {}, "Verdicts, challengers, releases")),
    shown.length === 0
      ? body(h("p", { class: "small-note" }, "Nothing was judged or released yet."))
      : h("ul", { class: "rows" }, shown.map((mark) => h("li", {},
          h("span", { class: `what ${mark.kind}` }, mark.digest ? h("a", { href: `#/policies/${mark.digest}` }, mark.text) : mark.text),
          h("span", { class: "when" }, mark.at ? time(mark.at) : `episode ${count(mark.number)}`))))];
}

const sentence = (line) => {
  const [kind, rest] = [line.stage, line.text];
  return h("li", { class: line.passing ? "passing" : "" },
    h("time", { datetime: new Date(line.at * 1000).toISOString(), title: utc(line.at) }, clock(line.at)), h("b", {}, kind), h("span", {}, rest));
};

/* The two charts, with one cursor: returns above, the share of failed ones below. */
function chartsOf(shared, series, choose) {
  const sync = uPlot.sync("production");
  const readout = h("p", { class: "readout" });
  const hueOf = (digest) => {
    const known = shared.policies.get(digest);
    return known && known.place !== null ? color(`p${known.place % 5}`) : color("faint");
  };
  const columns = () => {
    const found = series();
    const dots = found.digests.map((_, place) => found.value.map((value, i) => (found.policy[i] === place ? value : null)));
    return [found.number, ...dots, found.rolling];
  };
  let marks = [];
  const makeReturns = (width) => {
    const found = series();
    const [low, high] = [found.number[0] ?? 0, found.number.at(-1) ?? 1];
    const laid = layout(gathered(found.marks), width, low, high, (mark) => (mark.digest ? hueOf(mark.digest) : color("ink")));
    marks = laid.marks;
    return {
      padding: [laid.room, 12, 0, 0],
      scales: { x: { time: false, range: () => [low - 0.5, Math.max(high, low + 1) + 0.5] }, y: { range: (_, min, max) => range(shared, min, max) } },
      axes: [xAxis({ values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? count(tick) : "")) }), axis({ values: (_, ticks) => ticks.map((tick) => number(tick)) })],
      series: [{},
        ...found.digests.map((digest) => ({ stroke: () => hueOf(digest), width: 0, paths: () => null, points: { show: true, size: 4.5, width: 0, fill: () => `color-mix(in srgb, ${hueOf(digest)} 62%, transparent)` } })),
        { stroke: () => color("ink"), width: 1.6, spanGaps: false, points: { show: false } }],
      cursor: { sync: { key: sync.key } },
      hooks: { draw: [(plot) => drawMarks(plot, marks)] },
    };
  };
  const makeRate = () => {
    const found = series();
    const [low, high] = [found.number[0] ?? 0, found.number.at(-1) ?? 1];
    return {
      padding: [6, 12, 0, 0],
      scales: { x: { time: false, range: () => [low - 0.5, Math.max(high, low + 1) + 0.5] }, y: { range: (_, min, max) => [0, Math.max(0.1, Math.min(1, (max || 0) * 1.15))] } },
      axes: [xAxis({ size: 8, values: (_, ticks) => ticks.map(() => "") }), axis({ splits: (_, __, min, max) => [0, max > 0.55 ? 0.5 : max > 0.25 ? 0.2 : 0.1, max > 0.95 ? 1 : null].filter((v) => v !== null), values: (_, ticks) => ticks.map((tick) => `${Math.round(100 * tick)} %`) })],
      series: [{}, { stroke: () => color("bad"), width: 1.4, fill: () => color("bad-soft"), points: { show: false } }],
      cursor: { sync: { key: sync.key } },
    };
  };
  const say = (i) => {
    const found = series();
    if (i === null || i === undefined || found.number[i] === undefined) {
      replace(readout, found.count ? `A dot is ${found.binned ? "a bin of neighbouring episodes" : "an episode"} in the colour of the policy it began on; the line is the mean of the last ${count(found.window)}.${found.binned ? "" : " Choose one to open it."}` : "");
      return;
    }
    const failed = found.failed[i];
    replace(readout, h("span", {}, found.binned ? "around " : "", "episode ", h("b", {}, count(Math.round(found.number[i])))), time(found.at[i]),
      h("span", {}, "return ", h("b", {}, number(found.value[i]))),
      found.binned ? h("span", {}, `${number(found.low[i])} to ${number(found.high[i])}, ${count(failed)} failed`) : h("span", { class: failed ? "bad" : "" }, failed === null ? "lost" : failed ? "failed" : "did not fail"),
      h("span", {}, `mean of ${count(found.window)} `, h("b", {}, number(found.rolling[i]))), h("span", {}, "failed ", h("b", {}, percent(found.rate[i]))),
      chip(shared.policies, found.digests[found.policy[i]]));
  };
  const open = (i) => {
    const found = series();
    if (i !== null && !found.binned && found.id[i]) shared.go(`#/episode/${encodeURIComponent(found.id[i])}`);
  };
  const summary = () => `Return of production's ${plural(series().count, "last episode")}, with ${plural(series().marks.length, "mark")} of changes, alarms, verdicts and releases`;
  const returns = new Chart({ label: summary(), height: 300, make: makeReturns, data: columns(), onmove: say, onpick: open });
  const rate = new Chart({ label: "Share of failed episodes among the last ones", height: 92, make: makeRate, data: [series().number, series().rate], onmove: () => {} });
  rate.node.removeAttribute("tabindex");
  say(null);
  const span = segments("Episodes shown", [["", "All"], [1000, "1,000"], [200, "200"]], "", choose);
  const node = h("section", { class: "card charts" },
    h("header", {}, h("h2", {}, "Return"), h("div", { class: "end" }, h("span", {}, "last"), span)), h("div", { class: "pad" }, returns.node), h("h3", { class: "under" }, "Failed"), h("div", { class: "pad" }, rate.node), readout);
  const empty = () => node.classList.toggle("empty", series().count === 0);
  empty();
  return {
    node,
    set() {
      empty();
      returns.data = columns();
      rate.data = [series().number, series().rate];
      returns.node.setAttribute("aria-label", summary());
      returns.remake();
      rate.remake();
      say(null);
    },
    dispose() {
      returns.dispose();
      rate.dispose();
    },
  };
}

function range(shared, min, max) {
  const bounds = shared.about.return_range;
  if (min === null || max === null) return bounds ?? [0, 1];
  const low = bounds && bounds[0] <= min && min - bounds[0] < (max - min || 1) ? bounds[0] : min;
  const span = max - low || Math.abs(max) || 1;
  return [low - 0.03 * span, max + 0.06 * span];
}
