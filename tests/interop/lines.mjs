// A message a line: the transport of capnweb over any pair of byte streams, such as stdin and stdout.

export class Lines {
  #waiting = [];
  #lines = [];
  #ended = null;
  #rest = "";
  #output;

  constructor(input, output) {
    this.#output = output;
    input.setEncoding("utf8");
    input.on("data", (text) => this.#read(text));
    input.on("end", () => this.#end(new Error("the other side has closed the stream")));
    input.on("error", (error) => this.#end(error));
    output.on("error", (error) => this.#end(error));
  }

  send(text) {
    this.#output.write(text + "\n");
  }

  receive() {
    if (this.#lines.length) return Promise.resolve(this.#lines.shift());
    if (this.#ended) return Promise.reject(this.#ended);
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  abort() {
    this.#output.end();
  }

  #read(text) {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) {
      if (this.#waiting.length) this.#waiting.shift().resolve(line);
      else this.#lines.push(line);
    }
  }

  #end(error) {
    this.#ended ??= error;
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }
}
