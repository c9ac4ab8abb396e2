/* Fork: choose the step, edit, run again; original and fork over each other, and beside each other as pictures. */
import { get, post } from "../api.js";
import { add, h, replace } from "../dom.js";
import { count, number, percent, plural, python, shell, short, shortId, stepOf, words } from "../format.js";
import { body, card, chip, commands, copy, ended, facts, failed, head, id, note, time } from "../parts.js";
import { Film, Scrubber } from "../player.js";
import { Strips } from "../strips.js";
import { atStep, stripsOf } from "./episode.js";

const LABELS = { world: "World", rule: "How the policy acts", policy: "Policy", action: "This step", reward: "Reward" };

export async function fork(shared, to, signal) {
  return to.rest[0] ? forkOf(shared, to, signal) : choose(shared, signal);
}

async function choose(shared, signal) {
  const ask = (asked) => get("episodes", { limit: 12, ...asked }, signal);
  const link = (query, text) => h("a", { href: `#/episodes${query}` }, text);
  const production = shared.about.forks_production;
  const shown = production
    ? [["Failed last", { how: "failed" }, link("?how=failed", "all failed ones")], ["Ended last", {}, link("", "all")]]
    : [["Tried at the gate last", { origin: "gate" }, link("?origin=gate", "all trials")]];
  shown.push(["Failed at the gate last", { how: "failed", origin: "gate" }, link("?origin=gate&how=failed", "all failed trials")]);
  const found = await Promise.all(shown.map(([, asked]) => ask(asked)));
  const input = h("input", { type: "search", placeholder: "an episode's id", required: true, spellcheck: "false", autocomplete: "off", "aria-label": "An episode's id" });
  const form = h("form", { class: "filters", onsubmit: (event) => { event.preventDefault(); shared.go(`#/fork/${encodeURIComponent(input.value.trim())}`); } }, h("label", { class: "field" }, "Episode", input), h("button", { type: "submit" }, "Open"));
  const list = (rows) => rows.length
    ? h("ul", { class: "rows" }, rows.map((each) => h("li", {}, h("span", { class: "what" }, id(each.id, `#/fork/${encodeURIComponent(each.id)}`)), h("span", { class: "when" }, time(each.started_at)), h("span", { class: "more" }, chip(shared.policies, each.digest, false), ` return ${number(each.total)}, ${plural(each.num_steps, "step")}`), h("span", { class: "more" }, ended(each)))))
    : body(h("p", { class: "small-note" }, "There is none."));
  return {
    title: "Fork",
    node: h("div", { class: "view" }, head("Fork", "What would have happened, had one thing been otherwise?"),
      h("p", { class: "lead-text" }, "Choose an episode, the step to stand at, and what to change from there. The steps before it stay as they were; the rest is run again, with the same draws."), form,
      !production && !shared.about.obstacle && h("p", { class: "lead-text muted" }, "Episodes of production can't be gone on with here: the task can't put its simulator into what was observed (it has no set_state, or no observed_state). The gate's trials can: they have a seed."),
      h("div", { class: "trio" }, shown.map(([name, , end], i) => card(name, end, list(found[i].episodes))))),
  };
}

