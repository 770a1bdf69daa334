/**
 * How ranks that step together go over to another group of ranks: where they stop, and what those
 * that join are told.
 */
import { deserialize, serialize } from 'node:v8';
import type { RequestOptions } from '../config/requestOptions';
import { SamplingParams } from '../config/samplingParams';
import { ConfigError, InvalidStateError } from '../errors';
import {
  type ReconfigureDistributedRequest,
  ReconfigureRankType,
} from '../config/reconfigureRequest';
import type { EngineInput } from './callInputs';
import { Request } from './request';

/** How one rank stands when it is asked for the change. */
export interface Standing {
  /** Steps that it has launched in this group. */
  numSteps: number;
  /** Calls that were made before. */
  numCalls: number;
  request: ReconfigureDistributedRequest;
  /** Why it cannot. */
  fault: string | null;
}

/**
 * The step after which all ranks stop: the last that any has launched. Throws, the same on each,
 * InvalidStateError and ConfigError when they cannot or do not agree.
 */
export function lastStepOf(standings: readonly Standing[]): number {
  const faulty = standings.findIndex(({ fault }) => fault !== null);
  if (faulty >= 0) {
    throw new InvalidStateError(
      `reinitializeDistributed cannot be done on rank ${faulty}: ${standings[faulty].fault}`,
    );
  }
  const [first] = standings;
  for (const [rank, { request, numCalls }] of standings.entries()) {
    if (numCalls !== first.numCalls) {
      throw new InvalidStateError(
        `reinitializeDistributed came after ${numCalls} calls on rank ${rank}, but after ` +
          `${first.numCalls} on rank 0; it must stand at the same place among the calls of each`,
      );
    }
    for (const name of [
      'newDataParallelSize',
      'newDataParallelMasterIp',
      'newDataParallelMasterPort',
    ] as const) {
      if (request[name] !== first.request[name]) {
        throw new ConfigError(
          `reinitializeDistributed: ${name} is ${request[name]} on rank ${rank}, but ` +
            `${first.request[name]} on rank 0`,
        );
      }
    }
  }
  checkNewRanks(standings.map(({ request }) => request));
  return Math.max(...standings.map(({ numSteps }) => numSteps));
}

/** `requests` by rank. */
function checkNewRanks(requests: readonly ReconfigureDistributedRequest[]): void {
  const { KEEP_CURRENT_RANK, SHUTDOWN_CURRENT_RANK } = ReconfigureRankType;
  const taken = new Map<number, number>();
  for (const [rank, { newDataParallelRank, newDataParallelSize }] of requests.entries()) {
    if (newDataParallelRank === SHUTDOWN_CURRENT_RANK) continue;
    const newRank = newDataParallelRank === KEEP_CURRENT_RANK ? rank : newDataParallelRank;
    const other = taken.get(newRank);
    if (newRank >= newDataParallelSize || other !== undefined) {
      throw new ConfigError(
        `reinitializeDistributed: rank ${rank} would be rank ${newRank} of ${newDataParallelSize}` +
          (other === undefined ? '; ranks are below the size' : `, and so would rank ${other}`),
      );
    }
    taken.set(newRank, rank);
  }
}

/** A call that waits, as far as other ranks need to know it. */
export interface QueuedCall {
  /** The place of its first prompt among all prompts that the engine was ever given. */
  firstRequest: number;
  inputs: readonly EngineInput[];
  options: Pick<RequestOptions, 'priority' | 'cacheSalt'>;
}

/** Where an engine stands between two steps, none of them in flight. */
export interface EngineState {
  /** Prompts that it was ever given. */
  numRequests: number;
  /** Those not finished, by arrival. */
  requests: readonly Request[];
  /** Calls that have not begun, and resets of the prefix cache between them. */
  turns: readonly (QueuedCall | 'resetPrefixCache')[];
}

/** For another process of the same build. */
export function encodeState({ numRequests, requests, turns }: EngineState): Uint8Array {
  return serialize({
    numRequests,
    requests: requests.map((request) => ({
      requestId: request.requestId,
      promptTokenIds: request.promptTokenIds,
      outputTokenIds: request.tokensBetween(request.numPromptTokens, request.numTokens),
      samplingParams: plain(request.samplingParams),
      stopTokenIds: request.stopTokenIds,
      badWordsTokenIds: request.badWordsTokenIds,
      seed: request.seed,
      priority: request.priority,
      cacheSalt: request.cacheSalt,
    })),
    turns: turns.map((turn) =>
      turn === 'resetPrefixCache'
        ? turn
        : {
            firstRequest: turn.firstRequest,
            inputs: turn.inputs.map((input) => ({
              ...input,
              samplingParams: plain(input.samplingParams),
            })),
            options: { priority: turn.options.priority, cacheSalt: turn.options.cacheSalt },
          },
    ),
  });
}

type Encoded = Omit<EngineState, 'requests'> & {
  requests: (Omit<ConstructorParameters<typeof Request>[0], 'maxModelLen'> & {
    outputTokenIds: Int32Array;
  })[];
};

/** What `encodeState` gave; `maxModelLen` is that of this engine's configuration, as of theirs. */
export function decodeState(bytes: Uint8Array, maxModelLen: number): EngineState {
  const { numRequests, requests, turns } = deserialize(bytes) as Encoded;
  return {
    numRequests,
    requests: requests.map(({ outputTokenIds, samplingParams, ...init }) => {
      const params = new SamplingParams(samplingParams);
      const request = new Request({ ...init, samplingParams: params, maxModelLen });
      for (const tokenId of outputTokenIds) request.appendOutputToken(tokenId);
      return request;
    }),
    turns: turns.map((turn) =>
      turn === 'resetPrefixCache'
        ? turn
        : {
            ...turn,
            inputs: turn.inputs.map((input) => ({
              ...input,
              samplingParams: new SamplingParams(input.samplingParams),
            })),
          },
    ),
  };
}

/** Its parameters as an object that can be sent. */
function plain(params: SamplingParams): object {
  return Object.fromEntries(Object.entries(params));
}
