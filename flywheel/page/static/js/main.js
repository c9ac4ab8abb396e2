/* The shell: which view is shown, the tabs, the stream, the token, the keyboard. */
import { Failed, get, post, remove } from "./api.js";
import { add, h, icon, replace } from "./dom.js";
import { ago } from "./format.js";
import { Live } from "./live.js";
import { failed, note, toast } from "./parts.js";
import { now } from "./views/now.js";
import { turns } from "./views/turns.js";
import { policies } from "./views/policies.js";
import { episodes } from "./views/episodes.js";
import { episode } from "./views/episode.js";
import { fork } from "./views/fork.js";

const VIEWS = { now, turns, policies, episodes, episode, fork };
const TABS = [["now", "Now"], ["turns", "Turns"], ["policies", "Policies"], ["episodes", "Episodes"], ["fork", "Fork"]];
const main = document.getElementById("main");

/* What views share: who is asking, whose run this is, and the policies by digest. */
const shared = { policies: new Map(), role: "", about: null, live: new Live(), signIn, heard, go: (hash) => { location.hash = hash; } };
let shown = null;

function route() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  return { name: VIEWS[name] ? name : "now", rest: rest.map(decoded), query: new URLSearchParams(query) };
}

function heard(about) {
  shared.about = about;
  connection();
}

async function learn() {
  const [found, known] = await Promise.all([get("now"), get("policies")]);
  shared.about = found.about;
  shared.role = found.role;
  shared.first = found;
  shared.toldAt = found.wheel.at;
  shared.policies = new Map(known.policies.map((each) => [each.digest, each]));
  bar();
  return found;
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch (error) {
    throw new Failed(404, `This address can't be read: in ${part} a % begins no character.`);
  }
}

async function show() {
  shown?.stop.abort();
  shown?.view?.dispose?.();
  const mine = (shown = { stop: new AbortController(), view: null });
  const waiting = setTimeout(() => replace(main, skeleton()), 150);
  try {
    const to = route();
    tabs(to.name);
    if (!shared.about) shared.live.start((await learn()).offset);
    const view = await VIEWS[to.name](shared, to, mine.stop.signal);
    if (shown !== mine) { view.dispose?.(); return; }
    mine.view = view;
    clearTimeout(waiting);
    replace(main, view.node);
    document.title = `${view.title} · ${shared.about.run} · Flywheel`;
    if (show.moved) main.querySelector("h1")?.focus({ preventScroll: true });
    if (show.moved) window.scrollTo(0, 0);
    show.moved = true;
  } catch (error) {
    clearTimeout(waiting);
    if (error.name === "AbortError" || shown !== mine) return;
    replace(main, error.status === 401 ? locked() : failure(error));
  }
}

const skeleton = () => h("div", { class: "skeleton", role: "status", "aria-label": "Loading" }, h("i"), h("i"), h("i"));

function failure(error) {
  if (!error.status && error.name !== "Failed" && !(error.message || "").startsWith("The page")) console.error(error);
  return failed(error, h("button", { type: "button", onclick: show }, "Try again"), h("a", { class: "button", href: "#/now" }, "Go to Now"));
}

const locked = () =>
  note("This page needs a token", "Whoever reaches it over a network shows one first. It is in the run directory, in keys/page.token, and keys/operate.token lets you operate, too.",
    h("button", { class: "main", type: "button", onclick: () => signIn() }, "Enter a token"));

function tabs(name) {
  const current = name === "episode" ? "episodes" : name;
  replace(document.getElementById("tabs"),
    TABS.map(([each, text]) => h("a", { href: `#/${each}`, "aria-current": each === current ? "page" : null }, text)));
}

