/**
 * Has `setTimeout` and `performance.now()` follow a clock that `jest.advanceTimersByTime` moves, so
 * that no time depends on the machine's speed. Promises and turns of the event loop stay real.
 */
export function stopClock(): void {
  jest.useFakeTimers({
    now: 0,
    doNotFake: ['nextTick', 'queueMicrotask', 'setImmediate', 'clearImmediate'],
  });
}
