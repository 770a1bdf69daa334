/** Collectives of several GPUs, one process each: NCCL, and all-reduce through peer memory. */
import type { CommType, ReduceOp } from '../../lib/native';
import { allEnded, startRanks } from '../support/ranks';
import { HeldRanks, ResidentRanks } from '../support/residentRanks';
import type { Case, Result } from '../support/sumRmsNorm';
import { expectGoodEnds } from '../support/tensorParallel';
import { describeOnGpus, expectNoMoreHeld } from './gpus';

/** Opening a GPU takes seconds, and initializing NCCL more. */
jest.setTimeout(180_000);

/** Prologue of each rank's program: a process group, and each rank's input values. */
const PRELUDE = `
const { createHash } = require('node:crypto');
const { ProcessGroup } = require('./lib/distributed/processGroup');
const { native } = require('./lib/native');
const { Ops } = require('./test/native/ops/binding');
const { encode } = require('./test/native/collectives');
const { checkSumRmsNorm } = require('./test/support/sumRmsNorm');

const rank = Number(process.env.RANK);
const worldSize = Number(process.env.WORLD_SIZE);
const say = (line) => console.log(JSON.stringify(line));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const everyRank = Array.from({ length: worldSize }, (_, i) => i);

const join = () =>
  ProcessGroup.join({ initMethod: 'env://', rank, worldSize, timeout: 60_000 });

async function openDevice() {
  const device = new (native().DeviceThread)('cuda', rank, 0);
  await device.open();
  return device;
}

/** A connected communicator on the device's thread. */
async function connect(group, device, name, options = {}) {
  const communicator = new (native().Communicator)(device, {
    rank, worldSize, timeout: 60_000, customAllReduce: true, ...options,
  });
  await communicator.connect(await group.gather(name, await communicator.address()));
  return communicator;
}

/** Pseudo-random 32-bit words. */
function words(count, seed) {
  let x = (seed * 2654435761 + count) >>> 0 || 1;
  return Array.from({ length: count }, () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  });
}

/** Numbers of the type with several magnitudes. */
function valuesOf(type, count, ofRank) {
  return words(count, 1 + ofRank).map((word) => {
    if (type === 'int64') return BigInt(word - 2 ** 31) * BigInt(1 + (word % 1000003));
    if (type === 'float32') return Math.fround((word / 2 ** 32 - 0.5) * 2 ** (word % 8));
    return ((word % 255) - 127) * 2 ** -((word >>> 8) % 5); // 8 bits of mantissa
  });
}

function bytesOf(values, type) {
  if (type !== 'bfloat16') return encode(values, type);
  const words = new Uint32Array(Float32Array.from(values).buffer); // whose lower bits are zero
  return new Uint8Array(Uint16Array.from(words, (word) => word >>> 16).buffer);
}

function decode(bytes, type) {
  const { buffer, byteOffset: at, length } = bytes;
  if (type === 'int64') return [...new BigInt64Array(buffer, at, length / 8)];
  if (type === 'float32') return [...new Float32Array(buffer, at, length / 4)];
  const bits = [...new Uint16Array(buffer, at, length / 2)];
  if (type === 'bfloat16') return [...new Float32Array(Uint32Array.from(bits, (b) => b << 16).buffer)];
  return bits.map((b) => {
    const [sign, exponent, mantissa] = [b >> 15 ? -1 : 1, (b >> 10) & 31, b & 1023];
    if (exponent === 31) return mantissa ? NaN : sign * Infinity;
    return sign * (exponent ? (1024 + mantissa) * 2 ** (exponent - 25) : mantissa * 2 ** -24);
  });
}

const digestOf = (bytes) => createHash('sha256').update(bytes).digest('hex');
`;

