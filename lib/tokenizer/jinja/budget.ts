/**
 * The step budget of one rendering, which bounds the time that a template occupies its thread.
 * Rendering is synchronous, so a thread has one budget at a time.
 */
import { raise } from './errors';

/** An expression costs 1 step; operations on long lists and strings cost a fraction of their length. */
const MAX_COST = 5_000_000;
/** Nesting of macros, callers and recursive loops; equal to Python's recursion limit. */
const MAX_DEPTH = 199;

let remaining = Infinity;
let depth = 0;

/** Raises MemoryError once the rendering exceeds its budget. */
export function spend(cost: number): void {
  remaining -= cost;
  if (remaining < 0) raise('MemoryError', `the template exceeds its budget of ${MAX_COST} steps`);
}

/** Runs `body` with the budget of one rendering. */
export function withBudget<T>(body: () => T): T {
  const [outerRemaining, outerDepth] = [remaining, depth];
  [remaining, depth] = [MAX_COST, 0];
  try {
    return body();
  } finally {
    [remaining, depth] = [outerRemaining, outerDepth];
  }
}

/** Runs `body` one call deeper. Raises RecursionError. */
export function nested<T>(body: () => T): T {
  if (depth > MAX_DEPTH) raise('RecursionError', 'maximum recursion depth exceeded');
  depth++;
  try {
    return body();
  } finally {
    depth--;
  }
}
