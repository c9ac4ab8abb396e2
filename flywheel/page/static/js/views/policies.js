/* Policies: their lineage, their verdicts, where and when each served or was tried; and rolling back. */
import { address, Failed, get, post, remove } from "../api.js";
import { h } from "../dom.js";
import { count, number, percent, plural, seconds, shell, short, words } from "../format.js";
import { body, card, chip, commands, confirm, copy, facts, figure, head, note, outcome, time, toast, trainedIn } from "../parts.js";
import { challengers, share, told } from "./challenger.js";
import { checksOf, trialsOf } from "./verdict.js";

export async function policies(shared, to, signal) {
  return to.rest[0] ? one(shared, to.rest[0], signal) : all(shared, signal);
}

const STATES = { "in service": "tag on", challenger: "tag on", control: "tag", frozen: "tag open", condemned: "tag bad", "rolled back": "tag bad", "timed out": "tag open", stopped: "tag open" };
const state = (each) => h("span", { class: STATES[each.state] ?? "tag", title: each.condemned?.reason }, each.state);

async function all(shared, signal) {
  const [found, { scenarios }] = await Promise.all([get("policies", {}, signal), get("scenarios", {}, signal)]);
  shared.policies = new Map(found.policies.map((each) => [each.digest, each]));
  const run = `--run-dir ${shell(shared.about.run_dir)}`;
  const table = h("div", { class: "card scroll" }, h("table", { class: "policies stacked" }, h("caption", { class: "unseen" }, "Policies, newest first"),
    h("thead", {}, h("tr", {}, ["Policy", "State", "From", "Trained by", "Verdict"].map((each) => h("th", { scope: "col" }, each)),
      ["At the gate", "Episodes", "Failed", "Mean return"].map((each) => h("th", { scope: "col", class: "num" }, each)), h("th", { scope: "col" }, "Served"))),
    h("tbody", {}, found.policies.map((each) => row(shared, each)))));
  const node = h("div", { class: "view" }, head("Policies", plural(found.policies.length, "policy", "policies"), rollback(shared, found)),
    found.policies.length ? [lineage(shared, found.policies), challengers(shared, found.challenges), table] : note("No policy yet", "The first candidate that training brings forth is here as soon as it is exported, and stays, whatever the gate says of it."),
    suite(shared, scenarios, run),
    card("The gate's error budget", `${plural(found.tries, "candidate")} since it was filled`, body(h("p", { class: "small-note" }, found.tries
      ? "The next candidate needs more simulations than the last one did, so that trying often doesn't wear the gate down. Production fills the budget when it confirms a release (at a limit of 5 %: 100 episodes of which none failed, and no alarm); a person can, for a reason."
      : "It is whole: the next candidate needs as few simulations as any."))),
    card("The same in a terminal", null, body(commands(["CLI", `flywheel policies list ${run}`], ["CLI", `flywheel canary ${run}`], ["CLI", `flywheel scenarios list ${run}`], ["CLI", `flywheel budget ${run}`], found.previous && ["CLI", `flywheel rollback ${run}`]))));
  node.lastChild.classList.add("after");
  return { title: "Policies", node, changed: (what) => { if (what.includes("policies") || what.includes("production")) refresh(shared, node, signal); } };
}

/* Draws it again, but not behind a dialog or under a finger that is down; what had the focus has it again. */
let waiting;
async function refresh(shared, node, signal) {
  const fresh = await all(shared, signal).catch(() => null);
  if (!fresh) return;
  clearTimeout(waiting);
  if (document.querySelector("dialog[open]") || node.querySelector(":active")) {
    waiting = setTimeout(() => refresh(shared, node, signal), 500);
    return;
  }
  const focused = node.contains(document.activeElement) ? document.activeElement : null;
  const alike = () => [...node.querySelectorAll("a, button")].filter((each) => each.textContent === focused.textContent);
  const place = focused && alike().indexOf(focused);
  node.replaceChildren(...fresh.node.children);
  if (focused) alike()[place]?.focus({ preventScroll: true });
}

function row(shared, each) {
  const rate = each.episodes ? each.failed / Math.max(1, each.episodes - each.lost) : null;
  return h("tr", { class: "link", onclick: (event) => { if (!event.target.closest("a, button")) shared.go(`#/policies/${each.digest}`); } },
    h("td", {}, h("span", { class: "id" }, chip(shared.policies, each.digest), copy(each.digest, "digest"))),
    h("td", {}, state(each)),
    h("td", { data: { label: "from" } }, each.parent ? chip(shared.policies, each.parent, false) : h("span", { class: "muted" }, "afresh")),
    h("td", {}, words(each.trained_on.strategy ?? "elsewhere")),
    h("td", {}, outcome(each.outcome)),
    h("td", { class: each.num_failed ? "num bad" : "num", data: { label: "at the gate" } }, each.num_trials ? `${count(each.num_failed)} of ${count(each.num_trials)} failed` : "–"),
    h("td", { class: "num", data: { label: "episodes" } }, each.episodes ? count(each.episodes) : "–"),
    h("td", { class: "num", data: { label: "failed" } }, percent(rate)),
    h("td", { class: "num", data: { label: "mean return" } }, number(each.mean_return)),
    h("td", { data: { label: "served" } }, each.served.length ? served(each.served.at(-1)) : h("span", { class: "muted" }, "never")));
}

