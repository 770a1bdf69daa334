/**
 * Makes `setTimeout` and `performance.now()` follow a clock that `jest.advanceTimersByTime` moves,
 * so that tests do not depend on the machine's speed. Promises and event loop turns stay real.
 */
export function stopClock(): void {
  jest.useFakeTimers({
    now: 0,
    doNotFake: ['nextTick', 'queueMicrotask', 'setImmediate', 'clearImmediate'],
  });
}
