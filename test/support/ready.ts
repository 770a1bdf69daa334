import type { NativeEvent } from '../../lib/native';

/** When the event is done; rejects with its error. */
export const ready = (event: NativeEvent) =>
  new Promise<void>((resolve, reject) =>
    event.onReady((error) => (error ? reject(error) : resolve())),
  );
