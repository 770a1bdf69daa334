import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const cwd = path.resolve(__dirname, '..');

interface Row {
  bench: string;
  what: string;
  value: number;
  unit: string;
  floor?: number;
  ceiling?: number;
  bound?: number;
  least?: number;
  cacheBytes?: number;
}

let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), 'uniproc-bench-'));
});

afterAll(() => rm(folder, { recursive: true }));

/** The printed output and the written rows. */
async function bench(...args: string[]): Promise<{ stdout: string; rows: Row[] }> {
  const json = path.join(folder, 'bench.json');
  const npm = ['run', '--silent', 'bench', '--', ...args, '--json', json];
  const { stdout } = await run('npm', npm, { cwd });
  const { rows } = JSON.parse(await readFile(json, 'utf8')) as { rows: Row[] };
  return { stdout, rows };
}

describe('npm run bench', () => {
  let stdout: string;
  let rows: Row[];

  beforeAll(async () => {
    ({ stdout, rows } = await bench('--device', 'cpu'));
  }, 900_000);

  it('prints each row it writes', () => {
    for (const { what } of rows) expect(stdout).toContain(what);
  });

  it.each(['prefill', 'decode'])('measures %s at batch 1, 8 and 32', (bench) => {
    const of = rows.filter((row) => row.bench === bench);
    expect(of.map(({ what }) => Number(what.split(' ')[0]))).toEqual([1, 8, 32]);
    for (const { value } of of) expect(value).toBeGreaterThan(0);
  });

  it('measures the control plane at 1, 64 and 256 rows, with text and streams separate', () => {
    const of = rows.filter((row) => row.bench === 'control plane');
    expect(of.map(({ what }) => what.trim())).toEqual(
      [1, 64, 256].flatMap((numRows) => [
        `JavaScript time per step, ${numRows} rows`,
        `with detokenisation, ${numRows} rows`,
        `with delivery to streams, ${numRows} rows`,
      ]),
    );
    for (const { value } of of) expect(value).toBeGreaterThan(0);
  });

  it('bounds bookkeeping by 60 µs per step plus 1 µs per running request', () => {
    const of = rows.filter(({ bench, bound }) => bench === 'control plane' && bound !== undefined);
    expect(of.map(({ bound }) => bound)).toEqual([61, 124, 316]);
  });

  it('measures every bounded figure within a multiple of its bound', async () => {
    // The bounds are for an idle machine; a loaded one needs several times as long. The last test of
    // this file checks the bench's own remarks on bounds.
    const OTHERS = 10;
    const above = (measured: Row[]) =>
      measured.filter(({ value, bound }) => value > OTHERS * (bound ?? value));
    expect(rows.filter(({ bound }) => bound !== undefined)).toHaveLength(4);
    // Other processes may slow one of three runs.
    for (let i = 0; i < 2 && above(rows).length > 0; i++) {
      ({ rows } = await bench('--device', 'cpu'));
    }
    expect(above(rows)).toEqual([]);
  }, 900_000);
});

describe('npm run bench -- start', () => {
  it('divides the time to the first token into its parts, and counts it without the load', async () => {
    const { stdout, rows } = await bench('start', '--device', 'cpu');
    expect(new Set(rows.map((row) => row.bench))).toEqual(new Set(['stories']));
    const whats = rows.map(({ what }) => what.trim());
    expect(whats).toEqual([
      'start to first token',
      ...['package required', 'device open', 'weights in', 'warmed up', 'first token'],
      'without the load',
      'processor time of it',
    ]);
    for (const what of whats) expect(stdout).toContain(what);
    const [whole, ...parts] = rows.slice(0, -2).map(({ value }) => value);
    for (const each of parts) expect(each).toBeGreaterThan(0);
    expect(parts.reduce((a, b) => a + b)).toBeCloseTo(whole, 6);
    const [{ value, bound }, processor] = rows.slice(-2);
    expect(bound).toBe(1);
    expect(value).toBeLessThan(whole);
    expect(value).toBeGreaterThan(whole - parts[2]);
    expect(processor.value).toBeGreaterThan(0);
  }, 900_000);
});

