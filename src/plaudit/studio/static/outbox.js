// Answers on their way: kept in the browser until the server has them, sent again until it has, counted once by their
// id. What the server refuses for good becomes a draft again. Each rater has their own, so that nobody sends another's.
import { keep, keepDraft, recall } from "./kept.js";
import { call, Refused } from "./wire.js";

const FINAL = [400, 404, 413, 422];
const FIRST = 1000, LONGEST = 30_000;

export class Outbox {
  // told({waiting, unkept, refused, forged}): how many wait, and how many of them the browser had no room for; what was
  // refused ({body, message}), if something was; and whether the page is out of date, so that it must be loaded again.
  // asks(path): what is sent beside an answer, as things are when it goes; heard(path, written): what the server says when
  // it has it.
  constructor(rater, { told = () => {}, asks = () => ({}), heard = () => {} } = {}) {
    this.rater = rater;
    this.place = `plaudit-outbox-${rater}`;
    this.unkept = [];
    this.told = told;
    this.asks = asks;
    this.heard = heard;
    this.pause = FIRST;
    this.running = null;
    addEventListener("online", () => this.flush());
    addEventListener("beforeunload", (event) => {
      if (this.unkept.length) event.preventDefault();
    });
  }

  kept() {
    return recall(this.place) ?? [];
  }

  read() {
    return [...this.kept(), ...this.unkept];
  }

  put(path, body) {
    this.unkept.push({ path, body });
    this.save();
    if (this.unkept.length) this.tell();
    return this.flush();
  }

  save() {
    if (this.unkept.length && keep(this.place, this.read())) this.unkept = [];
  }

  drop(event) {
    const others = (one) => one.body.event !== event, kept = this.kept().filter(others);
    keep(this.place, kept.length ? kept : null);
    this.unkept = this.unkept.filter(others);
    this.save();
  }

  tell(more = {}) {
    this.told({ waiting: this.read().length, unkept: this.unkept.length, refused: null, forged: false, ...more });
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
          this.tell({ forged });
          if (forged) return;
          setTimeout(() => this.flush(), this.pause);
          this.pause = Math.min(LONGEST, 2 * this.pause);
          return;
        }
        refused = { body, message: error.message };
      }
      this.drop(body.event);
      if (refused) this.giveBack(path, body);
      if (written) this.heard(path, written);
      this.tell({ refused });
    }
  }

  // As a draft of its item, which may be of another project than the page; the studio keeps it where there is no room here.
  giveBack(path, { item, payload, comment, flags, supersedes }) {
    const project = path.split("/")[2];
    const draft = { payload: payload ?? undefined, comment: comment ?? "", flags, supersedes };
    keepDraft(this.rater, project, item, draft);
    call("PUT", `/drafts/${item}`, { draft }).catch(() => {});
  }
}
