/* A challenger beside the champion: how far it is, what speaks for which of its ends, and what an operator decides. */
import { post } from "../api.js";
import { h, replace } from "../dom.js";
import { count, number, percent, plural, shell, short, words } from "../format.js";
import { body, card, chip, facts, reasoned, time, toast } from "../parts.js";

export const share = (value) => `${number(100 * value, 3)} %`;
const version = (shared, digest) => `v${shared.policies.get(digest)?.version ?? "?"}`;
const TAGS = { promoted: "tag good", rolled_back: "tag bad", stopped: "tag open", timed_out: "tag open", frozen: "tag open" };

export function where(each) {
  if (each.state === "canary" && each.is_proven) return h("span", { class: "tag good" }, "waits for approval");
  if (each.state === "canary") return h("span", { class: "tag on" }, `${share(each.share)} of new episodes`);
  if (each.state === "shadow") return h("span", { class: "tag on" }, "in the shadow");
  return h("span", { class: TAGS[each.state] ?? "tag" }, words(each.state));
}

/* The one on its way, as a card whose buttons stay the same while its numbers change under them. */
export function trying(shared) {
  const [actions, content] = [h("div", { class: "end" }), body()];
  const node = h("section", { class: "card", hidden: true }, h("header", {}, h("h2", {}, "Challenger"), actions), content);
  let known = "";
  return {
    node,
    show(each) {
      node.hidden = !each;
      if (!each) return;
      replace(content, told(shared, each));
      const now = JSON.stringify([each.challenger, each.begun_at, each.state, each.is_proven, shared.role]);
      if (now !== known) replace(actions, decisions(shared, each));
      known = now;
    },
  };
}

/* One that is on its way, or over: where it is, both arms, the evidence. */
export function told(shared, each) {
  return h("div", { class: "trying" },
    h("div", {},
      h("p", { class: "contender" }, chip(shared.policies, each.challenger), where(each)),
      ramp(each),
      facts({
        since: time(each.changed_at),
        because: each.is_over || each.state === "frozen" ? each.reason : null,
        frozen: each.is_over && each.frozen ? [time(each.frozen[0]), `: ${each.frozen[1]}`] : null,
        next: each.next,
        "if not": each.ends_at ? ["the champion stays if nothing is certain by ", time(each.ends_at)] : null,
        began: [time(each.begun_at), each.is_urgent ? ", while an alarm condemned the champion" : ""],
      })),
    h("div", {}, arms(shared, each),
      h("p", { class: "small-note" }, each.num_shadowed ? `${plural(each.num_shadowed, "decision")} in the shadow, ${count(each.num_same)} of them the champion's.` : "No decision in the shadow.")),
    h("div", { class: "meters" }, each.evidence.map(meter),
      h("p", { class: "small-note" }, "Evidence is a factor, as in Wald's sequential test: 1 is none, less speaks against it. It may be looked at as often as one likes. The bars are logarithmic.")));
}

function ramp(each) {
  const had = new Set(each.spans.map((span) => span.share));
  const now = each.state === "frozen" || (each.is_over && each.state !== "promoted") ? null : each.share;
  const step = (value) => h("li", { class: value === now ? "on" : had.has(value) ? "done" : "", "aria-current": value === now ? "step" : null },
    value === 0 ? "shadow" : value === 1 ? "all" : share(value));
  return h("ol", { class: "ramp", "aria-label": "Its share of new episodes" }, [0, ...each.ramp, 1].map(step));
}

