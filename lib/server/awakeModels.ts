/**
 * Several models in memory that may not hold them all: a request wakes its model, and where memory is
 * short, the least recently used ones sleep.
 */
import { setImmediate as nextTurn, setTimeout as pause } from 'node:timers/promises';
import { addAbortListener, isAborted, removeAbortListener } from '../abortSignal';
import type { RequestOptions } from '../config/requestOptions';
import type { OutputStream } from '../engine/outputs';
import { QueueFullError, type UniprocError } from '../errors';
import { codeOf, log } from '../log';
import { startTimer } from '../timer';
import { HttpError } from './httpError';
import type { ServableLLM } from './servedModels';

/** Milliseconds between looks at a model that is to sleep once its requests have ended. */
const LOOK_MS = 5;

interface Model {
  readonly llm: ServableLLM;
  /** Higher for a later use. */
  lastUse: number;
  /** Calls that wait until it is awake. */
  numWaiting: number;
  /** Sleeps once its requests have ended; new ones wait for their turn. */
  isLeaving: boolean;
  /** Its turn to wake up, which its calls wait for. */
  turn: Promise<void> | null;
}

type Limits = Pick<RequestOptions, 'signal' | 'timeoutMs'>;

export class AwakeModels {
  private readonly models: Model[];
  private numUses = 0;
  /** Models wake one after another, in the order of the first request for each. */
  private lastTurn: Promise<void> = Promise.resolve();

  /** In the order of their last use, the earliest first. */
  constructor(llms: Iterable<ServableLLM>) {
    this.models = Array.from(llms, (llm) => ({
      llm,
      lastUse: this.numUses++,
      numWaiting: 0,
      isLeaving: false,
      turn: null,
    }));
  }

  /** `llm`, one of these, whose calls wake it up first. */
  waking(llm: ServableLLM): ServableLLM {
    const model = this.models.find((each) => each.llm === llm) as Model;
    const call = <T>(options: Limits | undefined, make: () => Promise<T>): Promise<T> =>
      this.whenAwake(model, options, make).finally(() => this.note(model));
    const own: Pick<ServableLLM, 'generate' | 'chat' | 'embed' | 'stream' | 'chatStream'> = {
      generate: (prompts, params, options) =>
        call(options, () => llm.generate(prompts, params, options)),
      chat: (messages, params, options) => call(options, () => llm.chat(messages, params, options)),
      embed: (prompts, options) => call(options, () => llm.embed(prompts, options)),
      stream: (prompt, params, options) =>
        this.wakingStream(model, llm.stream(prompt, params, options), options),
      chatStream: (messages, params, options) =>
        this.wakingStream(model, llm.chatStream(messages, params, options), options),
    };
    return Object.assign(Object.create(llm) as ServableLLM, own);
  }

  /** The stream, whose first read makes the call. */
  private wakingStream(model: Model, stream: OutputStream, limits?: Limits): OutputStream {
    const next = stream.next.bind(stream);
    let isFirst = true;
    stream.next = () => {
      this.note(model);
      if (!isFirst) return next();
      isFirst = false;
      return this.whenAwake(model, limits, next);
    };
    return stream;
  }

  private note(model: Model): void {
    model.lastUse = this.numUses++;
  }

  /**
   * Makes a call once the model is awake. Rejects as it, as `wakeUp`, with QueueFullError, or with
   * HttpError 499 or 504.
   */
  private async whenAwake<T>(
    model: Model,
    limits: Limits | undefined,
    call: () => Promise<T>,
  ): Promise<T> {
    this.note(model);
    if (!isAwake(model)) await this.wait(model, limits);
    // At once, so that the model is busy before it could be chosen to sleep.
    return call();
  }

  private async wait(model: Model, limits: Limits = {}): Promise<void> {
    const { maxQueuedRequests } = model.llm.engine.config.scheduler;
    if (maxQueuedRequests !== null && model.numWaiting >= maxQueuedRequests) {
      throw new QueueFullError(maxQueuedRequests, model.numWaiting, 1);
    }
    model.numWaiting++;
    const limit = limitOf(limits);
    try {
      // More than once if a program puts it to sleep in between.
      while (!isAwake(model)) await Promise.race([this.turnOf(model), limit.isOver]);
    } finally {
      limit.clear();
      model.numWaiting--;
    }
  }

