/* The stream of what happens: one for the whole page; after a break it goes on where it was.
   A page that nobody sees has none, as a browser opens six to one host and no more. */
import { address } from "./api.js";

export class Live extends EventTarget {
  constructor() {
    super();
    this.state = "connecting";
    this.last = null;
    document.addEventListener("visibilitychange", () => this.#follow());
  }

  start(begin) {
    this.last ??= begin;
    this.#follow();
  }

  #follow() {
    clearTimeout(this.retry);
    this.source?.close();
    if (this.last === null) return;
    if (document.hidden) {
      this.marks ??= {};  // so that all of it has changed by the time it is seen
      return;
    }
    this.source = new EventSource(address("events", { begin: this.last }));
    this.source.addEventListener("open", () => this.#is("live"));
    this.source.addEventListener("error", () => {
      this.#is("lost");
      if (this.source.readyState === EventSource.CLOSED) this.retry = setTimeout(() => this.#follow(), 5000);
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

  #is(state) {
    if (this.state === state) return;
    this.state = state;
    this.#say("state", state);
  }

  #say(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
