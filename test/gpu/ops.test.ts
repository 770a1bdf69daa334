/**
 * Each operation on the GPU against the CPU, with shapes that are not multiples of tile sizes. The
 * GPU's activations have the weights' type, the CPU's are float32: both get the same numbers of
 * that type. Sampling, logprobs and the batch's inputs are specified in test/native/ops, which
 * `npm run test:gpu` runs on the GPU too.
 */
import { CudaUnavailableError, OutOfMemoryError } from '../../lib/errors';
import { Layout, makeBatch, tokensOf } from '../native/ops/batches';
import { cudaOps, dtypes, type Ops, type Weight } from '../native/ops/binding';
import { BlockScaledMatrix, expectSameBits, Random, roundTo } from '../native/ops/reference';
import { compare, cpu, Device, expectAgreement, gpu, normals } from './comparison';

describe('the device', () => {
  it('describes itself', () => {
    const { name, capability } = gpu.properties();
    expect(name).toMatch(/NVIDIA/);
    expect(capability).toMatch(/^sm_\d+$/);
  });

  it('is rejected, with the available devices, if its index is out of range', () => {
    expect(() => cudaOps(99)).toThrow(/there is no cuda:99: the NVIDIA driver shows \d+ GPU/);
    expect(() => cudaOps(99)).toThrow(CudaUnavailableError);
  });

  it('allocates zeroed memory and accounts for it', () => {
    const ops = cudaOps();
    const { allocated } = ops.memory();
    const count = 1_000_003;
    const before = ops.allocate(count, 'int32', 'a test');
    ops.copyToDevice(before, new Int32Array(count).fill(-1));
    expect(ops.memory().allocated - allocated).toBe(4 * count);
    ops.release(before);
    expect(ops.memory().allocated).toBe(allocated);
    expect(ops.memory().peakAllocated).toBe(allocated + 4 * count);
    expect(ops.readInts(ops.allocate(count, 'int32', 'a test'), count).some(Boolean)).toBe(false);
  });

  it('rejects too large an allocation with the sizes, and stays usable', () => {
    const ask = () => gpu.allocate(2 ** 40, 'float32', 'the KV cache');
    expect(ask).toThrow(OutOfMemoryError);
    expect(ask).toThrow(/the KV cache: 4398046511104 bytes \(4096\.00 GiB\) .* free of .* GiB/);
    gpu.synchronize();
    expect([...gpu.readInts(gpu.ints([7]), 1)]).toEqual([7]);
  });
});

