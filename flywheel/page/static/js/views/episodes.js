/* Episodes: which ones, in which order, a page at a time. */
import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { count, fixed, number, plural, seconds } from "../format.js";
import { body, card, chip, commands, ended, head, id, note, time } from "../parts.js";
import { shell } from "../format.js";

const COLUMNS = [["started_at", "Started"], ["total", "Return"], ["num_steps", "Steps"]];

export async function episodes(shared, to, signal) {
  const asked = Object.fromEntries(["origin", "how", "digest", "begins", "by", "descending"].map((name) => [name, to.query.get(name) ?? ""]));
  asked.by ||= "started_at";
  asked.origin ||= "production";
  asked.descending = asked.descending !== "false";
  let rows = [];
  let next = null;
  const table = h("tbody");
  const heads = h("tr");
  const more = h("div", { class: "more-rows" });
  const place = h("div");

  async function load(after) {
    const found = await get("episodes", { ...asked, ...after }, signal);
    rows = after ? rows.concat(found.episodes) : found.episodes;
    next = found.next;
    draw();
  }

  function draw() {
    const places = rows.every((each) => Number.isInteger(each.total)) ? 0 : 2;
    replace(heads, h("th", { scope: "col" }, "Episode"), h("th", { scope: "col" }, "Policy"), h("th", { scope: "col" }, "Outcome"), COLUMNS.map(([name, text]) => header(name, text)), h("th", { scope: "col", class: "num" }, "Took"), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Fork")));
    replace(table, rows.map((each) => h("tr", { class: "link", onclick: (event) => { if (!event.target.closest("a, button")) shared.go(`#/episode/${encodeURIComponent(each.id)}`); } },
      h("td", {}, id(each.id, `#/episode/${encodeURIComponent(each.id)}`)), h("td", {}, chip(shared.policies, each.digest)), h("td", {}, ended(each)),
      h("td", { class: "num" }, time(each.started_at)), h("td", { class: "num", data: { label: "return" } }, places ? fixed(each.total, places) : number(each.total)), h("td", { class: "num", data: { label: "steps" } }, count(each.num_steps)), h("td", { class: "num", data: { label: "took" } }, each.ended_at > each.started_at ? seconds(each.ended_at - each.started_at) : "–"),
      h("td", { class: "num" }, (each.origin === "gate" || shared.about.forks_production) && h("a", { href: `#/fork/${encodeURIComponent(each.id)}` }, "fork")))));
    replace(more, next && h("button", { type: "button", onclick: () => load(next) }, "Show more"), h("span", { class: "muted" }, `${count(rows.length)} shown${next ? "" : ", that is all"}`));
    replace(place, rows.length ? h("div", { class: "card" }, h("div", { class: "scroll" }, h("table", { class: "episodes stacked" }, h("caption", { class: "unseen" }, asked.origin === "gate" ? "Trials of the gate" : "Episodes of production"), h("thead", {}, heads), table)), more) : empty());
  }

  const empty = () => asked.how || asked.digest || asked.begins || asked.origin === "gate"
    ? note("No such episode", `None of ${asked.origin === "gate" ? "the gate's trials" : "production's episodes"} is like that.`, h("a", { class: "button", href: "#/episodes" }, "Show all"))
    : note("No episode yet", "Every episode that a client ends is here from then on, for good.");

  function header(name, text) {
    const on = asked.by === name;
    return h("th", { scope: "col", class: "num", "aria-sort": on ? (asked.descending ? "descending" : "ascending") : null },
      h("button", { type: "button", onclick: () => { asked.descending = on ? !asked.descending : true; asked.by = name; keep(); } }, text, on && h("span", { class: "sorted", "aria-hidden": "true" }, asked.descending ? "▼" : "▲")));
  }

  function keep() {
    const query = new URLSearchParams(Object.entries(asked).filter(([name, value]) => value !== "" && !(name === "origin" && value === "production") && !(name === "by" && value === "started_at") && !(name === "descending" && value === true)));
    history.replaceState(null, "", `#/episodes${query.size ? `?${query}` : ""}`);
    load().catch((error) => { if (error.name !== "AbortError") replace(place, note("That did not work", error.message)); });
    replace(lines, lineOf());
  }

  let typing;
  const field = (label, input) => h("label", { class: "field" }, label, input);
  const how = h("select", { onchange: (event) => { asked.how = event.target.value; keep(); } }, [["", "any"], ["failed", "failed"], ["fine", "fine"], ["lost", "lost"]].map(([value, text]) => h("option", { value, selected: value === asked.how }, text)));
  const where = h("select", { onchange: (event) => { asked.origin = event.target.value; keep(); } }, [["production", "production"], ["gate", "the gate's trials"]].map(([value, text]) => h("option", { value, selected: value === asked.origin }, text)));
  const who = h("select", { onchange: (event) => { asked.digest = event.target.value; keep(); } }, h("option", { value: "" }, "any"), [...shared.policies.values()].filter((each) => each.episodes || each.num_trials || each.digest === asked.digest).map((each) => h("option", { value: each.digest, selected: each.digest === asked.digest }, `v${each.version} ${each.digest.slice(0, 8)}`)));
  const begins = h("input", { type: "search", value: asked.begins, placeholder: "an id, or how it begins", spellcheck: "false", autocomplete: "off", oninput: (event) => { clearTimeout(typing); typing = setTimeout(() => { asked.begins = event.target.value.trim(); keep(); }, 200); } });
  const lineOf = () => commands(
    ["Python", `flywheel.connect(${JSON.stringify(shared.about.run_dir)}).episodes(${JSON.stringify([asked.origin, asked.how, asked.digest && `policy=${asked.digest.slice(0, 8)}`].filter(Boolean).join(" "))})`]);
  const lines = h("div", {}, lineOf());
  const total = [...shared.policies.values()].reduce((sum, each) => sum + each.episodes, 0);
  const node = h("div", { class: "view" }, head("Episodes", `${plural(total, "episode")} of production, and the gate's trials`),
    h("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() }, field("From", where), field("Outcome", how), field("Policy", who), field("Id", begins)), place,
    h("div", { class: "card after" }, body(h("h2", { class: "tight" }, "The same in Python"), lines)));
  await load();
  return {
    title: "Episodes", node,
    changed: (what) => { if (what.includes(asked.origin === "gate" ? "policies" : "production") && rows.length <= 100 && asked.by === "started_at" && asked.descending && window.scrollY < 200) load().catch(() => {}); },
  };
}
