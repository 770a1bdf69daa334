/** Characters by their Unicode properties. */
import { ANY_CHARACTER, type CodeRange } from './expression';

const properties = new Map<string, readonly CodeRange[] | null>();

/** The characters with a Unicode property, by JavaScript's own tables; null for an unknown name. */
export function propertyRanges(name: string): readonly CodeRange[] | null {
  let ranges = properties.get(name);
  if (ranges !== undefined) return ranges;
  try {
    const test = new RegExp(`^\\p{${name}}$`, 'u');
    const found: [number, number][] = [];
    for (const [from, to] of ANY_CHARACTER) {
      for (let code = from; code <= to; code++) {
        if (!test.test(String.fromCodePoint(code))) continue;
        const last = found.at(-1);
        if (last?.[1] === code - 1) last[1] = code;
        else found.push([code, code]);
      }
    }
    ranges = found;
  } catch {
    ranges = null;
  }
  if (properties.size < 64) properties.set(name, ranges);
  return ranges;
}
