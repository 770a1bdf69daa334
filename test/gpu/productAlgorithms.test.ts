/** The algorithms of products that are chosen by timing: cuBLASLt's own choices, but faster. */
import { createHash } from 'node:crypto';
import type { DType } from '../../lib/native';
import { cudaOps, type Ops, type Tensor, type Weight } from '../native/ops/binding';

const [rows, cols] = [1536, 1024];
/** Most have a larger bucket; the first is computed by a kernel of ours or by cuBLASLt. */
const sizes = [8, 30, 65, 96, 300, 641];
const largest = Math.max(...sizes);

class Products {
  readonly ops: Ops = cudaOps();
  readonly #x: Tensor;
  readonly #weight: Weight;
  readonly #bias: Weight;

  constructor(dtype: DType) {
    const random = (count: number, std: number): Tensor => {
      const tensor = this.ops.zeros(count, dtype);
      this.ops.fillRandom(tensor, 0, std, BigInt(count));
      return tensor;
    };
    this.#x = random(largest * cols, 1);
    this.#weight = { data: random(rows * cols, 0.02), rows, cols };
    this.#bias = { data: random(rows, 1), rows, cols: 1 };
  }

  /** A digest of each size's product, with and without bias and in both types of the output. */
  bits(dtype: DType): string[] {
    return sizes.flatMap((numTokens) =>
      [null, this.#bias].flatMap((bias) =>
        [dtype, 'float32' as const].map((outType) => {
          const count = numTokens * rows;
          const out = this.ops.zeros(count, outType);
          this.ops.linear(this.#x, numTokens, this.#weight, bias, out);
          const bits = new Uint16Array(outType === 'float32' ? 2 * count : count);
          this.ops.download(bits, out);
          return createHash('sha256').update(bits).digest('hex');
        }),
      ),
    );
  }
}

/** The lines of a table after its header: rows, cols, tokens, types, bias, algorithm. */
const linesOf = (table: string): string[] => table.trimEnd().split('\n').slice(1);

describe.each(['bfloat16', 'float16'] as const)('products in %s', (dtype) => {
  const products = new Products(dtype);
  let before: string[];
  let table: string;

  beforeAll(() => {
    before = products.bits(dtype);
    table = products.ops.chooseProductAlgorithms('');
  });

  it('have an algorithm for each size from 17 tokens to the most that ran', () => {
    const tokens = linesOf(table).map((line) => Number(line.split(' ')[2]));
    expect([...new Set(tokens)].sort((a, b) => a - b)).toEqual([
      ...[20, 24, 28, 32, 40, 48, 56, 64],
      ...[80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768],
    ]);
  });

  it('keep their bits with the algorithms that timing chooses', () => {
    expect(products.bits(dtype)).toEqual(before);
  });

  it('take the choices of an earlier process without timing them', () => {
    const other = new Products(dtype);
    expect(other.bits(dtype)).toEqual(before);
    expect(other.ops.chooseProductAlgorithms(table)).toBe(table);
    expect(other.bits(dtype)).toEqual(before);
  });

  it.each([
    ['of another library', (text: string) => text.replace('cuBLASLt', 'cuBLASLt 1')],
    ['with a damaged line', (text: string) => `${text}1 2 3\n`],
    ['that is none', () => 'no table'],
  ])('are timed again for a table %s', (_, damage) => {
    const other = new Products(dtype);
    other.bits(dtype);
    const again = other.ops.chooseProductAlgorithms(damage(table));
    expect(linesOf(again)).toHaveLength(linesOf(table).length);
    expect(again.split('\n')[0]).toBe(table.split('\n')[0]);
    expect(other.bits(dtype)).toEqual(before);
  });
});