describe('npm run bench -- formats', () => {
  it('measures every weight format of a shape', async () => {
    const shape = path.join(folder, 'small.json');
    const config = {
      architectures: ['LlamaForCausalLM'],
      torch_dtype: 'bfloat16',
      vocab_size: 512,
      hidden_size: 128,
      intermediate_size: 256,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      num_key_value_heads: 1,
      // Room for one and eight rows alone.
      max_position_embeddings: 171,
      rms_norm_eps: 1e-5,
    };
    await writeFile(shape, JSON.stringify(config));
    const { rows } = await bench('formats', '--device', 'cpu', '--shape', shape);
    expect(rows.map((row) => `${row.bench}: ${row.what}`)).toEqual(
      [
        'bfloat16',
        'fp8 by channel',
        'fp8 by block',
        'int8 by channel',
        'int4 in groups of 128',
      ].flatMap((format) => [
        `small, ${format}: decode 1 row after 128`,
        `small, ${format}: decode 8 rows after 128`,
      ]),
    );
    for (const { value } of rows) expect(value).toBeGreaterThan(0);
  }, 300_000);
});

describe('npm run bench -- shapes', () => {
  const layers = 2;
  const kvHeads = 2;
  const headDim = 16;
  let rows: Row[];
  const row = (what: string): Row => {
    const found = rows.find((each) => each.what === what);
    if (!found) throw new Error(`no row ${what}`);
    return found;
  };

  beforeAll(async () => {
    const shape = path.join(folder, 'tiny.json');
    const config = {
      architectures: ['LlamaForCausalLM'],
      torch_dtype: 'bfloat16',
      vocab_size: 512,
      hidden_size: 64,
      intermediate_size: 128,
      num_hidden_layers: layers,
      num_attention_heads: 4,
      num_key_value_heads: kvHeads,
      head_dim: headDim,
      max_position_embeddings: 640,
      rms_norm_eps: 1e-5,
      rope_theta: 500000,
      hidden_act: 'silu',
      tie_word_embeddings: true,
    };
    await writeFile(shape, JSON.stringify(config));
    ({ rows } = await bench('shapes', '--device', 'cpu', '--shape', shape));
  }, 900_000);

  it("measures the cases that fit the model's positions", () => {
    const measured = rows.map(({ what }) => what).filter((what) => /^(prefill|decode)/.test(what));
    expect(measured).toEqual([
      'prefill 1 x 512',
      'decode 1 row after 128',
      ...[8, 32, 64, 128, 256].map((numRows) => `decode ${numRows} rows after 128`),
    ]);
  });

  it('measures decode steps from one to the next, with all rows', () => {
    // The model's products, timed separately, take a large part of such a step and never more than
    // all of it. The median of the rows excludes most of the noise of other processes.
    const ratios = rows
      .filter(({ what }) => what.startsWith('decode'))
      .map(({ value, ceiling = NaN }) => value / ceiling)
      .sort((a, b) => a - b);
    const median = ratios[ratios.length >> 1];
    expect(median).toBeGreaterThan(0.1);
    expect(median).toBeLessThan(80);
  });

  it('sets each rate beside its floor', () => {
    const rates = rows.filter(({ what }) => /^(prefill|decode)/.test(what));
    for (const { floor } of rates) expect(floor).toBeGreaterThan(0);
    // A step of 256 rows computes no less than one of a single row.
    const [one, many] = ['1 row', '256 rows'].map((of) => row(`decode ${of} after 128`).floor);
    expect(many).toBeGreaterThan(one ?? NaN);
  });

  it("counts the cache bytes of the steps' actual contexts", () => {
    const bytesPerToken = 2 * layers * kvHeads * headDim * 2;
    // Steps 9 to 40 after a prompt of 128 tokens; step k attends to 128 + k.
    expect(row('decode 1 row after 128').cacheBytes).toBe(bytesPerToken * (128 + (9 + 40) / 2));
    // Its prompts take at least five steps, during which the first ones already decode.
    const perRow = (row('decode 256 rows after 128').cacheBytes ?? NaN) / bytesPerToken / 256;
    expect(perRow).toBeGreaterThan(128 + (9 + 40) / 2);
    expect(perRow).toBeLessThan(128 + (9 + 40) / 2 + 5);
  });

  it('separates device idle time from JavaScript time', () => {
    for (const numRows of ['1 row', '64 rows', '256 rows']) {
      const step = 1000 * row(`decode ${numRows} after 128`).value;
      const idle = row(`  device idle, ${numRows} after 128`).value;
      const javaScript = row(`  JavaScript, ${numRows} after 128`).value;
      expect(idle).toBeGreaterThan(0);
      expect(idle).toBeLessThan(step);
      expect(javaScript).toBeGreaterThan(0);
      expect(javaScript).toBeLessThan(step);
    }
  });

  it('divides the start-up time into its parts', () => {
    const parts = ['package required', 'device open', 'weights in', 'warmed up', 'first token'];
    const seconds = parts.map((part) => row(`  ${part}`).value);
    for (const each of seconds) expect(each).toBeGreaterThan(0);
    const sum = seconds.reduce((a, b) => a + b);
    expect(row('start to first token').value).toBeCloseTo(sum, 6);
    expect(row('weights in to first token').value).toBeCloseTo(seconds[3] + seconds[4], 6);
  });
});

