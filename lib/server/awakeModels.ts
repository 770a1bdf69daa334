/**
 * Several models in memory that may not hold them all: a request wakes its model, and where memory is
 * short, the least recently used ones sleep.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { addAbortListener, isAborted, removeAbortListener } from '../abortSignal';
import type { RequestOptions } from '../config/requestOptions';
import type { OutputStream } from '../engine/outputs';
import { QueueFullError, UniprocError } from '../errors';
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
    while (!isAwake(model)) {
      const { maxQueuedRequests } = model.llm.engine.config.scheduler;
      if (maxQueuedRequests !== null && model.numWaiting >= maxQueuedRequests) {
        throw new QueueFullError(maxQueuedRequests, model.numWaiting, 1);
      }
      model.numWaiting++;
      await within(this.turnOf(model), limits).finally(() => model.numWaiting--);
    }
    // At once, so that the model is busy before it could be chosen to sleep.
    return call();
  }

  private turnOf(model: Model): Promise<void> {
    if (model.turn !== null) return model.turn;
    const turn = this.lastTurn
      .then(() => (isAwake(model) ? undefined : this.withRoom(() => model.llm.wakeUp())))
      .finally(() => (model.turn = null));
    model.turn = turn;
    this.lastTurn = turn.catch(() => {});
    return turn;
  }

  /**
   * Calls `take`, which takes memory; where there is too little, again after the least recently used model
   * has fallen asleep, idle ones before those that run requests. Rejects as `take` once all sleep.
   */
  async withRoom<T>(take: () => Promise<T>): Promise<T> {
    const stayed = new Set<Model>();
    for (;;) {
      try {
        return await take();
      } catch (error) {
        const [model] = this.models
          .filter((each) => isAwake(each) && !stayed.has(each))
          .sort((a, b) => Number(isBusy(a)) - Number(isBusy(b)) || a.lastUse - b.lastUse);
        if (!isOutOfMemory(error) || (model as Model | undefined) === undefined) throw error;
        await putToSleep(model).catch((failure: unknown) => {
          log('server: a model does not sleep: %s', codeOf(failure));
          stayed.add(model);
        });
      }
    }
  }
}

const isAwake = ({ llm, isLeaving }: Model) => !isLeaving && !llm.engine.executor.isSleeping;

const isBusy = ({ llm }: Model) => llm.engine.numUnfinishedRequests > 0;

/** By its code, for an LLM of another copy of the package. */
const isOutOfMemory = (error: unknown) => (error as UniprocError | null)?.code === 'OUT_OF_MEMORY';

/** Lets its requests end first. */
async function putToSleep(model: Model): Promise<void> {
  const { llm } = model;
  model.isLeaving = true;
  try {
    while (isBusy(model)) await pause(LOOK_MS);
    // On a CPU level 1 leaves the weights where they are.
    const level = llm.engine.config.device.kind === 'cpu' ? 2 : 1;
    await llm.sleep(level).catch((error: unknown) => {
      // The host cannot hold the weights, which are loaded again then.
      if (!isOutOfMemory(error)) throw error;
      return llm.sleep(2);
    });
  } finally {
    model.isLeaving = false;
  }
}

/** The promise, unless the client leaves or the time is over before. */
function within(promise: Promise<void>, { signal, timeoutMs }: Limits = {}): Promise<void> {
  return new Promise((resolve, reject) => {
    const leave = () => reject(new HttpError(499, 'the client closed the connection'));
    const stop = startTimer(timeoutMs, () =>
      reject(new HttpError(504, `the model was not awake within ${timeoutMs} ms`)),
    );
    if (signal !== undefined) {
      if (isAborted(signal)) leave();
      addAbortListener(signal, leave);
    }
    void promise.then(resolve, reject).finally(() => {
      stop();
      if (signal !== undefined) removeAbortListener(signal, leave);
    });
  });
}
