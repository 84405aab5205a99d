// What both sides offer in these tests: api.py is the same in Python.

import { RpcPromise, RpcTarget } from "capnweb";

const QUIET_WITHIN = 2000; // milliseconds

export class Counter extends RpcTarget {
  #value;

  constructor(value) {
    super();
    this.#value = value;
  }

  increment(by = 1) {
    return (this.#value += by);
  }

  get value() {
    return this.#value;
  }
}

const ERRORS = { Error, RangeError, TypeError, SyntaxError };

export class Api extends RpcTarget {
  #kept = null;
  #log = [];
  session = null; // set when the session is there

  square(x) {
    return x * x;
  }

  add(a, b) {
    return a + b;
  }

  echo(x) {
    return x;
  }

  // What was passed is disposed when the call ends, so what is to go back is a duplicate.
  giveBack(x) {
    return x.dup();
  }

  giveBackInside(x) {
    return { it: x.dup() };
  }

  kind(x) {
    return Object.prototype.toString.call(x).slice(8, -1);
  }

  nothing() {}

  get greeting() {
    return "hello";
  }

  config() {
    return { nested: { n: 5 }, list: [1, [2, []], 3] };
  }

  fibonacci(n) {
    const found = [0, 1];
    while (found.length < n) found.push(found.at(-1) + found.at(-2));
    return found.slice(0, n);
  }

  fail(kind, text) {
    const error = new ERRORS[kind](text, { cause: new TypeError("because") });
    error.code = 7;
    throw error;
  }

  throwText() {
    throw "a text";
  }

  // What the error is here, for the other side to see.
  describeError(error) {
    return {
      name: error.name,
      message: error.message,
      isTypeError: error instanceof TypeError,
      cause: error.cause === undefined ? null : error.cause.message,
    };
  }

  makeCounter(value) {
    return new Counter(value);
  }

  incrementCounter(counter, by) {
    return counter.increment(by);
  }

  async callFunction(f, x) {
    return { result: await f(x) };
  }

  async callTimes(f, n) {
    const results = [];
    for (let i = 0; i < n; i++) results.push(await f(i));
    return results;
  }

  keep(f) {
    this.#kept = f.dup();
  }

  async fire(x) {
    return await this.#kept(x);
  }

  drop() {
    this.#kept[Symbol.dispose]();
    this.#kept = null;
  }

  // Promises that have no value yet when the result is sent.
  promises(f) {
    return { far: f(20), near: new RpcPromise(this.later(5)) };
  }

  async later(x) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    return x;
  }

  log(x) {
    this.#log.push(x);
  }

  logged() {
    return this.#log;
  }

  hang() {
    return new Promise(() => {});
  }

  // Calls the main object of the other side.
  async callYou(name, ...args) {
    return await this.session.getRemoteMain()[name](...args);
  }

  // The tables of this side, once they are quiet, or as they are when that takes too long.
  async quiet() {
    const giveUp = Date.now() + QUIET_WITHIN;
    for (;;) {
      const { imports, exports } = this.session.getStats();
      // The answer of this call is held until it is sent.
      const found = { imports, exports: exports - 1 };
      if ((imports === 1 && exports === 2) || Date.now() > giveUp) return found;
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  }
}