describe('npm run bench -- allreduce tensor-parallel', () => {
  let rows: Row[];

  beforeAll(async () => {
    const shape = path.join(folder, 'divisible.json');
    const config = {
      architectures: ['LlamaForCausalLM'],
      torch_dtype: 'float32',
      vocab_size: 500,
      hidden_size: 64,
      intermediate_size: 128,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      head_dim: 16,
      max_position_embeddings: 512,
      rms_norm_eps: 1e-5,
      rope_theta: 500000,
      hidden_act: 'silu',
      tie_word_embeddings: false,
    };
    await writeFile(shape, JSON.stringify(config));
    const args = ['allreduce', 'tensor-parallel', '--device', 'cpu', '--shape', shape];
    ({ rows } = await bench(...args));
  }, 900_000);

  it('measures all-reduce over two ranks', () => {
    const sums = rows.filter(({ bench }) => bench === 'all-reduce');
    expect(sums.map(({ what }) => what)).toEqual(
      ['8', '16', '32', '64', '128', '256', '512']
        .map((kib) => `2 CPU ranks, ${kib} KiB, TCP`)
        .concat('2 CPU ranks, 1 MiB, TCP'),
    );
    for (const { value } of sums) expect(value).toBeGreaterThan(0);
  });

  it('measures decode steps on two ranks and on one', () => {
    const valueOf = (what: string) => rows.find((row) => row.what === what)?.value ?? NaN;
    for (const step of ['1 row', '8 rows', '32 rows', '64 rows'].map((n) => `${n} after 128`)) {
      const [one, two] = ['1 CPU rank', '2 CPU ranks'].map((n) => valueOf(`decode ${n}, ${step}`));
      expect(one).toBeGreaterThan(0);
      expect(valueOf(`  speed of 2 CPU ranks, ${step}`)).toBeCloseTo(one / two, 6);
    }
  });
});