async function forkOf(shared, to, signal) {
  const each = await get("episode", { id: to.rest[0] }, signal);
  const state = { at: stepOf(to.query, each.num_steps - 1), edits: new Map(), times: 1, result: null };
  const num = each.num_steps;
  const film = new Film(each.id, num, signal);
  const stage = h("div", { class: "stage" }, film.canvas);
  const step = h("div", { class: "step" });
  const scrubber = new Scrubber({ num: num - 1, onstep: stand });
  const form = h("div", { class: "edits", onkeydown: (event) => { if (event.key === "Enter" && event.target.tagName === "INPUT" && !run.disabled) replay(); } });
  const lines = h("div");
  const out = h("div", { class: "stack" });
  const summary = h("p", { class: "unseen", role: "status" });
  const run = h("button", { class: "main", type: "button", onclick: replay }, "Run again");
  const times = h("select", { "aria-label": "Runs", onchange: (event) => { state.times = Number(event.target.value); tell(); } });
  let { edits: options, most_times: most } = await get("fork", { id: each.id, at: state.at }, signal);
  let [optionsAt, asking] = [state.at, false];
  let asked = 0;

  async function stand(t) {
    state.at = t;
    replace(step, atStep(shared, each, t));
    history.replaceState(null, "", `#/fork/${encodeURIComponent(each.id)}?t=${t}`);
    tell();
    ask();
    if (!(await film.show(t)) && film.obstacle) replace(stage, h("p", { class: "small-note" }, film.obstacle));
  }

  /* One question at a time, however fast the steps go by: after its answer comes the step that is stood at by then. */
  async function ask() {
    if (asking || optionsAt === state.at) return;
    asking = true;
    form.setAttribute("aria-busy", "true");
    try {
      while (optionsAt !== state.at) {
        const at = state.at;
        ({ edits: options, most_times: most } = await get("fork", { id: each.id, at }, signal));
        optionsAt = at;
        drawForm();
      }
    } catch (error) {
      if (error.name === "AbortError") return;
      optionsAt = null;
      replace(form, h("p", { class: "bad", role: "alert" }, error.message));
    } finally {
      asking = false;
      form.removeAttribute("aria-busy");
    }
  }

  const optionOf = (name) => options.find((option) => option.name === name);
  const valueOf = (name, text) => (isNumber(optionOf(name)) ? Number(text) : text);

  function drawForm() {
    const groups = Object.groupBy ? Object.groupBy(options, (option) => option.kind) : group(options);
    const { name, selectionStart, selectionEnd } = form.contains(document.activeElement) ? document.activeElement : {};
    for (const key of state.edits.keys()) {
      const option = optionOf(key);
      if (!option || (key === "policy" && option.now === state.edits.get(key))) state.edits.delete(key);
    }
    const offered = [...new Set([1, 30, 100].map((value) => Math.min(value, most)))];
    state.times = offered.find((value) => value >= state.times) ?? offered.at(-1);
    replace(times, offered.map((value) => h("option", { value, selected: value === state.times }, value === 1 ? "once" : `${value} pairs, with an interval`)));
    replace(form, Object.entries(groups).map(([kind, some]) => h("fieldset", {}, h("legend", {}, LABELS[kind]), some.map(control))));
    const again = name && form.querySelector(`[name="${CSS.escape(name)}"]`);
    again?.focus();
    if (again && selectionStart !== undefined) again.setSelectionRange(selectionStart, selectionEnd);
    tell();
  }

  function control(option) {
    const kept = state.edits.get(option.name);
    const changed = (event) => {
      const text = event.target.value.trim().replaceAll("−", "-");
      if (text === "" || (option.kind === "policy" && text === option.now)) state.edits.delete(option.name);
      else state.edits.set(option.name, text);
      label.classList.toggle("edited", state.edits.has(option.name));
      judge(event.target);
      tell();
    };
    const why = h("p", { class: "wrong", id: `wrong-${option.name}`, role: "status" });
    const judge = (field) => {
      why.textContent = wrongOf(option, state.edits.get(option.name));
      field.setAttribute("aria-invalid", String(why.textContent !== ""));
    };
    const label = h("label", { class: kept === undefined ? "edit" : "edit edited" }, h("span", {}, words(option.name)));
    const asIs = option.name === "policy" ? "as it was" : `as it was (${nowOf(option)})`;
    if (option.choices?.length) {
      return add(label, h("select", { name: option.name, onchange: changed }, h("option", { value: "" }, asIs), option.choices.filter((choice) => option.name !== "policy" || choice !== option.now).map((choice) => h("option", { value: choice, selected: String(kept) === choice }, option.name === "policy" ? `v${shared.policies.get(choice)?.version ?? "?"} ${short(choice)}` : choice))));
    }
    const span = spanOf(option);
    const input = h("input", { name: option.name, inputmode: "decimal", autocomplete: "off", placeholder: nowOf(option), value: kept ?? "", oninput: changed, "aria-describedby": why.id, title: span });
    judge(input);
    return [add(label, input), why];
  }

  const edits = () => Object.fromEntries([...state.edits].map(([name, text]) => [name, valueOf(name, text)]));

  function tell() {
    const pairs = Object.entries(edits());
    const wrong = [...state.edits].some(([name, text]) => wrongOf(optionOf(name), text));
    const line = `flywheel fork ${shell(each.id)} --run-dir ${shell(shared.about.run_dir)} --at ${state.at}${pairs.map(([name, value]) => ` --set ${shell(`${name}=${brief(name, value)}`)}`).join("")}${state.times > 1 ? ` --times ${state.times}` : ""}`;
    const code = `flywheel.connect(${python(shared.about.run_dir)}).fork_episode(${python(each.id)}, at=${state.at})${pairs.map(([name, value]) => `.edit_parameter(${python(name)}, ${typeof value === "number" ? value : python(brief(name, value))})`).join("")}.replay(${state.times > 1 ? `times=${state.times}` : ""})`;
    replace(lines, wrong ? h("p", { class: "small-note" }, "Mend what is marked, and the line for a terminal is here again.") : commands(["CLI", line], ["Python", code]));
    run.disabled = wrong;
    state.shown?.isOf(state.at, edits());
    run.textContent = pairs.length ? `Run again with ${plural(pairs.length, "edit")}` : "Run again as it was";
  }

  const cli = () => lines.querySelector("code").textContent;

  async function replay() {
    const mine = ++asked;
    const made = { id: each.id, at: state.at, edits: edits(), cli: cli() };
    run.disabled = true;
    out.setAttribute("aria-busy", "true");
    try {
      const result = await post("fork", { id: made.id, at: made.at, edits: made.edits, times: state.times }, signal);
      if (mine !== asked) return;
      state.shown?.dispose();
      state.shown = results(shared, result, signal, made);
      replace(out, state.shown.node);
      summary.textContent = inShort(result);
      state.shown.node.querySelector("h2")?.focus({ preventScroll: true });
      state.shown.node.scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    } catch (error) {
      if (error.name === "AbortError") return;
      replace(out, failed(error));
    } finally {
      out.removeAttribute("aria-busy");
      tell();
    }
  }

  drawForm();
  const node = h("div", { class: "view" },
    head("Fork", h("span", { class: "id" }, h("span", {}, "of\u00a0"), h("a", { class: "mono", href: `#/episode/${encodeURIComponent(each.id)}`, title: each.id }, shortId(each.id)), copy(each.id, "episode's id")), ended(each), h("span", { class: "muted" }, `return ${number(each.total)} in ${plural(num, "step")}, by `), chip(shared.policies, each.digests[0])),
    h("div", { class: "forking" },
      card("Stand at a step", null, stage, scrubber.node, h("div", { class: "body" }, step)),
      card("and change", null, summary, form, h("div", { class: "go" }, h("label", { class: "field" }, "Run", times), run), h("div", { class: "body" }, lines))),
    out);
  scrubber.go(state.at);
  if (shared.about.obstacle) replace(out, note("Nothing can be run again here", shared.about.obstacle));
  return {
    title: `Fork of ${shortId(each.id)}`, node,
    key: (event) => (state.shown && state.shown.has(event.target) ? state.shown : scrubber).key(event),
    operates: () => state.shown?.operates(),
    dispose: () => { scrubber.pause(); state.shown?.dispose(); },
  };
}