  private turnOf(model: Model): Promise<void> {
    if (model.turn !== null) return model.turn;
    const turn = this.lastTurn.then(() => this.wake(model)).finally(() => (model.turn = null));
    model.turn = turn;
    // Its calls are made before the next model could choose it to sleep.
    this.lastTurn = turn.catch(() => {}).then(() => nextTurn());
    return turn;
  }

  /** Unless all that waited for it have left. */
  private async wake(model: Model): Promise<void> {
    let hasWaiting = true as boolean;
    const isWanted = () => (hasWaiting &&= model.numWaiting > 0);
    if (isAwake(model) || !isWanted()) return;
    try {
      await this.withRoom(() => model.llm.wakeUp(), isWanted);
    } catch (error) {
      // What it has restored so far would be missing to others.
      await fallAsleep(model.llm).catch((failure: unknown) => {
        log('server: a model that does not wake keeps memory: %s', codeOf(failure));
      });
      // Later calls wait for its next turn.
      if (hasWaiting) throw error;
    }
  }

  /**
   * Calls `take`, which takes memory; where there is too little, again after the least recently used model
   * has fallen asleep, idle ones before those that run requests. Rejects as `take` once all sleep, or once
   * it is no longer wanted.
   */
  async withRoom<T>(take: () => Promise<T>, isWanted = () => true): Promise<T> {
    const stayed = new Set<Model>();
    for (;;) {
      try {
        return await take();
      } catch (error) {
        const model = this.models
          .filter((each) => isAwake(each) && !stayed.has(each))
          .sort((a, b) => Number(isBusy(a)) - Number(isBusy(b)) || a.lastUse - b.lastUse)
          .at(0);
        if (!isOutOfMemory(error) || model === undefined || !isWanted()) throw error;
        await putToSleep(model, isWanted).catch((failure: unknown) => {
          log('server: a model does not sleep: %s', codeOf(failure));
          stayed.add(model);
        });
        if (!isWanted()) throw error;
      }
    }
  }
}

const isAwake = ({ llm, isLeaving }: Model) => !isLeaving && !llm.engine.executor.isSleeping;

const isBusy = ({ llm }: Model) => llm.engine.numUnfinishedRequests > 0;

/** By its code, for an LLM of another copy of the package. */
const isOutOfMemory = (error: unknown) => (error as UniprocError | null)?.code === 'OUT_OF_MEMORY';

/** Lets its requests end first, unless it need not sleep any more. */
async function putToSleep(model: Model, isWanted: () => boolean): Promise<void> {
  model.isLeaving = true;
  try {
    // No event tells of the last one: requests count while their prompts are encoded, too.
    while (isBusy(model)) {
      if (!isWanted()) return;
      await pause(LOOK_MS);
    }
    await fallAsleep(model.llm);
  } finally {
    model.isLeaving = false;
  }
}

async function fallAsleep(llm: ServableLLM): Promise<void> {
  // On a CPU level 1 leaves the weights where they are.
  const level = llm.engine.config.device.kind === 'cpu' ? 2 : 1;
  await llm.sleep(level).catch((error: unknown) => {
    // The host cannot hold the weights, which are loaded again then.
    if (!isOutOfMemory(error)) throw error;
    return llm.sleep(2);
  });
}

/** `isOver` rejects once the client leaves or the time is over, unless cleared before. */
function limitOf({ signal, timeoutMs }: Limits): { isOver: Promise<never>; clear: () => void } {
  let clear = () => {};
  const isOver = new Promise<never>((_, reject) => {
    const leave = () => reject(new HttpError(499, 'the client closed the connection'));
    const stop = startTimer(timeoutMs, () =>
      reject(new HttpError(504, `the model was not awake within ${timeoutMs} ms`)),
    );
    if (signal !== undefined) {
      if (isAborted(signal)) leave();
      addAbortListener(signal, leave);
    }
    clear = () => {
      stop();
      if (signal !== undefined) removeAbortListener(signal, leave);
    };
  });
  return { isOver, clear };
}
