// What test_client_js.py has client.mjs, which lies beside a copy of this, do: node client_talk.mjs PAGE ADDRESS [KEY]
import { deepStrictEqual as same, ok, rejects } from "node:assert";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { decode, encode } from "@msgpack/msgpack";
import { Client } from "./client.mjs";

const GIB = 2 ** 30;
const [page, address, key] = process.argv.slice(2);
const client = new Client(address, key);
const ids = (found) => found.map((one) => one.id);
const code = (wanted) => (error) => error.code === wanted && error.message.length > 0;
const one = (alternative, more) => ({ members: [{ alternatives: [alternative] }], ...more });

// The page's vectors.
const vectors = [...readFileSync(page, "utf8").matchAll(/```vector\n(.*)\n([0-9a-f\n]+)```/g)];
ok(vectors.length >= 8);
for (const [, text, digits] of vectors) {
  const message = JSON.parse(text);
  same(decode(Buffer.from(digits.replaceAll("\n", ""), "hex")), message);
  same(decode(encode(message)), message);
}

// Keys, pages, explanations, the end.
const began = (await client.call("hello")).event;
const first = await client.call("acquire", { key: "first", memory_bytes: GIB, name: "first", ttl_seconds: 60 });
same((await client.call("acquire", { key: "first", memory_bytes: GIB })).lease.id, first.lease.id);
const many = await client.call("acquire_many", { requests: ["a", "b"].map((key) => ({ key, memory_bytes: GIB })) });
const held = [first, ...many.replies.map((reply) => reply.body)].map((granted) => granted.lease.id);
const listed = [];
for await (const { leases } of client.pages("list", { limit: 2 })) listed.push(ids(leases));
same(listed, [held.slice(0, 2), held.slice(2)]);
same((await client.call("explain", { lease: held[0] })).explanation.state, "active");
const ended = await client.call("release_many", { leases: [...held, "nobody's"] });
same(ended.replies.map((reply) => reply.body?.ended ?? reply.error.code), [true, true, true, "not_found"]);
same((await client.call("lease", { lease: held[0] })).over.state, "ended");
const seen = [];
for await (const event of client.watch(began, { lease: held[0] })) if (seen.push(event.kind) === 3) break;
same(seen, ["granted", "ending", "ended"]);

// One that is renewed outlives one that is not.
const left = (await client.call("acquire", { key: "left", memory_bytes: GIB, ttl_seconds: 1 })).lease.id;
const kept = await client.acquire({ memory_bytes: GIB, ttl_seconds: 1 }, (error) => { throw error; });
for await (const event of client.watch(began, { lease: left, kinds: ["ended"] })) if (event.lease === left) break;
same(ids((await client.call("list")).leases), [kept.lease.id]);
await kept.release();
await kept.release();

// A place in the queue, and over a restart of the scheduler.
const wholes = [];
for (let number = 0; number < 4; number++) wholes.push(await client.acquire({ ttl_seconds: 60 }));
await rejects(client.call("acquire", { key: "no", memory_bytes: GIB }), code("no_room"));
const waits = client.acquire({ request: one({ memory_bytes: GIB }, { wait: true }) });
for await (const event of client.watch(began, { kinds: ["queued"] })) if (event.kind === "queued") break;
console.log("restart");
await once(process.stdin, "data");
same((await client.call("list")).waiting.length, 1);
await wholes[0].release();
await (await waits).release();
for (const whole of wholes.slice(1)) await whole.release();
const later = await client.call("watch", { after: began });
same(later.lost, true);

// Jobs, where this user may have some.
const status = await client.call("status");
ok(status.term === 2 && (await client.call("queues")).queues[0].name === "default");
if (!key) {
  const job = { command: ["sh", "-c", "echo said; exit 3"], environment: { PATH: process.env.PATH } };
  const [id] = (await client.call("submit", { key: "job", job })).jobs;
  same((await client.call("submit", { key: "job", job })).jobs, [id]);
  let said = "";
  for await (const piece of client.logs(id)) said += piece;
  same(said, "said\n");
  const { state, exit_code } = (await client.call("wait_job", { job: id })).job;
  same([state, exit_code], ["failed", 3]);
  for await (const { jobs } of client.pages("jobs")) same(ids(jobs), [id]);
}

// Refusals.
const refused = {
  no_device: ["acquire", { key: "k", vendor: "nobody" }],
  too_large: ["acquire", { key: "k", memory_bytes: GIB * 2 ** 20 }],
  not_found: ["acquire", { key: "k", class: "none" }],
  ended: ["renew", { lease: wholes[1].lease.id }],
  malformed: ["acquire", { key: "k", memory_bytes: 1.5 }],
  unknown_op: ["dance"],
  late: ["acquire", { key: "k" }, { within: -1 }],
  ...(key && { denied: ["cordon", { target: "local" }] }),
};
for (const [wanted, call] of Object.entries(refused)) await rejects(client.call(...call), code(wanted));
same((await client.call("hello", {}, { within: 60 })).leases, 0);
client.close();
console.log("done");
process.stdin.destroy();