const spanOf = ({ low, high }) => (typeof low === "number" ? `${number(low)}${high === null ? " or more" : ` to ${number(high)}`}` : "");
const isNumber = (option) => option.kind === "world" || option.kind === "reward" || ["exploration_rate", "temperature"].includes(option.name);

/* What is wrong with the text of an edit, "" where nothing is; what only the simulator can know, the server says. */
function wrongOf(option, text) {
  if (text === undefined || option.choices?.length) return "";
  const [parts, num] = isNumber(option) ? [[text], 1] : [text.split(","), option.now.length];
  const [low, high] = [option.low ?? -Infinity, option.high ?? Infinity];
  if (parts.length === num && parts.every((part) => part.trim() && Number.isFinite(Number(part)))) {
    return isNumber(option) && (Number(text) < low || Number(text) > high) ? `It takes ${spanOf(option)}, not ${text}.` : "";
  }
  return num === 1 ? `“${text}” is no number: write it as 0.5.` : `“${text}” is not ${num} numbers: write them as ${option.now.map(() => "0.5").join(",")}.`;
}

const group = (options) => options.reduce((found, option) => ({ ...found, [option.kind]: [...(found[option.kind] ?? []), option] }), {});
const nowOf = (option) => (Array.isArray(option.now) ? option.now.map((value) => number(value)).join(", ") : typeof option.now === "number" ? number(option.now) : String(option.now));
const brief = (name, value) => (name === "policy" ? short(value) : String(value));

