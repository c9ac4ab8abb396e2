/* Pieces that every view is made of. */
import { add, h, icon, replace } from "./dom.js";
import { ago, moment, number, short, shortId, utc, words } from "./format.js";

export const card = (title, end, ...children) =>
  h("section", { class: "card" },
    title && h("header", {}, h("h2", {}, title), end && h("div", { class: "end" }, end)), ...children);

export const body = (...children) => h("div", { class: "body" }, ...children);

let timer;
export function toast(text) {
  const place = document.getElementById("toast");
  place.textContent = text;
  place.classList.add("shown");
  clearTimeout(timer);
  timer = setTimeout(() => place.classList.remove("shown"), 3500);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

export function copy(text, what = "id") {
  const button = h("button", { class: "copy", type: "button", title: `Copy ${what}`, "aria-label": `Copy ${what}` }, icon("copy"));
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    event.preventDefault();
    const done = await toClipboard(text);
    replace(button, icon(done ? "check" : "copy"));
    toast(done ? `Copied the ${what}.` : `The browser does not let the page copy; here it is: ${text}`);
    setTimeout(() => replace(button, icon("copy")), 1500);
  });
  return button;
}

export const id = (value, href) =>
  h("span", { class: "id" },
    href ? h("a", { class: "mono", href, title: value }, shortId(value)) : h("code", { title: value }, shortId(value)),
    copy(value, "episode's id"));

export const command = (kind, text) =>
  h("div", { class: "command" }, h("small", {}, kind), h("code", {}, text), copy(text, `${kind} line`));

export const commands = (...lines) =>
  h("div", { class: "commands" }, lines.filter(Boolean).map(([kind, text]) => command(kind, text)));

/* A policy by its version and digest, in its colour: that of its turn to answer, hollow where it never answered. */
export function chip(policies, digest, withDigest = true) {
  if (!digest) return h("span", { class: "muted" }, "none");
  const known = policies.get(digest);
  const hue = known && known.place !== null ? `dot p${known.place % 5}` : "dot";
  return h("a", { class: "chip", href: `#/policies/${digest}`, title: digest },
    h("i", { class: hue }), h("span", {}, known ? `v${known.version}` : "policy"), withDigest && h("code", {}, short(digest)));
}

export const time = (at) =>
  at ? h("time", { datetime: new Date(at * 1000).toISOString(), title: `${utc(at)} (${ago(at)})` }, moment(at)) : h("span", {}, "–");

const OUTCOMES = { pass: ["good", "✓ pass"], fail: ["bad", "✗ fail"], inconclusive: ["open", "? inconclusive"] };
export const outcome = (value) => {
  const [kind, text] = OUTCOMES[value] || ["", "not judged"];
  return h("span", { class: `tag ${kind}` }, text);
};

export const ended = (episode) => {
  if (episode.failed) return h("span", { class: "tag bad" }, "✗ failed");
  if (episode.end === "lost") return h("span", { class: "tag open" }, "? lost");
  return h("span", { class: "tag" }, words(episode.end ?? "fine"));
};

export const note = (title, text, ...actions) =>
  h("div", { class: "note" }, h("h2", {}, title), h("p", {}, text), actions.length > 0 && h("div", { class: "actions" }, actions));

/* What did not work, with the server's own sentence; 409 is its word for what can't be run again. */
export function failed(error, ...actions) {
  const told = note({ 404: "Not here", 409: "Not reproducible" }[error.status] ?? "That did not work", error.message, ...actions);
  told.classList.add("error");
  told.setAttribute("role", "alert");
  return told;
}

export const facts = (pairs) =>
  h("dl", { class: "facts" },
    Object.entries(pairs).filter(([, value]) => value !== undefined && value !== null && value !== "")
      .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

/* The worlds of a training: each parameter's range, and in words what they do that the task's own simulator doesn't. */
export function trainedIn(parameters, corrected) {
  const ranges = Object.entries(parameters).map(([name, [low, high]]) => h("div", {}, h("code", {}, name), ` ${number(low)} to ${number(high)}`));
  if (!corrected) return ranges.length ? ranges : "the task's own worlds";
  return [...(ranges.length ? ranges : [h("div", {}, "the task's own parameters")]), h("div", {}, `corrected: ${corrected}`)];
}

/* The same in one line that wraps, each name over its value. */
export const strip = (pairs) =>
  h("dl", { class: "strip-facts" },
    Object.entries(pairs).filter(([, value]) => value !== undefined && value !== null && value !== "")
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

export const figure = (value, label, detail) =>
  h("div", { class: "figure" }, h("b", {}, value), h("span", {}, label), detail && h("small", {}, detail));

export function segments(label, options, chosen, choose) {
  const group = h("div", { class: "segments", role: "group", "aria-label": label });
  for (const [value, text] of options) {
    add(group, h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: (event) => {
      for (const each of group.children) each.setAttribute("aria-pressed", String(each === event.currentTarget));
      choose(value);
    }, data: { value } }, text));
  }
  return group;
}

export const head = (title, about, ...end) =>
  h("div", { class: "head" }, h("h1", { tabindex: "-1" }, title), about && h("p", {}, about),
    end.length > 0 && h("div", { class: "end" }, end));

/* Asks before something is done that can't be taken back. Returns a promise of true or false. */
export function confirm({ title, text, lines = [], verb, danger = true }) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-labelledby": "confirm-title" },
      h("h2", { id: "confirm-title" }, title), h("p", {}, text), lines.length > 0 && commands(...lines),
      h("div", { class: "actions" },
        h("button", { type: "button", onclick: () => dialog.close("no") }, "Cancel"),
        h("button", { type: "button", class: danger ? "danger" : "main", onclick: () => dialog.close("yes") }, verb)));
    dialog.addEventListener("close", () => { resolve(dialog.returnValue === "yes"); dialog.remove(); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/* The same for what is done for a reason, which is kept; `line` gives the command for one. A promise of it, "" for no. */
export function reasoned({ title, text, line, verb, danger = true }) {
  return new Promise((resolve) => {
    const input = h("input", { name: "reason", required: true, pattern: ".*\\S.*", maxlength: "200", autocomplete: "off" });
    const shown = h("div", { class: "tight" });
    const draw = () => replace(shown, commands(["CLI", line(input.value.trim() || "REASON")]));
    const form = h("form", { method: "dialog" }, h("h2", { id: "reasoned-title" }, title), h("p", {}, text),
      h("label", { class: "field" }, "Reason, which is kept", input), shown,
      h("div", { class: "actions" },
        h("button", { type: "button", onclick: () => dialog.close("") }, "Cancel"),
        h("button", { type: "submit", class: danger ? "danger" : "main" }, verb)));
    const dialog = h("dialog", { "aria-labelledby": "reasoned-title" }, form);
    input.addEventListener("input", draw);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close(input.value.trim());
    });
    dialog.addEventListener("close", () => { resolve(dialog.returnValue); dialog.remove(); });
    draw();
    document.body.append(dialog);
    dialog.showModal();
  });
}