describe.each(dtypes)('in %s', (dtype) => {
  it.each([
    [1, 1, 5],
    [3, 7, 100],
    [130, 259, 50],
    [33, 2048, 1000],
  ])('embed: %i rows of %i from %i', (numTokens, width, vocabSize) => {
    const random = new Random(width);
    const table = normals(random, vocabSize * width, dtype);
    const ids = Int32Array.from({ length: numTokens }, () => random.below(vocabSize));
    const run = (device: Device) => {
      const out = device.unwritten(numTokens * width);
      const weight = { data: device.ops.floats(table, dtype), rows: vocabSize, cols: width };
      device.ops.embed(device.ops.ints(ids), numTokens, weight, 0, out);
      return device.read(out, numTokens * width);
    };
    expect(run(new Device(gpu, dtype))).toEqual(run(new Device(cpu, 'float32')));
  });

  it.each([
    [1, 7],
    [300, 7],
    [300, 2048],
  ])('embed: zeros for tokens outside a part of %i rows of %i', (rows, width) => {
    const [firstToken, numTokens] = [100, 600];
    const table = normals(new Random(width), rows * width, dtype);
    const ids = new Random(rows).permutation(numTokens);
    const device = new Device(gpu, dtype);
    const out = device.unwritten(numTokens * width);
    const weight = { data: gpu.floats(table, dtype), rows, cols: width };
    gpu.embed(gpu.ints(ids), numTokens, weight, firstToken, out);
    const expected = new Float32Array(numTokens * width);
    ids.forEach((id, i) => {
      if (id < firstToken || id >= firstToken + rows) return;
      const start = (id - firstToken) * width;
      expected.set(table.subarray(start, start + width), i * width);
    });
    expectSameBits(device.read(out, numTokens * width), expected);
  });

  it.each([
    [5, 1],
    [5, 3],
    [7, 64],
    [3, 100],
    [33, 259],
    [2, 2048],
    [130, 896],
    [3, 8192],
    [2, 12288],
  ])('rmsNorm: %i rows of %i', (numTokens, size) => {
    const random = new Random(size);
    const weight = normals(random, size, dtype);
    const residual = normals(random, numTokens * size, dtype, 4);
    for (const x of [null, normals(random, numTokens * size, dtype)]) {
      compare(dtype, (device) => {
        const sum = device.activations(residual);
        // In place if there is an x.
        const out = x ? device.activations(x) : device.unwritten(numTokens * size);
        const offset = x ? 1 : 0;
        const w = { data: device.ops.floats(weight, dtype), rows: size, cols: 1, offset };
        device.ops.rmsNorm(x && out, sum, numTokens, w, 1e-5, out);
        return [device.read(out, numTokens * size), device.read(sum, numTokens * size)];
      });
    }
  });

  it.each([
    [1, 1, 1],
    [1, 3, 17],
    [2, 33, 100],
    [4, 4, 16],
    [5, 130, 31],
    [7, 17, 1100],
    [1, 896, 512],
    [1, 100, 4096],
    [3, 16, 32],
    [6, 40, 1120],
    [8, 1031, 2080],
    [2, 9001, 96],
    [9, 512, 896],
    [33, 65, 48],
    [130, 9, 520],
    [257, 31, 7],
    [300, 768, 1024],
    [1, 130, 264],
    [5, 4608, 896],
    [8, 128, 1024],
    [13, 1000, 520],
    [16, 2048, 1024],
    [27, 513, 2048],
    [64, 1040, 4104],
    [65, 1040, 1024],
    [17, 1, 32],
    [300, 1, 2048],
    [129, 7, 520],
  ])('matmul: %i rows times [%i, %i] transposed', (numTokens, rows, cols) => {
    const random = new Random(rows * 1000 + cols);
    const x = normals(random, numTokens * cols, dtype);
    const w = normals(random, rows * cols, dtype);
    const b = normals(random, rows, dtype, 4);
    for (const withBias of [false, true]) {
      for (const outType of [undefined, 'float32' as const]) {
        compare(dtype, (device) => {
          const weight = { data: device.ops.floats(w, dtype), rows, cols };
          const bias = withBias ? { data: device.ops.floats(b, dtype), rows, cols: 1 } : null;
          const out = device.unwritten(numTokens * rows, outType);
          device.ops.linear(device.activations(x), numTokens, weight, bias, out);
          return [device.read(out, numTokens * rows, outType)];
        });
      }
    }
  });

  it.each([
    [1, 16, 64],
    [3, 48, 2048],
    [20, 1040, 520],
    [64, 2050, 256],
    [70, 256, 256],
  ])('linearSiluAndMul: %i rows times [%i, %i] transposed', (numTokens, rows, cols) => {
    const random = new Random(rows + cols);
    const x = normals(random, numTokens * cols, dtype);
    const w = normals(random, rows * cols, dtype, 1 / 16);
    const size = rows / 2;
    compare(dtype, (device) => {
      const weight = { data: device.ops.floats(w, dtype), rows, cols };
      const [gateUp, out] = [
        device.unwritten(numTokens * rows),
        device.unwritten(numTokens * size),
      ];
      device.ops.linearSiluAndMul(device.activations(x), numTokens, weight, gateUp, out);
      return [device.read(out, numTokens * size)];
    });
  });

  // Shapes of the grouped products: few tokens, some and many per expert; then the plain kernels'.
  it.each([
    [1, 8, 2, 128, 64, 0],
    [5, 16, 4, 192, 64, 0],
    [16, 4, 2, 256, 192, 1],
    [40, 6, 3, 320, 128, 0],
    [300, 4, 2, 128, 320, 2],
    [20, 8, 4, 192, 192, 3],
    [700, 3, 3, 64, 64, 0],
    [9, 4, 2, 60, 36, 0],
  ])(
    'multiplyExperts: %i tokens, %i experts, top %i, hidden %i, intermediate %i, activation %i',
    (numTokens, numExperts, topK, hidden, size, activation) => {
      const random = new Random(numTokens + hidden);
      const x = normals(random, numTokens * hidden, dtype);
      for (const numLocal of [numExperts, Math.ceil(numExperts / 2)]) {
        const gateUp = normals(random, numLocal * 2 * size * hidden, dtype, 1 / 16);
        const down = normals(random, numLocal * hidden * size, dtype, 1 / 16);
        const ids = Array.from({ length: numTokens }, () => [
          ...random.permutation(numExperts).subarray(0, topK),
        ]).flat();
        const weights = normals(random, numTokens * topK, dtype);
        compare(dtype, (device) => {
          const { ops } = device;
          const routing = {
            numTokens,
            numExperts,
            topK,
            firstLocal: numExperts - numLocal,
            numLocal,
            expertIds: ops.ints(ids),
            weights: ops.floats(weights),
          };
          const out = device.unwritten(numTokens * hidden);
          ops.multiplyExperts(
            device.activations(x),
            routing,
            { data: ops.floats(gateUp, dtype), rows: numLocal * 2 * size, cols: hidden },
            { data: ops.floats(down, dtype), rows: numLocal * hidden, cols: size },
            activation,
            device.unwritten(numTokens * topK * Math.max(2 * size, hidden)),
            device.unwritten(numTokens * topK * size),
            out,
          );
          return [device.read(out, numTokens * hidden)];
        });
      }
    },
  );

  it.each([
    [1, 256, 256, 128, 128],
    [8, 130, 320, 128, 128],
    [33, 1000, 528, 1, 528],
    [64, 520, 1024, 128, 128],
    [9, 100, 515, 48, 24],
    [70, 256, 256, 128, 128],
  ])('matmul: %i rows times float8 [%i, %i], a scale for %i x %i', (m, n, k, sr, sc) => {
    const random = new Random(m * 1000 + n);
    const matrix = new BlockScaledMatrix(n, k, sr, sc, random);
    const x = normals(random, m * k, dtype);
    const b = normals(random, n, dtype);
    compare(dtype, (device) => {
      const { ops } = device;
      const data = ops.allocate(n * k, 'float8_e4m3', 'a test');
      ops.upload(data, matrix.codes, 'float8_e4m3');
      const weight = {
        data,
        rows: n,
        cols: k,
        scales: ops.floats(matrix.scales),
        scaleRows: sr,
        scaleCols: sc,
        dtype: device.activationType,
      };
      const bias = { data: ops.floats(b, device.activationType), rows: n, cols: 1 };
      const out = device.unwritten(m * n);
      ops.linear(device.activations(x), m, weight, bias, out);
      return [device.read(out, m * n)];
    });
  });

  it('matmul: sums are float32', () => {
    // 4096 ones and a number beside which a half type would lose them.
    const cols = 4097;
    const ones = new Float32Array(cols).fill(1);
    const w = ones.slice().fill(4096, 0, 1);
    const out = gpu.zeros(1);
    const weight = { data: gpu.floats(w, dtype), rows: 1, cols };
    gpu.linear(gpu.floats(ones, dtype), 1, weight, null, out);
    expect(gpu.readFloats(out, 1)[0]).toBe(8192);
  });

  it.each([
    [1, 1, 8],
    [4, 2, 64],
    [3, 1, 20],
    [5, 5, 34],
    [14, 2, 96],
    [32, 8, 128],
    [3, 1, 256],
  ])('ropeAndCache: %i and %i heads of %i', (numHeads, numKvHeads, headDim) => {
    const random = new Random(headDim);
    const lengths = [30, 60, 5, 40];
    const rows = [
      { slot: 1, numComputed: 50, numScheduled: 10 },
      { slot: 2, numComputed: 0, numScheduled: 5 },
      { slot: 0, numComputed: 29, numScheduled: 1 },
      { slot: 3, numComputed: 3, numScheduled: 37 },
    ];
    const numTokens = tokensOf(rows).length;
    const width = (numHeads + 2 * numKvHeads) * headDim;
    const qkv = normals(random, numTokens * width, dtype, 2);
    const angles = normals(random, (60 * headDim) / 2, 'float32', 4);
    const rope = Float32Array.from({ length: 60 * headDim }, (_, i) => {
      const [position, rest] = [Math.floor(i / headDim), i % headDim];
      const angle = angles[(position * headDim) / 2 + (rest % (headDim / 2))];
      return rest < headDim / 2 ? Math.cos(angle) : Math.sin(angle);
    });
    const norms = [normals(random, headDim, dtype), normals(random, headDim, dtype)];
    for (const withNorms of [false, true]) {
      compare(dtype, (device) => {
        const { ops } = device;
        const layout = new Layout(4, lengths, new Random(3));
        const requests = layout.requests(
          ops,
          lengths.map((length) => new Int32Array(length)),
          1,
        );
        const batch = makeBatch(ops, rows);
        ops.prepareInputs(requests, null, 0, 4, batch);
        const cacheSize = layout.numBlocks * 4 * numKvHeads * headDim;
        const [keys, values] = [ops.zeros(cacheSize, dtype), ops.zeros(cacheSize, dtype)];
        const tensor = device.activations(qkv);
        const norm = (i: number) =>
          withNorms ? { data: ops.floats(norms[i], dtype), rows: headDim, cols: 1 } : null;
        const shape = { numHeads, numKvHeads, headDim, slidingWindow: 0 };
        const cache = { keys, values, blockSize: 4 };
        ops.ropeAndCache(tensor, batch, shape, norm(0), norm(1), 1e-6, ops.floats(rope), cache);
        return [
          device.read(tensor, qkv.length),
          device.read(keys, cacheSize, dtype),
          device.read(values, cacheSize, dtype),
        ];
      });
    }
  });

  it.each([
    [1, 1],
    [7, 3],
    [5, 259],
    [130, 1000],
    [3, 8192],
  ])('siluAndMul: %i rows of %i', (numTokens, size) => {
    const gateUp = normals(new Random(size), numTokens * 2 * size, dtype, 2);
    compare(dtype, (device) => {
      const out = device.unwritten(numTokens * size);
      device.ops.siluAndMul(device.activations(gateUp), numTokens, size, out);
      return [device.read(out, numTokens * size)];
    });
  });

  it.each([
    [1, 1],
    [5, 259],
    [40, 1024],
  ])('gatherRows: %i rows of %i', (count, width) => {
    const random = new Random(width);
    const x = normals(random, 100 * width, dtype);
    const index = Int32Array.from({ length: count }, () => random.below(100));
    const run = (device: Device) => {
      const out = device.unwritten(count * width);
      device.ops.gatherRows(device.activations(x), device.ops.ints(index), count, width, out);
      return device.read(out, count * width);
    };
    expect(run(new Device(gpu, dtype))).toEqual(run(new Device(cpu, 'float32')));
  });

  it.each(dtypes)('upload: from %s, of any length and alignment', (hostType) => {
    const bytesEach = hostType === 'float32' ? 4 : 2;
    for (const count of [1, 17, 2_500_011]) {
      const file = new Uint8Array(count * bytesEach + 3);
      const staged = gpu.floats(normals(new Random(count), count, hostType), hostType);
      const bytes = file.subarray(3);
      gpu.copyToHost(bytes, staged);
      const upload = (ops: Ops) => {
        const out = ops.zeros(count, dtype);
        ops.upload(out, bytes, hostType);
        const read = new Uint8Array(count * (dtype === 'float32' ? 4 : 2));
        ops.copyToHost(read, out);
        return Buffer.from(read.buffer);
      };
      expect(upload(gpu).equals(upload(cpu))).toBe(true);
    }
  });

  it.each(dtypes)('upload: rows of a wider matrix in %s', (hostType) => {
    const bytesEach = hostType === 'float32' ? 4 : 2;
    for (const [rows, cols, rowStride] of [
      [1, 5, 5],
      [1000, 33, 71],
      [3, 700_001, 800_000],
      [300_001, 4, 9],
    ]) {
      const span = (rows - 1) * rowStride + cols;
      const file = new Uint8Array(span * bytesEach + 3);
      const bytes = file.subarray(3);
      const staged = gpu.floats(normals(new Random(rows), span, hostType), hostType);
      gpu.copyToHost(bytes, staged);
      gpu.release(staged);
      const upload = (ops: Ops) => {
        const out = ops.zeros(rows * cols, dtype);
        ops.upload(out, bytes, hostType, cols, rowStride);
        const read = new Uint8Array(rows * cols * (dtype === 'float32' ? 4 : 2));
        ops.copyToHost(read, out);
        ops.release(out);
        return Buffer.from(read.buffer);
      };
      expect(upload(gpu).equals(upload(cpu))).toBe(true);
    }
  });

  it('fillRandom: the same numbers from the same seed', () => {
    const count = 100_003;
    const run = (ops: Ops) => {
      const out = ops.zeros(count, dtype);
      ops.fillRandom(out, 0.25, 0.02, 0x123456789abcdefn);
      return new Device(ops, dtype).read(out, count);
    };
    expectAgreement(run(gpu), run(cpu), dtype);
  });
});

