/* uPlot in this page's colours, in the width that there is, reachable by keyboard, and with marks of what happened. */
/* global uPlot */
import { h } from "./dom.js";

export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const FONT = "11px system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif";

export const axis = (more = {}) => ({
  stroke: () => color("muted"), font: FONT, gap: 4, size: 42, ticks: { show: false },
  grid: { stroke: () => color("line"), width: 1 }, ...more,
});

export const xAxis = (more = {}) => axis({ size: 28, grid: { show: false }, ticks: { show: true, stroke: () => color("line-strong"), size: 4, width: 1 }, ...more });

/* A chart in an element of its own, made anew when the theme changes. `make` returns uPlot's options without a width. */
export class Chart {
  constructor({ label, height, make, data, onmove, onpick }) {
    this.make = make;
    this.data = data;
    this.height = height;
    this.node = h("div", { class: "chart", role: "img", "aria-label": label, tabindex: onmove || onpick ? "0" : null });
    this.node.style.setProperty("min-height", `${height}px`);
    this.onmove = onmove;
    this.onpick = onpick;
    this.watcher = new ResizeObserver(() => this.#fit());
    this.watcher.observe(this.node);
    this.themed = () => this.#draw();
    window.addEventListener("theme", this.themed);
    this.node.addEventListener("keydown", (event) => this.#key(event));
  }

  set(data) {
    this.data = data;
    if (this.plot) this.plot.setData(data);
  }

  redraw() {
    this.plot?.redraw(false, false);
  }

  remake() {
    this.#draw();
  }

  get index() {
    return this.plot?.cursor.idx ?? null;
  }

  point(index) {
    if (!this.plot || index === null) return;
    const left = this.plot.valToPos(this.data[0][index], "x");
    this.plot.setCursor({ left, top: this.plot.over.clientHeight / 2 });
  }

  dispose() {
    this.watcher.disconnect();
    window.removeEventListener("theme", this.themed);
    this.plot?.destroy();
  }

  #fit() {
    const width = this.node.clientWidth;
    if (!width) return;
    if (!this.plot) this.#draw();
    else if (this.plot.width !== width) this.plot.setSize({ width, height: this.height });
  }

  #draw() {
    const width = this.node.clientWidth;
    if (!width) return;
    this.plot?.destroy();
    const options = this.make(width);
    const hooks = options.hooks || {};
    this.plot = new uPlot({
      width, height: this.height, legend: { show: false }, padding: [10, 12, 0, 0], ...options,
      cursor: { y: false, points: { show: false }, ...options.cursor, drag: { x: false, y: false } },
      hooks: { ...hooks, setCursor: [...(hooks.setCursor || []), (plot) => this.onmove?.(plot.cursor.idx)] },
    }, this.data, this.node);
    if (this.onpick) this.plot.over.addEventListener("click", () => this.onpick(this.plot.cursor.idx));
  }

  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 }[event.key];
    const last = this.data[0].length - 1;
    if (step !== undefined || event.key === "Home" || event.key === "End") {
      event.preventDefault();
      event.stopPropagation();
      const from = this.index ?? last;
      const to = event.key === "Home" ? 0 : event.key === "End" ? last : from + step;
      this.point(Math.min(last, Math.max(0, to)));
    } else if (event.key === "Enter") {
      this.onpick?.(this.index);
    }
  }
}

const HUES = { change: "change", signal: "bad", verdict: "verdict" };
const ROW = 15;

/* For each label its row (0 is nearest to the plot) and whether it stands left of its line, so that no two meet and no
   line crosses a text: as flywheel/report/picture.py places them. */
export function rows(xs, widths, right) {
  const flipped = xs.map(() => false);
  for (let i = xs.length - 1; i >= 0; i--) {
    flipped[i] = xs[i] + widths[i] > right || xs.some((x, j) => j > i && flipped[j] && xs[i] + widths[i] > x);
  }
  const placed = xs.map(() => 0);
  for (let i = xs.length - 1; i >= 0; i--) {
    if (flipped[i]) continue;
    xs.forEach((x, j) => { if (j > i && x < xs[i] + widths[i]) placed[i] = Math.max(placed[i], placed[j] + 1); });
  }
  for (let i = 0; i < xs.length; i++) {
    if (!flipped[i]) continue;
    for (let j = 0; j < i; j++) {
      if (xs[j] + (flipped[j] ? 0 : widths[j]) > xs[i] - widths[i]) placed[i] = Math.max(placed[i], placed[j] + 1);
    }
  }
  return xs.map((_, i) => [placed[i], flipped[i]]);
}

