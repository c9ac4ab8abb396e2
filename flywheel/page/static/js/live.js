/* The stream of what happens: one for the whole page; after a break it goes on where it was. */
import { address } from "./api.js";

export class Live extends EventTarget {
  constructor() {
    super();
    this.state = "connecting";
    this.last = null;
  }

  start(begin) {
    this.stop();
    this.source = new EventSource(address("events", { begin: this.last ?? begin }));
    this.source.addEventListener("open", () => this.#is("live"));
    this.source.addEventListener("error", () => {
      this.#is("lost");
      if (this.source.readyState === EventSource.CLOSED) this.retry = setTimeout(() => this.start(begin), 5000);
    });
    this.source.addEventListener("told", (event) => {
      this.last = event.lastEventId;
      this.#say("told", JSON.parse(event.data));
    });
    this.source.addEventListener("changed", (event) => {
      const now = JSON.parse(event.data);
      const before = this.marks;
      this.marks = now;
      if (!before) return;
      const changed = Object.keys(now).filter((name) => now[name] !== before[name]);
      if (changed.length) this.#say("changed", changed);
    });
  }

  stop() {
    clearTimeout(this.retry);
    this.source?.close();
  }

  #is(state) {
    if (this.state === state) return;
    this.state = state;
    this.#say("state", state);
  }

  #say(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