function arms(shared, each) {
  const row = (digest, name, i) => h("tr", {}, h("th", { scope: "row" }, chip(shared.policies, digest, false), ` ${name}`),
    h("td", { class: "num" }, `${count(each.num_failed[i])} of ${count(each.num[i])}`),
    h("td", { class: "num" }, percent(each.num[i] ? each.num_failed[i] / each.num[i] : null)),
    h("td", { class: "num" }, count(each.num_lost[i])));
  return h("table", { class: "small" }, h("caption", { class: "unseen" }, "Outcomes of both arms since it was given its first share"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Outcomes"), ["failed", "rate", "lost"].map((name) => h("th", { scope: "col", class: "num" }, name)))),
    h("tbody", {}, row(each.challenger, "challenger", 1), row(each.champion, "champion", 0)));
}

const HUES = ["bad", "good", "change"];
function meter({ claim, value, acts_at: enough, then }, i) {
  const shown = `${value > 1e6 ? "over 1,000,000" : number(value, 3)} of ${count(enough)}`;
  const reached = Math.max(0, Math.min(1, Math.log(value) / Math.log(enough)));
  return h("div", { class: "meter" },
    h("p", {}, h("span", {}, claim[0].toUpperCase() + claim.slice(1)), h("b", {}, shown)),
    h("div", { class: `gauge ${HUES[i]}`, role: "meter", "aria-label": claim, "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": reached.toFixed(2), "aria-valuetext": shown, style: { "--share": `${100 * reached}%` } }),
    h("small", {}, `At ${count(enough)} ${then}; if that is not so, it still happens in ${percent(1 / enough)} of cases at most.`));
}

const WORDS = {
  approve: { verb: "Approve", danger: false, says: (who, champion) => `${who} answers all clients from now on, in place of ${champion}.` },
  freeze: { verb: "Freeze", danger: true, says: (who, champion) => `${who} gets no more episodes, and ${champion} answers those that it began. It can be dropped later, or makes room for another challenger; it does not go on.` },
  drop: { verb: "Drop", danger: true, says: (who, champion) => `${who} is rolled back and condemned for good, and ${champion} answers all clients.` },
};

/* What may be decided now, as buttons, for whoever may operate. */
export function decisions(shared, each) {
  if (shared.role !== "operate" || each.is_over) return null;
  const may = { approve: each.state === "canary" && each.is_proven, freeze: each.state !== "frozen", drop: true };
  return Object.keys(WORDS).filter((word) => may[word]).map((word) => {
    const { verb, danger, says } = WORDS[word];
    return h("button", { type: "button", class: danger ? "danger" : "main", onclick: () => decide(shared, each, word, verb, danger, says) }, `${verb} ${version(shared, each.challenger)} …`);
  });
}

async function decide(shared, each, word, verb, danger, says) {
  const who = `${version(shared, each.challenger)} (${short(each.challenger)})`;
  const reason = await reasoned({
    title: `${verb} ${version(shared, each.challenger)}?`, text: says(who, version(shared, each.champion)), verb, danger,
    line: (why) => `flywheel canary ${word} ${short(each.challenger)} --reason ${shell(why)} --run-dir ${shell(shared.about.run_dir)}`,
  });
  if (!reason) return;
  toast("Telling the registry …");
  try {
    toast((await post("canary", { word, digest: each.challenger, reason })).done);
    window.dispatchEvent(new HashChangeEvent("hashchange"));
  } catch (error) {
    toast(error.message);
  }
}

/* Every challenger, newest first, with what became of it and why. */
export function challengers(shared, found) {
  if (!found.length) return null;
  const columns = [["Challenger", ""], ["State", ""], ["Beside", ""], ["Share", "num"], ["Failed", "num"], ["Champion's", "num"], ["Why, or what is next", ""], ["Tried", ""]];
  const failed = (each, i) => (each.num[i] ? `${count(each.num_failed[i])} of ${count(each.num[i])}` : "–");
  return card("Challengers", decisions(shared, found[0]), h("div", { class: "scroll flush" }, h("table", { class: "challengers stacked" }, h("caption", { class: "unseen" }, "Challengers, newest first"),
    h("thead", {}, h("tr", {}, columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))),
    h("tbody", {}, found.map((each) => h("tr", {},
      h("td", {}, chip(shared.policies, each.challenger)), h("td", {}, where(each)), h("td", { data: { label: "beside" } }, chip(shared.policies, each.champion, false)),
      h("td", { class: "num", data: { label: "share" } }, reached(each)),
      h("td", { class: "num", data: { label: "failed" } }, failed(each, 1)), h("td", { class: "num", data: { label: "champion's" } }, failed(each, 0)),
      h("td", { class: "wide" }, each.reason || each.next), h("td", { data: { label: "tried" } }, time(each.begun_at), " – ", each.is_over ? time(each.changed_at) : "now")))))));
}

const reached = (each) => {
  const most = Math.max(0, ...each.spans.map((span) => span.share));
  return most ? share(most) : "shadow";
};
