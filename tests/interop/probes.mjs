// Raw messages: what a correct peer seldom or never sends.

const call = (...expression) => ["push", ["pipeline", 0, ...expression]];
const echo = (expression) => [call(["echo"], [expression]), ["pull", 1]];
const deep = (levels) => {
  let value = 1;
  for (let i = 0; i < levels; i++) value = { a: value };
  return value;
};

const all = {
  // A push of anything.
  "push a value": [["push", { a: 1 }], ["pull", 1], ["push", ["pipeline", 1, ["a"]]], ["pull", 2]],
  "push a call in an array": [["push", [["x", ["pipeline", 0, ["square"], [3]]]]], ["pull", 1]],
  "a call as an argument": [call(["square"], [["pipeline", 0, ["square"], [2]]]), ["pull", 1]],
  "push the main object": [["push", ["import", 0]], ["pull", 1]],
  "read the main object": [["push", ["pipeline", 0]], ["pull", 1]],
  "read the main object by an empty path": [["push", ["pipeline", 0, []]], ["pull", 1]],
  "call the main object": [["push", ["pipeline", 0, [], [1]]], ["pull", 1]],
  "call by import": [["push", ["import", 0, ["square"], [3]]], ["pull", 1]],
  "read a method": [["push", ["pipeline", 0, ["square"]]], ["pull", 1]],
  "read a getter, and call what it is": [
    ["push", ["pipeline", 0, ["greeting"]]], ["pull", 1],
    ["push", ["pipeline", 0, ["greeting"], []]], ["pull", 2],
  ],
  "no arguments, and no call": [call(["nothing"]), ["pull", 1], call(["nothing"], []), ["pull", 2]],

  // Pulls and releases.
  "pull twice": [call(["square"], [2]), ["pull", 1], ["pull", 1]],
  "pull the main object": [["pull", 0]],
  "pull what never was": [["pull", 7]],
  "release what never was": [["release", 7, 1]],
  "release too often": [call(["square"], [2]), ["release", 1, 2]],
  "release by nothing": [call(["square"], [2]), ["release", 1, 0], ["pull", 1]],
  "release by less than nothing": [call(["square"], [2]), ["release", 1, -5], ["pull", 1]],
  "release the main object": [["release", 0, 1], call(["square"], [2])],
  "call what never was": [["push", ["pipeline", 5, ["x"], []]]],
  "use after release": [call(["square"], [2]), ["release", 1, 1], ["push", ["pipeline", 1]]],
  "resolve what never was": [["resolve", 5, 1], call(["square"], [2]), ["pull", 1]],
  "resolve what never was with an object": [["resolve", 5, ["export", -1]]],

  // References.
  "a promise as an argument": [
    call(["square"], [["promise", -1]]), ["pull", 1], ["resolve", -1, 5],
  ],
  "a promise as an argument fails": [
    call(["square"], [["promise", -1]]), ["pull", 1], ["reject", -1, ["error", "RangeError", "no"]],
  ],
  "the same promise twice": [
    call(["add"], [["promise", -1], ["promise", -1]]), ["pull", 1], ["resolve", -1, 5],
  ],
  "the same object twice": [call(["echo"], [[[["export", -1], ["export", -1]]]]), ["pull", 1]],
  "ids with a gap": [
    call(["incrementCounter"], [["export", -5], 1]), ["pull", 1],
  ],
  "an object by a positive id": [...echo(["export", 5])],
  "an object of ours that never was": [...echo(["import", -3])],

  // Names that every object has.
  "names of objects": [
    call(["constructor"]), ["pull", 1], call(["__proto__"]), ["pull", 2],
    call(["toString"], []), ["pull", 3], call(["square", "call"], []), ["pull", 4],
  ],
  "private names": [call(["_log"]), ["pull", 1], call(["__class__"], []), ["pull", 2]],
  "keys of objects": echo({ toString: 1, constructor: 2, ["__proto__"]: 3, toJSON: 4, a: 5 }),

  // Streams.
  "a stream message to a function": [["stream", ["pipeline", 0, ["square"], [4]]]],
  "a stream message has no id after its answer": [
    ["stream", ["pipeline", 0, ["square"], [4]]], ["push", ["pipeline", 1]],
  ],
  "the ids of streams and pipes count": [
    ["stream", ["pipeline", 0, ["square"], [4]]], ["pipe"], call(["square"], [5]), ["pull", 3],
  ],
  "a pipe": [
    ["pipe"], call(["echo"], [["readable", 1]]), ["pull", 2],
    ["stream", ["pipeline", 1, ["write"], ["a"]]], ["stream", ["pipeline", 1, ["close"], []]],
    ["release", 1, 1],
  ],
  "a writable": [call(["echo"], [["writable", -1]]), ["pull", 1]],

  // What is malformed.
  "no JSON": ["{not json"],
  "JSON and more": ['["pull",0] x'],
  "NaN is no JSON": ['["push",NaN]'],
  "no array": [{ a: 1 }],
  "an empty message": [[]],
  "an unknown word": [["frobnicate", 1]],
  "a word that is no text": [[5, 1]],
  "a push of nothing": [["push"]],
  "a pull of a text": [["pull", "1"]],
  "a release without a count": [call(["square"], [2]), ["release", 1]],
  "an unknown expression": echo(["frob", 1]),
  "an unknown expression by itself": [["push", ["frob", 1]], ["pull", 1]],
  "an array that is not escaped": echo([1, 2]),
  "an empty array that is not escaped": echo([]),
  "an array of one number": echo([5]),
  "undefined with more": echo(["undefined", 1]),
  "a date of a text": echo(["date", "x"]),
  "an invalid date": echo(["date", null]),
  "a date beyond the years": echo(["date", 8.64e15]),
  "a bigint of letters": echo(["bigint", "12x"]),
  "a bigint of a number": echo(["bigint", 12]),
  "a bigint of too many digits": echo(["bigint", "1".repeat(16385)]),
  "bytes of an unknown container": echo(["bytes", "AQI", "Frob"]),
  "bytes that are no whole items": echo(["bytes", "AQI", "Int32Array"]),
  "bytes that are no base64": echo(["bytes", "****"]),
  "a url that is none": echo(["url", "nowhere"]),
  "headers that are none": echo(["headers", 5]),
  "a header with a line break": echo(["headers", [["a", "b\r\nc: d"]]]),
  "an error of a number": echo(["error", 5, "x"]),
  "arguments that are no array": [call(["square"], 5), ["pull", 1]],
  "a path that is no array": [["push", ["pipeline", 0, "square", [5]]], ["pull", 1]],
  "a path of objects": [["push", ["pipeline", 0, [{}], [5]]], ["pull", 1]],

  // What is odd, and right.
  "a message with more": [["push", ["pipeline", 0, ["square"], [2]], "more"], ["pull", 1, "more"]],
  "padded bytes": echo(["bytes", "AQI="]),
  "bytes in the alphabet of urls": echo(["bytes", "-_8"]),
  "an error of an unknown class": echo(["error", "KeyError", "k"]),
  "a number beyond the exact ones": ['["push",9007199254740993]', ["pull", 1]],
  "a number beyond all": ['["push",1e999]', ["pull", 1]],
  "a number with a point": ['["push",5.0]', ["pull", 1]],

  // Bombs.
  "60 levels": echo(deep(60)),
  "200 levels": echo(deep(200)),
  "300 levels": echo(deep(300)),
  "a hundred thousand levels": ["[".repeat(100000)],

  // The end.
  "an abort": [
    call(["hang"], []), ["pull", 1], ["abort", ["error", "Error", "bye"]], call(["square"], [2]),
  ],
};

export const probes = Object.entries(all).map(([probe, send]) => ({ probe, send }));
