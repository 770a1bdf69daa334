/**
 * A change of the rank group: the step at which ranks stop, and the state that joining ranks
 * receive.
 */
import { deserialize, serialize } from 'node:v8';
import { SamplingParams } from '../config/samplingParams';
import { ConfigError, InvalidStateError } from '../errors';
import {
  type ReconfigureDistributedRequest,
  ReconfigureRankType,
} from '../config/reconfigureRequest';
import type { EngineInput } from './callInputs';
import type { CallOptions } from './callOptions';
import { Request } from './request';

/** State of one rank when the change is requested. */
export interface RankState {
  /** Steps launched in this group. */
  numSteps: number;
  /** Calls made before the change. */
  numCalls: number;
  request: ReconfigureDistributedRequest;
  /** Why it cannot make the change. */
  fault: string | null;
}

/**
 * The step after which all ranks stop: the last that any rank has launched. Throws the same
 * InvalidStateError or ConfigError on every rank when they cannot or do not agree.
 */
export function lastCommonStep(rankStates: readonly RankState[]): number {
  const faulty = rankStates.findIndex(({ fault }) => fault !== null);
  if (faulty >= 0) {
    throw new InvalidStateError(
      `reinitializeDistributed is not possible on rank ${faulty}: ${rankStates[faulty].fault}`,
    );
  }
  const [first] = rankStates;
  for (const [rank, { request, numCalls }] of rankStates.entries()) {
    if (numCalls !== first.numCalls) {
      throw new InvalidStateError(
        `reinitializeDistributed was called after ${numCalls} calls on rank ${rank}, but after ` +
          `${first.numCalls} on rank 0; call it at the same position on every rank`,
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
            `${first.request[name]} on rank 0; pass the same on every rank`,
        );
      }
    }
  }
  checkNewRanks(rankStates.map(({ request }) => request));
  return Math.max(...rankStates.map(({ numSteps }) => numSteps));
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
          (other === undefined
            ? '; a rank must be less than the size'
            : `, and so would rank ${other}`),
      );
    }
    taken.set(newRank, rank);
  }
}

/** A queued call, as sent to other ranks. */
export interface QueuedCall {
  /** Index of its first prompt among all prompts of the engine. */
  firstRequest: number;
  inputs: readonly EngineInput[];
  options: Pick<CallOptions, 'priority' | 'cacheSalt' | 'pooling'>;
}

/** Engine state between two steps, with no step in flight. */
export interface EngineState {
  /** Prompts submitted so far. */
  numRequests: number;
  /** Unfinished requests, by arrival. */
  requests: readonly Request[];
  /** Queued calls, and prefix cache resets between them. */
  queued: readonly (QueuedCall | 'resetPrefixCache')[];
}

/** Serializes the state for a process of the same build. */
export function encodeState({ numRequests, requests, queued }: EngineState): Uint8Array {
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
      pooling: request.pooling,
    })),
    queued: queued.map((item) =>
      item === 'resetPrefixCache'
        ? item
        : {
            firstRequest: item.firstRequest,
            inputs: item.inputs.map((input) => ({
              ...input,
              samplingParams: plain(input.samplingParams),
            })),
            options: callOptionsOf(item.options),
          },
    ),
  });
}

type Encoded = Omit<EngineState, 'requests'> & {
  requests: (Omit<ConstructorParameters<typeof Request>[0], 'maxModelLen'> & {
    outputTokenIds: Int32Array;
  })[];
};

/** Inverse of `encodeState`; `maxModelLen` is the same in both engines' configurations. */
export function decodeState(bytes: Uint8Array, maxModelLen: number): EngineState {
  const { numRequests, requests, queued } = deserialize(bytes) as Encoded;
  return {
    numRequests,
    requests: requests.map(({ outputTokenIds, samplingParams, ...init }) => {
      const params = new SamplingParams(samplingParams);
      const request = new Request({ ...init, samplingParams: params, maxModelLen });
      for (const tokenId of outputTokenIds) request.appendOutputToken(tokenId);
      return request;
    }),
    queued: queued.map((item) =>
      item === 'resetPrefixCache'
        ? item
        : {
            ...item,
            inputs: item.inputs.map((input) => ({
              ...input,
              samplingParams: new SamplingParams(input.samplingParams),
            })),
          },
    ),
  };
}

function callOptionsOf({ priority, cacheSalt, pooling }: QueuedCall['options']) {
  return { priority, cacheSalt, pooling };
}

/** The parameters as a serializable object. */
function plain(params: SamplingParams): object {
  return Object.fromEntries(Object.entries(params));
}
