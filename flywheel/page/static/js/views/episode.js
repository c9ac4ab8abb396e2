/* One episode, step by step: what was seen, done and gained, with its pictures; where it parts from its replay. */
import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { count, number, seconds, shell, shortId, stepOf, words } from "../format.js";
import { body, card, chip, commands, copy, ended, head, strip, time } from "../parts.js";
import { Film, Scrubber } from "../player.js";
import { Strips } from "../strips.js";
import { spansInto } from "./spans.js";

export function stripsOf(courses) {
  const [one] = courses;
  const likely = one.discrete ? "probability" : "density";
  return [
    ...one.names.map((name, i) => ({ name, courses: courses.map((each) => each.observations[i]) })),
    ...one.actions.map((_, i) => ({ name: one.actions.length > 1 ? `action[${i}]` : "action", courses: courses.map((each) => each.actions[i]), stepped: one.discrete })),
    { name: likely, courses: courses.map((each) => each.probabilities) },
    { name: "reward", courses: courses.map((each) => each.rewards), stepped: true },
  ].filter((strip) => strip.courses.some((values) => values.some((value) => value !== null)));
}

const quiet = (error) => { if (error.name === "AbortError") throw error; return { values: null, residuals: null }; };

const expectedOf = ({ values, residuals }) => [
  values && { name: "value (the critic's, discounted)", courses: [values] },
  residuals && { name: "residual (world − simulator)", courses: [residuals] },
].filter(Boolean);

export async function episode(shared, to, signal) {
  const [each, expected] = await Promise.all([get("episode", { id: to.rest[0] }, signal), get("expected", { id: to.rest[0] }, signal).catch(quiet)]);
  const lines = [];
  const num = each.num_steps;
  const film = new Film(each.id, num, signal);
  const strips = new Strips({ strips: [...stripsOf([each]), ...expectedOf(expected)], num, hues: ["ink"], lines: () => lines, onpick: (t) => scrubber.go(t) });
  const step = h("div", { class: "step" });
  const stage = h("div", { class: "stage" }, film.canvas);
  const link = h("a", { class: "button main", href: "" }, "Fork here");
  let refused = "";
  const around = h("tbody");
  const scrubber = new Scrubber({ num, onstep: show });

  async function show(t) {
    strips.set(t);
    replace(step, atStep(shared, each, t));
    history.replaceState(null, "", `#/episode/${encodeURIComponent(each.id)}?t=${t}`);
    if (!refused) link.href = `#/fork/${encodeURIComponent(each.id)}?t=${Math.min(t, num - 1)}`;
    replace(around, nearby(each, t));
    if (!(await film.show(t)) && film.obstacle) replace(stage, h("p", { class: "small-note" }, film.obstacle));
  }

  const verdict = h("div", { class: "check" }, h("span", { class: "muted" }, "making every decision again …"));
  const spans = h("div", { class: "maybe" });
  const run = shell(shared.about.run_dir);
  const node = h("div", { class: "view" },
    head("Episode", h("span", { class: "id" }, h("code", { title: each.id }, shortId(each.id)), copy(each.id, "episode's id")), ended(each), link),
    h("div", { class: "card summary" }, body(strip({
      return: h("b", {}, number(each.total)), steps: count(num), ended: words(each.end), policy: each.digests.map((digest) => [chip(shared.policies, digest), " "]),
      origin: each.origin === "gate" ? `the gate, scenario ${words(each.scenario)}` : words(each.origin), started: each.started_at ? time(each.started_at) : null,
      took: each.ended_at > each.started_at ? seconds(each.ended_at - each.started_at) : null,
      seed: each.seed === null ? null : h("code", {}, each.seed),
      parameters: Object.keys(each.parameters).length ? Object.entries(each.parameters).map(([name, value]) => `${name} ${number(value)}`).join(", ") : null,
      edits: each.edits.length ? each.edits.join("; ") : null,
      "forked from": each.parent ? h("a", { href: `#/episode/${encodeURIComponent(each.parent[0])}` }, `step ${each.parent[1]} of ${shortId(each.parent[0])}`) : null,
      "its course": verdict,
    }))),
    h("div", { class: "watch" },
      card("", null, stage, scrubber.node, h("div", { class: "body step-of" }, step)),
      card("Over its steps", each.num_columns > each.names.length ? `the first ${each.names.length} of ${each.num_columns} numbers of an observation` : "choose a place to go there", h("div", { class: "body" }, strips.node))),
    spans,
    h("details", { class: "card" }, h("summary", {}, "Steps as a table"), h("div", { class: "scroll" }, h("table", {}, h("caption", { class: "unseen" }, "Steps around the one that is shown"), h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "num" }, "Step"), each.names.map((name) => h("th", { scope: "col", class: "num" }, name)), each.actions.map((_, i) => h("th", { scope: "col", class: "num" }, each.actions.length > 1 ? `action[${i}]` : "action")), h("th", { scope: "col", class: "num" }, each.discrete ? "probability" : "density"), h("th", { scope: "col", class: "num" }, "reward"))), around))),
    card("The same in a terminal and in Python", null, body(commands(
      ["CLI", `flywheel diverge ${shell(each.id)} --run-dir ${run}`],
      ["CLI", `flywheel fork ${shell(each.id)} --run-dir ${run} --at 0`],
      ["Python", `flywheel.connect(${JSON.stringify(shared.about.run_dir)}).episode(${JSON.stringify(each.id)})`]))));
  spansInto(spans, { id: each.id }, signal).catch(() => {});  // a view: the episode is all there without them
  const why = h("p", { class: "muted", id: "no-fork" });
  refusal(each, signal).then((reason) => {
    if (!reason) return;
    refused = reason;
    link.setAttribute("role", "link");
    link.removeAttribute("href");
    link.setAttribute("aria-disabled", "true");
    link.setAttribute("aria-describedby", why.id);
    replace(why, `It can't be forked: ${reason}`);
    node.querySelector(".head").after(why);
  });
  check(each, verdict, lines, strips, scrubber, signal);
  scrubber.go(stepOf(to.query, num));
  return {
    title: `Episode ${shortId(each.id)}`, node,
    key: (event) => { if (event.key.toLowerCase() === "f" && !refused) shared.go(link.getAttribute("href")); else scrubber.key(event); },
    dispose: () => { scrubber.pause(); strips.dispose(); },
  };
}

