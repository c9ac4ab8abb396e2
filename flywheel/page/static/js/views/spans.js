/* Spans of an episode or a turn: a tree with each one's time; not there where none were kept. */
import { get } from "../api.js";
import { add, h } from "../dom.js";
import { count, number, plural, seconds, utc } from "../format.js";
import { card } from "../parts.js";

/* Fills `place`, an empty element, with the spans; leaves it empty where there are none. */
export async function spansInto(place, asked, signal) {
  const { spans, left_out: more } = await get("spans", asked, signal);
  if (!spans.length) return;
  const begin = Math.min(...spans.map((each) => each.started_at));
  const whole = Math.max(...spans.map((each) => each.started_at + each.seconds)) - begin || 1;
  const rows = spans.map((each) => h("details", { class: each.error ? "span bad" : "span", data: { step: each.attributes["flywheel.step"] ?? "" } },
    h("summary", {},
      h("span", { class: "span-name", style: { "--depth": each.depth } }, each.name, h("small", {}, each.source)),
      h("span", { class: "track" }, h("i", { style: { left: `${(100 * (each.started_at - begin)) / whole}%`, width: `${(100 * each.seconds) / whole}%` } })),
      h("span", { class: "num" }, each.seconds < 1 ? `${number(1000 * each.seconds, 3)} ms` : seconds(each.seconds))),
    h("dl", { class: "facts" }, pair("started", utc(each.started_at)), pair("trace", h("code", {}, each.trace)),
      Object.entries(each.attributes).map(([name, value]) => pair(name, String(value))), each.metrics.map(([name, value]) => pair(name, number(value))), each.error && pair("error", each.error))));
  add(place, card("Spans", more ? `the first ${count(spans.length)}, ${count(more)} more` : plural(spans.length, "span"), h("div", { class: "spans" }, rows)));
}

const pair = (name, value) => [h("dt", {}, name), h("dd", {}, value)];
