/* Turns: each with its plan, training, verdict, release, and what production said after. */
import { get } from "../api.js";
import { Chart, axis, color, xAxis } from "../charts.js";
import { h, replace } from "../dom.js";
import { clock, count, number, percent, plural, seconds, utc, words } from "../format.js";
import { body, card, chip, facts, head, note, outcome, time, trainedIn } from "../parts.js";
import { spansInto } from "./spans.js";
import { checksOf, trialsOf } from "./verdict.js";

export async function turns(shared, to, signal) {
  const found = await get("turns", {}, signal);
  const chosen = Number(to.rest[0]) || found.turns[0]?.number;
  if (!chosen) {
    return { title: "Turns", node: h("div", {}, head("Turns"), note("No turn yet", "A turn begins with the question what to do next. As soon as it is answered, its plan is here.")) };
  }
  const list = h("ol", { class: "picker", "aria-label": "Turns, newest first" });
  const detail = h("div", { class: "stack" });
  const node = h("div", { class: "view" }, head("Turns", plural(found.turns.length, "turn")), h("div", { class: "split" }, list, detail));
  const charts = [];

  const drawList = (rows) => replace(list, rows.map((row) => h("li", {}, h("a", { href: `#/turns/${row.number}`, "aria-current": row.number === chosen ? "true" : null },
    h("span", { class: "first" }, h("b", {}, `Turn ${row.number}`), result(row)),
    h("span", {}, words(row.strategy)),
    h("span", { class: "muted" }, row.digest ? [chipText(shared, row.digest), row.num_trials ? ` · ${plural(row.num_trials, "simulation")}` : ""] : "no candidate")))));

  async function drawDetail() {
    const turn = await get("turn", { number: chosen }, signal);
    charts.splice(0).forEach((each) => each.dispose());
    const spans = h("div", { class: "maybe" });
    replace(detail, whole(shared, turn, charts), spans);
    spansInto(spans, { turn: chosen }, signal).catch(() => {});
  }
  drawList(found.turns);
  await drawDetail();
  return {
    title: `Turn ${chosen}`, node,
    changed: async (what) => {
      if (!what.includes("turns")) return;
      drawList((await get("turns", {}, signal)).turns);
      await drawDetail();
    },
    told: (line) => { if (line.turn === chosen) drawDetail().catch(() => {}); },
    dispose: () => charts.forEach((each) => each.dispose()),
  };
}

function result(row) {
  if (!row.over) return h("span", { class: "tag on" }, "under way");
  if (row.rolled_back) return h("span", { class: "tag open" }, "rolled back");
  if (row.released) return h("span", { class: "tag good" }, "✓ released");
  if (row.outcome) return outcome(row.outcome);
  return h("span", { class: "tag" }, words(row.strategy === "hold" ? "held" : "no verdict"));
}

const chipText = (shared, digest) => {
  const known = shared.policies.get(digest);
  return h("span", { class: "chip" }, h("i", { class: known && known.place !== null ? `dot p${known.place % 5}` : "dot" }), known ? `v${known.version}` : digest.slice(0, 8));
};

