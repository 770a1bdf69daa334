/** Validates the request of LLM.reinitializeDistributed. */
import { z } from 'zod';
import { ConfigError } from '../errors';
import { parseFields } from './schema';

/** Special values of a rank in a reconfiguration. */
export const ReconfigureRankType = {
  KEEP_CURRENT_RANK: -1,
  SHUTDOWN_CURRENT_RANK: -2,
} as const;

export interface ReconfigureDistributedRequest {
  newDataParallelSize: number;
  newDataParallelRank: number;
  newDataParallelRankLocal: number;
  newDataParallelMasterIp: string;
  newDataParallelMasterPort: number;
}

const { KEEP_CURRENT_RANK, SHUTDOWN_CURRENT_RANK } = ReconfigureRankType;

const schema = z.strictObject({
  newDataParallelSize: z
    .int()
    .min(1)
    .max(2 ** 16)
    .describe('an integer of at least 1'),
  newDataParallelRank: z
    .int()
    .min(SHUTDOWN_CURRENT_RANK)
    .describe('a rank, or one of ReconfigureRankType'),
  newDataParallelRankLocal: z
    .int()
    .min(KEEP_CURRENT_RANK)
    .describe('a local rank, or -1 to keep it'),
  newDataParallelMasterIp: z.string().min(1).describe("rank 0's address"),
  newDataParallelMasterPort: z.int().min(1).max(65535).describe('a port, 1 to 65535'),
} satisfies Record<keyof ReconfigureDistributedRequest, z.ZodType>);

/** Throws ConfigError, naming the field, its value and what is allowed. */
export function checkReconfigureRequest(request: unknown): ReconfigureDistributedRequest {
  return parseFields(
    schema,
    request,
    (message) => new ConfigError(`reinitializeDistributed: ${message}`),
  );
}
