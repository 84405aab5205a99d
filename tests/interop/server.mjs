// Serves the Api on stdin and stdout, until they end.

import { RpcSession } from "capnweb";
import { Api } from "./api.mjs";
import { Lines } from "./lines.mjs";

const api = new Api();
api.session = new RpcSession(new Lines(process.stdin, process.stdout), api);
