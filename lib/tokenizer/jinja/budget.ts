/**
 * What one rendering may cost, so that no template and no conversation holds its thread for long.
 * Rendering is synchronous: a thread has one at a time.
 */
import { raise } from './errors';

/** An expression costs 1, and what is done to many items or characters a part of their number. */
const MAX_COST = 5_000_000;
/** Macros, callers and recursive loops inside one another; Python's recursion ends at the same depth. */
const MAX_DEPTH = 199;

let remaining = Infinity;
let depth = 0;

/** Raises MemoryError when the rendering has cost too much. */
export function spend(cost: number): void {
  remaining -= cost;
  if (remaining < 0) raise('MemoryError', `the template takes more than ${MAX_COST} steps`);
}

/** What `body` returns, at the cost of one rendering at most. */
export function withBudget<T>(body: () => T): T {
  const [outerRemaining, outerDepth] = [remaining, depth];
  [remaining, depth] = [MAX_COST, 0];
  try {
    return body();
  } finally {
    [remaining, depth] = [outerRemaining, outerDepth];
  }
}

/** What `body` returns, one call deeper. Raises RecursionError. */
export function nested<T>(body: () => T): T {
  if (depth > MAX_DEPTH) raise('RecursionError', 'maximum recursion depth exceeded');
  depth++;
  try {
    return body();
  } finally {
    depth--;
  }
}