/** Prologue of processes that run the programs of several tests in sequence. */
const RESIDENT_PRELUDE = `${PRELUDE}
/** The group and the device; the first program to use a mode connects its communicator. */
let group, device;
const communicators = new Map();
async function open() {
  group ??= await join();
  device ??= await openDevice();
}
async function communicatorOf(customAllReduce) {
  await open();
  if (!communicators.has(customAllReduce)) {
    const options = { customAllReduce };
    const name = 'customAllReduce ' + customAllReduce;
    communicators.set(customAllReduce, await connect(group, device, name, options));
  }
  return communicators.get(customAllReduce);
}
async function close() {
  for (const communicator of communicators.values()) await communicator.shutdown();
  await device?.shutdown();
  await group?.leave();
}

const ROUNDINGS = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 };
const MOST = 300_001;
/** Each rank's input by type, as numbers and as bytes; a message is a prefix of it. */
const brought = new Map();
function broughtOf(type) {
  if (!brought.has(type)) {
    const count = type === 'int64' ? 2000 : MOST;
    const values = everyRank.map((ofRank) => valuesOf(type, count, ofRank));
    brought.set(type, { values, bytes: values.map((of) => bytesOf(of, type)) });
  }
  return brought.get(type);
}

/** The reduction of all ranks' values in float64 (int64: exactly), element by element. */
function expectedOf(type, op) {
  const { values } = broughtOf(type);
  const expected = values[0].slice();
  for (const ofRank of values.slice(1)) {
    for (let i = 0; i < expected.length; i++) {
      const [a, b] = [expected[i], ofRank[i]];
      expected[i] = op === 'sum' ? a + b : (op === 'min') === (b < a) ? b : a;
    }
  }
  return expected;
}
`;

const start = (body: string, worldSize: number) =>
  startRanks(`${PRELUDE}\n(async () => {\n${body}\n})();`, worldSize);

/** Message sizes on both sides of the peer-to-peer kernels' limits, and unsupported ones. */
const COUNTS = [
  1, 3, 4, 8, 1023, 1024, 4096, 16_384, 16_388, 32_768, 32_776, 100_003, 131_072, 131_076, 262_144,
  262_152, 300_001,
];

const SIZES: [string, number][] = [
  ['8 KiB', 8 << 10],
  ['512 KiB', 512 << 10],
  ['8 MiB', 8 << 20],
];

/** Largest message in bytes that is summed through peer memory. */
const MOST_IN_PEER_MEMORY = 2 << 20;

/** One-shot and two-shot messages, rows of two accesses per thread, and what goes to NCCL. */
const NORM_CASES: Case[] = [
  { numTokens: 1, size: 4096 },
  { numTokens: 1, size: 64 },
  { numTokens: 3, size: 1000 },
  { numTokens: 5, size: 77 },
  { numTokens: 17, size: 2048 },
  { numTokens: 8, size: 16_384 },
  { numTokens: 64, size: 3584 },
  { numTokens: 130, size: 1024 },
  { numTokens: 64, size: 8192 },
  { numTokens: 256, size: 4096 },
  { numTokens: 257, size: 4096 },
];

/** Endless all-reduces, on a device opened before the start signal. */
const victimProgram = (customAllReduce: boolean, bytes: number) => `${PRELUDE}
(async () => {
  const device = await openDevice();
  await held();
  const group = await join();
  const options = { customAllReduce: ${customAllReduce} };
  const communicator = await connect(group, device, 'addresses', options);
  let lostAt = null;
  group.onFailure((error) => {
    lostAt = performance.now();
    communicator.abort(error.message);
  });
  const data = new Uint8Array(${bytes});
  try {
    for (let i = 0; ; i++) {
      await communicator.allReduce(data, 'bfloat16', 'sum');
      if (i === 20) say('sums');
    }
  } catch ({ code, message }) {
    const elapsed = performance.now() - lostAt;
    const again = await communicator.barrier().catch((error) => error.code);
    say({ code, again, isLate: elapsed > 20_000, message });
  }
  await communicator.shutdown();
  await device.shutdown();
  await group.leave();
})();`;