/* What became of it. */
function results(shared, result, signal, asked) {
  const { fork: other, at, difference, effect } = result;
  const one = result.unedited ?? result.original;
  const num = Math.max(one.num_steps, other.num_steps);
  const lines = [{ value: at, hue: "faint", label: "fork" }];
  if (difference) lines.push({ value: difference.step, hue: "change", label: "parts" });
  const strips = new Strips({ strips: stripsOf([one, other]), num, hues: ["muted", "p1"], lines: () => lines, onpick: (t) => scrubber.go(t) });
  const films = [new Film(one.id, one.num_steps, signal, "the original"), new Film(`${other.id}`, other.num_steps, signal, "the fork")];
  const stages = films.map((film) => h("div", { class: "stage" }, film.canvas));
  const scrubber = new Scrubber({ num, onstep: async (t) => {
    strips.set(t);
    captions.forEach((caption, i) => caption(t));
    await Promise.all(films.map(async (film, i) => {
      if (!(await film.show(t)) && film.obstacle) replace(stages[i], h("p", { class: "small-note" }, film.obstacle));
    }));
  } });
  const over = (course, name) => {
    const place = h("span", { class: "muted" });
    return [place, (t) => { place.textContent = t < course.num_steps ? "" : `${course.failed ? "failed" : course.end} after ${count(course.num_steps)} steps`; }, name];
  };
  const shown = [over(one), over(other)];
  const captions = shown.map(([, update]) => update);
  const gained = other.total - one.total;
  const many = effect?.is_drawn ? effect : null;
  const save = h("div", {}, saving(shared, result, asked));
  const stale = h("p", { class: "small-note bad", hidden: true }, "The form above says something else by now: this is what became of the edits that are named here.");
  const node = h("section", { class: "stack results" },
    stale,
    h("div", { class: "card" }, h("header", {}, h("h2", { tabindex: "-1" }, "What became of it"), h("div", { class: "end" }, result.edits.length ? result.edits.join("; ") : "nothing was changed")), body(
      h("div", { class: "figures" },
        outcomeOf("as it was", one, result.unedited ? "run on in the simulator" : "as recorded"), outcomeOf("with the edits", other),
        h("div", { class: "figure" }, h("b", { class: gained < 0 ? "bad" : "" }, `${gained > 0 ? "+" : ""}${number(gained)}`), h("span", {}, "return, this once")),
        many && h("div", { class: "figure" }, h("b", { class: effect.mean < 0 ? "bad" : "" }, `${effect.mean > 0 ? "+" : ""}${number(effect.mean)}`), h("span", {}, `mean of ${count(effect.num_pairs)} pairs`), h("small", {}, `95 %: ${number(effect.interval[0])} to ${number(effect.interval[1])}`)),
        many && h("div", { class: "figure" }, h("b", {}, `${percent(effect.unedited.num_failed / effect.unedited.num, 0)} → ${percent(effect.edited.num_failed / effect.edited.num, 0)}`), h("span", {}, "failed"), h("small", {}, `95 %: ${interval(effect.unedited)} → ${interval(effect.edited)}`))),
      facts({
        "they part": difference ? [`at step ${difference.step}, by ${difference.kind}: `, h("span", { class: "muted" }, difference.note), " ", h("button", { type: "button", class: "small", onclick: () => scrubber.go(difference.step) }, "Go there")] : "nowhere: both are equal to the last bit",
        world: worldOf(result),
        ...(effect && !many ? { "by chance": "nothing is drawn, so every run is this one" } : {}),
      }), save)),
    h("div", { class: "card duel" },
      h("div", { class: "films" },
        h("figure", {}, h("figcaption", {}, h("i", { class: "swatch one" }), h("b", {}, result.unedited ? "Without the edits" : "Original"), " ", shown[0][0]), stages[0]),
        h("figure", {}, h("figcaption", {}, h("i", { class: "swatch other" }), h("b", {}, "Fork"), " ", shown[1][0]), stages[1])),
      scrubber.node),
    card("Over each other", h("span", { class: "legend" }, h("i", { class: "swatch one" }), result.unedited ? "without the edits" : "original", h("i", { class: "swatch other" }), "fork"), body(strips.node)));
  scrubber.go(at);
  const isOf = (t, edits) => { stale.hidden = t === asked.at && JSON.stringify(edits) === JSON.stringify(asked.edits); };
  const operates = () => replace(save, saving(shared, result, asked));
  return { node, isOf, operates, has: (target) => node.contains(target), key: (event) => scrubber.key(event), dispose: () => { scrubber.pause(); strips.dispose(); } };
}