it.each([
  [1, 1, 4, 4],
  [1, 2, 64_128, 128_256],
  [33, 4, 32_064, 128_256],
  [5, 4, 9, 33],
  [300, 4, 1001, 4001],
  [7, 2, 512, 1023],
  [2, 4, 2, 5], // without the last part
])('joinColumns: %i rows of %i parts of %i, up to %i', (count, numParts, part, width) => {
  const parts = normals(new Random(width), numParts * count * part, 'float32');
  const run = (ops: Ops) => {
    const out = ops.floats(new Float32Array(count * width).fill(NaN));
    ops.joinColumns(ops.floats(parts), count, part, width, out);
    return ops.readFloats(out, count * width);
  };
  expectSameBits(run(gpu), run(cpu));
});

it('requests are written to their slots while the device is busy', () => {
  const size = 8192;
  const matrix = () => gpu.allocate(size * size, 'bfloat16', 'a test');
  const [x, w, out] = [matrix(), matrix(), matrix()];
  const lengths = Array.from({ length: 30 }, (_, slot) => 1 + 15 * slot);
  const layout = new Layout(16, lengths, new Random(1));
  const tokenIds = lengths.map((length) => Int32Array.from({ length }, (_, i) => i + length));
  const others = tokenIds.map((ids) => new Int32Array(ids.length));
  const requests = layout.requests(gpu, others, 1000);
  gpu.synchronize();
  const weight = { data: w, rows: size, cols: size };
  for (let i = 0; i < 40; ++i) gpu.linear(x, size, weight, null, out);
  const start = performance.now();
  layout.enter(gpu, requests, tokenIds);
  const entered = performance.now() - start;
  gpu.synchronize();
  const done = performance.now() - start;
  expect(entered).toBeLessThan(done / 2);
  tokenIds.forEach((ids, slot) => {
    const read = gpu.readRequest(requests, slot);
    expect(read.tokenIds).toEqual(ids);
    const blocks = layout.blockTables[slot];
    expect(read.blockTable.subarray(0, blocks.length)).toEqual(blocks);
  });
  for (const tensor of [x, w, out]) gpu.release(tensor);
});