/* Why an episode can't be forked, "" where it can: a task that can't be put into a state forks what has a seed only. */
async function refusal(each, signal) {
  try {
    await get("fork", { id: each.id, at: 0 }, signal);
    return "";
  } catch (error) {
    return error.name === "AbortError" ? "" : error.message;
  }
}

async function check(each, place, lines, strips, scrubber, signal) {
  try {
    const { difference } = await get("diverges", { id: each.id }, signal);
    if (!difference) {
      replace(place, h("span", { class: "good" }, "✓ as it should have been"), h("span", { class: "muted" }, ": every decision is made again, and the world does as the simulator"));
      return;
    }
    lines.push({ value: difference.step, hue: "bad", label: "parts here" });
    strips.redraw();
    replace(place, h("span", { class: "bad" }, `✗ parts at step ${difference.step}, by its ${difference.kind}: `), h("span", {}, `${difference.note} `), h("button", { type: "button", onclick: () => scrubber.go(difference.step) }, "Go there"));
  } catch (error) {
    if (error.name !== "AbortError") replace(place, h("span", { class: "muted" }, error.message));
  }
}

export function atStep(shared, each, t) {
  const over = t >= each.num_steps;
  const digest = each.digests[each.digest_at.length ? each.digest_at[t] : 0];
  return [
    h("dl", { class: "numbers" }, each.names.map((name, i) => [h("dt", {}, name), h("dd", {}, number(each.observations[i][t], 6))])),
    over ? h("p", { class: "muted" }, `The last observation: the episode ${each.end === "lost" ? "was lost" : `was ${each.end}`} here.`)
      : h("dl", { class: "numbers" },
          each.actions.map((column, i) => [h("dt", {}, each.actions.length > 1 ? `action[${i}]` : "action"), h("dd", {}, h("b", {}, number(column[t], 6)))]),
          h("dt", {}, each.discrete ? "probability" : "density"), h("dd", {}, each.probabilities[t] === null ? "–" : number(each.probabilities[t], 4)),
          h("dt", {}, "reward"), h("dd", {}, each.rewards[t] === null ? "not known" : number(each.rewards[t], 6)),
          digest && each.digests.length > 1 && [h("dt", {}, "policy"), h("dd", {}, chip(shared.policies, digest))]),
  ];
}

function nearby(each, t) {
  const begin = Math.max(0, Math.min(t - 8, each.num_steps - 16));
  const steps = Array.from({ length: Math.min(17, each.num_steps - begin + 1) }, (_, i) => begin + i);
  return steps.map((i) => h("tr", { "aria-current": i === t ? "step" : null }, h("th", { scope: "row", class: "num" }, i),
    each.observations.map((column) => h("td", { class: "num" }, number(column[i]))), each.actions.map((column) => h("td", { class: "num" }, i < column.length ? number(column[i]) : "–")),
    h("td", { class: "num" }, number(each.probabilities[i])), h("td", { class: "num" }, number(each.rewards[i]))));
}
