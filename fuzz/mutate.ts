/** Mutations of valid cases, after libFuzzer's: of bytes, and of JSON by its structure. */
import type { Random } from './random';

/** Maximum bytes of a case. */
const MAX_BYTES = 4096;

/** Boundary integers. */
const NUMBERS = [
  0, 1, 2, 3, 7, 8, 9, 16, 64, 127, 128, 255, 256, 4096, 8192, 8193, 65535, 65536, 131072, 131073,
  8388608, 8388609, 100_000_000, 100_000_001, 2147483647, 2147483648, 4294967295, 4294967296,
  9007199254740991, 9007199254740992, -1, -2, -128, -2147483648,
];

/** Replacements of a JSON value. */
const VALUES: readonly unknown[] = [
  null,
  true,
  false,
  '',
  'a',
  '\u0000',
  '\ud800',
  '__proto__',
  'constructor',
  [],
  {},
  [[]],
  [null],
  [0],
  [{}],
  { a: 1 },
  0.5,
  1.5,
  1e-300,
  1e300,
  // Near the limits of float32.
  1e-45,
  1e-39,
  1e38,
  3.5e38,
  1e21,
  -0.5,
  ...NUMBERS,
];

const KEYS = ['', 'a', '__proto__', 'constructor', 'toString', 'length', '0', '__metadata__'];

/** Applies a few mutations to `seed`. */
export function mutateBytes(
  seed: Buffer,
  others: readonly Buffer[],
  words: readonly Buffer[],
  random: Random,
): Buffer {
  let bytes = seed;
  for (let left = 1 + random.below(random.pick([2, 4, 8])); left > 0; left--) {
    bytes = mutateOnce(bytes, others, words, random);
  }
  return bytes.subarray(0, Math.max(MAX_BYTES, 2 * seed.length));
}

function mutateOnce(
  bytes: Buffer,
  others: readonly Buffer[],
  words: readonly Buffer[],
  random: Random,
): Buffer {
  const { length } = bytes;
  const at = random.below(length + 1);
  const count = Math.min(length - at, 1 + random.below(random.pick([2, 8, 64])));
  const replace = (from: number, numBytes: number, by: Buffer) =>
    Buffer.concat([bytes.subarray(0, from), by, bytes.subarray(from + numBytes)]);
  switch (random.below(10)) {
    case 0: {
      if (length === 0) return bytes;
      const copy = Buffer.from(bytes);
      copy[Math.min(at, length - 1)] ^= 1 << random.below(8);
      return copy;
    }
    case 1:
      return replace(at, Math.min(1, length - at), Buffer.of(random.below(256)));
    case 2:
      return replace(at, count, Buffer.alloc(0));
    case 3:
      return replace(at, 0, bytes.subarray(at, at + count));
    case 4:
      return replace(at, 0, Buffer.alloc(count, random.below(256)));
    case 5: {
      const width = random.pick([1, 2, 4, 8]);
      const number = Buffer.alloc(8);
      number.writeBigInt64LE(BigInt(random.pick(NUMBERS)));
      return replace(at, Math.min(width, length - at), number.subarray(0, width));
    }
    case 6: {
      if (words.length === 0) return bytes;
      const word = random.pick(words);
      return replace(at, random.oneIn(2) ? 0 : Math.min(word.length, length - at), word);
    }
    case 7: {
      const other = random.pick(others);
      const from = random.below(other.length);
      return Buffer.concat([bytes.subarray(0, at), other.subarray(from)]);
    }
    case 8: {
      const other = random.pick(others);
      const from = random.below(other.length);
      return replace(at, 0, other.subarray(from, from + 1 + random.below(64)));
    }
    default:
      return bytes.subarray(0, at);
  }
}

/** A copy of `value` with a few nodes changed, removed, moved or extended. */
export function mutateJson(value: unknown, words: readonly string[], random: Random): unknown {
  let mutated = value;
  for (let left = 1 + random.below(3); left > 0; left--)
    mutated = mutateNode(mutated, words, random);
  return mutated;
}

/** Changes the node at the end of a random path. */
function mutateNode(node: unknown, words: readonly string[], random: Random): unknown {
  const keys = typeof node === 'object' && node !== null ? Object.keys(node) : [];
  if (keys.length === 0) return replaceNode(node, words, random);
  const key = random.pick(keys);
  const children = node as Record<string, unknown>;
  if (!random.oneIn(3)) return withChild(node, key, mutateNode(children[key], words, random));
  switch (random.below(4)) {
    case 0:
      return replaceNode(node, words, random);
    case 1: {
      if (Array.isArray(node)) return node.filter((_, index) => String(index) !== key);
      const copy = { ...children };
      Reflect.deleteProperty(copy, key);
      return copy;
    }
    case 2:
      return withChild(node, random.pick(keys), children[key]);
    default: {
      if (Array.isArray(node)) return [...(node as unknown[]), children[key]];
      const name = random.oneIn(2) ? random.pick(KEYS) : random.pick([...words, 'b']);
      return withChild(node, name, random.oneIn(2) ? children[key] : random.pick(VALUES));
    }
  }
}

function withChild(node: unknown, key: string, child: unknown): unknown {
  if (Array.isArray(node)) {
    const copy = [...(node as unknown[])];
    copy[Number(key)] = child;
    return copy;
  }
  const copy = { ...(node as Record<string, unknown>) };
  // A plain assignment to __proto__ would set the prototype.
  Object.defineProperty(copy, key, {
    value: child,
    enumerable: true,
    configurable: true,
    writable: true,
  });
  return copy;
}

function replaceNode(node: unknown, words: readonly string[], random: Random): unknown {
  if (typeof node === 'number' && random.oneIn(2)) {
    return random.pick([node + 1, node - 1, -node, node * 2, node / 2, node + 0.5, node * 1e6]);
  }
  if (words.length > 0 && random.oneIn(3)) return random.pick(words);
  if (random.oneIn(40)) return nested(random.pick([10, 100, 1000]));
  return random.pick(VALUES);
}

/** Deep enough to overflow the stack of recursive code. */
function nested(depth: number): unknown {
  let value: unknown = [];
  for (; depth > 0; depth--) value = depth % 2 === 0 ? [value] : { a: value };
  return value;
}

/**
 * Minimises a failing case by removing pieces (delta debugging, Zeller and Hildebrandt 2002), within
 * `milliseconds`.
 */
export async function shrinkBytes(
  bytes: Buffer,
  fails: (bytes: Buffer) => Promise<boolean>,
  milliseconds: number,
): Promise<Buffer> {
  const end = performance.now() + milliseconds;
  let smallest = bytes;
  for (let piece = smallest.length >> 1; piece >= 1 && performance.now() < end;) {
    let isShorter = false;
    for (let at = 0; at < smallest.length && performance.now() < end;) {
      const shorter = Buffer.concat([smallest.subarray(0, at), smallest.subarray(at + piece)]);
      if (await fails(shorter)) {
        smallest = shorter;
        isShorter = true;
      } else {
        at += piece;
      }
    }
    if (!isShorter || piece > smallest.length) piece >>= 1;
  }
  return smallest;
}
