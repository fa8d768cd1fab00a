// A client of hal's scheduler in JavaScript, from docs/protocol.md. It runs a program in a slice:
//
//     npm install zeromq @msgpack/msgpack
//     node client.mjs 20 python3 train.py              # 20 GiB, waiting for room if need be
//
// The scheduler is that of HAL_RUNTIME_DIR (`hal serve`), or over TCP HAL_SCHEDULER, with the key in HAL_KEY.

import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

const LONG = { wait: 20, watch: 20, wait_job: 20 }; // seconds that they take where nothing else is said
const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

export class Client {
  #socket;
  #asked = new Map(); // by id: who is to have the reply
  #ahead; // milliseconds, of the scheduler's clock

  constructor(address, keyFile) {
    const lines = keyFile ? readFileSync(keyFile, "utf8").matchAll(/^(\w+) *= *"(.*)"/gm) : [];
    const key = Object.fromEntries(Array.from(lines, ([, name, value]) => [name, value]));
    const curve = { curveServerKey: key.scheduler, curvePublicKey: key.public, curveSecretKey: key.secret };
    this.#socket = new Dealer({ linger: 0, ...(keyFile && curve) });
    this.#socket.connect(address);
    this.#read();
  }

  close() {
    this.#socket.close();
  }

  async #read() {
    for await (const [frame] of this.#socket) {
      const reply = decode(frame);
      this.#asked.get(reply.id)?.(reply);
    }
  }

  async #ask(message, seconds) {
    const id = randomUUID();
    const reply = new Promise((done) => this.#asked.set(id, done));
    const timer = setTimeout(() => this.#asked.get(id)?.(null), seconds * 1000);
    await this.#socket.send(encode({ v: 1, id, ...message }));
    return reply.finally(() => (clearTimeout(timer), this.#asked.delete(id)));
  }

  // The reply's body, or an Error with the `code`. It asks again when there is no answer in so many `seconds`, as long
  // as its `patience` lasts: what makes something has a key. What is not begun `within` seconds is refused (late).
  async call(op, body = {}, { patience = 60, within, seconds } = {}) {
    const message = { op, body };
    if (within !== undefined) {
      this.#ahead ??= (await this.call("hello")).now_ms - Date.now();
      message.deadline_ms = Date.now() + this.#ahead + Math.round(within * 1000);
    }
    const until = Date.now() + patience * 1000;
    do {
      const reply = await this.#ask(message, seconds ?? (body.timeout_seconds ?? LONG[op] ?? 0) + 5);
      if (reply?.ok) return reply.body;
      const { code, message: text } = reply?.error ?? {};
      if (code && code !== "busy" && code !== "leaving") throw Object.assign(new Error(text), { code });
      if (code) await sleep(0.2);
    } while (Date.now() < until);
    throw new Error(`the scheduler does not answer '${op}'`);
  }

  // A lease and the environment of its programs. It is renewed until release(); lost(error): it is no more.
  async acquire(request, lost = () => {}) {
    let granted = await this.call("acquire", { key: randomUUID(), ...request });
    const third = (request.ttl_seconds ?? (request.request?.ttl_ms ?? 15000) / 1000) / 3; // it may be granted unheard
    for (const patient = { seconds: third * 2 }; !granted.lease;)
      granted = await this.call("wait", { lease: granted.waiting.id, timeout_seconds: Math.min(third, 20) }, patient);
    const { id, ttl_seconds } = granted.lease;
    const over = (error) => (clearInterval(timer), lost(error));
    const renew = () => this.call("renew", { lease: id }, { patience: ttl_seconds }).catch(over);
    const timer = setInterval(renew, (ttl_seconds * 1000) / 3);
    const release = async () => {
      clearInterval(timer);
      await this.call("release", { lease: id }).catch((error) => {
        if (error.code !== "ended" && error.code !== "not_found") throw error; // else it is done
      });
    };
    return { ...granted, release };
  }

  // The pages of list, nodes or jobs.
  async *pages(op, body = {}) {
    for (let page = { next: body.after }; page.next !== null; yield page)
      page = await this.call(op, page.next === undefined ? body : { ...body, after: page.next });
  }

  // Events from a number on (null: from now on), and {lost: true} where some are no longer known.
  async *watch(after = null, filter = {}) {
    for (;;) {
      const { events, next, lost } = await this.call("watch", { after, ...filter });
      if (lost) yield { lost };
      yield* events;
      after = next;
    }
  }

  // What a job says, to its end.
  async *logs(job, stream = "stdout") {
    for (let offset = 0, piece; !piece?.end; offset = piece.offset + piece.data.length) {
      piece = await this.call("job_logs", { job, stream, offset });
      if (piece.data.length) yield Buffer.from(piece.data);
      else if (!piece.end) await sleep(0.2);
    }
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const [gibibytes, program, ...words] = process.argv.slice(2);
  const { HAL_SCHEDULER, HAL_RUNTIME_DIR, HAL_KEY, LD_PRELOAD } = process.env;
  const address = HAL_SCHEDULER ?? `ipc://${HAL_RUNTIME_DIR}/scheduler.sock`;
  const client = new Client(address, address.startsWith("tcp:") ? HAL_KEY : null);
  const members = [{ alternatives: [{ memory_bytes: gibibytes * 2 ** 30 }] }];
  let child;
  const lease = await client.acquire({ request: { members, wait: true } }, () => child?.kill());
  const env = { ...process.env, ...lease.environment };
  if (LD_PRELOAD && lease.environment.LD_PRELOAD) env.LD_PRELOAD += `:${LD_PRELOAD}`;
  child = spawn(program, words, { stdio: "inherit", env });
  child.once("error", (error) => console.error(error.message));
  process.exitCode = await new Promise((done) => child.once("close", (code) => done(code ?? 1)));
  await lease.release();
  client.close();
}
