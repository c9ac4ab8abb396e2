/* A verdict: its questions with their answers, and its trials, each failing one a click from its replay. */
import { h, replace } from "../dom.js";
import { count, fixed, number, percent, plural, words } from "../format.js";
import { body, id } from "../parts.js";

const ANSWERS = { true: ["good", "✓ passed"], false: ["bad", "✗ failed"], null: ["open", "? open"] };

export function checksOf(verdict) {
  const note = verdict.corrected && h("p", { class: "caption" }, `Judged in corrected worlds: ${verdict.corrected}. Its simulations do so, too, when they are played again.`);
  return [note, h("div", { class: "scroll flush" }, h("table", { class: "checks stacked" }, h("caption", { class: "unseen" }, "Questions of the gate"),
    h("thead", {}, h("tr", {}, ["Question", "Answer"].map((each) => h("th", { scope: "col" }, each)), ["Value", "95 % interval", "Limit"].map((each) => h("th", { scope: "col", class: "num" }, each)), h("th", { scope: "col" }, "Why"))),
    h("tbody", {}, verdict.checks.map((check) => {
      const [kind, text] = ANSWERS[String(check.passed)];
      return h("tr", {}, h("th", { scope: "row" }, words(check.name)), h("td", {}, h("span", { class: `tag ${kind}` }, text)),
        h("td", { class: "num", data: { label: "value" } }, figureOf(check, check.value)), h("td", { class: "num", data: { label: "95 %" } }, spanOf(check)), h("td", { class: "num", data: { label: "limit" } }, figureOf(check, check.bound)), h("td", { class: "wide" }, check.note));
    }))))];
}

const isShare = (check) => ["failure_rate", "regression", "interval"].includes(check.name);
const figureOf = (check, value) => (value === null ? "–" : isShare(check) ? percent(value) : check.name === "cost" ? `${number(value * 1e6, 3)} µs` : number(value));
const spanOf = (check) => {
  const [low, high] = check.interval;
  return low === null || high === null ? "–" : `${figureOf(check, low)} – ${figureOf(check, high)}`;
};

const SHOWN = 12;

export function trialsOf(verdict, shared) {
  const failed = verdict.trials.filter((each) => each.failed);
  const rows = failed.length ? failed : verdict.trials;
  if (!rows.length) return body(h("p", { class: "small-note" }, "Nothing was simulated."));
  const table = h("tbody");
  const draw = (num) => replace(table, rows.slice(0, num).map(row));
  const row = (trial) => h("tr", { class: "link", onclick: (event) => { if (!event.target.closest("a, button")) shared.go(`#/episode/${trial.episode}`); } },
    h("td", {}, id(trial.episode, `#/episode/${trial.episode}`)), h("td", {}, words(trial.scenario)), h("td", {}, trial.failed ? h("span", { class: "tag bad" }, "✗ failed") : h("span", { class: "tag" }, "fine")),
    h("td", { class: "num", data: { label: "return" } }, number(trial.total)), h("td", { class: "num", data: { label: "steps" } }, count(trial.length)), h("td", { class: "num", data: { label: "margin" } }, fixed(trial.margin, 3)), h("td", { class: "num mono", data: { label: "seed" } }, trial.seed));
  draw(SHOWN);
  const more = rows.length > SHOWN && h("button", { type: "button", onclick: () => { draw(rows.length); more.remove(); } }, `Show all ${count(rows.length)}`);
  return h("div", { class: "flush" },
    h("p", { class: "caption" }, failed.length ? `${count(failed.length)} of ${plural(verdict.num_trials, "simulation")} failed; each one can be played again, step by step.` : `None of ${plural(verdict.num_trials, "simulation")} failed; those with the least return first.`),
    h("div", { class: "scroll" }, h("table", { class: "stacked" }, h("caption", { class: "unseen" }, "Simulations"),
      h("thead", {}, h("tr", {}, ["Simulation", "Scenario", ""].map((each) => h("th", { scope: "col" }, each)), ["Return", "Steps", "Margin", "Seed"].map((each) => h("th", { scope: "col", class: "num" }, each)))), table)),
    more && h("div", { class: "more-rows" }, more));
}

