/* Pictures of an episode at its steps, from sheets that are fetched as they are needed. */
import { picture } from "./api.js";
import { h, icon, replace } from "./dom.js";

export class Film {
  constructor(id, num, signal, label = "") {
    this.id = id;
    this.num = num;
    this.signal = signal;
    this.sheets = new Map();
    this.canvas = h("canvas", { class: "film", role: "img", width: 360, height: 240, "aria-label": `Picture of step 0${label && ` of ${label}`}` });
    this.label = label;
    this.size = 25;
    this.obstacle = "";
  }

  async show(step) {
    const t = Math.min(step, this.num);
    this.step = t;
    const number = Math.floor(t / this.size);
    try {
      const sheet = await this.#fetch(number);
      if (this.step !== t) return true;
      if (number * this.size + this.size <= this.num) this.#fetch(number + 1).catch(() => {});
      this.#draw(sheet, t % this.size);
      this.canvas.dataset.step = t;
      this.canvas.setAttribute("aria-label", `Picture of step ${t}${this.label && ` of ${this.label}`}`);
      return true;
    } catch (error) {
      if (error.name !== "AbortError") this.obstacle = error.message;
      return false;
    }
  }

  #fetch(number) {
    if (!this.sheets.has(number)) {
      const asked = picture("frames", { id: this.id, sheet: number }, this.signal);
      asked.catch(() => this.sheets.delete(number));
      this.sheets.set(number, asked);
    }
    return this.sheets.get(number);
  }

  #draw({ image, row, sheet }, place) {
    this.size = sheet;
    const left = Math.max(0, this.num + 1 - Math.floor(this.step / sheet) * sheet);
    const rows = Math.ceil(Math.min(sheet, left) / row);
    const [width, height] = [image.width / row, image.height / rows];
    if (this.canvas.width !== width) Object.assign(this.canvas, { width, height });
    this.canvas.getContext("2d").drawImage(image, (place % row) * width, Math.floor(place / row) * height, width, height, 0, 0, width, height);
  }
}

const SPEEDS = [["0.25", "¼ ×"], ["0.5", "½ ×"], ["1", "1 ×"], ["2", "2 ×"], ["4", "4 ×"]];

/* The scrubber: a range over steps, play and pause. `onstep` is called with every step that is shown. */
export class Scrubber {
  constructor({ num, onstep, frames_s = 50 }) {
    this.num = num;
    this.step = 0;
    this.onstep = onstep;
    this.frames_s = frames_s;
    this.range = h("input", { type: "range", min: 0, max: num, step: 1, value: 0, "aria-label": "Step", oninput: () => this.go(Number(this.range.value)) });
    this.button = h("button", { type: "button", class: "play", "aria-label": "Play", onclick: () => this.toggle() }, icon("play"));
    this.place = h("span", { class: "place" });
    this.speed = h("select", { "aria-label": "Speed", title: "Speed" }, SPEEDS.map(([value, text]) => h("option", { value, selected: value === "1" }, text)));
    const nudge = (by, name, label) => h("button", { type: "button", class: "nudge", "aria-label": label, onclick: () => this.go(this.step + by) }, icon(name));
    this.node = h("div", { class: "scrubber" }, nudge(-1, "back", "One step back"), this.button, nudge(1, "next", "One step on"), this.range, this.place, this.speed);
    this.#tell();
  }

  go(step) {
    this.step = Math.min(this.num, Math.max(0, Math.round(step)));
    this.range.value = this.step;
    this.#tell();
    this.onstep(this.step);
  }

  toggle() {
    if (this.timer) this.pause();
    else this.play();
  }

  play() {
    if (this.step >= this.num) this.go(0);
    replace(this.button, icon("pause"));
    this.button.setAttribute("aria-label", "Pause");
    let before = performance.now();
    let place = this.step;
    const next = (now) => {
      place += ((now - before) / 1000) * this.frames_s * Number(this.speed.value);
      before = now;
      if (Math.floor(place) !== this.step) this.go(Math.floor(place));
      if (this.step >= this.num) this.pause();
      else this.timer = requestAnimationFrame(next);
    };
    this.timer = requestAnimationFrame(next);
  }

  pause() {
    cancelAnimationFrame(this.timer);
    this.timer = null;
    replace(this.button, icon("play"));
    this.button.setAttribute("aria-label", "Play");
  }

  key(event) {
    const by = event.shiftKey ? 10 : 1;
    const on = event.target;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      if (on.type === "range" && !event.shiftKey) return;
      event.preventDefault();
      this.go(this.step + (event.key === "ArrowLeft" ? -by : by));
    } else if (event.key === " " && !on.closest?.("button, a, select")) {
      event.preventDefault();
      this.toggle();
    }
  }

  #tell() {
    this.place.textContent = `step ${this.step} of ${this.num}`;
    this.range.setAttribute("aria-valuetext", `step ${this.step} of ${this.num}`);
  }
}