describeOnGpus('the collectives', (worldSize) => {
  const resident = new ResidentRanks(RESIDENT_PRELUDE, worldSize);
  const run = <T>(body: string) => resident.run<T>(body);

  /** Groups in which a rank is killed, by mode and size, started together for all tests. */
  const victims = new Map<string, HeldRanks>();
  function startVictims(): void {
    if (victims.size > 0) return;
    for (const customAllReduce of [true, false]) {
      for (const [, bytes] of SIZES) {
        const group = HeldRanks.start(victimProgram(customAllReduce, bytes), worldSize);
        victims.set(`${customAllReduce} ${bytes}`, group);
      }
    }
  }

  afterAll(() => resident.end('await close()'));
  afterAll(() => Promise.all([...victims.values()].map((group) => group.kill())));

  describe.each([true, false])('customAllReduce %p', (customAllReduce) => {
    interface Reduced {
      type: CommType;
      op: ReduceOp;
      count: number;
      digest: string;
      /** Largest error of a sum, in units of the type's rounding at the summands' magnitude. */
      error: number;
    }
    const bytesOf = { int64: 8, float32: 4, float16: 2, bfloat16: 2 };
    const inPeerMemory = ({ type, op, count }: Reduced) =>
      customAllReduce &&
      op === 'sum' &&
      type !== 'int64' &&
      count * bytesOf[type] <= MOST_IN_PEER_MEMORY &&
      (count * bytesOf[type]) % 16 === 0;

    test('allReduce gives every rank the same bits, equal to float64 up to rounding', async () => {
      const said = await run<Reduced>(
        `const communicator = await communicatorOf(${customAllReduce});
        for (const type of ['int64', 'float32', 'float16', 'bfloat16']) {
          const { values, bytes } = broughtOf(type);
          const bytesPerElement = bytes[rank].length / values[rank].length;
          for (const op of ['sum', 'min', 'max']) {
            const expected = expectedOf(type, op);
            const most = type === 'int64' ? 2000 : op === 'sum' ? Infinity : 200_000;
            for (const count of ${JSON.stringify(COUNTS)}.filter((c) => c <= most)) {
              const message = bytes[rank].slice(0, count * bytesPerElement);
              const result = await communicator.allReduce(message, type, op);
              const got = decode(result, type);
              let error = got.length === count ? 0 : 1e9;
              for (let i = 0; i < count; i++) {
                if (op !== 'sum' || type === 'int64') {
                  if (got[i] !== expected[i]) error = 1e9;
                  continue;
                }
                let magnitude = 0;
                for (const ofRank of values) magnitude += Math.abs(ofRank[i]);
                const distance = Math.abs(got[i] - expected[i]);
                // NaN has no distance.
                if (!(distance <= error * magnitude * ROUNDINGS[type])) {
                  error = distance / magnitude / ROUNDINGS[type];
                  if (!(error < 1e9)) error = 1e9;
                }
              }
              say({ type, op, count, digest: digestOf(result), error });
            }
          }
        }`,
      );
      expect(said[0].length).toBeGreaterThan(100);
      for (const ofRank of said) expect(ofRank).toEqual(said[0]);
      for (const reduced of said[0]) {
        // Peer memory sums in float32 and rounds once.
        const most = inPeerMemory(reduced) && reduced.type !== 'float32' ? 1 : worldSize - 1;
        expect({ ...reduced, isGood: reduced.error <= most + 0.01 }).toEqual({
          ...reduced,
          isGood: true,
        });
      }
    });

    test('allGather and broadcast return the input bytes', async () => {
      const said = await run<{ count: number; areSame: boolean }>(
        `const communicator = await communicatorOf(${customAllReduce});
        for (const count of [1, 1023, 300_001]) {
          const all = broughtOf('float32').bytes.map((bytes) => bytes.slice(0, 4 * count));
          const gathered = await communicator.allGather(all[rank], 'float32');
          const areSame = [Buffer.compare(gathered, Buffer.concat(all)) === 0];
          for (const root of everyRank) {
            const data = await communicator.broadcast(all[rank], 'float32', root);
            areSame.push(Buffer.compare(data, all[root]) === 0);
          }
          await communicator.barrier();
          say({ count, areSame: areSame.every(Boolean) });
        }`,
      );
      for (const ofRank of said) {
        expect(ofRank).toEqual([1, 1023, 300_001].map((count) => ({ count, areSame: true })));
      }
    });

    test('a graph of messages of all sizes gives the correct sums in repeated launches', async () => {
      const LAUNCHES = 150;
      const said = await run<{ hasPeerMemory: boolean; numWrong: number; digest: string }>(
        `await open();
        const ops = new Ops({ kind: 'cuda', index: rank });
        const communicator = ops.makeCommunicator({
          rank, worldSize, timeout: 60_000, customAllReduce: ${customAllReduce},
        });
        const name = 'graphs ' + ${customAllReduce};
        ops.connect(communicator, await group.gather(name, ops.address(communicator)));

        // Small integers, exact in every type, that differ by index, launch and rank.
        const value = (i, message, launch, ofRank) =>
          ((i * 7 + message * 3 + launch * 13 + ofRank * 29) % 63) - 31;
        const PERIOD = 9; // of value, by i
        const toBits = (values) =>
          Uint16Array.from(new Uint32Array(Float32Array.from(values).buffer), (x) => x >>> 16);
        const repeated = (count, valueAt) => {
          const bits = new Uint16Array(count);
          bits.set(toBits(Array.from({ length: Math.min(count, PERIOD) }, (_, i) => valueAt(i))));
          for (let done = PERIOD; done < count; done *= 2) bits.copyWithin(done, 0, done);
          return bits;
        };
        const inputOf = (count, m, launch, ofRank) =>
          repeated(count, (i) => value(i, m, launch, ofRank));
        const sumOf = (count, m, launch) =>
          repeated(count, (i) => everyRank.reduce((sum, of) => sum + value(i, m, launch, of), 0));
        // -0 is equal to 0.
        const numDifferent = (bits, expected) => {
          if (Buffer.compare(bytesIn(bits), bytesIn(expected)) === 0) return 0;
          let count = bits.length === expected.length ? 0 : 1;
          for (let i = 0; i < bits.length; i++) {
            if (bits[i] !== expected[i] && ((bits[i] | expected[i]) & 0x7fff) !== 0) count++;
          }
          return count;
        };
        const bytesIn = (bits) => new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength);

        const counts = [
          8, 4096, 32, 262144, 16, 32768, 8192, 1048576, 131072, 40, 4096, 65536, 8, 524288, 24, 262152,
          1048584,
        ];
        const messages = counts.map((count) => ({
          count,
          input: ops.zeros(count, 'bfloat16'),
          sum: ops.zeros(count, 'bfloat16'),
          all: ops.zeros(worldSize * count, 'bfloat16'),
        }));
        const first = ops.ints([0]);
        const graphs = ops.makeGraphs();
        let numWrong = 0;
        const hash = createHash('sha256');
        for (let launch = 0; launch < ${LAUNCHES}; launch++) {
          for (const [m, { count, input }] of messages.entries()) {
            ops.copyToDevice(input, inputOf(count, m, launch, rank));
          }
          // A different rank is late each time.
          if (launch % worldSize === rank && launch % 5 === 0) await pause(launch % 7);
          ops.launchGraph(graphs, 1, () => {
            for (const { count, input, sum, all } of messages) {
              ops.gatherRows(input, first, 1, count, sum);
              ops.allReduce(communicator, sum);
              if (count < 10_000) ops.allGather(communicator, input, all);
            }
          });
          for (const [m, { count, sum, all }] of messages.entries()) {
            // Only sometimes all of them, so that ranks run ahead.
            if (launch % 10 !== 9 && m % 5 !== launch % 5) continue;
            const bits = ops.readBits(sum, count);
            hash.update(bits);
            numWrong += numDifferent(bits, sumOf(count, m, launch));
            if (count >= 10_000) continue;
            const gathered = ops.readBits(all, worldSize * count);
            for (const ofRank of everyRank) {
              const part = gathered.subarray(ofRank * count, (ofRank + 1) * count);
              numWrong += numDifferent(part, inputOf(count, m, launch, ofRank));
            }
          }
        }
        say({ hasPeerMemory: ops.hasPeerMemory(communicator), numWrong, digest: hash.digest('hex') });
        ops.dropGraphs(graphs);
        ops.dropCommunicator(communicator);`,
      );
      for (const [line] of said) {
        // Without peer access between the GPUs, this test would be void.
        expect(line).toEqual({
          hasPeerMemory: customAllReduce,
          numWrong: 0,
          digest: said[0][0].digest,
        });
      }
    });

    test.each(['float32', 'float16', 'bfloat16'] as const)(
      'sumRmsNorm in %s gives the bits of allReduce, then rmsNorm, in repeated launches',
      async (dtype) => {
        const said = await run<Result>(
          `await open();
          const ops = new Ops({ kind: 'cuda', index: rank });
          const communicator = ops.makeCommunicator({
            rank, worldSize, timeout: 60_000, customAllReduce: ${customAllReduce},
          });
          const name = 'sumRmsNorm ${dtype} ${customAllReduce}';
          ops.connect(communicator, await group.gather(name, ops.address(communicator)));
          const results = await checkSumRmsNorm(ops, communicator, {
            rank, worldSize, activations: '${dtype}', weights: '${dtype}',
            cases: ${JSON.stringify(NORM_CASES)}, numLaunches: 24,
          });
          for (const result of results) say(result);
          ops.dropCommunicator(communicator);`,
        );
        const most = { float32: 1e-6, float16: 1e-3, bfloat16: 1e-2 }[dtype];
        for (const ofRank of said) {
          expect(ofRank).toEqual(said[0]);
          for (const [i, { numDifferent, error }] of ofRank.entries()) {
            const which = NORM_CASES[i];
            expect({ which, numDifferent, isClose: error < most }).toEqual({
              which,
              numDifferent: 0,
              isClose: true,
            });
          }
        }
        expect(said[0]).toHaveLength(NORM_CASES.length);
      },
    );

    describe('kill -9 of a rank', () => {
      beforeAll(startVictims);

      test.each(SIZES)(
        'in sums of %s fails the others, which then shut down normally',
        async (_, bytes) => {
          const group = victims.get(`${customAllReduce} ${bytes}`) as HeldRanks;
          const ranks = await group.go();
          await Promise.all(ranks.map((rank) => rank.said('sums')));
          const [victim, ...others] = [...ranks].reverse();
          victim.kill('SIGKILL');
          await allEnded(ranks);
          await expectGoodEnds(others);
          for (const rank of others) {
            const end = { code: 'PEER_LOST', again: 'PEER_LOST', isLate: false };
            expect(rank.lines()).toEqual([
              'sums',
              { ...end, message: expect.any(String) as string },
            ]);
          }
        },
      );
    });

    /** In a collective, and in each stage of NCCL's initialization. */
    const TIMEOUT = 6000;
    test('waiting for a missing rank fails after the timeout', async () => {
      const said = await run<{ code: string; elapsed: number } | string>(
        `await open();
        const options = { customAllReduce: ${customAllReduce}, timeout: ${TIMEOUT} };
        const name = 'missing rank ' + ${customAllReduce};
        const communicator = await connect(group, device, name, options);
        if (rank === 1) {
          await group.gather(name + ' by all', new Uint8Array(1));
          say('did not come');
        } else {
          const begin = performance.now();
          const { code } = await communicator
            .allReduce(new Uint8Array(64), 'float32', 'sum')
            .catch((error) => error);
          say({ code, elapsed: performance.now() - begin });
          await group.gather(name + ' by all', new Uint8Array(1));
        }
        await communicator.shutdown();`,
      );
      for (const [rank, [line]] of said.entries()) {
        if (rank === 1) {
          expect(line).toBe('did not come');
          continue;
        }
        const { code, elapsed } = line as { code: string; elapsed: number };
        expect(code).toBe('PEER_LOST');
        expect(elapsed).toBeGreaterThan(TIMEOUT - 100);
        expect(elapsed).toBeLessThan(TIMEOUT + 30_000);
      }
    });
  });

  test('without NCCL, the error names the searched libraries', async () => {
    // New processes, which have not opened NCCL.
    const ranks = await start(
      `process.env.UNIPROC_NCCL_LIBRARY = '/nowhere/libnccl.so.2';
      const device = await openDevice();
      const options = { rank, worldSize, timeout: 1000, customAllReduce: true };
      const communicator = new (native().Communicator)(device, options);
      const { code, message } = await communicator.address().catch((error) => error);
      say({ code, message });
      await communicator.shutdown();
      await device.shutdown();`,
      worldSize,
    );
    await allEnded(ranks);
    await expectGoodEnds(ranks);
    const said = ranks.map((rank) => rank.lines<{ code: string; message: string }>());
    for (const [{ code, message }] of said) {
      expect(code).toBe('COMMUNICATOR_FAILED');
      expect(message).toMatch(
        /cannot load NCCL.*: .*\/nowhere\/libnccl\.so\.2.*UNIPROC_NCCL_LIBRARY/,
      );
    }
  });

  test('creating and shutting down groups leaks no memory, threads or files', async () => {
    const said = await run<{ before: number[]; after: number[] }>(
      `await open();
      const { readdirSync } = require('node:fs');
      async function cycle(i) {
        const options = { customAllReduce: i % 2 === 0 };
        const communicator = await connect(group, device, 'cycle ' + i, options);
        await communicator.allReduce(new Uint8Array(4096), 'float32', 'sum');
        await communicator.shutdown();
      }
      const held = async () => {
        const { free } = await device.memory();
        return [free, ...['task', 'fd'].map((kind) => readdirSync('/proc/self/' + kind).length)];
      };
      for (let i = 0; i < 4; i++) await cycle(i);
      await group.gather('before', new Uint8Array(1));
      const before = await held();
      for (let i = 4; i < 12; i++) await cycle(i);
      await group.gather('after', new Uint8Array(1));
      say({ before, after: await held() });`,
    );
    for (const [{ before, after }] of said) expectNoMoreHeld(before, after);
  });
});
