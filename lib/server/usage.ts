/** Token counts in OpenAI's form. */
import type { RequestOutput, Usage } from '../requestOutput';

export interface UsageBody {
  prompt_tokens: number;
  total_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens: number };
  completion_tokens_details?: { reasoning_tokens: number };
}

/** `numCachedTokens`: prompt tokens found in the prefix cache; undefined while unknown. */
export function usageBody(
  numPromptTokens: number,
  numOutputTokens: number,
  numCachedTokens?: number,
): UsageBody {
  return {
    prompt_tokens: numPromptTokens,
    total_tokens: numPromptTokens + numOutputTokens,
    completion_tokens: numOutputTokens,
    ...(numCachedTokens !== undefined && {
      prompt_tokens_details: { cached_tokens: numCachedTokens },
    }),
  };
}

/** Of a whole request. */
export function usageBodyOf(usage: Usage): UsageBody {
  const { numPromptTokens, numOutputTokens, numCachedTokens, numReasoningTokens } = usage;
  return {
    ...usageBody(numPromptTokens, numOutputTokens, numCachedTokens),
    ...(numReasoningTokens !== undefined && {
      completion_tokens_details: { reasoning_tokens: numReasoningTokens },
    }),
  };
}

/** The usage of an answered request. */
export function usageOfOutput({ promptTokenIds, numCachedTokens, outputs }: RequestOutput): Usage {
  const sum = (count: (output: (typeof outputs)[number]) => number) =>
    outputs.reduce((total, output) => total + count(output), 0);
  const reasons = outputs.some(({ numReasoningTokens }) => numReasoningTokens !== undefined);
  return {
    numPromptTokens: promptTokenIds.length,
    numCachedTokens,
    numOutputTokens: sum(({ tokenIds }) => tokenIds.length),
    ...(reasons && {
      numReasoningTokens: sum(({ numReasoningTokens }) => numReasoningTokens ?? 0),
    }),
  };
}