describe('npm run bench -- engine', () => {
  /** bench/engineWorkload.js's workload for a CPU. */
  const numRequests = 64;
  const [leastTokens, mostTokens] = [25, 256];
  const shares = [0.25, 0.5, 0.75, 0.9];
  let rows: Row[];
  const row = (what: string | RegExp): Row => {
    const found = rows.find(({ what: text }) =>
      typeof what === 'string' ? text.trim() === what : what.test(text.trim()),
    );
    if (!found) throw new Error(`no row ${what.toString()}`);
    return found;
  };

  beforeAll(async () => {
    // Dummy weights, as on a GPU.
    const shape = path.join(folder, 'tiny-qwen3.json');
    const config = {
      architectures: ['Qwen3ForCausalLM'],
      torch_dtype: 'float32',
      vocab_size: 512,
      hidden_size: 64,
      intermediate_size: 128,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      num_key_value_heads: 2,
      head_dim: 16,
      max_position_embeddings: 512,
      rms_norm_eps: 1e-6,
      rope_theta: 1000000,
      hidden_act: 'silu',
      tie_word_embeddings: true,
    };
    await writeFile(shape, JSON.stringify(config));
    ({ rows } = await bench('engine', '--device', 'cpu', '--shape', shape));
  }, 900_000);

  it('generates every requested token of a batch of random lengths', () => {
    const promptTokens = row(`${numRequests} prompts of ${leastTokens} to ${mostTokens}`);
    const outputTokens = row(`their outputs, of ${leastTokens} to ${mostTokens}`);
    for (const { bench, value } of [promptTokens, outputTokens]) {
      expect(bench).toBe('tiny-qwen3');
      // The mean of 64 uniform lengths, within five standard deviations.
      expect(Math.abs(value / numRequests - (leastTokens + mostTokens) / 2)).toBeLessThan(42);
    }
    const throughput = outputTokens.value / row('time').value;
    expect(row('throughput').value).toBeCloseTo(throughput, 6);
  });

  it('counts the steps and their rows', () => {
    const [steps, rowsPerStep] = [row('steps').value, row('requests in a step').value];
    // The first step, which had requests, is not counted; the others have at most all requests.
    expect(steps).toBeGreaterThanOrEqual(leastTokens);
    expect(rowsPerStep).toBeGreaterThan(1);
    expect(rowsPerStep).toBeLessThanOrEqual(numRequests);
    // Each output token is one row of one step; a chunked prompt takes more rows.
    const outputTokens = row(/^their outputs/).value;
    expect(steps * rowsPerStep).toBeGreaterThanOrEqual(outputTokens - numRequests);
    expect(steps * rowsPerStep).toBeLessThan(outputTokens + numRequests);
    // Prompts of 64 * 140 tokens take about five steps of 2048.
    const decodeSteps = row('decode-heavy part: steps').value;
    expect(decodeSteps).toBeGreaterThan(steps / 2);
    expect(decodeSteps).toBeLessThan(steps - 2);
    expect(row('requests in a step of it').value).toBeGreaterThan(numRequests / 8);
  });

  it('reports shares of time, without an expectation on a CPU', () => {
    for (const what of ['device busy', 'device busy in it']) {
      const { value, least } = row(what);
      expect(value).toBeGreaterThan(0);
      expect(value).toBeLessThan(1);
      expect(least).toBeUndefined();
    }
    expect(row('JavaScript in it').value).toBeGreaterThan(0);
  });

  it.each(shares)('sends requests at %d of the throughput', (share) => {
    const rate = (share * numRequests) / row('time').value;
    const { what, value } = row(new RegExp(`^\\d+ arrivals at ${share} `));
    expect(value).toBeCloseTo(rate, 6);
    expect(Number.parseInt(what)).toBe(Math.max(1, Math.round(4 * rate)));
    expect(row(`throughput at ${share}`).value).toBeGreaterThan(0);
  });

  it.each(shares)('orders the latency percentiles at %d', (share) => {
    for (const what of ['time to first token', 'inter-token latency']) {
      const [p50, p95, p99] = [50, 95, 99].map(
        (percent) => row(`${what} at ${share}, ${percent}th percentile`).value,
      );
      expect(p50).toBeGreaterThan(0);
      expect(p95).toBeGreaterThanOrEqual(p50);
      expect(p99).toBeGreaterThanOrEqual(p95);
    }
  });

  it('also measures the JavaScript time of a step', () => {
    expect(rows.filter(({ bench }) => bench === 'control plane')).toHaveLength(9);
  });
});

