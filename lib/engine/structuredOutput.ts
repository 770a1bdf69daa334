/** Masks of a step's requests with structuredOutputs (vLLM V1's StructuredOutputManager). */
import type { GrammarOutput } from '../contract/grammarOutput';
import type { ModelRunnerOutput } from '../contract/modelRunnerOutput';
import { InvalidRequestError, InvalidStateError, RequestFailedError } from '../errors';
import type { Executor } from '../executor/executor';
import { Future } from '../executor/future';
import type { Grammars } from './grammars';
import type { Request } from './request';
import type { Scheduler } from './scheduler';
import type { StepInFlight } from './stepInFlight';

/** As MatchStatus of native/grammar/matcher.h. */
const MASKED = 0;
const ENDED = 1;
const REJECTED = 2;
const TOO_COMPLEX = 4;

type StepOutput = Future<ModelRunnerOutput | null>;

interface Matcher {
  readonly id: number;
  /** Output tokens that the native matcher has. */
  numTokens: number;
}

/** A step's masks, and the requests that cannot go on. */
export interface StepMasks {
  output: GrammarOutput;
  failed: readonly { requestId: string; error: Error }[];
}

export class StructuredOutput {
  private readonly matchers = new Map<string, Matcher>();
  private numMatchers = 0;

  constructor(
    private readonly grammars: Grammars,
    /** Ends the call of a request whose text cannot go on. */
    private readonly failRequest: (requestId: string, error: Error) => void,
  ) {}

  /**
   * Samples the latest launched step; the outputs of all others must be read. Resolves once sampling
   * is launched, with the step's output replaced by the sampled one.
   */
  async sample(launched: StepInFlight, scheduler: Scheduler, executor: Executor): Promise<void> {
    let output: GrammarOutput | null = null;
    const requests = [...launched.step.numScheduledTokens.keys()]
      .map((requestId) => scheduler.requestOf(requestId))
      .filter((request) => request !== undefined)
      .filter(({ hasGrammar, numOutputPlaceholders }) => hasGrammar && numOutputPlaceholders > 0);
    if (requests.length > 0) {
      const masks = await this.masks(requests);
      for (const { requestId, error } of masks.failed) this.failRequest(requestId, error);
      output = masks.output;
    }
    launched.output = outputOf(launched.output, executor.sampleTokens(output, { nonBlock: true }));
  }

  /**
   * Masks of the next token of each request, which must have all its tokens: none is in flight but
   * the one to sample.
   */
  async masks(requests: readonly Request[]): Promise<StepMasks> {
    const thread = await this.grammars.started;
    const matchers = await Promise.all(requests.map((request) => this.matcherOf(request)));
    const { length } = requests;
    const offsets = new Int32Array(length + 1);
    for (let i = 0; i < length; i++) {
      offsets[i + 1] = offsets[i] + requests[i].numOutputTokens - matchers[i].numTokens;
    }
    const tokenIds = new Int32Array(offsets[length]);
    for (const [i, request] of requests.entries()) {
      const first = request.numPromptTokens + matchers[i].numTokens;
      tokenIds.set(request.tokensBetween(first, request.numTokens), offsets[i]);
      matchers[i].numTokens = request.numOutputTokens;
    }
    const words = Math.ceil(this.grammars.vocabSize / 32);
    const mask = new Int32Array(length * words);
    const statuses = new Int32Array(length);
    const ids = Int32Array.from(matchers, ({ id }) => id);
    await thread.fill(ids, offsets, tokenIds, mask, statuses);
    return {
      output: {
        structuredOutputRequestIds: requests.map(({ requestId }) => requestId),
        grammarBitmask: mask,
      },
      failed: requests.flatMap((request, i) => {
        const error = errorOf(request, statuses[i]);
        return error === null ? [] : [{ requestId: request.requestId, error }];
      }),
    };
  }

  private async matcherOf({ requestId, samplingParams, stopTokenIds }: Request): Promise<Matcher> {
    let matcher = this.matchers.get(requestId);
    if (matcher !== undefined) return matcher;
    const { structuredOutputs, allowedTokenIds } = samplingParams;
    if (structuredOutputs === null) throw new InvalidStateError(`${requestId} has no grammar`);
    // Compiled already, except for a request that another rank has begun.
    const grammar = await this.grammars.compile(structuredOutputs);
    const thread = await this.grammars.started;
    matcher = { id: this.numMatchers++, numTokens: 0 };
    this.matchers.set(requestId, matcher);
    thread.addMatcher(
      matcher.id,
      grammar.id,
      Int32Array.from(stopTokenIds),
      Int32Array.from(allowedTokenIds ?? []),
    );
    return matcher;
  }

  /** Drops the matchers of finished requests. */
  forget(requestIds: readonly string[]): void {
    for (const requestId of requestIds) {
      const matcher = this.matchers.get(requestId);
      if (matcher === undefined) continue;
      this.matchers.delete(requestId);
      void this.grammars.started.then(
        (thread) => thread.removeMatcher(matcher.id),
        () => {},
      );
    }
  }

  shutdown(): Promise<void> {
    return this.grammars.shutdown();
  }
}

/**
 * The sampled output; the output or the error of the forward pass if that has one: a worker that
 * refuses all requests of a step has nothing to sample.
 */
function outputOf(forward: StepOutput, sampled: StepOutput): StepOutput {
  const result: StepOutput = new Future();
  const failed = (error: unknown) => result.setException(error);
  sampled.then(
    (output) => {
      if (output !== null) result.setResult(output);
      else forward.then(() => result.setResult(null), failed);
    },
    (error: unknown) =>
      forward.then((output) => {
        if (output !== null) result.setResult(output);
        else failed(error);
      }, failed),
  );
  return result;
}

function errorOf(
  { requestId, numOutputTokens, samplingParams }: Request,
  status: number,
): Error | null {
  const refuse = (why: string) =>
    new InvalidRequestError(`request ${requestId}: after ${numOutputTokens} tokens ${why}`, {
      requestId,
    });
  switch (status) {
    case MASKED:
    case ENDED:
      return null;
    case REJECTED:
      return refuse(
        'its other parameters (badWords, minTokens, allowedTokenIds) left only tokens that its ' +
          'structuredOutputs do not allow; relax one of them',
      );
    case TOO_COMPLEX:
      return refuse(
        'there are too many ways to read the text in the grammar of its structuredOutputs; make it less ' +
          'ambiguous',
      );
    default:
      if (samplingParams.allowedTokenIds !== null) {
        return refuse('none of its allowedTokenIds is one that its structuredOutputs allow');
      }
      return new RequestFailedError(
        requestId,
        'masked',
        new InvalidStateError(
          `after ${numOutputTokens} tokens no token of the vocabulary continues the text that its ` +
            'structuredOutputs describe',
        ),
      );
  }
}
