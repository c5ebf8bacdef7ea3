// Answers on their way: kept in the browser until the server has them, sent again until it has, counted once by their
// id. What the server refuses for good is handed back. Each rater has their own, so that nobody sends another's.
import { call, Refused } from "./wire.js";

const FINAL = [400, 404, 413, 422];
const FIRST = 1000, LONGEST = 30_000;

export class Outbox {
  // told({waiting, refused, forged}): how many wait; what was refused ({body, message}), if something was; and whether the
  // page is out of date, so that it must be loaded again. asks(path): what is sent beside an answer, as things are when
  // it goes; heard(path, written): what the server says when it has it.
  constructor(rater, { told = () => {}, asks = () => ({}), heard = () => {} } = {}) {
    this.place = `plaudit-outbox-${rater}`;
    this.told = told;
    this.asks = asks;
    this.heard = heard;
    this.pause = FIRST;
    this.running = null;
    addEventListener("online", () => this.flush());
  }

  read() {
    return JSON.parse(localStorage.getItem(this.place) ?? "[]");
  }

  write(waiting) {
    if (waiting.length) localStorage.setItem(this.place, JSON.stringify(waiting));
    else localStorage.removeItem(this.place);
  }

  put(path, body) {
    this.write([...this.read(), { path, body }]);
    return this.flush();
  }

  // One at a time and in order, so that what takes another answer's place comes after it.
  flush() {
    this.running ??= this.send().finally(() => {
      this.running = null;
    });
    return this.running;
  }

  async send() {
    while (this.read().length) {
      const { path, body } = this.read()[0];
      let refused = null, written = null;
      try {
        written = await call("POST", path, { ...body, ...this.asks(path) });
        this.pause = FIRST;
      } catch (error) {
        const said = error instanceof Refused;
        if (!(said && error.fault && FINAL.includes(error.status))) {
          const forged = said && error.status === 403;
          this.told({ waiting: this.read().length, refused: null, forged });
          if (forged) return;
          setTimeout(() => this.flush(), this.pause);
          this.pause = Math.min(LONGEST, 2 * this.pause);
          return;
        }
        refused = { body, message: error.message };
      }
      this.write(this.read().filter((one) => one.body.event !== body.event));
      if (written) this.heard(path, written);
      this.told({ waiting: this.read().length, refused, forged: false });
    }
  }
}