/* What every candidate must master besides the task's own edge cases: failures of production, and forks that somebody saved. */
function suite(shared, scenarios, run) {
  const drop = (each) => h("button", { type: "button", class: "small", onclick: async () => {
    const sure = await confirm({ title: `Drop ${each.name}?`, text: "No candidate from now on is asked to master it.", verb: "Drop", lines: [["CLI", `flywheel scenarios drop ${shell(each.name)} ${run}`]] });
    if (!sure) return;
    toast("Dropping …");
    try {
      toast((await remove("scenarios", { name: each.name })).done);
      window.dispatchEvent(new HashChangeEvent("hashchange"));
    } catch (error) {
      toast(error.message);
    }
  } }, "Drop …");
  return card("The gate's suite", plural(scenarios.length, "scenario"), scenarios.length
    ? h("div", { class: "scroll flush" }, h("table", { class: "stacked" }, h("caption", { class: "unseen" }, "Scenarios that every candidate must master"),
        h("thead", {}, h("tr", {}, ["Scenario", "Made of", "Why", "Begins with", "Last candidate", "Since"].map((each) => h("th", { scope: "col" }, each)), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Drop")))),
        h("tbody", {}, scenarios.map((each) => h("tr", {}, h("th", { scope: "row" }, each.name), h("td", {}, h("a", { href: `#/fork/${encodeURIComponent(each.episode)}?t=${each.step}` }, `step ${each.step} of `, h("span", { class: "mono" }, each.episode.slice(0, 12)))), h("td", {}, each.origin === "production" ? "it failed in production" : each.edits.join("; ") || "saved as it was"), h("td", { data: { label: "begins with" } }, each.begins), h("td", { data: { label: "last candidate" } }, each.last ? `${each.last}, ${each.state}` : "none yet"), h("td", { data: { label: "since" } }, time(each.saved_at)), h("td", { class: "num" }, shared.role === "operate" && drop(each)))))))
    : body(h("p", { class: "small-note" }, "There is none yet. An episode that fails in production becomes a scenario by itself, and so does a fork that is saved: every later candidate must master it, beside the task's own edge cases.")));
}

const served = (span) => h("span", {}, time(span.from), " – ", span.to ? time(span.to) : "now", part(span));
const part = (span) => (span.stage === "shadow" ? ", in the shadow" : span.share < 1 ? `, ${share(span.share)} of new episodes` : "");

/* When each policy served, on one line of time, and which one it was trained from: as high as its share, dashed in the shadow. */
function lineage(shared, rows) {
  const spans = rows.flatMap((each) => [...each.served, ...each.shadowed]);
  if (!spans.length) return null;
  const begin = Math.min(...rows.map((each) => each.made_at).filter(Boolean), ...spans.map((span) => span.from));
  const last = Math.max(...rows.map((each) => each.made_at), ...spans.map((span) => span.to ?? span.from), shared.about.living ? Date.now() / 1000 : shared.toldAt ?? 0, begin + 1);
  const end = Math.max(last, begin + (last - begin) * 1.02);
  const place = (at) => `${(100 * (at - begin)) / (end - begin)}%`;
  const beside = (at) => (2 * at > begin + end ? { right: `calc(100% - ${place(at)})` } : { left: place(at) });
  const lines = rows.slice().reverse();
  return card("Who served when", `${seconds(end - begin)} in all`, h("div", { class: "lanes" }, lines.map((each) => [
    h("span", { class: "lane-name" }, chip(shared.policies, each.digest, false), each.parent && h("small", {}, `from v${shared.policies.get(each.parent)?.version ?? "?"}`)),
    h("span", { class: `lane ${each.place === null ? "" : `p${each.place % 5}`}` },
      h("i", { class: "made", style: { left: place(Math.max(begin, each.made_at)) }, title: `made, and judged: ${each.outcome ?? "not yet"}` }),
      [...each.shadowed, ...each.served].map((span) => h("i", { class: span.share < 1 ? `span ${span.stage}` : "span", style: { left: place(span.from), right: `calc(100% - ${place(span.to ?? end)})`, "--share": span.share }, title: span.share < 1 ? `${span.stage === "full" ? span.share < 0.5 ? "control" : "in service" : "challenger"}${part(span)}` : "in service" })),
      !each.served.length && !each.shadowed.length && h("small", { style: beside(each.made_at) }, each.outcome === "fail" ? "refused by the gate" : "never served"))])),
    spans.some((span) => span.share < 1) && h("p", { class: "readout" }, "A challenger's bar is as high as its share of new episodes, and so is that of a control, which stays on the policy before; dashed in the shadow, where it acts and is not heard."));
}

function rollback(shared, found) {
  if (!found.previous || shared.role !== "operate") return null;
  const previous = found.policies.find((each) => each.digest === found.previous);
  const present = found.policies.find((each) => each.state === "in service");
  return h("button", { class: "danger", type: "button", onclick: async () => {
    const sure = await confirm({
      title: `Roll back to v${previous.version}?`, verb: "Roll back",
      text: `v${present.version} (${short(present.digest)}) is condemned for good, and v${previous.version} (${short(previous.digest)}) answers clients again.`,
      lines: [["CLI", `flywheel rollback --run-dir ${shell(shared.about.run_dir)}`]],
    });
    if (!sure) return;
    toast("Rolling back …");
    try {
      toast((await post("rollback")).done);
      window.dispatchEvent(new HashChangeEvent("hashchange"));
    } catch (error) {
      toast(error.message);
    }
  } }, `Roll back to v${previous.version} …`);
}

async function one(shared, digest, signal) {
  if (!/^[0-9a-f]{64}$/.test(digest)) throw new Failed(404, `There is no policy ${digest}.`);
  const each = await get("policy", { digest }, signal);
  const run = shell(shared.about.run_dir);
  const rate = each.episodes ? each.failed / Math.max(1, each.episodes - each.lost) : null;
  const node = h("div", { class: "view" },
    head(`Policy v${each.version}`, h("span", { class: "id" }, h("code", {}, each.digest.slice(0, 16)), copy(each.digest, "digest")), state(each), outcome(each.outcome)),
    h("div", { class: "pair" },
      card("Where it comes from", time(each.made_at), body(facts({
        "trained by": words(each.trained_on.strategy ?? "elsewhere"),
        "starts from": each.parent ? chip(shared.policies, each.parent) : "fresh weights",
        "trained in": trainedIn(each.trained_on.parameters ?? {}, each.corrected),
        steps: each.trained_on.steps ? count(each.trained_on.steps) : null,
        acts: [each.rule.greedy ? "the most likely action" : "drawn from its distribution", each.rule.exploration_rate ? `, exploration rate ${number(each.rule.exploration_rate)}` : "", each.rule.temperature !== 1 ? `, temperature ${number(each.rule.temperature)}` : ""],
        condemned: each.condemned ? h("span", { class: "bad" }, `${each.condemned.reason}, `, time(each.condemned.at)) : null,
      }))),
      card("In production", each.episodes ? h("a", { href: `#/episodes?digest=${each.digest}` }, "its episodes") : null, body(each.served.length
        ? [h("div", { class: "figures" }, figure(number(each.mean_return), "mean return"), figure(percent(rate), "failed", `${count(each.failed)} of ${plural(each.episodes, "episode")}`)),
          facts(Object.fromEntries(each.served.map((span, i) => [i ? `served ${i + 1}` : "served", served(span)])))]
        : h("p", { class: "small-note" }, "It never answered a client.")))),
    each.challenges.map((tried) => card("As a challenger", ["beside ", chip(shared.policies, tried.champion, false)], body(told(shared, tried)))),
    each.verdicts.length
      ? each.verdicts.map((verdict, i) => card("Verdict", [outcome(verdict.outcome), time(verdict.judged_at), h("a", { href: address("verdict", { digest, number: each.verdicts.length - 1 - i }), target: "_blank", rel: "noopener" }, "as a page to keep")],
          body(facts({ against: verdict.baseline ? chip(shared.policies, verdict.baseline) : "no policy in service", seed: h("code", {}, verdict.seed), cost: seconds(verdict.cost_s) })), checksOf(verdict), trialsOf(verdict, shared)))
      : card("Verdict", null, body(h("p", { class: "small-note" }, "It was never judged, so it is never served."))),
    card("The same in Python", null, body(commands(["Python", `flywheel.connect(${JSON.stringify(shared.about.run_dir)}).policies[${JSON.stringify(each.digest)}]`], ["CLI", `flywheel gate --policy ${each.digest.slice(0, 12)} --run-dir ${run}`], ["CLI", `flywheel policies list --run-dir ${run}`]))));
  return { title: `Policy v${each.version}`, node };
}
