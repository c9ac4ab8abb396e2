/* The wheel: five stages round a ring, the one that turns in colour, each with its seconds of this turn. */
import { s } from "./dom.js";
import { seconds, words } from "./format.js";

const STAGES = ["train", "gate", "deploy", "observe", "analyze"];
const [X, Y, R] = [150, 118, 74];
const at = (place, radius = R) => {
  const angle = (place / STAGES.length) * 2 * Math.PI - Math.PI / 2;
  return [X + radius * Math.cos(angle), Y + radius * Math.sin(angle)];
};

export function wheel({ stage, turn, seconds: spent }) {
  const title = stage ? `Turn ${turn}: ${stage} is turning` : `The wheel stands still after turn ${turn}`;
  const root = s("svg", { class: "wheel", viewBox: "0 0 300 236", role: "img", "aria-label": title });
  STAGES.forEach((name, i) => {
    const [x1, y1] = at(i + 0.2);
    const [x2, y2] = at(i + 0.8);
    const on = stage === STAGES[(i + 1) % STAGES.length];
    root.append(s("path", { class: on ? "arc on" : "arc", d: `M${x1} ${y1}A${R} ${R} 0 0 1 ${x2} ${y2}` }));
    const [tx, ty] = at(i + 0.81);
    const turned = ((i + 0.81) / STAGES.length) * 360;
    root.append(s("path", { class: on ? "tip on" : "tip", d: "M-4.500 -5L4.500 0L-4.500 5z", transform: `translate(${tx} ${ty}) rotate(${turned})` }));
  });
  STAGES.forEach((name, i) => {
    const [x, y] = at(i);
    const on = stage === name;
    if (on) root.append(s("circle", { class: "ring", cx: x, cy: y, r: 13 }));
    root.append(s("circle", { class: on ? "node on" : "node", cx: x, cy: y, r: on ? 9 : 7 }));
    const [lx, ly] = at(i, R + 20);
    const anchor = Math.abs(lx - X) < 5 ? "middle" : lx > X ? "start" : "end";
    const lift = i === 0 ? -12 : 0;
    root.append(s("text", { class: on ? "name on" : "name", x: lx, y: ly + lift + 1, "text-anchor": anchor }, name));
    if (spent[name] !== undefined) {
      root.append(s("text", { class: "spent", x: lx, y: ly + lift + 15, "text-anchor": anchor }, seconds(spent[name])));
    }
  });
  root.append(s("text", { class: "turn", x: X, y: Y + 2, "text-anchor": "middle" }, turn ? `turn ${turn}` : "no turn"));
  root.append(s("text", { class: "spent", x: X, y: Y + 20, "text-anchor": "middle" }, stage ? words(stage) : "stands still"));
  return root;
}
