/** Collectives of several GPUs, a process each: NCCL's, and sums through each other's memory. */
import type { CommType, ReduceOp } from '../../lib/native';
import { allEnded, startRanks } from '../support/ranks';
import { expectGoodEnds } from '../support/tensorParallel';
import { describeOnGpus, expectNoMoreHeld } from './gpus';

/** A process takes seconds to open its GPU, and NCCL some more. */
jest.setTimeout(180_000);

/** What each rank's program finds: a group of processes, and the values that each rank brings. */
const PRELUDE = `
const { createHash } = require('node:crypto');
const { ProcessGroup } = require('./lib/distributed/processGroup');
const { native } = require('./lib/native');
const { Ops } = require('./test/native/ops/binding');
const { encode } = require('./test/native/collectives');

const rank = Number(process.env.RANK);
const worldSize = Number(process.env.WORLD_SIZE);
const say = (line) => console.log(JSON.stringify(line));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const everyRank = Array.from({ length: worldSize }, (_, i) => i);

const join = () =>
  ProcessGroup.join({ initMethod: 'env://', rank, worldSize, timeout: 60_000 });

/** A communicator on the device's thread. */
async function open(group, options = {}) {
  const device = new (native().Device)('cuda', rank, 0);
  await device.open();
  const communicator = new (native().Communicator)(device, {
    rank, worldSize, timeout: 60_000, customAllReduce: true, ...options,
  });
  await communicator.connect(await group.gather('addresses', await communicator.address()));
  return { device, communicator };
}

/** Pseudo-random words of 32 bits. */
function words(count, seed) {
  let x = (seed * 2654435761 + count) >>> 0 || 1;
  return Array.from({ length: count }, () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  });
}

/** Numbers that the type has, of several magnitudes. */
function valuesOf(type, count, ofRank) {
  return words(count, 1 + ofRank).map((word) => {
    if (type === 'int64') return BigInt(word - 2 ** 31) * BigInt(1 + (word % 1000003));
    if (type === 'float32') return Math.fround((word / 2 ** 32 - 0.5) * 2 ** (word % 8));
    return ((word % 255) - 127) * 2 ** -((word >>> 8) % 5); // 8 bits of mantissa
  });
}

function bytesOf(values, type) {
  if (type !== 'bfloat16') return encode(values, type);
  const words = new Uint32Array(Float32Array.from(values).buffer); // which are nothing but zeros below
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

const start = (body: string, worldSize: number) =>
  startRanks(`${PRELUDE}\n(async () => {\n${body}\n})();`, worldSize);

/** What each rank said, once all have ended well. */
async function run<T>(body: string, worldSize: number): Promise<T[][]> {
  const ranks = await start(body, worldSize);
  await allEnded(ranks);
  await expectGoodEnds(ranks);
  return ranks.map((rank) => rank.lines<T>());
}

/** Those that the peer-to-peer kernels take, on either side of their limits, and those they do not. */
const COUNTS = [
  1, 3, 4, 8, 1023, 1024, 4096, 16_384, 16_388, 32_768, 32_776, 100_003, 131_072, 131_076, 262_144,
  262_152, 300_001,
];

describeOnGpus('the collectives', (worldSize) => {
  describe.each([true, false])('customAllReduce %p', (customAllReduce) => {
    interface Reduced {
      type: CommType;
      op: ReduceOp;
      count: number;
      digest: string;
      /** Of a sum: the largest error in units of the type's rounding of the summands' magnitude. */
      error: number;
    }
    const bytesOf = { int64: 8, float32: 4, float16: 2, bfloat16: 2 };
    const inPeerMemory = ({ type, op, count }: Reduced) =>
      customAllReduce &&
      op === 'sum' &&
      type !== 'int64' &&
      count * bytesOf[type] <= 512 * 1024 &&
      (count * bytesOf[type]) % 16 === 0;

    test('allReduce gives every rank the same bits: what float64 gives, but for rounding', async () => {
      const said = await run<Reduced>(
        `const group = await join();
        const { device, communicator } = await open(group, { customAllReduce: ${customAllReduce} });
        const roundings = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 };
        for (const type of ['int64', 'float32', 'float16', 'bfloat16']) {
          for (const op of ['sum', 'min', 'max']) {
            const most = type === 'int64' ? 2000 : op === 'sum' ? Infinity : 200_000;
            for (const count of ${JSON.stringify(COUNTS)}.filter((c) => c <= most)) {
              const ofRanks = everyRank.map((ofRank) => valuesOf(type, count, ofRank));
              const result = await communicator.allReduce(bytesOf(ofRanks[rank], type), type, op);
              const got = decode(result, type);
              let error = got.length === count ? 0 : 1e9;
              for (let i = 0; i < count; i++) {
                const values = ofRanks.map((values) => values[i]);
                const expected = values.reduce((a, b) =>
                  op === 'sum' ? a + b : (op === 'min') === (b < a) ? b : a);
                if (op !== 'sum' || type === 'int64') {
                  if (got[i] !== expected) error = 1e9;
                  continue;
                }
                const magnitude = values.reduce((a, b) => a + Math.abs(b), 0);
                const distance = Math.abs(got[i] - expected);
                // NaN is no distance.
                if (!(distance <= error * magnitude * roundings[type])) {
                  error = distance / magnitude / roundings[type];
                  if (!(error < 1e9)) error = 1e9;
                }
              }
              say({ type, op, count, digest: digestOf(result), error });
            }
          }
        }
        await communicator.shutdown();
        await device.shutdown();
        await group.leave();`,
        worldSize,
      );
      expect(said[0].length).toBeGreaterThan(100);
      for (const ofRank of said) expect(ofRank).toEqual(said[0]);
      for (const reduced of said[0]) {
        // In peer memory sums are made in float32, and rounded once.
        const most = inPeerMemory(reduced) && reduced.type !== 'float32' ? 1 : worldSize - 1;
        expect({ ...reduced, isGood: reduced.error <= most + 0.01 }).toEqual({
          ...reduced,
          isGood: true,
        });
      }
    });

    test('allGather and broadcast give the bytes that were brought', async () => {
      const said = await run<{ count: number; areSame: boolean }>(
        `const group = await join();
        const { device, communicator } = await open(group, { customAllReduce: ${customAllReduce} });
        for (const count of [1, 1023, 300_001]) {
          const all = everyRank.map((ofRank) => bytesOf(valuesOf('float32', count, ofRank), 'float32'));
          const gathered = await communicator.allGather(all[rank], 'float32');
          const areSame = [Buffer.compare(gathered, Buffer.concat(all)) === 0];
          for (const root of everyRank) {
            const data = await communicator.broadcast(all[rank], 'float32', root);
            areSame.push(Buffer.compare(data, all[root]) === 0);
          }
          await communicator.barrier();
          say({ count, areSame: areSame.every(Boolean) });
        }
        await communicator.shutdown();
        await device.shutdown();
        await group.leave();`,
        worldSize,
      );
      for (const ofRank of said) {
        expect(ofRank).toEqual([1, 1023, 300_001].map((count) => ({ count, areSame: true })));
      }
    });

    test('a graph of messages of all sizes, launched again and again, gives the sums of each launch', async () => {
      const LAUNCHES = 150;
      const said = await run<{ hasPeerMemory: boolean; numWrong: number; digest: string }>(
        `const group = await join();
        const ops = new Ops({ kind: 'cuda', index: rank });
        const communicator = ops.makeCommunicator({
          rank, worldSize, timeout: 60_000, customAllReduce: ${customAllReduce},
        });
        ops.connect(communicator, await group.gather('addresses', ops.address(communicator)));

        // Small whole numbers, whose sums every type has; another at each place, launch and rank.
        const value = (i, message, launch, ofRank) =>
          ((i * 7 + message * 3 + launch * 13 + ofRank * 29) % 63) - 31;
        const toBits = (values) =>
          Uint16Array.from(new Uint32Array(Float32Array.from(values).buffer), (x) => x >>> 16);
        const fromBits = (bits) => new Float32Array(Uint32Array.from(bits, (x) => x << 16).buffer);
        const counts = [8, 4096, 32, 262144, 16, 32768, 8192, 131072, 40, 4096, 65536, 8, 24, 262152];
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
            const values = Float32Array.from({ length: count }, (_, i) => value(i, m, launch, rank));
            ops.copyToDevice(input, toBits(values));
          }
          // Now this rank comes late, now that one.
          if (launch % worldSize === rank && launch % 5 === 0) await pause(launch % 7);
          ops.launchGraph(graphs, 1, () => {
            for (const { count, input, sum, all } of messages) {
              ops.gatherRows(input, first, 1, count, sum);
              ops.allReduce(communicator, sum);
              if (count < 10_000) ops.allGather(communicator, input, all);
            }
          });
          for (const [m, { count, sum, all }] of messages.entries()) {
            // Now and then all of them, else a few: so that ranks run ahead.
            if (launch % 10 !== 9 && m % 5 !== launch % 5) continue;
            const bits = ops.readBits(sum, count);
            hash.update(bits);
            const sums = fromBits(bits);
            for (let i = 0; i < count; i++) {
              let expected = 0;
              for (const ofRank of everyRank) expected += value(i, m, launch, ofRank);
              if (sums[i] !== expected) numWrong++;
            }
            if (count >= 10_000) continue;
            const gathered = fromBits(ops.readBits(all, worldSize * count));
            for (let i = 0; i < worldSize * count; i++) {
              if (gathered[i] !== value(i % count, m, launch, Math.floor(i / count))) numWrong++;
            }
          }
        }
        say({ hasPeerMemory: ops.hasPeerMemory(communicator), numWrong, digest: hash.digest('hex') });
        ops.dropGraphs(graphs);
        ops.dropCommunicator(communicator);
        await group.leave();`,
        worldSize,
      );
      for (const [line] of said) {
        // GPUs that cannot reach each other's memory do not test what this is to test.
        expect(line).toEqual({
          hasPeerMemory: customAllReduce,
          numWrong: 0,
          digest: said[0][0].digest,
        });
      }
    });

    const SIZES: [string, number][] = [
      ['8 KiB', 8 << 10],
      ['512 KiB', 512 << 10],
      ['8 MiB', 8 << 20],
    ];
    test.each(SIZES)(
      'kill -9 of a rank in sums of %s fails the others, which then end well',
      async (_, bytes) => {
        const body = `
          const group = await join();
          const { device, communicator } = await open(group, { customAllReduce: ${customAllReduce} });
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
          } catch ({ code }) {
            const elapsed = performance.now() - lostAt;
            const again = await communicator.barrier().catch((error) => error.code);
            say({ code, again, isLate: elapsed > 3000 });
          }
          await communicator.shutdown();
          await device.shutdown();
          await group.leave();`;
        const ranks = await start(body, worldSize);
        await Promise.all(ranks.map((rank) => rank.said('sums')));
        const [victim, ...others] = [...ranks].reverse();
        const killed = performance.now();
        victim.kill('SIGKILL');
        await allEnded(ranks);
        expect(performance.now() - killed).toBeLessThan(20_000);
        await expectGoodEnds(others);
        for (const rank of others) {
          expect(rank.lines()).toEqual([
            'sums',
            { code: 'PEER_LOST', again: 'PEER_LOST', isLate: false },
          ]);
        }
      },
    );

    test('a rank that does not come is given up after the timeout', async () => {
      const said = await run<{ code: string; elapsed: number } | string>(
        `const group = await join();
        const options = { customAllReduce: ${customAllReduce}, timeout: 15_000 };
        const { device, communicator } = await open(group, options);
        if (rank === 1) {
          await group.gather('the others have given up', new Uint8Array(1));
          say('did not come');
        } else {
          const begin = performance.now();
          const { code } = await communicator
            .allReduce(new Uint8Array(64), 'float32', 'sum')
            .catch((error) => error);
          say({ code, elapsed: performance.now() - begin });
          await group.gather('the others have given up', new Uint8Array(1));
        }
        await communicator.shutdown();
        await device.shutdown();
        await group.leave();`,
        worldSize,
      );
      for (const [rank, [line]] of said.entries()) {
        if (rank === 1) {
          expect(line).toBe('did not come');
          continue;
        }
        const { code, elapsed } = line as { code: string; elapsed: number };
        expect(code).toBe('PEER_LOST');
        expect(elapsed).toBeGreaterThan(14_900);
        expect(elapsed).toBeLessThan(20_000);
      }
    });
  });

  test('where NCCL is not, the error says what was looked for', async () => {
    const said = await run<{ code: string; message: string }>(
      `process.env.UNIPROC_NCCL_LIBRARY = '/nowhere/libnccl.so.2';
      const device = new (native().Device)('cuda', rank, 0);
      await device.open();
      const options = { rank, worldSize, timeout: 1000, customAllReduce: true };
      const communicator = new (native().Communicator)(device, options);
      const { code, message } = await communicator.address().catch((error) => error);
      say({ code, message });
      await communicator.shutdown();
      await device.shutdown();`,
      worldSize,
    );
    for (const [{ code, message }] of said) {
      expect(code).toBe('COMMUNICATOR_FAILED');
      expect(message).toMatch(
        /NCCL.* cannot be loaded: .*\/nowhere\/libnccl\.so\.2.*UNIPROC_NCCL_LIBRARY/,
      );
    }
  });

  test('groups that come and go leave the memory, threads and files of a process where they were', async () => {
    const said = await run<{ before: number[]; after: number[] }>(
      `const group = await join();
      const { readdirSync } = require('node:fs');
      const device = new (native().Device)('cuda', rank, 0);
      await device.open();
      async function cycle(i) {
        const communicator = new (native().Communicator)(device, {
          rank, worldSize, timeout: 60_000, customAllReduce: i % 2 === 0,
        });
        await communicator.connect(await group.gather('cycle ' + i, await communicator.address()));
        await communicator.allReduce(new Uint8Array(4096), 'float32', 'sum');
        await communicator.shutdown();
      }
      const held = async () => {
        const { free } = await device.memory();
        return [free, ...['task', 'fd'].map((kind) => readdirSync('/proc/self/' + kind).length)];
      };
      for (let i = 0; i < 6; i++) await cycle(i);
      await group.gather('before', new Uint8Array(1));
      const before = await held();
      for (let i = 6; i < 18; i++) await cycle(i);
      await group.gather('after', new Uint8Array(1));
      say({ before, after: await held() });
      await device.shutdown();
      await group.leave();`,
      worldSize,
    );
    for (const [{ before, after }] of said) expectNoMoreHeld(before, after);
  });
});