/* A fork becomes a scenario that every candidate from now on must master. */
function saving(shared, result, asked) {
  if (shared.role !== "operate") return h("p", { class: "links" }, h("button", { type: "button", class: "small", onclick: () => shared.signIn("To save it as a scenario of the gate takes the operate token.") }, "Enter a token to save it for the gate"));
  const input = h("input", { name: "scenario", required: true, pattern: "[A-Za-z0-9][A-Za-z0-9_.\\-]{0,63}", placeholder: "a name, in one word", title: "Letters, digits and . _ - without a space, at most 64", spellcheck: "false", autocomplete: "off" });
  const button = h("button", { type: "submit" }, "Save for the gate");
  const told = h("p", { role: "status", class: "muted" }, "The gate then tries every candidate from this step on, in the edited world, and training begins there, too.");
  const line = h("div");
  input.addEventListener("input", () => replace(line, input.value && input.checkValidity() && commands(["CLI", `${asked.cli} --save ${shell(input.value)}`])));
  return h("form", { class: "save-form", onsubmit: async (event) => {
    event.preventDefault();
    button.disabled = true;
    told.textContent = "Saving …";
    try {
      told.textContent = (await post("scenarios", { id: asked.id, at: asked.at, edits: asked.edits, name: input.value })).done;
      told.className = "good";
    } catch (error) {
      told.textContent = error.message;
      told.className = "bad";
    } finally {
      button.disabled = false;
    }
  } }, h("div", { class: "save" }, h("label", { class: "field" }, "Scenario of the gate", input), button, told), line);
}

const inShort = ({ unedited, original, fork: other, effect }) =>
  `Return ${number((unedited ?? original).total)} as it was, ${number(other.total)} with the edits${effect?.is_drawn ? `; ${number(effect.mean)} in the mean of ${count(effect.num_pairs)} pairs` : ""}.`;

function worldOf({ exact, at, world }) {
  if (exact) return "stepped again from its seed, every observation equal to the last bit";
  const values = Object.entries(world).map(([name, value]) => `${name} ${number(value)}`).join(", ");
  return `went on in the simulator from what was observed at step ${at}${values && ` (${values})`}`;
}

const interval = (rate) => `${percent(rate.interval[0], 0)}–${percent(rate.interval[1], 0)}`;

const outcomeOf = (name, course, detail) =>
  h("div", { class: "figure" }, h("b", {}, number(course.total)), h("span", {}, `return ${name}`), h("small", { class: course.failed ? "bad" : "" }, `${course.failed ? "failed" : words(course.end)} after ${plural(course.num_steps, "step")}`, detail ? `, ${detail}` : ""));