function whole(shared, turn, charts) {
  const { plan, evidence } = turn;
  return [
    h("div", { class: "pair" },
      card(`Turn ${turn.number}: ${words(turn.strategy)}`, result(turn), body(
        h("ul", { class: "reasons" }, plan.reasons.map((each) => h("li", {}, each))),
        facts({
          "starts from": plan.warm_start ? chip(shared.policies, plan.warm_start) : "fresh weights",
          "trains in": trainedIn(plan.parameters, plan.corrected),
          why: evidence.cause ? evidence.cause.sentences.map((each) => h("div", {}, each)) : null,
          "learns from": plan.learns_from,
          exploration: plan.exploration === 1 ? null : `× ${number(plan.exploration)}`,
          alarms: plan.signals.length ? plan.signals.map((each) => h("div", {}, h("span", { class: "bad" }, words(each.kind)), ` (${each.monitor}) at `, h("a", { class: "mono", href: `#/episode/${encodeURIComponent(each.at_episode)}` }, each.at_episode))) : null,
        }))),
      trained(turn, charts)),
    turn.verdict ? card("Verdict", [outcome(turn.verdict.outcome), time(turn.verdict.judged_at)], checksOf(turn.verdict), trialsOf(turn.verdict, shared)) : card("Verdict", null, body(h("p", { class: "small-note" }, turn.strategy === "hold" ? "Nothing was judged: the policy in service stayed." : "There is none yet."))),
    h("div", { class: "pair" },
      card("Release and what production said after", null, body(facts({
        released: turn.release ? [chip(shared.policies, turn.release.digest), " at ", time(turn.release.released_at)] : turn.over ? "nothing: the policy in service stayed" : "not yet",
        "instead of": turn.release?.previous ? chip(shared.policies, turn.release.previous) : null,
        "on earlier episodes": evidence.off_policy?.said ?? null,
        episodes: turn.over ? count(turn.episodes) : "being watched",
        "mean return": turn.over ? [number(turn.mean_return), evidence.before ? ` (before the change ${number(evidence.before)})` : ""] : null,
        recovered: turn.over ? (turn.recovered ? h("span", { class: "good" }, turn.strategy === "hold" && plan.signals.length ? "its return is as good as before the change; the alarms it held for were not answered" : "yes: production is as good as before the change") : evidence.before ? "no: the change is not cured" : "nothing to recover from") : null,
        alarms: evidence.signals?.length ? evidence.signals.map((each) => h("div", {}, h("span", { class: "bad" }, words(each.kind ?? String(each))), each.monitor ? ` by the ${each.monitor} monitor` : "")) : turn.over ? "none" : null,
      }))),
      card("Where its time went", seconds(Object.values(turn.seconds).reduce((sum, each) => sum + each, 0)), body(bars(turn.seconds)))),
    card("What was said", null, h("ol", { class: "story" }, turn.story.length ? turn.story.map((line) => h("li", {}, h("time", { datetime: new Date(line.at * 1000).toISOString(), title: utc(line.at) }, clock(line.at)), h("b", {}, line.stage), h("span", {}, line.text))) : h("li", { class: "muted" }, "This run was made before stories were kept."))),
  ];
}

function bars(spent) {
  const most = Math.max(...Object.values(spent), 1e-9);
  const rows = Object.entries(spent);
  if (!rows.length) return h("p", { class: "small-note" }, "Known when the turn is over.");
  return h("div", { class: "bars" }, rows.map(([stage, value]) => [h("span", {}, stage), h("i", { style: { "--share": `${(100 * value) / most}%` } }), h("span", { class: "num" }, seconds(value))]));
}

function trained(turn, charts) {
  const { curve } = turn;
  if (curve.steps.length < 2) {
    return card("Training", null, body(h("p", { class: "small-note" }, turn.strategy === "hold" ? "Nothing was trained." : "No iteration is known: it has not begun, or the run was made before stories were kept.")));
  }
  const last = curve.return.filter((each) => each !== null).at(-1);
  const chart = new Chart({
    label: `Training of turn ${turn.number}: return ${number(last)} after ${count(curve.steps.at(-1))} steps`, height: 210,
    data: [curve.steps, curve.return, curve.failed],
    make: () => ({
      padding: [10, 4, 0, 0],
      scales: { x: { time: false }, y: { range: (_, min, max) => [Math.min(0, min ?? 0), (max ?? 1) * 1.05] }, share: { range: () => [0, 1] } },
      axes: [xAxis({ values: (_, ticks) => ticks.map((tick) => count(tick)) }), axis({ values: (_, ticks) => ticks.map((tick) => number(tick)) }),
        axis({ side: 1, scale: "share", size: 40, grid: { show: false }, splits: () => [0, 0.5, 1], values: (_, ticks) => ticks.map((tick) => `${100 * tick} %`) })],
      series: [{}, { stroke: () => color("ink"), width: 1.6, points: { show: curve.steps.length < 40, size: 4, fill: () => color("ink") } },
        { stroke: () => color("bad"), width: 1.2, dash: [4, 3], scale: "share", points: { show: false } }],
    }),
    onmove: (i) => say(i),
  });
  charts.push(chart);
  const readout = h("p", { class: "readout flat" });
  const say = (i) => replace(readout, i === null || i === undefined ? [h("span", {}, "— mean return"), h("span", { class: "bad" }, "- - failed in the gate's probe")] : [h("span", {}, h("b", {}, count(curve.steps[i])), " steps"), h("span", {}, "return ", h("b", {}, number(curve.return[i]))), h("span", { class: "bad" }, `probe: ${percent(curve.failed[i], 0)} failed`)]);
  say(null);
  return card("Training", `${count(curve.steps.at(-1))} steps`, h("div", { class: "pad" }, chart.node), readout);
}