function bar() {
  const { about } = shared;
  replace(document.getElementById("run"), h("b", { title: about.run_dir }, about.run), h("span", {}, about.task));
  const state = h("span", { class: "state", role: "status", id: "live" });
  const theme = h("button", { class: "icon", type: "button", "aria-label": "Switch between light and dark", title: "Light or dark", onclick: () => window.flywheelTheme.toggle() });
  const draw = () => replace(theme, icon(window.flywheelTheme.now() === "dark" ? "sun" : "moon"));
  window.addEventListener("theme", draw);
  draw();
  const may = shared.role === "operate";
  const key = h("button", { class: "icon", type: "button", "aria-label": may ? "Stop operating" : "Enter a token to operate", title: may ? "You may operate; click to stop" : "Enter a token to operate", onclick: () => (may ? signOut() : signIn()) }, icon("key"));
  if (may) key.classList.add("on");
  const help = h("button", { class: "icon", type: "button", "aria-label": "Keyboard", title: "Keyboard", onclick: keyboard }, icon("help"));
  replace(document.getElementById("tools"), state, key, theme, help);
  connection();
}

function connection() {
  const place = document.getElementById("live");
  if (!place) return;
  const is = shared.live.state === "lost" ? "lost" : shared.about.living ? "live" : "over";
  const text = { lost: "no connection", live: "live", over: "not running" }[is];
  place.dataset.is = is;
  place.title = is === "over" && shared.toldAt ? `It said its last word ${ago(shared.toldAt)}` : "";
  replace(place, h("i"), h("span", {}, text));
}

function signIn(why = "") {
  return new Promise((resolve) => {
    const input = h("input", { type: "password", autocomplete: "off", required: true, spellcheck: "false", name: "token" });
    const wrong = h("p", { class: "bad", role: "alert" });
    const form = h("form", { method: "dialog" }, h("h2", {}, "Enter a token"),
      h("p", {}, `${why ? `${why} ` : ""}keys/operate.token of the run directory lets you operate. It stays in this browser as a cookie that scripts can't read.`),
      h("label", { class: "field" }, "Token", input), wrong,
      h("div", { class: "actions" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), h("button", { class: "main", type: "submit" }, "Enter")));
    const dialog = h("dialog", { "aria-label": "Enter a token" }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        const { role } = await post("session", { token: input.value });
        toast(role === "operate" ? "You may operate now." : "You may read now.");
        dialog.close("done");
        if (shown?.view?.operates) {  // what was entered there stays
          shared.role = role;
          bar();
          shown.view.operates();
          return;
        }
        shared.about = null;
        show.moved = false;
        await show();
      } catch (error) {
        wrong.textContent = error.message;
        input.select();
      }
    });
    dialog.addEventListener("close", () => { resolve(dialog.returnValue === "done"); dialog.remove(); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

async function signOut() {
  await remove("session");
  toast("You may only look now.");
  shared.about = null;
  show.moved = false;
  await show();
}

const KEYS = [["1 – 5", "Now, Turns, Policies, Episodes, Fork"], ["← →", "a step back or on in an episode; with Shift ten"], ["Space", "play or pause an episode"], ["F", "fork the episode at its step"], ["T", "light or dark"], ["?", "this list"]];

function keyboard() {
  const dialog = h("dialog", { "aria-label": "Keyboard" }, h("h2", {}, "Keyboard"),
    h("table", {}, h("tbody", {}, KEYS.map(([keys, text]) => h("tr", {}, h("th", { scope: "row" }, h("kbd", {}, keys)), h("td", {}, text))))),
    h("div", { class: "actions" }, h("button", { type: "button", onclick: () => dialog.close() }, "Close")));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input, select, textarea, [contenteditable]") && event.target.type !== "range") return;
  const tab = TABS[Number(event.key) - 1];
  if (tab) shared.go(`#/${tab[0]}`);
  else if (event.key === "?") keyboard();
  else if (event.key.toLowerCase() === "t") window.flywheelTheme.toggle();
  else shown?.view?.key?.(event);
});

shared.live.addEventListener("state", connection);
shared.live.addEventListener("told", (event) => {
  shared.toldAt = event.detail.at;
  shown?.view?.told?.(event.detail);
});
shared.live.addEventListener("changed", async ({ detail: what }) => {
  try {
    if (what.includes("living")) heard((await get("now")).about);
    if (what.includes("policies")) shared.policies = new Map((await get("policies")).policies.map((each) => [each.digest, each]));
  } catch (error) {
    if (!(error instanceof Failed)) throw error;  // where the server is away, the badge says so
  }
  shown?.view?.changed?.(what);
});
window.addEventListener("hashchange", show);
add(main, skeleton());
show();
