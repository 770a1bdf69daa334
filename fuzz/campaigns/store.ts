/** A client's bytes to a TCPStore: answered by the protocol, or the client is disconnected. */
import { ENTRY_BYTES, KeyTable } from '../../lib/distributed/keyTable';
import {
  MAX_KEY_BYTES,
  MAX_KEYS,
  MAX_VALUE_BYTES,
  Message,
  Query,
  VALIDATION,
} from '../../lib/distributed/tcpStoreProtocol';
import { ServedClient } from '../../lib/distributed/tcpStoreServer';
import { type BytesTarget, type Campaign, expect } from '../campaign';
import { fakeSocket, inPieces } from './fakeSocket';

const STALL = 300_000;
const HELLO = new Message(Query.VALIDATE).u32(VALIDATION).bytes();
/** Set before each case, by another client. */
const KEPT = new Map([
  ['/kept', Buffer.from('value')],
  ['/number', Buffer.from('41')],
]);

/** The bytes end within a field, or the client violated the protocol. */
class Over extends Error {}
const OVER = new Over();

/**
 * An independent synchronous implementation of the protocol: the replies and state of a server that
 * has read `stream`.
 */
class Reference {
  readonly values = new Map<string, Buffer>(KEPT);
  readonly replies: Buffer[] = [];
  numRequests = 0;
  #at = 0;
  #awaited: Set<string> | null = null;