describe('a product', () => {
  it('gives the same bits every time', () => {
    const random = new Random(5);
    const [numTokens, rows, cols] = [37, 1024, 4096];
    const x = gpu.floats(normals(random, numTokens * cols, 'bfloat16'), 'bfloat16');
    const w: Weight = {
      data: gpu.floats(normals(random, rows * cols, 'bfloat16'), 'bfloat16'),
      rows,
      cols,
    };
    const run = () => {
      const out = gpu.zeros(numTokens * rows);
      gpu.linear(x, numTokens, w, null, out);
      return gpu.readFloats(out, numTokens * rows);
    };
    expect(run()).toEqual(run());
  });

  const onHopper = Number(gpu.properties().capability.slice('sm_'.length)) >= 90;
  (onHopper ? it : it.skip).each([
    [1024, 4096],
    [3072, 2048],
    [1000, 8192],
  ])('with [%i, %i] gives a row the same bits among 1 to 16 rows', (rows, cols) => {
    const random = new Random(rows);
    const x = normals(random, 16 * cols, 'bfloat16');
    const weight: Weight = {
      data: gpu.floats(normals(random, rows * cols, 'bfloat16'), 'bfloat16'),
      rows,
      cols,
    };
    const run = (first: number, count: number) => {
      const out = gpu.zeros(count * rows);
      const some = x.subarray(first * cols, (first + count) * cols);
      gpu.linear(gpu.floats(some, 'bfloat16'), count, weight, null, out);
      return gpu.readFloats(out, count * rows);
    };
    const all = run(0, 16);
    for (const [first, count] of [
      [0, 1],
      [15, 1],
      [5, 2],
      [2, 4],
      [5, 8],
      [1, 13],
    ]) {
      expectSameBits(run(first, count), all.subarray(first * rows, (first + count) * rows));
    }
  });

  it("of experts gives a token the same bits whatever the other tokens' experts", () => {
    const random = new Random(11);
    const [numExperts, topK, hidden, size, most] = [4, 2, 256, 192, 400];
    const x = normals(random, most * hidden, 'bfloat16');
    const gateUp = gpu.floats(
      normals(random, numExperts * 2 * size * hidden, 'bfloat16', 1 / 16),
      'bfloat16',
    );
    const down = gpu.floats(
      normals(random, numExperts * hidden * size, 'bfloat16', 1 / 16),
      'bfloat16',
    );
    const run = (count: number, idsOf: (token: number) => number[]) => {
      const out = gpu.floats(new Float32Array(count * hidden), 'bfloat16');
      gpu.multiplyExperts(
        gpu.floats(x.subarray(0, count * hidden), 'bfloat16'),
        {
          numTokens: count,
          numExperts,
          topK,
          firstLocal: 0,
          numLocal: numExperts,
          expertIds: gpu.ints(Array.from({ length: count }, (_, token) => idsOf(token)).flat()),
          weights: gpu.floats(new Float32Array(count * topK).fill(0.5)),
        },
        { data: gateUp, rows: numExperts * 2 * size, cols: hidden },
        { data: down, rows: numExperts * hidden, cols: size },
        0,
        gpu.zeros(count * topK * 2 * size, 'bfloat16'),
        gpu.zeros(count * topK * size, 'bfloat16'),
        out,
      );
      return gpu.readBits(out, count * hidden).slice(0, hidden);
    };
    const alone = run(1, () => [2, 1]);
    for (const count of [2, 8, 16, 33, 60, 200, most]) {
      expect(run(count, (token) => (token === 0 ? [2, 1] : [2, 3]))).toEqual(alone);
      expect(run(count, (token) => (token === 0 ? [2, 1] : [0, token % 2 ? 3 : 1]))).toEqual(alone);
    }
  });

  it('in float32 does not use TF32', () => {
    const value = roundTo(1 + 2 ** -12, 'float32'); // 1 in TF32
    const out = gpu.zeros(1);
    const ones = gpu.floats(new Float32Array(64).fill(1));
    const weight = { data: gpu.floats(new Float32Array(64).fill(value)), rows: 1, cols: 64 };
    gpu.linear(ones, 1, weight, null, out);
    expect(gpu.readFloats(out, 1)[0]).toBe(64 * value);
  });
});
