/* Small charts over an episode's steps, one a number, under each other's cursor, with the step that is looked at. */
import { Chart, axis, color, line, xAxis } from "./charts.js";
import { h } from "./dom.js";
import { number } from "./format.js";

const HEIGHT = 92;

/* `strips` are {name, courses: [values, …], stepped}; `hues` names each course's colour; `lines` are {value, hue, label}. */
export class Strips {
  constructor({ strips, num, hues, lines, onpick }) {
    this.step = 0;
    this.lines = lines;
    this.sync = uPlot.sync(`strips-${Math.random()}`);
    this.charts = strips.map((strip) => this.#chart(strip, num, hues, onpick));
    this.values = strips.map(() => h("span", { class: "value" }));
    this.strips = strips;
    this.node = h("div", { class: "strips" }, strips.map((strip, i) =>
      h("figure", { class: "strip" }, h("figcaption", {}, h("span", {}, strip.name), this.values[i]), this.charts[i].node)));
    this.set(0);
  }

  set(step) {
    this.step = step;
    this.strips.forEach((strip, i) => {
      this.values[i].textContent = strip.courses.map((values) => (step < values.length ? number(values[step]) : "–")).join("  ·  ");
    });
    this.charts.forEach((chart) => chart.redraw());
  }

  redraw() {
    this.charts.forEach((chart) => chart.redraw());
  }

  dispose() {
    this.charts.forEach((chart) => chart.dispose());
  }

  #chart(strip, num, hues, onpick) {
    const xs = Array.from({ length: num + 1 }, (_, i) => i);
    const padded = strip.courses.map((values) => xs.map((i) => values[i] ?? null));
    const chart = new Chart({
      label: `${strip.name} over ${num} steps`, height: HEIGHT, data: [xs, ...padded],
      make: () => ({
        padding: [6, 14, 0, 0],
        scales: { x: { time: false, range: () => [0, Math.max(num, 1)] }, y: { range: (_, min, max) => spread(min, max) } },
        axes: [xAxis({ size: 20, gap: 2, ticks: { show: false }, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick : "")) }),
          axis({ size: 46, space: 26, values: (_, ticks) => ticks.map((tick) => number(tick, 3)) })],
        series: [{}, ...hues.slice(0, padded.length).map((hue, i) => ({
          stroke: () => color(hue), width: i ? 1.6 : 1.3, points: { show: false },
          paths: strip.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
        }))],
        cursor: { sync: { key: this.sync.key, setSeries: false } },
        hooks: { draw: [(plot) => {
          this.lines().forEach((each) => line(plot, each.value, color(each.hue), { dash: each.dash ?? [4, 3] }));
          line(plot, this.step, color("accent"), { width: 1.6 });
        }] },
      }),
      onpick: (i) => { if (i !== null) onpick(i); },
    });
    chart.node.removeAttribute("tabindex");
    return chart;
  }
}

function spread(min, max) {
  if (min === null || max === null) return [0, 1];
  const span = max - min || Math.abs(max) || 1;
  return [min - 0.08 * span, max + 0.08 * span];
}
