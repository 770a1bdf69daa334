import {
  CancelledError,
  ConfigError,
  FutureTimeoutError,
  InvalidStateError,
} from '../../lib/errors';
import { Future } from '../../lib/executor/future';

describe('Future', () => {
  it('is awaitable: resolves with the result, rejects with the same error', async () => {
    const succeeding = new Future<number>();
    setImmediate(() => succeeding.setResult(7));
    expect(await succeeding).toBe(7);

    const error = new Error('of the worker');
    const failing = new Future<number>();
    setImmediate(() => failing.setException(error));
    await expect(failing).rejects.toBe(error);
  });

  it('can be awaited more than once, before and after it is done', async () => {
    const future = new Future<string>();
    const before = [future.result(), future.result()];
    future.setResult('once');
    expect(await Promise.all([...before, future, future.result()])).toEqual(Array(4).fill('once'));
  });

  it('reports synchronously whether it is done', () => {
    const future = new Future<number>();
    expect(future.done()).toBe(false);
    future.setResult(1);
    expect(future.done()).toBe(true);
    expect(Future.failed(new Error('x')).done()).toBe(true);
  });

  it('returns its outcome without waiting', () => {
    expect(new Future().peek()).toBeNull();
    expect(Future.resolved(3).peek()).toEqual({ status: 'fulfilled', value: 3 });
    const error = new Error('x');
    expect(Future.failed(error).peek()).toEqual({ status: 'rejected', reason: error });
  });

  it.each<[string, (future: Future<number>) => void]>([
    ['a second result', (future) => future.setResult(2)],
    ['an error after the result', (future) => future.setException(new Error('late'))],
  ])('refuses %s', async (_, complete) => {
    const future = Future.resolved(1);
    expect(() => complete(future)).toThrow(InvalidStateError);
    expect(await future).toBe(1);
  });

  it('refuses to complete after a failure', async () => {
    const error = new Error('first');
    const future = Future.failed<number>(error);
    expect(() => future.setResult(1)).toThrow(InvalidStateError);
    expect(() => future.setException(new Error('second'))).toThrow(InvalidStateError);
    await expect(future.result()).rejects.toBe(error);
  });

  describe('cancel', () => {
    it('rejects waiting callers and drops the late result', async () => {
      const future = new Future<number>();
      const waiting = future.result();
      expect(future.cancel()).toBe(true);
      expect([future.cancelled(), future.done()]).toEqual([true, true]);
      await expect(waiting).rejects.toBeInstanceOf(CancelledError);

      future.setResult(1);
      future.setException(new Error('late'));
      await expect(future.result()).rejects.toBeInstanceOf(CancelledError);
    });

    it('may be repeated, but has no effect on a done future', async () => {
      const cancelled = new Future();
      cancelled.cancel();
      expect(cancelled.cancel()).toBe(true);
      const done = Future.resolved(1);
      expect([done.cancel(), done.cancelled(), await done]).toEqual([false, false, 1]);
    });
  });

  describe('result and exception', () => {
    it('exception is null after success and the error after failure', async () => {
      const error = new Error('x');
      expect(await Future.resolved(1).exception()).toBeNull();
      expect(await Future.failed(error).exception()).toBe(error);
    });

    it('exception rejects when the future is cancelled', async () => {
      const future = new Future();
      const waiting = future.exception();
      future.cancel();
      await expect(waiting).rejects.toBeInstanceOf(CancelledError);
    });

    it('time out while the future stays pending', async () => {
      const future = new Future<number>();
      await expect(future.result(5)).rejects.toThrow(FutureTimeoutError);
      await expect(future.exception(0)).rejects.toThrow('within 0 ms');
      future.setResult(9);
      expect(await future.result(0)).toBe(9);
      expect(await future.exception(0)).toBeNull();
    });

    it("wait without limit if the timeout exceeds a timer's range", async () => {
      const future = new Future<number>();
      const waiting = [future.result(2 ** 40), future.result(Infinity)];
      setTimeout(() => future.setResult(1), 20);
      expect(await Promise.all(waiting)).toEqual([1, 1]);
    });

    it.each([-1, NaN, '5' as unknown as number])('refuse the timeout %p', async (timeout) => {
      await expect(new Future().result(timeout)).rejects.toBeInstanceOf(ConfigError);
    });
  });

  describe('addDoneCallback', () => {
    it('calls back once with the future, in the order of registration, when it completes', () => {
      const calls: unknown[] = [];
      const future = new Future<number>();
      future.addDoneCallback((done) => calls.push('first', done));
      future.addDoneCallback(() => calls.push('second'));
      expect(calls).toEqual([]);
      future.setResult(1);
      expect(calls).toEqual(['first', future, 'second']);
    });

    it('calls back immediately if done or cancelled', () => {
      const callback = jest.fn();
      Future.resolved(1).addDoneCallback(callback);
      const cancelled = new Future();
      cancelled.addDoneCallback(callback);
      cancelled.cancel();
      expect(callback).toHaveBeenCalledTimes(2);
    });

    it('continues after a callback throws', () => {
      const emitWarning = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
      const callback = jest.fn();
      const future = new Future<number>();
      future.addDoneCallback(() => {
        throw new Error('of a callback');
      });
      future.addDoneCallback(callback);
      future.setResult(1);
      expect(callback).toHaveBeenCalledTimes(1);
      expect(emitWarning.mock.calls[0][0]).toContain('of a callback');
      emitWarning.mockRestore();
    });
  });
});