  constructor(readonly stream: Buffer) {
    try {
      if (this.#u8() !== Query.VALIDATE || this.#u32() !== VALIDATION) return;
      for (;;) {
        this.#request(this.#u8());
        this.numRequests++;
      }
    } catch (error) {
      if (error !== OVER) throw error;
    }
  }

  #take(numBytes: number): Buffer {
    if (this.#at + numBytes > this.stream.length) throw OVER;
    return this.stream.subarray(this.#at, (this.#at += numBytes));
  }

  #u8 = () => this.#take(1)[0];
  #u32 = () => this.#take(4).readUInt32LE();
  #i64 = () => this.#take(8).readBigInt64LE();

  #length(most: number): number {
    const length = this.#take(8).readBigUInt64LE();
    if (length > BigInt(most)) throw OVER;
    return Number(length);
  }

  #key = () => this.#take(this.#length(MAX_KEY_BYTES)).toString('latin1');
  #value = () => this.#take(this.#length(MAX_VALUE_BYTES));

  #keys(): string[] {
    const keys: string[] = [];
    for (let left = this.#length(MAX_KEYS); left > 0; left--) keys.push(this.#key());
    return keys;
  }

  #set(key: string, value: Buffer): void {
    this.values.set(key, value);
    if (this.#awaited?.delete(key) !== true || this.#awaited.size > 0) return;
    this.#awaited = null;
    this.replies.push(Buffer.of(0));
  }

  #replyString(value: Buffer | undefined): void {
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(value?.length ?? 0));
    this.replies.push(length, value ?? Buffer.alloc(0));
  }

  #replyI64(value: bigint | number): void {
    const bytes = Buffer.alloc(8);
    bytes.writeBigInt64LE(BigInt(value));
    this.replies.push(bytes);
  }

  #request(query: number): void {
    const { values, replies } = this;
    switch (query) {
      case Query.SET:
        this.#set(this.#key(), this.#value());
        return;
      case Query.COMPARE_SET: {
        const [key, expected, desired] = [this.#key(), this.#value(), this.#value()];
        const current = values.get(key) ?? null;
        if (current === null && expected.length > 0) {
          this.#replyString(expected);
          return;
        }
        if (current !== null && !current.equals(expected)) {
          this.#replyString(current);
          return;
        }
        this.#set(key, desired);
        this.#replyString(desired);
        return;
      }
      case Query.GET: {
        this.#replyString(values.get(this.#key()));
        return;
      }
      case Query.ADD: {
        const [key, amount] = [this.#key(), this.#i64()];
        const before = values.get(key);
        const sum = BigInt.asIntN(64, (before === undefined ? 0n : strtoll(before)) + amount);
        this.#set(key, Buffer.from(String(sum)));
        this.#replyI64(sum);
        return;
      }
      case Query.CHECK:
        replies.push(
          Buffer.of(this.#keys().filter((key) => !values.has(key)).length === 0 ? 0 : 1),
        );
        return;
      case Query.WAIT: {
        const missing = this.#keys().filter((key) => !values.has(key));
        if (this.#awaited !== null) throw OVER;
        if (missing.length === 0) replies.push(Buffer.of(0));
        else this.#awaited = new Set(missing);
        return;
      }
      case Query.CANCEL_WAIT:
        this.#awaited = null;
        replies.push(Buffer.of(1));
        return;
      case Query.GETNUMKEYS: {
        this.#replyI64(values.size);
        return;
      }
      case Query.DELETE_KEY: {
        this.#replyI64(values.delete(this.#key()) ? 1 : 0);
        return;
      }
      case Query.APPEND: {
        const [key, value] = [this.#key(), this.#value()];
        this.#set(key, Buffer.concat([values.get(key) ?? Buffer.alloc(0), value]));
        return;
      }
      case Query.MULTI_GET:
        for (const key of this.#keys()) this.#replyString(values.get(key));
        return;
      case Query.MULTI_SET: {
        const entries: [string, Buffer][] = [];
        for (let left = this.#length(MAX_KEYS); left > 0; left--) {
          entries.push([this.#key(), this.#value()]);
        }
        for (const [key, value] of entries) this.#set(key, value);
        return;
      }
      case Query.PING:
        replies.push(this.#take(4));
        return;
      default:
        throw OVER;
    }
  }
}

/** C's strtoll: blanks, a sign, digits; the rest is ignored. */
function strtoll(value: Buffer): bigint {
  const text = value.toString('latin1', 0, 64);
  let at = 0;
  while (at < text.length && ' \t\n\v\f\r'.includes(text[at])) at++;
  const isNegative = text[at] === '-';
  if (isNegative || text[at] === '+') at++;
  const digits = /^[0-9]*/.exec(text.slice(at))?.[0] ?? '';
  if (digits === '') throw OVER;
  const number = isNegative ? -BigInt(digits) : BigInt(digits);
  if (number !== BigInt.asIntN(64, number)) throw OVER;
  return number;
}

const session = (...messages: Message[]) =>
  Buffer.concat([Buffer.of(0), HELLO, ...messages.map((message) => message.bytes())]);

const SHORT = [
  session(new Message(Query.PING).u32(12345)),
  session(new Message(Query.SET).key('/a').value('one'), new Message(Query.GET).key('/a')),
  session(new Message(Query.COMPARE_SET).key('/a').value('').value('two')),
  session(new Message(Query.COMPARE_SET).key('/kept').value('value').value('two')),
  session(new Message(Query.ADD).key('/number').i64(-41), new Message(Query.ADD).key('/n').i64(1)),
  session(new Message(Query.CHECK).keys(['/kept', '/a'])),
  session(
    new Message(Query.WAIT).keys(['/a', '/n']),
    new Message(Query.MULTI_SET).count(2).key('/a').value('1').key('/n').value(''),
    new Message(Query.GETNUMKEYS),
  ),
  session(new Message(Query.WAIT).keys(['/a']), new Message(Query.CANCEL_WAIT)),
  session(
    new Message(Query.WAIT).keys(['/a']),
    new Message(Query.APPEND).key('/a').value('x'),
    new Message(Query.APPEND).key('/a').value('yz'),
    new Message(Query.MULTI_GET).keys(['/a', '/z', '/number']),
  ),
  session(new Message(Query.DELETE_KEY).key('/kept'), new Message(Query.DELETE_KEY).key('/a')),
  session(
    new Message(Query.SET).key('/long').value(Buffer.alloc(700, 'x')),
    new Message(Query.GET).key('/long'),
  ),
];

/** A session without the first byte and the handshake. */
const requestsOf = (seed: Buffer) => seed.subarray(1 + HELLO.length);
const LONG = [SHORT, [...SHORT].reverse(), [...SHORT.slice(6), ...SHORT.slice(0, 6)]].map((seeds) =>
  Buffer.concat([session(), ...seeds.map(requestsOf)]),
);
const SEEDS = [...SHORT, ...LONG, session(new Message(Query.ADD).key('/kept').i64(1))];

const KEYS = ['/kept', '/number', '/a', '/n', ''].map((key) => new Message().key(key).bytes());
const QUERIES = Object.values(Query).map((query) => new Message(query));

export const store: Campaign = {
  name: 'store',
  about:
    'TCPStore requests in any pieces: the answers, the keys and the memory of a plain reference',
  open() {
    const counts = { frames: 0 };
    const target: BytesTarget = {
      kind: 'bytes',
      counts,
      seeds: SEEDS,
      prefix: 1 + HELLO.length,
      words: [
        HELLO,
        ...KEYS,
        ...QUERIES.map((query) => query.bytes()),
        // Insert whole requests, so that sessions with several arise.
        ...SHORT.map(requestsOf),
        new Message().i64(1).bytes(),
        new Message().i64(-1).bytes(),
        new Message().i64(2n ** 62n).bytes(),
        ' -12', '+', '9223372036854775807', '18446744073709551616', '\u00a01',
      ], // prettier-ignore
      async check(bytes) {
        if (bytes.length === 0) return;
        const stream = bytes.subarray(1);
        const reference = new Reference(stream);
        counts.frames += reference.numRequests;

        const table = new KeyTable();
        for (const [key, value] of KEPT) table.set(key, Buffer.from(value));
        const { fake, socket } = fakeSocket();
        const served = new ServedClient(socket, table, STALL).serve();
        for (const piece of inPieces(stream, bytes[0])) {
          fake.receive(Buffer.from(piece));
          if (bytes[0] % 8 >= 4) await Promise.resolve();
        }
        fake.emit('close');
        await served;

        expect(fake.destroyed, 'the connection of a client that has gone is open');
        expect(
          Buffer.concat(fake.written).equals(Buffer.concat(reference.replies)),
          () =>
            `the answers are ${Buffer.concat(fake.written).toString('hex')}, ` +
            `not ${Buffer.concat(reference.replies).toString('hex')}`,
        );
        expect(table.numKeys === reference.values.size, `${table.numKeys} keys`);
        let numBytes = 0;
        for (const [key, value] of reference.values) {
          expect(table.get(key)?.equals(value) === true, () => `the value of ${key} differs`);
          numBytes += key.length + value.length + ENTRY_BYTES;
        }
        expect(
          table.numBytes === numBytes,
          () => `${table.numBytes} bytes in use, not ${numBytes}`,
        );
        expect(table.numAwaited === 0, 'keys are awaited by a client that has gone');
      },
    };
    return Promise.resolve(target);
  },
};
