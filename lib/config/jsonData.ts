/** What a DataSnapshot may have and JSON lacks. */
import { types } from 'node:util';
import { show } from './schema';

/**
 * Throws what `fail` makes of a message, with the place, if a DataSnapshot's copy has a number that is
 * not finite, a bigint or a Map: JSON.stringify would write null or {}, or throw.
 */
export function checkJson(copy: unknown, place: string, fail: (message: string) => Error): void {
  const found = otherThanJson(copy);
  if (found === null) return;
  throw fail(`${place}${found.path} is ${show(found.value)}, which JSON cannot write`);
}

function otherThanJson(value: unknown): { path: string; value: unknown } | null {
  const isNumber = typeof value === 'number' || types.isNumberObject(value);
  if (isNumber && !Number.isFinite(Number(value))) return { path: '', value: Number(value) };
  if (typeof value === 'bigint' || types.isMap(value)) return { path: '', value };
  if (typeof value !== 'object' || value === null) return null;
  const isList = Array.isArray(value);
  for (const [key, one] of Object.entries(value)) {
    const found = otherThanJson(one);
    if (found === null) continue;
    const isName = !isList && /^[\w$-]{1,64}$/.test(key);
    const step = isName ? `.${key}` : `[${isList ? key : show(key)}]`;
    return { path: step + found.path, value: found.value };
  }
  return null;
}