describe('npm run bench -- cpu-peers', () => {
  it('says how to install node-llama-cpp', async () => {
    const failed = bench('cpu-peers', '--peer', folder);
    await expect(failed).rejects.toThrow(
      'npm install --prefix DIR --omit=optional node-llama-cpp@',
    );
  }, 60_000);

  it("writes a checkpoint's tensors as GGUF, with vectors in float32", async () => {
    const shape = path.join(folder, 'gguf.json');
    const config = {
      vocab_size: 48,
      hidden_size: 32,
      intermediate_size: 64,
      num_hidden_layers: 1,
      num_attention_heads: 2,
      num_key_value_heads: 1,
      max_position_embeddings: 64,
      rms_norm_eps: 1e-5,
      tie_word_embeddings: true,
    };
    await writeFile(shape, JSON.stringify(config));
    const [checkpoint, file] = ['checkpoint', 'model.gguf'].map((name) => path.join(folder, name));
    const script = `
      const { writeSyntheticCheckpoint } = require('./scripts/synthetic-checkpoint');
      const { writeGguf } = require('./bench/gguf');
      const [checkpoint, shape, file] = process.argv.slice(1);
      writeSyntheticCheckpoint(checkpoint, shape).then(() => writeGguf(file, checkpoint));`;
    await run(process.execPath, ['-e', script, checkpoint, shape, file], { cwd });

    const gguf = await readFile(file);
    expect(gguf.toString('latin1', 0, 4)).toBe('GGUF');
    const numTensors = 11;
    expect([gguf.readUInt32LE(4), Number(gguf.readBigUInt64LE(8))]).toEqual([3, numTensors]);
    /** A tensor's description: dimensions from the innermost, type, offset in the data. */
    const describeTensor = (name: string) => {
      const at = gguf.indexOf(name) + name.length;
      const rank = gguf.readUInt32LE(at);
      const numbers = Array.from({ length: rank }, (_, i) =>
        Number(gguf.readBigUInt64LE(at + 4 + 8 * i)),
      );
      const type = gguf.readUInt32LE(at + 4 + 8 * rank);
      return { dimensions: numbers, type, offset: Number(gguf.readBigUInt64LE(at + 8 + 8 * rank)) };
    };
    const norm = describeTensor('blk.0.ffn_norm.weight');
    expect(norm).toMatchObject({ dimensions: [32], type: 0 });
    const down = describeTensor('blk.0.ffn_down.weight');
    expect(down).toMatchObject({ dimensions: [64, 32], type: 30 });

    const sizes = { matrices: 2 * 32 * (48 + 32 + 16 + 16 + 32 + 3 * 64), vectors: 3 * 4 * 32 };
    const dataBegin = gguf.length - sizes.matrices - sizes.vectors;
    expect(gguf.readFloatLE(dataBegin + norm.offset)).toBe(1);
    const stored = await readFile(path.join(checkpoint, 'model-00001-of-00001.safetensors'));
    const headerBytes = Number(stored.readBigUInt64LE(0));
    const header = JSON.parse(stored.toString('utf8', 8, 8 + headerBytes)) as Record<
      string,
      { data_offsets: [number, number] }
    >;
    const [begin, end] = header['model.layers.0.mlp.down_proj.weight'].data_offsets;
    const written = gguf.subarray(dataBegin + down.offset, dataBegin + down.offset + end - begin);
    expect(written.equals(stored.subarray(8 + headerBytes + begin, 8 + headerBytes + end))).toBe(
      true,
    );
  }, 60_000);
});

describe("a figure's remark", () => {
  it.each([
    [{ value: 4.4, unit: 'ms', ceiling: 4 }, '1.10 of the products alone, 4.00 ms'],
    [{ value: 4.4, unit: 'ms', bound: 5 }, 'within 5 ms'],
    [{ value: 5.5, unit: 'ms', bound: 5 }, 'ABOVE 5 ms'],
    [{ value: 9, unit: 'GB/s', least: 8 }, 'above 8 GB/s'],
    [{ value: 7, unit: 'GB/s', least: 8 }, 'BELOW 8 GB/s'],
    [
      { value: 4.4, unit: 'ms', floor: 2, ceiling: 4, ceilingOf: 'copies', bound: 4.567 },
      '2.20 of the floor, 2.00 ms; 1.10 of copies, 4.00 ms; within 4.57 ms',
    ],
    [
      {
        value: 4.4,
        unit: 'ms',
        peers: [
          { name: 'llama.cpp', value: 4.89 },
          { name: 'vLLM on another card', value: 6, floor: 4 },
        ],
      },
      'llama.cpp 4.89; vLLM on another card 6.00, 1.50 of its floor',
    ],
  ])('of %j', async (figures, remark) => {
    const row = { bench: 'bench', what: 'what', ...figures };
    const script = `require('./bench/table').printTable(${JSON.stringify([row])})`;
    const { stdout } = await run(process.execPath, ['-e', script], { cwd });
    expect(stdout.trim().split('   ').at(-1)).toBe(remark);
  });
});