const ruler = document.createElement("canvas").getContext("2d");
const measure = (text) => { ruler.font = FONT; return ruler.measureText(text).width + 9; };

/* Marks that fall on one place say so together. */
export function gathered(marks) {
  const found = [];
  for (const mark of marks) {
    const same = found.find((each) => each.kind === mark.kind && Math.abs(each.number - mark.number) < 1.5);
    if (same) same.texts.push(mark.text);
    else found.push({ ...mark, texts: [mark.text] });
  }
  return found.map((each) => ({ ...each, text: each.texts.length > 1 ? together(each.texts) : each.text }));
}

function together(texts) {
  const what = texts.map((text) => text.split(" (")[0]);
  return [...new Set(what)].map((each) => {
    const num = what.filter((other) => other === each).length;
    return num > 1 ? `${num} × ${each}` : each;
  }).join(", ");
}

/* How marks lie over a plot of this width and range: their rows of labels, and the room that takes above it. */
export function layout(marks, width, low, high, hue) {
  const inner = width - 42 - 12;
  const xs = marks.map((mark) => ((mark.number - low) / Math.max(1e-9, high - low)) * inner);
  const narrow = width < 560;
  const placed = narrow ? marks.map(() => [0, false]) : rows(xs, marks.map((mark) => measure(mark.text)), inner);
  const num = marks.length ? 1 + Math.max(...placed.map(([row]) => row)) : 0;
  const shown = marks.map((mark, i) => ({ ...mark, row: placed[i][0], flipped: placed[i][1], hue: color(HUES[mark.kind]) || hue(mark), text: narrow ? "" : mark.text }));
  return { marks: shown, room: narrow ? 10 : 8 + num * ROW };
}

export function drawMarks(plot, marks) {
  const { ctx, bbox } = plot;
  const ratio = uPlot.pxRatio;
  ctx.save();
  ctx.font = FONT.replace("11px", `${11 * ratio}px`);
  for (const mark of marks) {
    const x = Math.round(plot.valToPos(mark.number, "x", true));
    if (x < bbox.left - 2 || x > bbox.left + bbox.width + 2) continue;
    const top = bbox.top - (mark.text ? (mark.row + 1) * ROW - 2 : 6) * ratio;
    ctx.strokeStyle = ctx.fillStyle = mark.hue;
    ctx.lineWidth = 1.2 * ratio;
    ctx.setLineDash(mark.kind === "verdict" ? [4 * ratio, 3 * ratio] : []);
    ctx.beginPath();
    ctx.moveTo(x, top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    if (mark.text) {
      ctx.textAlign = mark.flipped ? "right" : "left";
      ctx.textBaseline = "top";
      ctx.fillText(mark.text, x + (mark.flipped ? -4 : 4) * ratio, top);
    }
  }
  ctx.restore();
}

export function line(plot, value, hue, { dash = [], width = 1.2, label = "" } = {}) {
  if (value === null || value === undefined) return;
  const { ctx, bbox } = plot;
  const ratio = uPlot.pxRatio;
  const x = Math.round(plot.valToPos(value, "x", true));
  if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) return;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = hue;
  ctx.lineWidth = width * ratio;
  ctx.setLineDash(dash.map((each) => each * ratio));
  ctx.beginPath();
  ctx.moveTo(x, bbox.top);
  ctx.lineTo(x, bbox.top + bbox.height);
  ctx.stroke();
  if (label) {
    ctx.font = FONT.replace("11px", `${10.5 * ratio}px`);
    const right = x > bbox.left + bbox.width * 0.7;
    ctx.textAlign = right ? "right" : "left";
    ctx.textBaseline = "top";
    ctx.fillText(label, x + (right ? -4 : 4) * ratio, bbox.top + 1);
  }
  ctx.restore();
}
