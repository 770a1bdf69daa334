import type { NativeEvent } from '../../lib/native';

/** Resolves when the event completes; rejects with its error. */
export const ready = (event: NativeEvent) =>
  new Promise<void>((resolve, reject) =>
    event.onReady((error) => (error ? reject(error) : resolve())),
  );
